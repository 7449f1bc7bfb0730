"""KV between processes of one machine: the writer maps the receiver's pool and copies.

A write cannot be intercepted by the memory's owner, so both sides keep to a protocol that holds even when the writer is
stopped for any time at any instruction:

    writer, for every chunk                            owner, to revoke a ticket
      lock the chunk's byte range of the pool            write 0 into the ticket's entries of the grant table
      look into the grant table: still the ticket's?     try to lock the ticket's ranges: who holds a lock may copy
      copy                                               got them: nobody copies, and who locks later sees the 0
      unlock                                             else: not quiet yet, ask again

The locks are the kernel's (open file description locks): they go when their process dies. A writer stopped in the
middle of a copy keeps its ticket's pages from being freed until it continues or dies, which is what must happen.

Each writer has a grant table of its own, which it maps read-only; it starts with a secret of the descriptor, so that
memory of the right size that belongs to somebody else is told apart. Both sides must run as the same user on the same
machine and in the same PID namespace; the writer says so when that is not the case.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import msgspec
import numpy as np

from epd_runtime.transfer.base import (
    STALL_SECONDS,
    Backend,
    Connection,
    Entry,
    Inbound,
    Pool,
    Receiver,
    TransferError,
    chunks,
    coalesce,
)
from epd_runtime.transfer.grants import GrantTable, permits
from epd_runtime.transfer.shm_memory import SharedMemory

_SECRET_BYTES = 16  # a multiple of 8, for the numbers behind it
_RETRY_SECONDS = 0.001
_FLOCK = struct.Struct("hhqqi4x")


Natural = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(gt=0)]


class ShmDescriptor(msgspec.Struct, frozen=True):
    """Where the pool and the writer's grant table are."""

    boot_id: str
    pid_namespace: int
    pid: Positive
    pool_fd: Natural
    pool_bytes: Positive
    table_fd: Natural
    table_bytes: Positive
    page_bytes: Positive
    secret: bytes


class ShmReceiver(Receiver):
    """A pool in shared memory."""

    def __init__(self, pool: memoryview, page_bytes: int) -> None:
        """pool: from allocate_pool of this backend. Raises TransferError on other memory."""
        if not isinstance(pool.obj, SharedMemory):
            raise TransferError("backend shm receives only into memory from allocate_pool('shm', …)")
        self.memory = pool.obj
        self.page_bytes = page_bytes
        self.lock_fd = self.memory.reopen()

    async def start(self) -> None:
        """Nothing listens."""

    def open(self) -> Inbound:
        """A grant table for one more writer."""
        return ShmInbound(self)

    def close(self) -> None:
        """Writers notice by their control connection."""
        os.close(self.lock_fd)


class ShmInbound(Inbound):
    """The owner's end of one writer's grant table."""

    def __init__(self, receiver: ShmReceiver) -> None:
        num_pages = len(receiver.memory) // receiver.page_bytes
        self._receiver = receiver
        self._memory = SharedMemory.create(_SECRET_BYTES + 8 * num_pages, "epd-kv-grants")
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._memory[:_SECRET_BYTES] = self._secret
        self._table = GrantTable(np.frombuffer(self._memory, np.uint64, num_pages, _SECRET_BYTES))
        self._draining: dict[int, list[Entry]] = {}

    @property
    def descriptor(self) -> bytes:
        """ShmDescriptor in msgpack."""
        return msgspec.msgpack.encode(
            ShmDescriptor(
                *_machine(),
                pid=os.getpid(),
                pool_fd=self._receiver.memory.fd,
                pool_bytes=len(self._receiver.memory),
                table_fd=self._memory.fd,
                table_bytes=len(self._memory),
                page_bytes=self._receiver.page_bytes,
                secret=self._secret,
            )
        )

    def grant(self, ticket: int, pages: Sequence[int]) -> None:
        """See Inbound."""
        self._table.grant(ticket, pages)

    def revoke(self, ticket: int) -> bool:
        """False as long as the writer is in the middle of a chunk of the ticket."""
        if pages := self._table.revoke(ticket):
            pairs = [(page, page) for page in sorted(pages)]
            self._draining[ticket] = coalesce(pairs, self._receiver.page_bytes)
        ranges = self._draining.get(ticket, [])
        while ranges:
            if not _lock(self._receiver.lock_fd, fcntl.F_WRLCK, ranges[-1].destination, ranges[-1].nbytes):
                return False
            _lock(self._receiver.lock_fd, fcntl.F_UNLCK, ranges[-1].destination, ranges[-1].nbytes)
            ranges.pop()
        self._draining.pop(ticket, None)
        return True

    def close(self) -> None:
        """The table's memory goes with the last reference to it."""


