"""Times of the handoff that a deployment may change, by the reference system's names of environment variables.

    SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT       300  s, a prompt at prefill waits for decode's half to join
    SGLANG_DISAGGREGATION_WAITING_TIMEOUT          30  s, a request at decode waits for prefill's half to appear
    SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL        1  s between two pings
    SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE     5  silent intervals after which the peer is taken for dead

Nothing else has a deadline: once both halves have met, each waits while the other is alive, however long its queue.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Self

_PREFIX = "SGLANG_DISAGGREGATION_"


@dataclasses.dataclass(frozen=True)
class HandoffTimes:
    """All in seconds."""

    bootstrap: float = 300.0
    waiting: float = 30.0
    heartbeat: float = 1.0
    silence: float = 5.0  # without a byte: the peer is dead; also the time that a hello or a frame may take

    @classmethod
    def from_environment(cls) -> Self:
        """Raises ValueError naming the variable that is not a positive number."""
        interval = _number("HEARTBEAT_INTERVAL", 1.0)
        return cls(
            bootstrap=_number("BOOTSTRAP_TIMEOUT", 300.0),
            waiting=_number("WAITING_TIMEOUT", 30.0),
            heartbeat=interval,
            silence=interval * _number("HEARTBEAT_MAX_FAILURE", 5.0),
        )


def _number(name: str, default: float) -> float:
    text = os.environ.get(_PREFIX + name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"environment variable {_PREFIX}{name}={text!r} must be a positive number")
    return value
