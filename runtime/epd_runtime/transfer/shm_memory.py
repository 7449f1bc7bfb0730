"""Memory that a process of the same user on the same machine can map, and that leaves nothing behind.

A memfd has no name in any file system: it is gone when the last process that has it open is gone, however that ended.
Others open it as /proc/PID/fd/N, which the kernel allows to the same user only. It is sealed: its size is fixed, so
no process can make another's access fault. It does not count against the size of /dev/shm, 64 MiB in a container.

The path comes from a peer that may lie, or that lives in another PID namespace, where the same path is something else.
So the opener insists on a sealed memfd of the expected size, which an ordinary file can never be, and the shm backend
checks a secret inside it before writing.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Self

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedMemory(mmap.mmap):
    """A mapped memfd; `fd` stays open as long as the mapping lives."""

    fd: int

    @classmethod
    def create(cls, nbytes: int, name: str) -> Self:
        """New zeroed memory; raises OSError. The name is only for /proc/PID/maps."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, nbytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            memory = cls(fd, nbytes)
        except BaseException:
            os.close(fd)
            raise
        memory.fd = fd
        return memory

    @classmethod
    def open(cls, pid: int, fd_number: int, nbytes: int, *, writable: bool) -> Self:
        """Map another process's memory; raises OSError when it is out of reach, ValueError when it is other memory."""
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(f"/proc/{pid:d}/fd/{fd_number:d}", flags)
        try:
            _check(fd, nbytes)
            memory = cls(fd, nbytes, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        except BaseException:
            os.close(fd)
            raise
        memory.fd = fd
        return memory

    def reopen(self) -> int:
        """Another open file description of the same memory: locks taken through it conflict with those through fd."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)

    def __del__(self) -> None:
        if (fd := self.__dict__.pop("fd", None)) is not None:
            os.close(fd)


def _check(fd: int, nbytes: int) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0  # no file system with sealing
    if seals & _SEALS != _SEALS:
        raise ValueError("it is not sealed shared memory")
    if (size := os.fstat(fd).st_size) != nbytes:
        raise ValueError(f"it has {size} bytes instead of {nbytes}")
