"""The thread that writes to one decode engine.

A thread for each engine, not a pool for all: a slow or hanging engine delays no other, and jobs of one engine keep
their order. It is started by the first job and connects then; after a TransferError the next job connects anew.

Every job that was submitted is reported exactly once to `on_done`, on the writer's thread, also after close().
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable

from epd_runtime.transfer.base import Connection, Entry, TransferError

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Job:
    """Entries of one room; `stopped` may be set from any thread to end the write early."""

    room: int
    ticket: int
    entries: list[Entry]
    stopped: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended. started: time.time(); seconds in the write; error: None if all is well or it was stopped."""

    job: Job
    started: float
    seconds: float
    error: str | None


class Writer:
    """Owns the connection and its thread. The caller bounds the jobs: it submits one at a time for a room."""

    def __init__(self, connect: Callable[[], Connection], on_done: Callable[[Outcome], None], name: str) -> None:
        """connect: blocks, raises TransferError."""
        self._connect = connect
        self._on_done = on_done
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the two below
        self._connection: Connection | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_started = False

    def submit(self, job: Job) -> None:
        """Queue a job; never blocks."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Interrupt the write, fail the jobs that wait, end the thread soon; never blocks."""
        with self._lock:
            self._is_closed = True
            if self._connection is not None:
                self._connection.interrupt()
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            started, begin = time.time(), time.monotonic()
            error = self._write(job)
            self._on_done(Outcome(job, started, time.monotonic() - begin, error))
        self._drop()

    def _write(self, job: Job) -> str | None:
        try:
            if not job.stopped:
                self._connected().write(job.entries, job.ticket, lambda: job.stopped)
        except TransferError as error:
            self._drop()
            return str(error)
        except Exception as error:  # a mistake of ours must end this room, not the thread
            log.exception("a write for room %d failed", job.room)
            self._drop()
            return f"{type(error).__name__}: {error}"
        return None

    def _connected(self) -> Connection:
        connection = self._connection if self._connection is not None else self._connect()
        with self._lock:
            self._connection = connection
            if self._is_closed:
                raise TransferError("the connection to decode has ended")
        return connection

    def _drop(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
