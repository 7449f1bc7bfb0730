"""What stands and should not any more: removed roles, former kinds of a workload, objects that nobody needs now."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from rbg_operator.plan.decide.objects import clashing_kind
from rbg_operator.plan.decide.owned import HISTORY_KIND, WORKLOAD_KINDS, deletion, is_leaving
from rbg_operator.plan.decide.roles import ObservedRole, role_of
from rbg_operator.plan.decide.rollout import Rollout
from rbg_operator.plan.decide.teardown import teardown, workloads_by_role
from rbg_operator.plan.decide.workers import leader_is_old
from rbg_operator.plan.observed import Live, ObjectKey
from rbg_operator.plan.steps import Delete


@dataclass(frozen=True)
class Removal:
    """Deletes for now; removed roles that still have a workload; seconds after which to look again."""

    deletes: tuple[Delete, ...]
    roles: tuple[str, ...]
    look_again: float | None


def removal(
    roles: Mapping[str, ObservedRole],
    rollouts: Mapping[str, Rollout],
    wanted: Container[ObjectKey],
    owned: Mapping[ObjectKey, Live],
    now: float,
) -> Removal:
    """Removed roles go in reverse order of their start; their Services and what else they had after their pods."""
    workloads = workloads_by_role(owned)
    down = teardown({name: lives for name, lives in workloads.items() if name not in roles}, now)
    deletes = list(down.deletes)
    for key, live in owned.items():
        if key in wanted or is_leaving(live) or key[0] == HISTORY_KIND:
            continue
        role = role_of(live)
        if key[0] in WORKLOAD_KINDS:
            if role in roles and _is_outdated(roles[role], rollouts[role], key, owned):
                deletes.append(deletion(key, live, "outdated", foreground=True))
        elif role not in down.remaining:
            deletes.append(deletion(key, live, "no longer needed"))
    return Removal(tuple(deletes), down.remaining, down.look_again)


def _is_outdated(one: ObservedRole, rollout: Rollout, key: ObjectKey, owned: Mapping[ObjectKey, Live]) -> bool:
    main = str(one.rendered.workload["metadata"]["name"])
    if key[1] == main:  # the role had another kind before
        return key == clashing_kind(one, owned) or one.is_complete
    ordinal = key[1].removeprefix(f"{main}-")  # workers of a multi-node role
    if not (ordinal.isascii() and ordinal.isdigit() and len(ordinal) < 10):
        return True
    return int(ordinal) >= rollout.knobs.replicas or not leader_is_old(one, int(ordinal))
