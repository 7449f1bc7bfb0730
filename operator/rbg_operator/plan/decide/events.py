"""Events on transitions: what a status tells that the one before did not. They go out with the status or never."""

from __future__ import annotations

from rbg_operator.api.documents import Json
from rbg_operator.plan.decide.previous import Previous, read_previous
from rbg_operator.plan.steps import Emit


def transitions(before: Previous, status: Json) -> list[Emit]:
    """The Events that belong to this change of status."""
    after = read_previous(status)
    return [*_of_group(before, after), *(emit for name in after.roles for emit in _of_role(name, before, after))]


def _of_group(before: Previous, after: Previous) -> list[Emit]:
    found = []
    valid, progressing = after.condition("Valid", "status"), after.condition("Progressing", "reason")
    if valid == "False" and _changed("Valid", "reason", before, after):
        found.append(Emit("Warning", after.condition("Valid", "reason"), after.condition("Valid", "message")))
    elif not before.conditions:
        found.append(Emit("Normal", "Started", f"{len(after.roles)} roles: {', '.join(after.roles)}"[:1000]))
    if _changed("Progressing", "reason", before, after):
        message = after.condition("Progressing", "message")
        if progressing == "RollingOut":
            found.append(Emit("Normal", "RolloutStarted", message))
        elif progressing == "Stalled":
            found.append(Emit("Warning", "Stalled", message))
    if after.condition("Ready", "status") == "True" and _changed("Ready", "status", before, after):
        found.append(Emit("Normal", "Ready", f"all {len(after.roles)} roles are ready"))
    return found


def _of_role(name: str, before: Previous, after: Previous) -> list[Emit]:
    old, new = before.role(name), after.role(name)
    found = []
    if new.last_crash is not None and new.last_crash != old.last_crash:
        crash = new.last_crash
        text = f"pod {crash['pod']}, container {crash['container']}: exit code {crash['exitCode']} ({crash['reason']})"
        found.append(Emit("Warning", "PodCrashed", f"{text}\n{crash['message']}".strip()))
    if new.next_restart is not None and new.restart_count > old.restart_count:
        due = new.entry["restarts"]["nextTime"]
        found.append(Emit("Warning", "Restarting", f"role {name}: restart {new.restart_count} at {due}"))
    return found


def _changed(kind: str, key: str, before: Previous, after: Previous) -> bool:
    return before.condition(kind, key) != after.condition(kind, key)
