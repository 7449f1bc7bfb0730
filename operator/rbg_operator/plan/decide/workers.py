"""Multi-node roles without LeaderWorkerSet: the workers of an instance follow the revision of its leader.

Workers are useless with a leader of another revision, so they are replaced all at once as soon as theirs is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.decide import pods as facts
from rbg_operator.plan.decide.roles import ObservedRole
from rbg_operator.plan.decide.workload import read_workload
from rbg_operator.plan.observed import Live, ObjectKey, Pod
from rbg_operator.plan.render import workers_of


def wanted_workers(one: ObservedRole, replicas: int, owned: Mapping[ObjectKey, Live]) -> list[tuple[Json, bool]]:
    """The StatefulSet of each instance's workers by ordinal, and whether it may be written now."""
    if one.rendered.workers is None:
        return []
    found = []
    for ordinal in range(replicas):
        live = owned.get(("StatefulSet", f"{one.rendered.workload['metadata']['name']}-{ordinal}"))
        found.append((workers_of(one.rendered, ordinal, live), _may_follow(one, ordinal, live)))
    return found


def _may_follow(one: ObservedRole, ordinal: int, live: Live | None) -> bool:
    if live is None or live.metadata.labels.get(labels.ROLE_REVISION) == one.rendered.revision:
        return True
    return not leader_is_old(one, ordinal)


def leader_is_old(one: ObservedRole, ordinal: int) -> bool:
    """Whether the instance's leader runs another revision, or will when it comes back."""
    instance = one.instances.get(ordinal)
    if instance is None or instance.leader is None:
        return one.workload is not None and ordinal < one.workload.partition
    return instance.is_old


def outdated_workers(one: ObservedRole, standing: Iterable[Live]) -> list[tuple[Pod, str]]:
    """Worker pods to delete now and why: their leader and their StatefulSet are at the current revision, they not."""
    seen = {live.metadata.name for live in standing if read_workload(live).is_seen}
    current = one.rendered.revision
    return [
        (pod, "follows its leader")
        for instance in one.instances.values()
        if instance.leader is not None and not instance.is_old
        for pod in instance.workers
        if facts.revision(pod) != current and pod.metadata.name.rpartition("-")[0] in seen
    ]
