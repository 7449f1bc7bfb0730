"""What to do when a shim is killed: its descendants must not outlive it, whoever was killed with it.

While the supervisor lives, it is the next subreaper above the shims: descendants of a killed shim become its children,
and every child that is not a shim is an orphan to kill. If the supervisor was killed too, the next rbg command that
finds the group's stale state looks for the group's token in the environment of every process of this user.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from rbg_operator.local import shim

TOKEN_VARIABLE = "RBG_SUPERVISOR_TOKEN"
SHIM_PATH = os.path.abspath(shim.__file__)


def become_subreaper() -> None:
    """Adopt the descendants of shims that die. Linux only; raises OSError elsewhere."""
    shim.prctl(shim.PR_SET_CHILD_SUBREAPER, 1)


def kill_orphans() -> int:
    """Kill and reap every child of this process that is not a shim, with its descendants. Returns how many there were.

    Call until it returns 0: the children of what was killed are found in the next round.
    """
    orphans = [pid for pid in shim.children_of().get(os.getpid(), ()) if not _is_shim(pid)]
    for pid in orphans:
        shim.kill_all([pid, *shim.descendants(pid)])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return len(orphans)


def kill_marked(token: str, seconds: float = 2.0) -> None:
    """Kill every process of this user whose environment has the token, until there is none or the time is over."""
    marker = f"{TOKEN_VARIABLE}={token}".encode()
    deadline = time.monotonic() + seconds
    while (found := _with_environment(marker)) and time.monotonic() < deadline:
        shim.kill_all(found)
        time.sleep(shim.KILL_INTERVAL)


def _is_shim(pid: int) -> bool:
    try:
        return SHIM_PATH.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True  # gone, or not ours to judge


def _with_environment(marker: bytes) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if marker in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
    return found
