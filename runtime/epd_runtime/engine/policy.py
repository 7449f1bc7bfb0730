"""Who goes first, and how a step's prompt tokens are shared. Pure functions.

fcfs       in order of arrival
priority   a level of priority is worth AGEING_SECONDS of waiting, so that nobody waits for ever: a request goes before
           all that arrive more than that many seconds per level later
"""

from __future__ import annotations

from collections.abc import Sequence

AGEING_SECONDS = 30.0


def order(policy: str, priority: int, arrived: float, number: int) -> tuple[float, int]:
    """Sort key of a request, fixed for its life: smaller goes first. number counts arrivals."""
    return (arrived - AGEING_SECONDS * priority if policy == "priority" else 0.0, number)


def share_budget(budget: int, wanted: Sequence[int]) -> list[int]:
    """Prompt tokens for each of several prompts, in their order; wanted: tokens that they still need.

    Half of the budget goes to the first ones, so that a long prompt always moves; the other half to those with least to
    do, so that a short prompt does not wait for long ones before it. What one half leaves the other takes.
    """
    given = [0] * len(wanted)
    rest = budget // 2
    rest += _hand_out(budget - rest, range(len(wanted)), wanted, given)
    shortest_first = sorted(range(len(wanted)), key=lambda index: wanted[index] - given[index])
    _hand_out(rest, shortest_first, wanted, given)
    return given


def _hand_out(budget: int, turn: Sequence[int], wanted: Sequence[int], given: list[int]) -> int:
    """Serve in turn until the budget is spent; returns what is left."""
    for index in turn:
        share = min(budget, wanted[index] - given[index])
        given[index] += share
        budget -= share
        if budget == 0:
            break
    return budget
