"""Tables of groups and of revisions. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rbg_operator.colours import BOLD, DIM, paint
from rbg_operator.kubectl.history import Revision
from rbg_operator.kubectl.times import age
from rbg_operator.kubectl.tree import state_colour, verdict
from rbg_operator.kubectl.view import GroupView

MAX_CHANGES = 3  # shown of one revision


def groups_table(
    groups: Sequence[GroupView], now: float, colour: bool, width: int, with_namespace: bool = False
) -> str:
    """One line for each group: how much of it is ready and, cut at the terminal's width, why not all."""
    rows = [("GROUP", "STATE", "ROLES", "AGE", "WHY")]
    for group in sorted(groups, key=lambda group: (group.namespace, group.name)):
        word, why = verdict(group)
        name = f"{group.namespace}/{group.name}" if with_namespace else group.name
        rows.append((name, word, f"{group.num_ready_roles}/{len(group.roles)}", age(group.created, now), why))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(size) for cell, size in zip(row, widths, strict=False)]
        room = max(width - sum(widths) - 2 * len(widths), 10)
        cells.append(row[4] if len(row[4]) <= room else row[4][: room - 1] + "…")
        if number == 0:
            cells = [paint(cell, DIM, colour) for cell in cells]
        else:
            cells[1] = paint(cells[1], state_colour(row[1]), colour)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def history_table(revisions: Sequence[Revision], now: float, colour: bool) -> str:
    """One line for each revision, more where several things changed."""
    if not revisions:
        return "no revisions are kept yet; the operator writes the first when it starts the group"
    lines = [paint("REVISION  AGE     CHANGE", DIM, colour)]
    for revision in revisions:
        changes = revision.changes or ["(first that is kept)" if revision is revisions[0] else "(nothing)"]
        hidden = len(changes) - MAX_CHANGES
        shown = [*changes[:MAX_CHANGES], *([f"and {hidden} more"] if hidden > 0 else [])]
        mark = "*" if revision.current else " "
        head = f"{revision.number:>7} {mark}  {age(revision.created, now):<6}  "
        lines.append(paint(head, BOLD, colour and revision.current) + shown[0])
        lines += [" " * len(head) + change for change in shown[1:]]
    return "\n".join([*lines, "* as the group is specified now"])
