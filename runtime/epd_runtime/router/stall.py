"""The deadline of a request: a time without progress, not a length.

Every streamed byte is progress, so a stream that moves is never cut; an answer that is not streamed makes none before
it is complete, so the same limit bounds the whole request. The limit starts at --request-timeout-secs and is tightened,
with a new reason, when the request is known to be in trouble.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from epd_runtime.router.errors import RouterError


class StallTimer:
    """Calls on_stall once when `limit` seconds pass without touch(). One lazy timer: touch() only notes the time."""

    def __init__(self, limit: float, reason: RouterError, on_stall: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._on_stall = on_stall
        self._last = self._loop.time()
        self._over = False
        self.reason = reason
        self._handle = self._loop.call_later(limit, self._check)

    def touch(self) -> None:
        """The request made progress."""
        self._last = self._loop.time()

    def tighten(self, limit: float, reason: RouterError) -> None:
        """From now on allow only `limit` seconds without progress; ignored when that is no less than before."""
        if limit < self._limit and not self._over:
            self._limit, self.reason, self._last = limit, reason, self._loop.time()
            self._handle.cancel()
            self._handle = self._loop.call_later(limit, self._check)

    def stop(self) -> None:
        """The request is over; tighten() has no effect any more."""
        self._over = True
        self._handle.cancel()

    def _check(self) -> None:
        left = self._last + self._limit - self._loop.time()
        if left <= 0:
            self._over = True
            self._on_stall()
        else:
            self._handle = self._loop.call_later(left, self._check)
