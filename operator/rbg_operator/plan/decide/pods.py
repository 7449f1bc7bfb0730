"""Facts about single pods."""

from __future__ import annotations

from collections.abc import Iterable

from rbg_operator.plan import labels
from rbg_operator.plan.decide.times import parse_time
from rbg_operator.plan.observed import Pod

LWS_INSTANCE = "leaderworkerset.sigs.k8s.io/group-index"
LWS_NODE = "leaderworkerset.sigs.k8s.io/worker-index"


def pods_by_role(pods: Iterable[Pod], group_uid: str) -> dict[str, list[Pod]]:
    """Pods of this very group, not of a deleted one of the same name, by name of the role."""
    found: dict[str, list[Pod]] = {}
    for pod in pods:
        if pod.metadata.labels.get(labels.GROUP_UID) == group_uid:
            found.setdefault(pod.metadata.labels.get(labels.ROLE_NAME, ""), []).append(pod)
    return found


def is_terminating(pod: Pod) -> bool:
    """Whether it was told to end."""
    return pod.metadata.deletion_timestamp is not None


def has_ended(pod: Pod) -> bool:
    """Whether it will never run again: evicted, failed or done."""
    return pod.status.phase in ("Failed", "Succeeded")


def ready_since(pod: Pod) -> float | None:
    """Since when it is ready, in seconds since the epoch; None when it is not."""
    for condition in pod.status.conditions:
        if condition.type == "Ready":
            return parse_time(condition.last_transition_time) or 0.0 if condition.status == "True" else None
    return None


def has_restarted(pod: Pod) -> bool:
    """Whether a container of it was started again, or the whole pod failed."""
    return pod.status.phase == "Failed" or any(status.restart_count > 0 for status in pod.status.container_statuses)


def revision(pod: Pod) -> str:
    """The role revision that it was made from."""
    return pod.metadata.labels.get(labels.ROLE_REVISION, "")


def owner_kind(pod: Pod) -> str:
    """Kind of the controller that made it, "" if it has none."""
    return next((owner.kind for owner in pod.metadata.owner_references if owner.controller), "")


def instance_of(pod: Pod) -> int | None:
    """The role's instance that it belongs to; None if nothing says so."""
    marks = pod.metadata.labels
    for key in (labels.INSTANCE, LWS_INSTANCE, labels.POD_INDEX):
        if (value := marks.get(key)) is not None:
            return _ordinal(value)
    return _ordinal(pod.metadata.name.rpartition("-")[2])


def is_leader(pod: Pod) -> bool:
    """Whether it is the first node of its instance; the only one, where instances have one node."""
    marks = pod.metadata.labels
    if LWS_NODE in marks:
        return marks[LWS_NODE] == "0"
    return labels.INSTANCE not in marks or marks.get(labels.POD_INDEX) == "0"


def _ordinal(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
