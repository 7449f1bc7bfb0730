"""A group as a tree for a terminal: group, roles in start order, pods with what is wrong with them. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rbg_operator.colours import BOLD, DIM, GREEN, RED, YELLOW, paint
from rbg_operator.kubectl.pods import Crash, PodView
from rbg_operator.kubectl.times import age
from rbg_operator.kubectl.view import GroupView, RoleView

HEADER = ("ROLE", "STATE", "READY", "UPDATED", "RESTARTS", "AGE", "NODE")
GOOD = ("Ready", "Running", "Succeeded")
QUIET = ("Waiting", "Held", "Paused", "Pending", "Terminating", "Removing", "Unknown")
BUSY = ("Starting", "RollingOut", "Scaling", "Restarting", "ContainerCreating", "PodInitializing")
MIN_WIDTH, MAX_WIDTH = 60, 120
MAX_PODS = 50  # shown of one role; those with trouble first


@dataclass(frozen=True)
class Row:
    """A line of the table: cells, the colour of the state, or a remark that spans the columns."""

    cells: tuple[str, ...] = ()
    remark: str = ""
    indent: str = ""
    colour: str = ""


def render(group: GroupView, now: float, colour: bool = False, width: int = 100) -> str:
    """The whole group. now: seconds since the epoch; width: columns of the terminal, within 60 and 120."""
    width = min(max(width, MIN_WIDTH), MAX_WIDTH)
    rows = [row for role in group.roles for row in _role_rows(role, now)]
    return "\n".join([*_headline(group, now, colour, width), "", *_table(rows, colour, width)])


def state_colour(state: str) -> str:
    """The colour of a state of a role or pod: red for everything that needs somebody's help."""
    if state in GOOD:
        return GREEN
    return DIM if state in QUIET else YELLOW if state in BUSY else RED


def verdict(group: GroupView) -> tuple[str, str]:
    """The group in one word, and why it is not Ready."""
    if not group.conditions:
        return "Unknown", "no operator has looked at it yet; is the operator running?"
    if not group.observed:
        seen = f"the operator has seen generation {group.observed_generation} of {group.generation}"
        return "Deleting" if group.deleting else "Unknown", seen
    if group.ready and not group.deleting:
        return "Ready", ""
    valid, progressing = group.conditions.get("Valid"), group.conditions.get("Progressing")
    if valid and valid.status == "False":
        return valid.reason or "Invalid", valid.message
    if progressing and progressing.reason != "Complete":
        return progressing.reason or "NotReady", progressing.message
    ready = group.conditions.get("Ready")
    return (ready.reason or "NotReady", ready.message) if ready else ("NotReady", "")


def _headline(group: GroupView, now: float, colour: bool, width: int) -> Iterator[str]:
    word, why = verdict(group)
    facts = [
        f"{group.num_ready_roles}/{len(group.roles)} roles ready",
        f"revision {group.revision}" if group.revision else "",
        f"age {age(group.created, now)}",
    ]
    name = paint(f"{group.namespace}/{group.name}", BOLD, colour)
    yield "   ".join([name, paint(word, state_colour(word), colour), *filter(None, facts)])
    if why and not any(role.message and f"{role.name}: {role.message}" in why for role in group.roles):
        yield from textwrap.wrap(why, width, initial_indent="  ", subsequent_indent="  ")


def _role_rows(role: RoleView, now: float) -> Iterator[Row]:
    phase = role.phase or "Unknown"
    restarts = sum(pod.restarts for pod in role.pods)
    after = f"after {', '.join(role.dependencies)}" if role.dependencies else ""
    ready, updated = f"{role.ready}/{role.replicas}", f"{role.updated}/{role.replicas}"
    yield Row((role.name, phase, ready, updated, str(restarts or ""), "", after), colour=state_colour(phase))
    stem = "│  " if role.pods else "   "
    if role.message:
        yield Row(remark=role.message, indent=stem)
    if role.crash:
        yield Row(remark=f"{role.crashed_pod} {_crashed(role.crash, now)}", indent=stem)
        if phase != "Ready":
            yield from (Row(remark=line, indent=f"{stem}│ ") for line in role.crash.output)
    shown = _most_telling(role.pods)
    for pod in shown:
        is_last = pod is shown[-1] and len(shown) == len(role.pods)
        yield from _pod_rows(pod, now, is_last, told=role.message)
    if len(shown) < len(role.pods):
        yield Row(remark=f"{len(role.pods) - len(shown)} more pods", indent="└─ ")


def _most_telling(pods: Sequence[PodView]) -> list[PodView]:
    """At most MAX_PODS, those that are not ready first, in their own order."""
    chosen = sorted(pods, key=lambda pod: pod.ready)[:MAX_PODS]
    names = {pod.name for pod in chosen}
    return [pod for pod in pods if pod.name in names]


def _pod_rows(pod: PodView, now: float, is_last: bool, told: str) -> Iterator[Row]:
    branch, stem = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
    ready, updated = "yes" if pod.ready else "no", "yes" if pod.updated else "no"
    restarts, started = str(pod.restarts or ""), age(pod.created, now)
    cells = (branch + pod.name, pod.state, ready, updated, restarts, started, pod.node)
    yield Row(cells, colour=state_colour(pod.state))
    if pod.why and pod.why not in told:
        yield Row(remark=pod.why, indent=stem)
    if pod.crash:
        yield Row(remark=_crashed(pod.crash, now), indent=stem)
        if not pod.ready:
            yield from (Row(remark=line, indent=f"{stem}│ ") for line in pod.crash.output)


def _crashed(crash: Crash, now: float) -> str:
    reason = f" ({crash.reason})" if crash.reason not in ("", "Error") else ""
    when = f", {age(crash.finished_at, now)} ago" if crash.finished_at else ""
    return f"{crash.container} ended with exit code {crash.exit_code}{reason}{when}"


def _table(rows: Iterable[Row], colour: bool, width: int) -> Iterator[str]:
    """Columns of equal width; colours are added after padding, so that they do not count."""
    rows = [Row(HEADER, colour=DIM), *rows]
    widths = [max(len(row.cells[column]) for row in rows if row.cells) for column in range(len(HEADER))]
    for row in rows:
        if not row.cells:
            yield from _remark(row, colour, width)
            continue
        padded = [cell.ljust(size) for cell, size in zip(row.cells[:-1], widths[:-1], strict=True)]
        cells = [*padded, row.cells[-1]]
        if row.cells is HEADER:
            cells = [paint(cell, DIM, colour) for cell in cells]
        else:
            cells[1] = paint(cells[1], row.colour, colour)
        yield "  ".join(cells).rstrip()


def _remark(row: Row, colour: bool, width: int) -> Iterator[str]:
    for line in textwrap.wrap(row.remark, width - len(row.indent)) or [""]:
        yield row.indent + paint(line, DIM, colour)
