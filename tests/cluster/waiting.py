"""Waits with a deadline, and locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def wait_until(done: Callable[[], bool], complaint: str, seconds: float) -> None:
    """Ask every few milliseconds; raises TimeoutError with the complaint after `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} after {seconds:.0f} s")
        time.sleep(0.02)


@contextlib.contextmanager
def locked(path: Path, seconds: float, waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold the lock of a file, and give its descriptor; the kernel frees it when the last holder of that is gone.

    `waiting` is called once if another process has it. Raises TimeoutError after `seconds`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        if not _try_lock(lock.fileno()):
            waiting()
            wait_until(lambda: _try_lock(lock.fileno()), f"{path} is still locked", seconds)
        yield lock.fileno()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
