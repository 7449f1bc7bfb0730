"""One-sided writes into another engine's memory: the interface, and the registry of its implementations.

The interface is what RDMA-like fabrics have in common, so that Mooncake or NIXL fit behind it as well as the two
implementations here: memory is registered once, the writer learns of it through an opaque descriptor, writes are
batches of coalesced (source, destination, length) entries, and completion is a blocking call in a worker thread.

    decode (owner of the memory)                       prefill (writer)
    Backend.open_receiver(pool, …) ─▶ Receiver
    Receiver.open() ─▶ Inbound, one per writer
        Inbound.descriptor  ─── control connection ──▶ Backend.connect(pool, descriptor) ─▶ Connection
        Inbound.grant(ticket, pages)                     Connection.write(entries, ticket, …)
        Inbound.revoke(ticket) ─▶ True: nobody writes

A ticket is the number under which pages are granted; its owner never uses one twice.

Invariants, for every implementation:

- When `write` returns, all bytes are in the destination, or `stop()` said to leave early; either way nothing of that
  call is under way any more. When it raises TransferError the connection is spent: close it, connect again.
- A write outside the pages granted to its ticket changes no memory and fails.
- After `revoke(ticket)` has returned True no write of the ticket can change memory, not even by a writer that was
  stopped or cut off and continues. False means: not known yet, ask again. The owner frees pages only after True.
- Every wait inside `write` has a deadline that counts from the last progress, not from the start.

Threads: a Receiver and its Inbounds belong to the event loop that started them; a Connection belongs to one worker
thread, except `interrupt`.
"""

from __future__ import annotations

import abc
import importlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, cast

STALL_SECONDS = 5.0  # a write that makes no progress for so long has failed
MAX_CHUNK = 4 << 20  # bytes copied between two looks at stop()

_MODULES = {"tcp": "epd_runtime.transfer.tcp", "shm": "epd_runtime.transfer.shm"}


class TransferError(RuntimeError):
    """Bytes could not be moved; the message names the reason and, where there is one, the remedy."""


class Entry(NamedTuple):
    """One contiguous copy, in bytes from the start of either pool."""

    source: int
    destination: int
    nbytes: int


class Pool:
    """Memory for all KV pages, page-aligned and zero; untouched pages cost nothing."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.buffer = memoryview(memory)

    def close(self) -> None:
        """Give the memory back; where a tensor still uses it, it goes with the tensor."""
        try:
            self.buffer.release()
            self._memory.close()
        except BufferError:
            return


class Inbound(abc.ABC):
    """What one writer may do to the pool."""

    @property
    @abc.abstractmethod
    def descriptor(self) -> bytes:
        """All that the writer needs to connect; a secret between the two engines."""

    @abc.abstractmethod
    def grant(self, ticket: int, pages: Sequence[int]) -> None:
        """Let the ticket's writes into these pages; raises ValueError on a page that is granted or does not exist."""

    @abc.abstractmethod
    def revoke(self, ticket: int) -> bool:
        """Take the ticket's grant back; True once no write of it can change memory. Unknown tickets: True."""

    @abc.abstractmethod
    def close(self) -> None:
        """Forget the writer. Revoke every ticket first."""


class Receiver(abc.ABC):
    """A pool that others write into."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Listen, if the fabric needs it, on the running event loop; raises OSError."""

    @abc.abstractmethod
    def open(self) -> Inbound:
        """Expect one more writer."""

    @abc.abstractmethod
    def close(self) -> None:
        """Stop listening and drop all writers."""


class Connection(abc.ABC):
    """The writer's end."""

    @abc.abstractmethod
    def write(self, entries: Sequence[Entry], ticket: int, stop: Callable[[], bool]) -> None:
        """Copy all entries, blocking; leaves early, in order, once stop() is true. Raises TransferError."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """Make a write that is under way, and any later one, raise soon; any thread, any number of times."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free everything; on the worker's thread, any number of times."""


class Backend(abc.ABC):
    """One way to move bytes."""

    @abc.abstractmethod
    def allocate_pool(self, nbytes: int) -> Pool:
        """Memory that this backend can receive into; raises OSError."""

    @abc.abstractmethod
    def open_receiver(self, pool: memoryview, page_bytes: int, host: str) -> Receiver:
        """Register a pool; host is where writers reach this engine. Raises TransferError on memory of another kind."""

    @abc.abstractmethod
    def connect(self, pool: memoryview, descriptor: bytes) -> Connection:
        """Reach another engine's pool, to write into it from the own pool; blocks. Raises TransferError."""


def get_backend(name: str) -> Backend:
    """The implementation of a --disaggregation-transfer-backend; imported only now, for some need libraries.

    Raises ValueError on an unknown name.
    """
    if name not in _MODULES:
        raise ValueError(f"--disaggregation-transfer-backend {name!r} is unknown; choose one of {', '.join(_MODULES)}")
    return cast(Backend, importlib.import_module(_MODULES[name]).BACKEND)


def allocate_pool(backend: str, nbytes: int) -> Pool:
    """Memory for a KV pool, of the kind that the backend writes into; raises ValueError, OSError."""
    return get_backend(backend).allocate_pool(nbytes)


def coalesce(pages: Iterable[tuple[int, int]], page_bytes: int) -> list[Entry]:
    """Entries for (source page, destination page) pairs; runs that are contiguous on both sides become one."""
    entries: list[Entry] = []
    for source, destination in pages:
        entry = Entry(source * page_bytes, destination * page_bytes, page_bytes)
        if entries:
            last = entries[-1]
            if (last.source + last.nbytes, last.destination + last.nbytes) == entry[:2]:
                entries[-1] = last._replace(nbytes=last.nbytes + page_bytes)
                continue
        entries.append(entry)
    return entries


def chunks(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Entries cut into pieces of at most MAX_CHUNK bytes, in order."""
    for source, destination, nbytes in entries:
        for start in range(0, nbytes, MAX_CHUNK):
            yield Entry(source + start, destination + start, min(MAX_CHUNK, nbytes - start))
