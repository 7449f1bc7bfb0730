"""The four conditions of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.plan.decide.phases import Phase, RoleState
from rbg_operator.plan.decide.previous import Previous
from rbg_operator.plan.decide.times import format_time, parse_time

MAX_MESSAGE = 1000  # characters

_ACTIVE = {  # a phase in which something is being done, and the reason that it gives the group; the first counts
    Phase.RESTARTING: "Restarting",
    Phase.ROLLING_OUT: "RollingOut",
    Phase.SCALING: "Scaling",
    Phase.STARTING: "Starting",
    Phase.REMOVING: "Deleting",
}

Phases = Mapping[str, tuple[Phase, str]]


@dataclass(frozen=True)
class Verdict:
    """One condition before it gets its times."""

    type: str
    holds: bool
    reason: str
    message: str = ""


def valid() -> Verdict:
    """The manifest can be used."""
    return Verdict("Valid", True, "Accepted")


def dependencies(states: Mapping[str, RoleState]) -> Verdict:
    """Whether a role waits for another, at its start or in a rollout."""
    waiting = [
        f"{name} waits for {', '.join(state.waits_for or state.rollout.held_by)}"
        for name, state in states.items()
        if state.waits_for or state.rollout.held_by
    ]
    if waiting:
        return Verdict("DependenciesReady", False, "Waiting", "; ".join(waiting))
    return Verdict("DependenciesReady", True, "AllStarted")


def progressing(phases: Phases, obstacle: str) -> Verdict:
    """Whether something is being done."""
    for phase, reason in _ACTIVE.items():
        if active := _told(phases, phase):
            return Verdict("Progressing", True, reason, active)
    if obstacle:
        return Verdict("Progressing", False, "Stalled", obstacle)
    for phase, reason in ((Phase.STALLED, "Stalled"), (Phase.PAUSED, "Paused"), (Phase.HELD, "Paused")):
        if stopped := _told(phases, phase):
            return Verdict("Progressing", False, reason, stopped)
    if waiting := _told(phases, Phase.WAITING):
        return Verdict("Progressing", True, "Starting", waiting)
    return Verdict("Progressing", False, "Complete")


def ready(phases: Phases) -> Verdict:
    """Whether every role of the manifest is as it should be."""
    missing = {name: told for name, told in phases.items() if told[0] not in (Phase.READY, Phase.REMOVING)}
    if not missing:
        return Verdict("Ready", True, "AllRolesReady")
    text = "; ".join(f"{name}: {phase}, {message}" for name, (phase, message) in missing.items())
    return Verdict("Ready", False, "RolesNotReady", text)


def _told(phases: Phases, wanted: Phase) -> str:
    return "; ".join(f"{name}: {message}" for name, (phase, message) in phases.items() if phase is wanted)


def written(verdicts: Sequence[Verdict], generation: int, previous: Previous, now: float) -> list[Json]:
    """As they stand in the status. lastTransitionTime stays while the status does."""
    return [_written(verdict, generation, previous, now) for verdict in verdicts]


def _written(verdict: Verdict, generation: int, previous: Previous, now: float) -> Json:
    status = "True" if verdict.holds else "False"
    since = previous.condition(verdict.type, "lastTransitionTime")
    stays = previous.condition(verdict.type, "status") == status and parse_time(since) is not None
    message = verdict.message
    return {
        "type": verdict.type,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": since if stays else format_time(now),
        "reason": verdict.reason,
        "message": message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
    }
