"""`rbg up`: check everything, claim the group's name, then supervise it here or in the background.

In the background the supervisor is a fork of this process in a session of its own, made before any thread or event loop
exists. The lock on the group's folder passes to it. This process then only watches, as any other command could, until
the group is ready or will not be; a group that does not become ready is taken down again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable

from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.local import client
from rbg_operator.local.logbook import Terminal
from rbg_operator.local.preflight import LocalError, check_group
from rbg_operator.local.report import GroupReport, GroupState, failure, unready
from rbg_operator.local.state import Claim, GroupFolder, base_folder, claim, running
from rbg_operator.local.supervisor import Supervisor
from rbg_operator.plan.processes import ignored_fields

DETACHED_SECONDS = 600.0  # to become ready in the background, unless the user says otherwise
POLL_SECONDS = 0.1


def up(group: RoleBasedGroup, ready_within: float | None, detach: bool, tell: Callable[[str], None]) -> int:
    """Run the group; the exit code. Raises LocalError or ManifestError if it cannot start."""
    if sys.platform != "linux":
        raise LocalError("local mode needs Linux: it relies on its process control; run it in a container or a VM")
    check_group(group)
    if ignored := ignored_fields(group):
        tell(f"note: these fields mean nothing to processes of this machine and are ignored: {', '.join(ignored)}")
    claimed = claim(base_folder(), group.name)
    if detach:
        return _in_background(group, claimed, DETACHED_SECONDS if ready_within is None else ready_within, tell)
    try:
        return _supervise(group, claimed.folder, ready_within, show_pods=True)
    finally:
        claimed.release()


def _supervise(group: RoleBasedGroup, folder: GroupFolder, ready_within: float | None, show_pods: bool) -> int:
    terminal = Terminal()
    try:
        return asyncio.run(Supervisor(group, folder, terminal, show_pods).run(ready_within))
    finally:
        terminal.close()


def _in_background(group: RoleBasedGroup, claimed: Claim, ready_within: float, tell: Callable[[str], None]) -> int:
    folder = claimed.folder
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _background_main(group, claimed)
    claimed.forget()
    try:
        return _watch(folder, child, ready_within, tell)
    except KeyboardInterrupt:
        tell(f"stopping {folder.name}")
        client.down(folder)
        return 130


def _background_main(group: RoleBasedGroup, claimed: Claim) -> None:
    """The supervisor's whole life after the fork; never returns into the caller's stack."""
    code, started = 1, False
    try:
        os.setsid()
        _redirect(claimed.folder)
        claimed.record_pid()
        code = _supervise(group, claimed.folder, None, show_pods=False)
        started = True
    except (LocalError, OSError) as error:
        print(error, file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        # The folder stays when the start failed: the watching process reads the log in it, and removes it.
        with contextlib.suppress(LocalError):
            if started:
                claimed.release()
        os._exit(code)


def _redirect(folder: GroupFolder) -> None:
    """Standard streams of a process without a terminal."""
    log = os.open(folder.supervisor_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)


def _watch(folder: GroupFolder, child: int, ready_within: float, tell: Callable[[str], None]) -> int:
    """Until the group is ready (0) or will not be (1, and it is taken down)."""
    deadline = time.monotonic() + ready_within
    report: GroupReport | None = None
    while True:
        if os.waitpid(child, os.WNOHANG)[0] == child:
            return _early_end(folder, tell)
        if folder.socket.exists():
            with contextlib.suppress(LocalError):  # it has just ended: waitpid will tell
                report = client.status(folder)
        if report and report.state is GroupState.READY:
            tell(f"{folder.name} is Ready" + (f": {report.url}" if report.url else ""))
            return 0
        trouble = failure(report) if report else ""
        if not trouble and time.monotonic() > deadline:
            trouble = (
                f"{folder.name} is not ready after {ready_within:g} s\n{unready(report) if report else ''}".strip()
            )
        if trouble:
            client.down(folder)
            tell(f"{trouble}\n{folder.name} was taken down again; run rbg up without -d to see all output")
            return 1
        time.sleep(POLL_SECONDS)


def _early_end(folder: GroupFolder, tell: Callable[[str], None]) -> int:
    """The supervisor ended before the group was ready: by rbg down, or with an error in its log."""
    text = ""
    with contextlib.suppress(OSError):
        text = "\n".join(folder.supervisor_log.read_text(errors="replace").splitlines()[-20:])
    running(folder.path.parent)  # removes the folder
    tell(text or f"{folder.name} was taken down before it was ready")
    return 1