class ShmConnection(Connection):
    """Another process's pool, mapped."""

    def __init__(self, pool: memoryview, descriptor: ShmDescriptor) -> None:
        """Map pool and table; raises TransferError."""
        if (descriptor.boot_id, descriptor.pid_namespace) != _machine():
            raise TransferError(
                "backend shm needs prefill and decode on one machine and in one PID namespace; "
                "start both with --disaggregation-transfer-backend tcp"
            )
        self._page_bytes = descriptor.page_bytes
        self._interrupted = False
        try:
            self._memory = SharedMemory.open(descriptor.pid, descriptor.pool_fd, descriptor.pool_bytes, writable=True)
            table = SharedMemory.open(descriptor.pid, descriptor.table_fd, descriptor.table_bytes, writable=False)
            num_pages = descriptor.pool_bytes // descriptor.page_bytes
            self._owners = np.frombuffer(table, np.uint64, num_pages, _SECRET_BYTES)
        except (OSError, ValueError, OverflowError) as error:
            raise TransferError(
                f"cannot map the KV pool of decode's process {descriptor.pid}: {error}; "
                "prefill and decode must run as the same user, or use --disaggregation-transfer-backend tcp"
            ) from None
        if len(descriptor.secret) != _SECRET_BYTES or table[:_SECRET_BYTES] != descriptor.secret:
            raise TransferError("cannot map decode's KV pool: the memory found is not the one that decode described")
        self._source = np.frombuffer(pool, np.uint8)
        self._destination = np.frombuffer(self._memory, np.uint8)

    def write(self, entries: Sequence[Entry], ticket: int, stop: Callable[[], bool]) -> None:
        """Copy entries; numpy releases the interpreter's lock meanwhile."""
        for source, destination, nbytes in chunks(entries):
            if stop():
                return
            with self._locked(destination, nbytes):
                if not permits(self._owners, self._page_bytes, ticket, destination, nbytes):
                    raise TransferError(
                        f"ticket {ticket} has no grant for bytes {destination} to {destination + nbytes}"
                    )
                self._destination[destination : destination + nbytes] = self._source[source : source + nbytes]

    def interrupt(self) -> None:
        """The next chunk fails."""
        self._interrupted = True

    def close(self) -> None:
        """The mapping goes with the object."""
        self._interrupted = True

    @contextlib.contextmanager
    def _locked(self, start: int, nbytes: int) -> Iterator[None]:
        """Hold the byte range of the pool; the owner holds it only for an instant, to see whether we do."""
        deadline = time.monotonic() + STALL_SECONDS
        while not _lock(self._memory.fd, fcntl.F_WRLCK, start, nbytes):
            if time.monotonic() > deadline:
                raise TransferError(f"decode has locked its KV pool for {STALL_SECONDS:.0f} s")
            time.sleep(_RETRY_SECONDS)
        try:
            if self._interrupted:
                raise TransferError("the connection to decode has ended")
            yield
        finally:
            _lock(self._memory.fd, fcntl.F_UNLCK, start, nbytes)


class ShmBackend(Backend):
    """The backend's entry in the registry."""

    def allocate_pool(self, nbytes: int) -> Pool:
        """Memory that writers can map; prefill, which nobody maps, uses the same."""
        return Pool(SharedMemory.create(nbytes, "epd-kv-pool"))

    def open_receiver(self, pool: memoryview, page_bytes: int, host: str) -> Receiver:
        """Register a pool; the host does not matter."""
        return ShmReceiver(pool, page_bytes)

    def connect(self, pool: memoryview, descriptor: bytes) -> Connection:
        """Map a ShmReceiver's pool."""
        try:
            target = msgspec.msgpack.decode(descriptor, type=ShmDescriptor)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TransferError(f"decode's descriptor is malformed: {error}; does it use backend shm too?") from None
        return ShmConnection(pool, target)


def _machine() -> tuple[str, int]:
    """What two processes share that can open each other's files below /proc."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip(), os.stat("/proc/self/ns/pid").st_ino


def _lock(fd: int, kind: int, start: int, nbytes: int) -> bool:
    """Lock or unlock a byte range for this open file description, without waiting; False if another has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, nbytes, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


BACKEND = ShmBackend()
