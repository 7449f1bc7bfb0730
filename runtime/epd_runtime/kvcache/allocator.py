"""Which pages of the KV pool are free, used, or idle."""

from __future__ import annotations

from collections.abc import Sequence

FREE, USED, IDLE = 0, 1, 2


class PageAllocator:
    """Every page is free, used (by a request, or several that share it) or idle (cached, used by nobody).

    A page that is freed twice, or used while it is free, raises RuntimeError: somebody else's KV would be overwritten.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_idle = 0
        self._free = list(range(num_pages - 1, -1, -1))
        self._state = bytearray(num_pages)

    @property
    def num_free(self) -> int:
        """Pages with nothing in them."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages of requests; one that several share counts once."""
        return self.num_pages - len(self._free) - self.num_idle

    def allocate(self, count: int) -> list[int] | None:
        """That many free pages, now used, lowest numbers first when the pool is fresh; None if there are not enough."""
        if count > len(self._free):
            return None
        pages = self._free[len(self._free) - count :][::-1]
        del self._free[len(self._free) - count :]
        for page in pages:
            self._state[page] = USED
        return pages

    def free(self, pages: Sequence[int]) -> None:
        """Used or idle pages have nothing in them any more."""
        for page in pages:
            if self._state[page] == FREE:
                raise RuntimeError(f"KV page {page} freed twice")
            self.num_idle -= self._state[page] == IDLE
            self._state[page] = FREE
        self._free.extend(reversed(pages))

    def rest(self, page: int) -> None:
        """A used page becomes idle."""
        self._change(page, USED, IDLE)
        self.num_idle += 1

    def wake(self, page: int) -> None:
        """An idle page becomes used."""
        self._change(page, IDLE, USED)
        self.num_idle -= 1

    def _change(self, page: int, before: int, after: int) -> None:
        if self._state[page] != before:
            raise RuntimeError(f"KV page {page} is in state {self._state[page]}, not {before}")
        self._state[page] = after
