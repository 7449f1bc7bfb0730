"""Where each role is, in one word and one line."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from rbg_operator.plan.decide.evidence import why_not_ready
from rbg_operator.plan.decide.pods import ready_since
from rbg_operator.plan.decide.previous import PreviousRole
from rbg_operator.plan.decide.restart import Restart
from rbg_operator.plan.decide.roles import ObservedRole
from rbg_operator.plan.decide.rollout import Rollout
from rbg_operator.plan.decide.times import format_time


class Phase(enum.StrEnum):
    """roleStatuses[].phase."""

    WAITING = "Waiting"
    STARTING = "Starting"
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    PAUSED = "Paused"
    HELD = "Held"
    RESTARTING = "Restarting"
    STALLED = "Stalled"
    READY = "Ready"
    REMOVING = "Removing"


@dataclass(frozen=True, kw_only=True)
class RoleState:
    """Everything decided about one role."""

    observed: ObservedRole
    rollout: Rollout
    restart: Restart
    waits_for: tuple[str, ...]
    obstacle: str  # why an object of it cannot be written, "" if nothing is in the way
    before: PreviousRole


def phase_and_message(state: RoleState) -> tuple[Phase, str]:
    """The phase and what it waits for."""
    one, rollout = state.observed, state.rollout
    if state.waits_for:
        return Phase.WAITING, f"waits for {', '.join(state.waits_for)}"
    if state.obstacle:
        return Phase.STALLED, state.obstacle
    evidence = why_not_ready((*one.pods, *one.ended))
    if state.restart.next is not None:
        return Phase.RESTARTING, _joined(
            f"restart {state.restart.count} at {format_time(state.restart.next)}", evidence
        )
    if rollout.held_by:
        return Phase.HELD, _joined(f"rollout waits for {', '.join(rollout.held_by)}", evidence)
    if rollout.is_paused:
        return Phase.PAUSED, _joined(f"paused with {_counts(one)}", evidence)
    if one.is_complete:
        return Phase.READY, ""
    if evidence:
        return Phase.STALLED, f"{one.num_available} of {one.wanted} instances ready; {evidence}"
    if rollout.is_rolling:
        return Phase.ROLLING_OUT, _counts(one)
    if _keeps_old(state):
        return Phase.PAUSED, f"partition {rollout.limits.partition} keeps instances below it; {_counts(one)}"
    is_first = state.before.phase in ("", Phase.WAITING, Phase.STARTING)
    if not is_first and (one.num_existing != one.wanted or state.before.phase == Phase.SCALING):
        return Phase.SCALING, _counts(one)
    return Phase.STARTING, _counts(one)


def _keeps_old(state: RoleState) -> bool:
    """Whether the user's partition is all that keeps the role from being at the current revision."""
    one = state.observed
    return one.has_old and one.num_available == one.num_existing == one.wanted


def _counts(one: ObservedRole) -> str:
    text = f"{one.num_available} of {one.wanted} instances ready"
    if one.is_pending:
        text += f", {one.num_updated} at the current revision"
    slow = next((pod.metadata.name for pod in one.pods if ready_since(pod) is None), None)
    return f"{text}; waits for pod {slow}" if slow else text


def _joined(text: str, evidence: str | None) -> str:
    return f"{text}; {evidence}" if evidence else text


def phases(states: Mapping[str, RoleState]) -> dict[str, tuple[Phase, str]]:
    """Of every role."""
    return {name: phase_and_message(state) for name, state in states.items()}
