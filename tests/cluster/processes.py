"""Processes that outlive whoever starts them, found again by a mark in their environment.

There are no pid files: no process is lost between its start and a note of it, and no reused pid is ever signalled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.cluster.waiting import wait_until

MARK = "RBG_CLUSTER_PROCESS"
BEGIN_SECONDS = 60.0
KILL_SECONDS = 30.0
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


def spawn(folder: Path, name: str, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> int:
    """Start a program in a session of its own, its output appended to `log`; the pid."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        command[0],
        command,
        {**os.environ, **(environment or {}), MARK: str(folder / name)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    wait_until(lambda: _has_begun(pid), f"{name} does not begin", BEGIN_SECONDS)
    return pid


def _has_begun(pid: int) -> bool:
    """Whether the program's environment can be read, or it has ended: posix_spawn returns a little before that."""
    return bool(Path(f"/proc/{pid}/environ").read_bytes()) or os.waitid(os.P_PID, pid, ENDED) is not None


def running(folder: Path) -> dict[str, int]:
    """Pids by name of the processes that were started for this folder and live."""
    prefix = f"{MARK}={folder}/".encode()
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone, or another user's
        for variable in environment:
            if variable.startswith(prefix):
                found[variable.removeprefix(prefix).decode()] = int(entry.name)
    return found


def end(pids: Iterable[int], grace: float) -> None:
    """SIGTERM, after `grace` seconds SIGKILL (at once if it is 0), and wait until all are gone.

    Raises TimeoutError if one still lives long after its SIGKILL.
    """
    handles = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handles[pid] = os.pidfd_open(pid)
    try:
        living = dict(handles)
        if grace:
            _signal(living, signal.SIGTERM)
            living = _wait(living, grace)
        _signal(living, signal.SIGKILL)
        living = _wait(living, KILL_SECONDS)
    finally:
        for handle in handles.values():
            os.close(handle)
    if living:
        raise TimeoutError(f"processes {sorted(living)} live on after SIGKILL")
    for pid in handles:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _signal(handles: Mapping[int, int], number: signal.Signals) -> None:
    for handle in handles.values():
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)


def _wait(handles: Mapping[int, int], seconds: float) -> dict[int, int]:
    """Those that live when all are gone or time is over."""
    living = {handle: pid for pid, handle in handles.items()}
    ends = select.poll()  # a pid's handle is readable once the process has ended
    for handle in living:
        ends.register(handle, select.POLLIN)
    deadline = time.monotonic() + seconds
    while living and (left := deadline - time.monotonic()) > 0:
        for handle, _ in ends.poll(left * 1000):
            ends.unregister(handle)
            del living[handle]
    return {pid: handle for handle, pid in living.items()}
