"""A tiny process around each pod: runs its command and guarantees that no descendant of it stays behind.

It runs as a script (`python -I -S shim.py STATUS_FD`, standard library only, about 10 MB), in a session of its own, and
is the "subreaper" of everything below: a descendant whose parent died becomes its child, so none can escape, not even
by double fork or setsid.

Standard input is the supervisor's pipe: first one JSON line {"argv", "env", "cwd"}, then lines `stop SECONDS` or
`kill`. STATUS_FD gets JSON lines: {"pid": n} or {"error": text} first, {"exit": code or -signal} last. Standard output
and error are the pod's.

    STARTING ── command runs ──▶ RUNNING ── stop ──▶ STOPPING ──────┐
        │                           │                    │ deadline │ all gone
        │ cannot run: error         │ command ended,     ▼          ▼
        └──────────▶ end            │ kill, EOF ───▶ KILLING ─────▶ end
STOPPING: SIGTERM goes to the command alone, which may need its children to finish; when it is gone (a shell does not
pass signals on), those that it left get SIGTERM too, and all have until the deadline. KILLING: SIGKILL to every
descendant, again and again until none is left.

Failures:
    supervisor dies, by SIGKILL too   the pipe closes: KILLING
    command dies                      what it started dies with it, as in a container: KILLING, then exit is reported
    shim gets SIGTERM, SIGINT, SIGHUP KILLING
    shim dies by SIGKILL              the command gets SIGKILL from the kernel (PR_SET_PDEATHSIG); its descendants fall
                                      to the supervisor, also a subreaper, which kills them (see orphans.py)
    both die by SIGKILL at once       the next rbg command finds what is left by its environment (see orphans.py)
    a process cannot be killed        it is in the kernel's hands; the shim waits, the supervisor gives up after a while
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_INTERVAL = 0.02  # seconds between two rounds of SIGKILL
MAX_REQUEST = 4 * 1024 * 1024  # bytes of the first line; the kernel limits argv and environment to about 2 MiB


def prctl(option: int, value: int) -> None:
    """Linux prctl(2) with one argument; raises OSError."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def children_of() -> dict[int, list[int]]:
    """Every process of this machine by its parent's id."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as stat:
                # The second field is the program's name in parentheses and may contain anything.
                parent = int(stat.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    return children


def descendants(root: int) -> list[int]:
    """Ids of all processes below root, parents first. A process may have ended by the time this returns."""
    children = children_of()
    found = list(children.get(root, ()))
    for pid in found:  # grows while it is read
        found.extend(children.get(pid, ()))
    return found


def kill_all(pids: list[int]) -> None:
    """SIGKILL to every process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


class Shim:
    """State: command (its pid), exit_code once it ended, deadline while STOPPING, killing."""

    def __init__(self, status_fd: int) -> None:
        self.status_fd = status_fd
        self.command = 0
        self.exit_code: int | None = None
        self.deadline: float | None = None
        self.killing = False
        self.told: set[int] = set()  # those that got SIGTERM
        self.buffer = b""

    def report(self, **fields: Any) -> None:
        """One line to the supervisor, which may be gone."""
        with contextlib.suppress(OSError):
            os.write(self.status_fd, json.dumps(fields).encode() + b"\n")

    def read_request(self) -> dict[str, Any] | None:
        """The first line; None if the supervisor died before it was complete."""
        while b"\n" not in self.buffer:
            data = os.read(0, 65536)
            if not data or len(self.buffer) > MAX_REQUEST:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        request: dict[str, Any] = json.loads(line)
        return request

    def start(self, request: dict[str, Any]) -> bool:
        """Run the command; if that is impossible report why."""
        shim = os.getpid()

        def in_child() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != shim:  # it died before the line above took effect
                os._exit(1)

        argv, cwd = request["argv"], request["cwd"] or None
        try:
            process = subprocess.Popen(
                argv,
                env=request["env"],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=in_child,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.report(error=describe(error, argv[0], cwd))
            return False
        self.command = process.pid
        process.returncode = 0  # reaped here, by waitpid(-1): Popen must not warn or wait
        self.report(pid=self.command)
        return True

    def run(self, wake_fd: int) -> None:
        """Until no descendant is left."""
        while not self.finished():
            now = time.monotonic()
            timeout = KILL_INTERVAL if self.killing else None if self.deadline is None else self.deadline - now
            watched = [wake_fd] if self.killing else [wake_fd, 0]  # at EOF, 0 would be readable for ever
            readable = select.select(watched, [], [], None if timeout is None else max(0.0, timeout))[0]
            if wake_fd in readable:
                self.killing |= any(number != signal.SIGCHLD for number in os.read(wake_fd, 4096))
            if 0 in readable:
                self.obey(os.read(0, 4096))
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.killing = True
        self.report(exit=self.exit_code)

    def obey(self, data: bytes) -> None:
        """Commands of the supervisor; no data is its death."""
        self.killing |= not data
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            word, _, seconds = line.decode().partition(" ")
            if word == "stop" and self.deadline is None:
                self.deadline = time.monotonic() + float(seconds)
                self.terminate(self.command)
            elif word == "kill":
                self.killing = True

    def terminate(self, pid: int) -> None:
        """SIGTERM, once."""
        if pid not in self.told:
            self.told.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)

    def finished(self) -> bool:
        """Reap; act on what is left. True when nothing is."""
        if not self.reap():
            return True
        if self.exit_code is not None and self.deadline is None:
            self.killing = True
        if self.killing:
            kill_all(descendants(os.getpid()))
        elif self.exit_code is not None:
            for pid in children_of().get(os.getpid(), ()):
                self.terminate(pid)
        return False

    def reap(self) -> bool:
        """Collect the children that ended; whether any is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.command:
                self.exit_code = os.waitstatus_to_exitcode(status)


def describe(error: Exception, program: str, cwd: str | None) -> str:
    """Why the command could not run, and what to do."""
    if cwd and not os.path.isdir(cwd):
        return f"workingDir {cwd} is no folder of this machine; create it or change workingDir"
    if isinstance(error, FileNotFoundError):
        return f"the program {program} was not found; install it or correct the first item of command"
    if isinstance(error, PermissionError):
        return f"the program {program} may not be executed; make it executable (chmod +x) or correct command"
    return f"the program {program} cannot be started: {error}"


def main() -> None:
    """Entry point of the script."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    shim = Shim(int(sys.argv[1]))
    os.set_inheritable(shim.status_fd, False)
    request = shim.read_request()
    if request is not None and shim.start(request):
        shim.run(wake_read)


if __name__ == "__main__":
    main()
