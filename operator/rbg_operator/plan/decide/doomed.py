"""Pods to delete now: by restart policy, and to let rollouts go on."""

from __future__ import annotations

from collections.abc import Container, Mapping

from rbg_operator.plan.decide.decisions import Decisions
from rbg_operator.plan.decide.owned import key_of
from rbg_operator.plan.decide.replace import replaced_now
from rbg_operator.plan.decide.roles import ObservedRole
from rbg_operator.plan.decide.workers import outdated_workers
from rbg_operator.plan.observed import Live, ObjectKey, Pod
from rbg_operator.plan.steps import Delete


def pods_to_delete(decided: Decisions, unwritten: Container[ObjectKey]) -> list[Delete]:
    """Each pod once. unwritten: objects that do not stand as they should yet; their pods would come back old."""
    standing = {key: live for key, live in decided.owned.items() if key[0] == "StatefulSet" and key not in unwritten}
    chosen: list[tuple[Pod, str]] = []
    for name, one in decided.roles.items():
        if _stands(one, standing):
            chosen += replaced_now(one, decided.rollouts[name])
        if one.rendered.workers is not None:
            chosen += outdated_workers(one, standing.values())
        restart = decided.restarts[name]
        chosen += [(pod, f"restart {restart.count} of role {name}") for pod in restart.victims]
    doomed = {pod.metadata.uid: (pod, why) for pod, why in chosen}
    return [Delete("v1", "Pod", pod.metadata.name, pod.metadata.uid, why) for pod, why in doomed.values()]


def _stands(one: ObservedRole, standing: Mapping[ObjectKey, Live]) -> bool:
    """Whether the role's StatefulSet is as wanted, and its controller knows."""
    return one.workload is not None and one.workload.is_seen and key_of(one.rendered.workload) in standing
