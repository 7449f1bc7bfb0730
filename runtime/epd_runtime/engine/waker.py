"""Wakes a loop that sleeps in poll(), from any thread."""

from __future__ import annotations

import os


class Waker:
    """An eventfd: readable after wake() until clear()."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """For pollers."""
        return self._fd

    def wake(self) -> None:
        """Make the loop look again."""
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forget wakes so far; call before looking."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return
