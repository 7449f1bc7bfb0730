"""What pods print: into a file per pod, the last lines in memory for error messages, and to the terminal with a prefix.

A line in a file is `SECONDS TEXT` with the time of arrival, so that `rbg logs` can merge pods. A file is at most
MAX_FILE bytes, with one predecessor `.1`. The terminal has a thread and a bounded queue of its own: a terminal that is
paused or a closed pipe must never stop the supervisor; lines it cannot take are counted and dropped.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO

from rbg_operator.colours import use_colour

MAX_FILE = 8 * 1024 * 1024
LAST_LINES = 20
QUEUE_LINES = 10_000


class Terminal:
    """Writes whole lines to a stream from a thread of its own; never blocks the caller, nor the end of the program.

    It writes to the file descriptor: a buffered stream that is blocked could not be left at exit.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        stream = stream or sys.stdout
        stream.flush()
        self.colour = use_colour(stream)
        self._descriptor = stream.fileno()
        self._queue: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="terminal", daemon=True)
        self._thread.start()

    def line(self, text: str) -> None:
        """Queue a line; when the queue is full it is dropped."""
        try:
            self._queue.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def close(self, seconds: float = 1.0) -> None:
        """Write what is queued, for so long at most."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
            self._thread.join(seconds)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # closed; the files still have everything
            while (text := self._queue.get()) is not None:
                dropped, self._dropped = self._dropped, 0
                if dropped:
                    text = f"({dropped} lines were dropped: the terminal did not take them)\n{text}"
                self._write(f"{text}\n".encode())

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # whoever shares the terminal made it non-blocking
                time.sleep(0.05)


class PodLog:
    """The log of one pod. `prefix` starts its lines on the terminal; without a terminal only the file is written."""

    def __init__(self, path: Path, prefix: str, terminal: Terminal | None) -> None:
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._path = path
        self._prefix = prefix
        self._terminal = terminal
        self._file = path.open("ab")

    def line(self, text: str) -> None:
        """One line of the pod's output."""
        self.last.append(text)
        if self._terminal:
            self._terminal.line(self._prefix + text)
        self._file.write(f"{time.time():.3f} {text}\n".encode())
        self._file.flush()
        if self._file.tell() > MAX_FILE:
            self._file.close()
            os.replace(self._path, self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("ab")

    def close(self) -> None:
        """No line will follow."""
        self._file.close()
