"""The state of a group as plain data, for `rbg status` and for whoever waits for it. Pure.

Starting   not every pod has been ready yet
Failing    a pod crashed again and again and never was ready; it is still being restarted
Ready      exactly the desired pods run and all are ready
Degraded   it was ready and is not now
Stopping   it is being taken down
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rbg_operator.colours import BOLD, DIM, GREEN, RED, YELLOW, paint


class GroupState(enum.StrEnum):
    """See the module."""

    STARTING = "Starting"
    FAILING = "Failing"
    READY = "Ready"
    DEGRADED = "Degraded"
    STOPPING = "Stopping"


STATE_COLOURS = {
    "Ready": GREEN, "Starting": YELLOW, "Waiting": DIM, "Unready": RED, "CrashLoopBackOff": RED, "Stopping": DIM,
    "Failing": RED, "Degraded": RED,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PodReport:
    """One pod. pid is 0 when no process runs; last_exit and last_output tell of its latest crash."""

    name: str
    state: str
    ready: bool = False
    restarts: int = 0
    address: str
    port: int | None
    pid: int = 0
    reason: str = ""
    failing: bool = False
    last_exit: str = ""
    last_output: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RoleReport:
    """One role with its pods; `ready` counts them."""

    name: str
    kind: str
    replicas: int
    ready: int
    dependencies: list[str]
    pods: list[PodReport]


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """A group; url is its entry point, "" if none can be told."""

    name: str
    namespace: str
    state: GroupState
    url: str
    supervisor_pid: int
    uptime_seconds: float
    roles: list[RoleReport]


def from_json(value: dict[str, Any]) -> GroupReport:
    """A report as it came through the socket. Raises TypeError, KeyError or ValueError if it is none."""
    roles = [RoleReport(**{**role, "pods": [PodReport(**pod) for pod in role["pods"]]}) for role in value.pop("roles")]
    return GroupReport(**{**value, "state": GroupState(value["state"]), "roles": roles})


def failure(report: GroupReport) -> str:
    """Why the group probably never becomes ready, with the last output of each failing pod; "" if it still may."""
    parts = []
    for role in report.roles:
        for pod in role.pods:
            if pod.failing:
                output = "".join(f"\n    {line}" for line in pod.last_output) or " (it printed nothing)"
                parts.append(f"pod {pod.name} does not start: {pod.last_exit}. Its last output:{output}")
    return "\n".join(parts)


def unready(report: GroupReport) -> str:
    """One line for each pod that is not ready."""
    pods = [pod for role in report.roles for pod in role.pods if not pod.ready]
    return "\n".join(f"pod {pod.name} is {pod.state}: {pod.reason}" for pod in pods)


def render(report: GroupReport, colour: bool) -> str:
    """The report for a terminal: a headline, then one line for each role and pod."""
    state = paint(report.state, STATE_COLOURS[report.state], colour)
    head = [paint(report.name, BOLD, colour), state, report.url, f"up {duration(report.uptime_seconds)}"]
    rows: list[Sequence[str]] = [("NAME", "STATE", "READY", "RESTARTS", "ADDRESS", "PID", "WHY")]
    for role in report.roles:
        after = f"after {', '.join(role.dependencies)}" if role.dependencies else ""
        rows.append((role.name, role.kind, f"{role.ready}/{role.replicas}", "", "", "", after))
        for index, pod in enumerate(role.pods):
            rows.append((("└─ " if index == len(role.pods) - 1 else "├─ ") + pod.name, *_pod_cells(pod)))
    return "   ".join(part for part in head if part) + "\n\n" + _table(rows, colour)


def duration(seconds: float) -> str:
    """Seconds such as 3725 as 1h2m."""
    total = int(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60}s"
    return f"{total // 3600}h{total % 3600 // 60}m"


def _pod_cells(pod: PodReport) -> tuple[str, ...]:
    address = f"{pod.address}:{pod.port}" if pod.port else pod.address
    ready, pid = "yes" if pod.ready else "no", str(pod.pid or "-")
    return pod.state, ready, str(pod.restarts), address, pid, pod.reason


def _table(rows: Sequence[Sequence[str]], colour: bool) -> str:
    """Columns of equal width; colours are added after padding, so that they do not count."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if number == 0:
            cells = [paint(cell, DIM, colour) for cell in cells]
        elif row[1] in STATE_COLOURS:
            cells[1] = paint(cells[1], STATE_COLOURS[row[1]], colour)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
