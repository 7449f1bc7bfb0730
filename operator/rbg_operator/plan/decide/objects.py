"""The objects that should stand now, in the order in which to write them, and which of them have to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from rbg_operator.api.documents import Json
from rbg_operator.plan.decide.decisions import Decisions
from rbg_operator.plan.decide.immutable import must_be_made_anew
from rbg_operator.plan.decide.owned import deletion, is_blocked, key_of
from rbg_operator.plan.decide.roles import ObservedRole
from rbg_operator.plan.decide.rollout import Rollout
from rbg_operator.plan.decide.workers import wanted_workers
from rbg_operator.plan.observed import Live, ObjectKey, Snapshot
from rbg_operator.plan.order import start_order
from rbg_operator.plan.render import with_knobs
from rbg_operator.plan.rendering import Rendering
from rbg_operator.plan.steps import Apply, Delete

Stands: TypeAlias = Callable[[Json, Live], bool]
"""Whether the sealed object stands so in the cluster (compare.matches)."""


@dataclass(frozen=True)
class Wanted:
    """One object. role: "" for those of the whole group. may_write: False keeps it as it stands for now."""

    body: Json
    role: str = ""
    may_write: bool = True


def wanted_objects(rendering: Rendering, decided: Decisions) -> dict[ObjectKey, Wanted]:
    """Everything but history and adapters: group objects, Services, then workloads in the order of their start."""
    found = [Wanted(body) for body in rendering.first]
    for name, rendered in rendering.roles.items():
        found += [Wanted(service, name) for service in rendered.services]
    for level in start_order(rendering.group.roles):
        for name in level:
            if name not in decided.waiting:
                found += _workloads(decided.roles[name], decided.rollouts[name], decided.owned)
    return {key_of(wanted.body): wanted for wanted in found}


def _workloads(one: ObservedRole, rollout: Rollout, owned: Mapping[ObjectKey, Live]) -> list[Wanted]:
    main = with_knobs(one.rendered, rollout.knobs, one.workload.live if one.workload else None)
    workers = wanted_workers(one, rollout.knobs.replicas, owned)
    is_free = clashing_kind(one, owned) is None
    return [Wanted(main, one.name, is_free), *(Wanted(body, one.name, is_free and may) for body, may in workers)]


def clashing_kind(one: ObservedRole, owned: Mapping[ObjectKey, Live]) -> ObjectKey | None:
    """The role's workload of a former kind whose pods have the names of the new one's, so that it must go first."""
    others = {"StatefulSet": "LeaderWorkerSet", "LeaderWorkerSet": "StatefulSet"}
    if one.kind not in others:
        return None
    key = (others[one.kind], str(one.rendered.workload["metadata"]["name"]))
    return key if key in owned else None


def writes(
    wanted: Mapping[ObjectKey, Wanted], uid: str, snapshot: Snapshot, owned: Mapping[ObjectKey, Live], stands: Stands
) -> dict[ObjectKey, Apply | Delete]:
    """Those that are missing or differ; what cannot be changed is deleted, and made anew when it is gone."""
    found: dict[ObjectKey, Apply | Delete] = {}
    for key, one in wanted.items():
        if not one.may_write or is_blocked(snapshot, uid, key):
            continue
        live = owned.get(key)
        if live is None:
            found[key] = Apply(one.body, create=True)
        elif stands(one.body, live):
            continue
        elif must_be_made_anew(one.body, live):
            found[key] = deletion(key, live, "a field that differs cannot be changed", foreground=True)
        else:
            found[key] = Apply(one.body, create=False, uid=live.metadata.uid)
    return found
