"""How long a crashed pod waits before it runs again: 0.5 s, doubled with every crash, at most 30 s. Pure.

A run that was ready for a minute forgives all crashes before it. A pod that crashed three times and never was ready is
failing: it goes on being restarted, but whoever waits for the group should hear of it.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY = 0.5
MAX_DELAY = 30.0
HEALTHY_SECONDS = 60.0
FAILING_CRASHES = 3


@dataclass(frozen=True)
class Crashes:
    """The crashes of one pod since its last healthy run."""

    count: int = 0
    was_ready: bool = False

    def after_crash(self, ready_seconds: float | None) -> Crashes:
        """One more crash, after a run that was ready for so long; None: it never was."""
        healthy = ready_seconds is not None and ready_seconds >= HEALTHY_SECONDS
        return Crashes(1 if healthy else self.count + 1, self.was_ready or ready_seconds is not None)

    @property
    def delay(self) -> float:
        """Seconds to wait now."""
        return float(min(MAX_DELAY, FIRST_DELAY * 2 ** min(self.count - 1, 10)))

    @property
    def failing(self) -> bool:
        """Whether the pod probably can never start."""
        return self.count >= FAILING_CRASHES and not self.was_ready
