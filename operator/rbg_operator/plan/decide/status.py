"""The group's status, and when to write it: requests are what limits a busy cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rbg_operator.api.documents import Json
from rbg_operator.plan.decide import conditions
from rbg_operator.plan.decide.evidence import last_crash
from rbg_operator.plan.decide.phases import Phase, RoleState, phases
from rbg_operator.plan.decide.previous import Previous
from rbg_operator.plan.decide.restart import Restart
from rbg_operator.plan.decide.times import format_time
from rbg_operator.plan.observed import Snapshot
from rbg_operator.plan.rendering import Rendering


def group_status(
    rendering: Rendering,
    states: Mapping[str, RoleState],
    removing: Sequence[str],
    verdict: conditions.Verdict,
    obstacle: str,
    previous: Previous,
    now: float,
) -> Json:
    """The status of a group whose manifest could be rendered. verdict: the condition Valid.

    obstacle: why an object of the whole group cannot be written, "" if nothing is in the way.
    """
    found = phases(states) | dict.fromkeys(removing, (Phase.REMOVING, "no longer in the manifest"))
    generation = rendering.group.generation
    verdicts = [
        verdict,
        conditions.dependencies(states),
        conditions.progressing(found, obstacle),
        conditions.ready(found),
    ]
    num_ready = sum(found[name][0] is Phase.READY for name in states)
    return {
        "observedGeneration": generation,
        "revision": rendering.revision,
        "rolesReady": f"{num_ready}/{len(states)}",
        "conditions": conditions.written(verdicts, generation, previous, now),
        "roleStatuses": [_role(state, *found[name]) for name, state in states.items()]
        + [{"name": name, "phase": str(Phase.REMOVING), "message": found[name][1]} for name in removing],
    }


def _role(state: RoleState, phase: Phase, message: str) -> Json:
    one = state.observed
    entry: Json = {
        "name": one.name,
        "phase": str(phase),
        "message": message,
        "replicas": one.num_existing,
        "readyReplicas": one.num_available,
        "updatedReplicas": one.num_updated,
        "revision": one.rendered.revision,
    }
    if state.restart.count:
        entry["restarts"] = _restarts(state.restart)
    if crash := last_crash((*one.pods, *one.ended), state.before.last_crash):
        entry["lastCrash"] = crash
    return entry


def _restarts(restart: Restart) -> Json:
    times = {"lastTime": restart.last, "nextTime": restart.next}
    return {"count": restart.count} | {key: format_time(time) for key, time in times.items() if time is not None}


def when_to_write(status: Json, snapshot: Snapshot) -> float | None:
    """Seconds until the status is to be written; 0: now; None: it stands already."""
    if status == snapshot.status:
        return None
    if _urgent(status) != _urgent(snapshot.status):
        return 0.0
    return max(0.0, snapshot.status_written_at + snapshot.status_interval - snapshot.now)


def _urgent(status: Any) -> Any:
    """What is written at once when it changes."""
    try:
        return (
            status["observedGeneration"],
            {entry["type"]: (entry["status"], entry["type"] == "Valid" and entry["reason"])
             for entry in status["conditions"] if entry["type"] != "DependenciesReady"},
            {entry["name"]: (entry.get("restarts"), entry.get("lastCrash"))
             for entry in status.get("roleStatuses", ()) if entry.get("restarts") or entry.get("lastCrash")},
        )  # fmt: skip
    except (LookupError, TypeError, AttributeError):  # not a status that this operator wrote
        return None
