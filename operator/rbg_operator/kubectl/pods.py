"""One pod in the words of `kubectl get pods`: its state, why it is not ready, how it crashed."""

from __future__ import annotations

from dataclasses import dataclass

from rbg_operator.kubectl.read import lines, one_line
from rbg_operator.plan import labels
from rbg_operator.plan.observed import ContainerStatus, Pod, Terminated

LAST_LINES = 5


@dataclass(frozen=True, kw_only=True)
class Crash:
    """How a container ended last. finished_at: RFC 3339 or ""; output: the last lines it printed, if they were kept."""

    container: str
    exit_code: int
    reason: str
    finished_at: str
    output: list[str]


@dataclass(frozen=True, kw_only=True)
class PodView:
    """One pod. state as kubectl shows it; updated: whether it runs its role's current revision."""

    name: str
    state: str
    why: str
    ready: bool
    updated: bool
    restarts: int
    node: str
    created: str
    crash: Crash | None


def pod_view(pod: Pod, revision: str) -> PodView:
    """What there is to see of a pod. revision: the one its role wants; "" while that is unknown: all are current."""
    state, why = _state(pod)
    statuses = (*pod.status.init_container_statuses, *pod.status.container_statuses)
    return PodView(
        name=pod.metadata.name,
        state=one_line(state),
        why=one_line(why),
        ready=state != "Terminating" and _is_ready(pod),
        updated=pod.metadata.labels.get(labels.ROLE_REVISION, revision) == revision or not revision,
        restarts=sum(status.restart_count for status in statuses),
        node=pod.spec.node_name,
        created=pod.metadata.creation_timestamp,
        crash=_crash(statuses),
    )


def _is_ready(pod: Pod) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in pod.status.conditions)


def _state(pod: Pod) -> tuple[str, str]:
    """The state and a sentence about it."""
    if pod.metadata.deletion_timestamp:
        return "Terminating", ""
    for prefix, statuses in (("Init:", pod.status.init_container_statuses), ("", pod.status.container_statuses)):
        for status in statuses:
            if trouble := _trouble(status, is_init=bool(prefix)):
                return prefix + trouble[0], trouble[1]
    if pod.status.phase == "Running":
        return ("Running", "") if _is_ready(pod) else ("Unready", _unready(pod))
    for condition in pod.status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            return condition.reason or "Unscheduled", condition.message
    return pod.status.phase or "Pending", ""


def _trouble(status: ContainerStatus, is_init: bool) -> tuple[str, str] | None:
    """Why this container does not run; None if it does, or if it is an init container that did its work."""
    if waiting := status.state.waiting:
        return (waiting.reason or "Waiting", waiting.message) if waiting.reason != "PodInitializing" else None
    if (ended := status.state.terminated) and not (is_init and ended.exit_code == 0):
        return ended.reason or "Terminated", f"exit code {ended.exit_code}"
    return None


def _unready(pod: Pod) -> str:
    waiting = [status.name for status in pod.status.container_statuses if not status.ready]
    return f"container {', '.join(waiting)} runs and is not ready" if waiting else ""


def _crash(statuses: tuple[ContainerStatus, ...]) -> Crash | None:
    """The latest unclean end of any container."""
    ends = [(end, status.name) for status in statuses if (end := _end(status))]
    if not ends:
        return None
    end, container = max(ends, key=lambda item: item[0].finished_at or "")
    return Crash(
        container=container,
        exit_code=end.exit_code,
        reason=one_line(end.reason),
        finished_at=end.finished_at or "",
        output=lines(end.message, LAST_LINES),
    )


def _end(status: ContainerStatus) -> Terminated | None:
    end = status.state.terminated or status.last_state.terminated
    return end if end and (end.exit_code != 0 or status.restart_count) else None
