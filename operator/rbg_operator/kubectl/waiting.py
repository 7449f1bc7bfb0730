"""Whether a rollout is done, cannot be done, or goes on. Pure."""

from __future__ import annotations

import enum

from rbg_operator.kubectl.view import GroupView


class Outcome(enum.Enum):
    """What somebody who waits for a group is told."""

    WAIT = "wait"
    READY = "ready"
    FAILED = "failed"  # nothing will happen until somebody edits the group


def outcome(group: GroupView) -> tuple[Outcome, str]:
    """The outcome and one line about it. A stalled group is waited for: a node or an image may still come."""
    if group.deleting:
        return Outcome.FAILED, f"{group.name} is being deleted"
    if not group.observed or not group.conditions:
        seen = f"the operator has seen generation {group.observed_generation} of {group.generation}"
        return Outcome.WAIT, f"{group.name}: {seen}"
    if group.ready:
        return Outcome.READY, f"{group.name} is Ready at generation {group.generation}"
    valid = group.conditions.get("Valid")
    if valid and valid.status == "False":
        return Outcome.FAILED, f"{group.name} cannot be used: {valid.reason}: {valid.message}"
    progressing = group.conditions.get("Progressing")
    if progressing and progressing.status == "False" and progressing.reason == "Paused":
        return Outcome.FAILED, f"{group.name} is paused: {progressing.message}"
    condition = progressing if progressing and progressing.reason != "Complete" else group.conditions.get("Ready")
    reason = f": {condition.reason}: {condition.message}".rstrip(": ") if condition else ""
    return Outcome.WAIT, f"{group.num_ready_roles}/{len(group.roles)} roles ready{reason}"
