"""Runs the work of each key, several keys at once, one key never twice at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from rbg_operator.controller.backoff import Backoff
from rbg_operator.controller.schedule import Schedule

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

LEAST_SECONDS = 0.02  # between two passes that nothing but the first has asked for
SLOTS = 16
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Done:
    """How a pass ended. settled: nothing is on its way. look_again: seconds, None for not before the next event."""

    settled: bool = True
    look_again: float | None = None


class Retry(Exception):  # noqa: N818 - asks for something, is no report of a defect
    """The pass could not be finished; try again after the key's backoff, and not before retry_after seconds."""

    def __init__(self, message: str, *, kind: str, retry_after: float | None = None) -> None:
        """kind: one word for metrics."""
        super().__init__(message)
        self.kind = kind
        self.retry_after = retry_after


class WorkQueue(Generic[K]):
    """Keys to work on; they may be added at any time, work is only done while run() runs."""

    def __init__(
        self,
        *,
        is_new: Callable[[K], bool],
        on_failure: Callable[[K, Exception, float], None],
        slots: int = SLOTS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """is_new: the key's object was never worked on. on_failure(key, error, seconds until it is tried again)."""
        self.schedule: Schedule[K] = Schedule(is_new, slots=slots, patience=patience)
        self.backoff: Backoff[K] = Backoff()
        self._on_failure = on_failure
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, key: K, after: float = 0.0, *, edited: bool = False) -> None:
        """Work on the key after so many seconds, or earlier if that was asked for already.

        edited: a user wants something else now, so former failures say nothing: its backoff is over.
        """
        if edited:
            self.backoff.succeeded(key)
            self.schedule.release(key)
        self.schedule.add(key, time.monotonic() + after)
        self._changed.set()

    async def run(self, work: Callable[[K], Awaitable[Done]], *, workers: int, drain_seconds: float) -> None:
        """Until cancelled; then no key is taken any more and work in flight has drain_seconds to end."""
        try:
            while True:
                self._changed.clear()
                while len(self._tasks) < workers and (key := self.schedule.take(time.monotonic())) is not None:
                    task = asyncio.create_task(self._work(key, work))
                    self._tasks.add(task)
                    task.add_done_callback(self._ended)
                await self._wait(free=len(self._tasks) < workers)
        finally:
            await self._drain(drain_seconds)

    async def _wait(self, free: bool) -> None:
        """Until something is added or ends, or a waiting key's time comes. With all workers busy only an end counts."""
        now = time.monotonic()
        next_time = self.schedule.next_time(now) if free else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if next_time is None else max(0.0, next_time - now)):
                await self._changed.wait()

    async def _work(self, key: K, work: Callable[[K], Awaitable[Done]]) -> None:
        done, hold = Done(settled=False), None
        try:
            done = await work(key)
            self.backoff.succeeded(key)
        except Exception as error:  # whatever one key meets, the others go on
            seconds = self.backoff.failed(key, error.retry_after if isinstance(error, Retry) else None)
            hold = time.monotonic() + seconds
            self._on_failure(key, error, seconds)
        finally:
            now = time.monotonic()
            self.schedule.done(key, now, settled=done.settled, hold_until=hold)
        if done.look_again is not None:
            self.schedule.add(key, now + max(done.look_again, LEAST_SECONDS))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    async def _drain(self, seconds: float) -> None:
        tasks = set(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
