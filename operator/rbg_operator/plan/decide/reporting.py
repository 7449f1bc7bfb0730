"""Turns a new status into steps: written now with its Events, or looked at again when it is due."""

from __future__ import annotations

from rbg_operator.api.documents import Json
from rbg_operator.plan.decide.events import transitions
from rbg_operator.plan.decide.previous import Previous
from rbg_operator.plan.decide.status import when_to_write
from rbg_operator.plan.observed import Snapshot
from rbg_operator.plan.steps import Step, WriteStatus


def report(status: Json, previous: Previous, snapshot: Snapshot) -> tuple[tuple[Step, ...], float | None]:
    """Steps, and in how many seconds a write that was put off is due."""
    due = when_to_write(status, snapshot)
    if due == 0.0:
        return (WriteStatus(status), *transitions(previous, status)), None
    return (), due


def earliest(*times: float | None) -> float | None:
    """The least of those that are not None."""
    return min((time for time in times if time is not None), default=None)
