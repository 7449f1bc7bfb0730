"""What was observed of a group and decided about each of its roles: the middle of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rbg_operator.plan.decide.owned import owned_objects
from rbg_operator.plan.decide.previous import Previous, read_previous
from rbg_operator.plan.decide.restart import Restart, restarts
from rbg_operator.plan.decide.roles import ObservedRole, observe_roles
from rbg_operator.plan.decide.rollout import Rollout, rollouts
from rbg_operator.plan.decide.start import waits
from rbg_operator.plan.observed import Live, ObjectKey, Snapshot
from rbg_operator.plan.rendering import Rendering


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Mappings by name of the role. waiting: roles that may not be created yet, and what they wait for."""

    owned: Mapping[ObjectKey, Live]
    previous: Previous
    roles: Mapping[str, ObservedRole]
    rollouts: Mapping[str, Rollout]
    waiting: Mapping[str, tuple[str, ...]]
    restarts: Mapping[str, Restart]


def decisions(rendering: Rendering, snapshot: Snapshot) -> Decisions:
    """Observe, then decide."""
    owned = owned_objects(snapshot, rendering.group.uid)
    previous = read_previous(snapshot.status)
    roles = observe_roles(rendering, snapshot, owned)
    rolls = rollouts(rendering.group, roles)
    return Decisions(
        owned=owned,
        previous=previous,
        roles=roles,
        rollouts=rolls,
        waiting=waits(rendering.group, roles, rolls, previous),
        restarts=restarts(roles, previous),
    )
