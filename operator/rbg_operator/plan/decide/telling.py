"""From decisions to the status of the group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rbg_operator.api.documents import Json
from rbg_operator.plan.decide.conditions import Verdict, valid
from rbg_operator.plan.decide.decisions import Decisions
from rbg_operator.plan.decide.objects import Wanted
from rbg_operator.plan.decide.phases import RoleState
from rbg_operator.plan.decide.status import group_status
from rbg_operator.plan.observed import ObjectKey, Snapshot
from rbg_operator.plan.rendering import Rendering


def status_of(
    rendering: Rendering,
    decided: Decisions,
    wanted: Mapping[ObjectKey, Wanted],
    taken: Sequence[ObjectKey],
    removing: Sequence[str],
    snapshot: Snapshot,
) -> Json:
    """taken: names that somebody else has. removing: roles that are gone from the manifest, not from the cluster."""
    states = {
        name: RoleState(
            observed=one,
            rollout=decided.rollouts[name],
            restart=decided.restarts[name],
            waits_for=decided.waiting.get(name, ()),
            obstacle=_obstacle(name, wanted, taken, snapshot),
            before=decided.previous.role(name),
        )
        for name, one in decided.roles.items()
    }
    obstacle = _obstacle("", wanted, taken, snapshot)
    return group_status(rendering, states, removing, _valid(taken), obstacle, decided.previous, snapshot.now)


def _valid(taken: Sequence[ObjectKey]) -> Verdict:
    if not taken:
        return valid()
    names = ", ".join(f"{kind} {name}" for kind, name in taken)
    return Verdict("Valid", False, "NameTaken", f"{names}: exists and belongs to somebody else; rename one of the two")


def _obstacle(role: str, wanted: Mapping[ObjectKey, Wanted], taken: Collection[ObjectKey], snapshot: Snapshot) -> str:
    """Why an object of the role ("": of the whole group) cannot be written; "" if nothing is in the way."""
    for key, one in wanted.items():
        if one.role == role:
            if key in taken:
                return f"{key[0]} {key[1]} belongs to somebody else"
            if key in snapshot.refused:
                return f"{key[0]} {key[1]}: {snapshot.refused[key]}"
    return ""
