"""Who may be created now.

A role's workload is created when every role that it depends on is ready. One that was created once is never held back
again: neither scaling nor repair waits for a lost dependency. Roles of a gang start together, since the scheduler
places all of their pods or none.
"""

from __future__ import annotations

from collections.abc import Mapping

from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.plan.decide.previous import Previous
from rbg_operator.plan.decide.roles import ObservedRole
from rbg_operator.plan.decide.rollout import Rollout


def waits(
    group: RoleBasedGroup,
    roles: Mapping[str, ObservedRole],
    rollouts: Mapping[str, Rollout],
    previous: Previous,
) -> dict[str, tuple[str, ...]]:
    """For each role that may not be created yet, the dependencies that it waits for."""
    if group.gang is not None:
        return {}
    found = {
        name: tuple(other for other in one.rendered.role.dependencies if not _serves(roles[other], rollouts[other]))
        for name, one in roles.items()
        if one.workload is None and not _was_started(one, previous)
    }
    return {name: missing for name, missing in found.items() if missing}


def _serves(one: ObservedRole, rollout: Rollout) -> bool:
    """Whether all wanted instances are available, and at the current revision as far as the user's partition lets."""
    return one.wanted == 0 or (one.workload is not None and one.num_available >= one.wanted and not rollout.is_rolling)


def _was_started(one: ObservedRole, previous: Previous) -> bool:
    """Whether its workload was there before and somebody deleted it."""
    return bool(one.pods) or previous.role(one.name).phase not in ("", "Waiting", "Removing")
