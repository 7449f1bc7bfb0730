"""When a worker counts as healthy, unhealthy or lost. Pure.

States of a worker, from its probes (GET /health, one a second) and from connections of requests:

    unknown ──first good probe──▶ healthy ──2 bad probes in a row, or 1 refused connection──▶ unhealthy
    unhealthy ──1 good probe──▶ healthy
    any ──no HTTP answer at all for LOST_SECONDS──▶ lost: its requests that do not move end, it is probed on

Only a healthy worker gets requests. A worker that answers 503 is unhealthy but not lost: it is starting or draining,
and its running requests shall finish.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

MAX_FAILURES = 2
LOST_SECONDS = 10.0


class Probe(enum.Enum):
    """What came of one probe or connection."""

    GOOD = enum.auto()  # 2xx
    BAD = enum.auto()  # another status
    SILENT = enum.auto()  # no answer in time, or the connection was lost
    REFUSED = enum.auto()  # nobody listens


@dataclass(frozen=True)
class Health:
    """What is known of a worker. silent_since: loop time of the first of the unanswered probes that came last."""

    healthy: bool = False
    failures: int = 0
    silent_since: float | None = None
    detail: str = "not probed yet"

    def is_lost(self, now: float) -> bool:
        """Whether requests should stop waiting for it."""
        return self.silent_since is not None and now - self.silent_since >= LOST_SECONDS


def observe(health: Health, probe: Probe, now: float, detail: str) -> Health:
    """Health after a probe. detail: what came, for people."""
    if probe is Probe.GOOD:
        return Health(healthy=True, detail=detail)
    failures = health.failures + 1
    silent_since = None if probe is Probe.BAD else now if health.silent_since is None else health.silent_since
    usable = health.healthy and failures < MAX_FAILURES and probe is not Probe.REFUSED
    return replace(health, healthy=usable, failures=failures, silent_since=silent_since, detail=detail)
