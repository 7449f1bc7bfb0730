"""The pages of a device in host memory, where a transfer can reach them.

Page i of the device belongs to page i of the host, so that grants, writes and page numbers of the handoff mean the same
on both. The price is host memory as large as the pool; it is pinned, so that copies run beside the engine.

Copies to the host run in a stream of their own: the pages are complete, so they wait for no step. Copies to the device
are queued with the steps: whatever is queued later finds the pages there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from epd_runtime.kvcache.pool import KVPool
from epd_runtime.transfer.base import Entry, coalesce


class PageCopy:
    """A copy to the host under way."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        """event: recorded behind the copy; None when it is done already."""
        self._event = event

    def is_done(self) -> bool:
        """Whether the pages are there; raises what went wrong on the device."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]


class PageMirror:
    """Both memories of one pool."""

    def __init__(self, pool: KVPool, memory: memoryview) -> None:
        """memory: as large as the pool's pages. Raises RuntimeError when it cannot be pinned."""
        self._device = pool.storage
        self._host = torch.frombuffer(memory, dtype=torch.uint8)
        self._page_bytes = pool.layout.page_bytes
        self._stream: torch.cuda.Stream | None = None
        if self._device.device.type == "cuda":
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            torch.cuda.check_error(runtime.cudaHostRegister(self._host.data_ptr(), len(self._host), 0))
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def to_host(self, pages: Sequence[int]) -> PageCopy:
        """Begin to copy pages that no step writes any more."""
        with torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            self._copy(self._host, self._device, pages)
            return PageCopy(None if self._stream is None else self._stream.record_event())

    def to_device(self, pages: Sequence[int]) -> None:
        """Copy pages before anything that is queued from now on."""
        self._copy(self._device, self._host, pages)

    def _copy(self, target: Tensor, source: Tensor, pages: Sequence[int]) -> None:
        for start, _, nbytes in _runs(pages, self._page_bytes):
            target[start : start + nbytes].copy_(source[start : start + nbytes], non_blocking=True)


def _runs(pages: Sequence[int], page_bytes: int) -> list[Entry]:
    return coalesce([(page, page) for page in sorted(pages)], page_bytes)
