"""Child processes that never outlive their parent, and get their orders as one line on standard input.

The parent keeps that pipe open: EOF tells the child that its parent is gone, and SIGKILL from the kernel ends a child
that is too busy to read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be imported between fork and exec


def start_child(command: Sequence[str], descriptors: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a child in a process group of its own, so that Ctrl-C reaches only the parent; raises OSError.

    descriptors: those that it inherits, under the same numbers.

    Call it from a thread that lives as long as the process: the kernel takes the thread for the parent.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(
        command, stdin=subprocess.PIPE, preexec_fn=die_with_parent, process_group=0, pass_fds=descriptors
    )


def give_order(child: subprocess.Popen[bytes], order: bytes) -> None:
    """Write the one line that the child waits for; order holds no line break."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is dead already; whoever watches it tells
        child.stdin.write(order + b"\n")
        child.stdin.flush()


def describe_exit(code: int) -> str:
    """How a process ended, for a message to the user; negative: the signal."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
