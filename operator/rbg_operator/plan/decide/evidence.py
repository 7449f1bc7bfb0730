"""Why a pod is not ready, in one line, and how a container ended: what a user would look for with kubectl describe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rbg_operator.api.documents import Json
from rbg_operator.plan.decide import pods as facts
from rbg_operator.plan.decide.times import parse_time
from rbg_operator.plan.observed import ContainerStatus, Pod, Terminated

MAX_LINE = 300  # characters
MAX_CRASH_MESSAGE = 1000
HARMLESS = frozenset({"", "ContainerCreating", "PodInitializing"})  # reasons of a container that is on its way


def why_not_ready(pods: Iterable[Pod]) -> str | None:
    """The first piece of evidence among the pods that something is wrong; None if they may just need time."""
    for pod in pods:
        if facts.ready_since(pod) is None and (found := _evidence(pod)):
            return f"pod {pod.metadata.name}{found}"
    return None


def _evidence(pod: Pod) -> str | None:
    for condition in pod.status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            return _line(f": {condition.reason or 'Unschedulable'}: {condition.message}")
    for container in _containers(pod):
        if found := _stuck(container):
            return _line(f", container {container.name}: {found}")
    return None


def _stuck(container: ContainerStatus) -> str | None:
    state = container.state
    if state.waiting is not None and state.waiting.reason not in HARMLESS:
        ended = container.last_state.terminated
        if state.waiting.reason == "CrashLoopBackOff" and ended is not None:  # its own message counts seconds
            return f"CrashLoopBackOff after {_ending(ended)}"
        return f"{state.waiting.reason}: {state.waiting.message}"
    if state.terminated is not None and state.terminated.exit_code != 0:
        return _ending(state.terminated)
    return None


def _ending(ended: Terminated) -> str:
    last_line = next((line for line in reversed(ended.message.splitlines()) if line.strip()), "")
    return f"exit code {ended.exit_code} ({ended.reason or 'Error'})" + (f": {last_line}" if last_line else "")


def last_crash(pods: Iterable[Pod], before: Json | None) -> Json | None:
    """The newest crash of a container, as an entry of the status; what was known before unless there is a newer one."""
    newest, time = before, (parse_time(before.get("time")) or 0.0 if before else -1.0)
    for pod in pods:
        for container, ended in _crashes(pod):
            finished = parse_time(ended.finished_at) or 0.0
            if finished > time:
                newest, time = _crash(pod, container, ended), finished
    return newest


def _crashes(pod: Pod) -> Iterator[tuple[ContainerStatus, Terminated]]:
    for container in _containers(pod):
        for ended in (container.state.terminated, container.last_state.terminated):
            if ended is not None and (ended.exit_code != 0 or container in pod.status.container_statuses):
                yield container, ended


def _crash(pod: Pod, container: ContainerStatus, ended: Terminated) -> Json:
    return {
        "pod": pod.metadata.name,
        "container": container.name,
        "exitCode": ended.exit_code,
        "reason": ended.reason,
        "message": ended.message.strip()[-MAX_CRASH_MESSAGE:],
        "time": ended.finished_at or "",
    }


def _containers(pod: Pod) -> tuple[ContainerStatus, ...]:
    return (*pod.status.init_container_statuses, *pod.status.container_statuses)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…"
