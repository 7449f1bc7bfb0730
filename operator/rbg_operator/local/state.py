"""The folder of each running group, and who may use it.

    BASE/lock                    held for moments, while groups are created, removed or listed
    BASE/<group>/lock            held by the supervisor for as long as it lives; the kernel frees it however that ends
    BASE/<group>/state.json      pid, block of addresses, token
    BASE/<group>/supervisor.sock hosts  logs/<pod>.log  supervisor.log

A group runs exactly if the lock in its folder is held. A folder whose lock is free is what a killed supervisor left:
the next command that looks kills any process that is left and removes it. Folders are created and removed under
BASE/lock only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rbg_operator.local.addresses import choose_block
from rbg_operator.local.orphans import kill_marked
from rbg_operator.local.preflight import LocalError

LOCK_SECONDS = 10.0
MAX_SOCKET_PATH = 107  # bytes, a limit of Linux


@dataclass(frozen=True)
class GroupFolder:
    """The folder of a group that runs."""

    path: Path
    pid: int
    block: str
    token: str

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.path.name

    @property
    def socket(self) -> Path:
        """Where the supervisor listens."""
        return self.path / "supervisor.sock"

    @property
    def hosts(self) -> Path:
        """The hosts file."""
        return self.path / "hosts"

    @property
    def logs(self) -> Path:
        """Folder of the pods' logs."""
        return self.path / "logs"

    @property
    def supervisor_log(self) -> Path:
        """What a supervisor in the background prints."""
        return self.path / "supervisor.log"


class Claim:
    """A group's folder held by this process (and, across a fork, by the one process that keeps it)."""

    def __init__(self, folder: GroupFolder, lock_fd: int) -> None:
        self.folder = folder
        self._lock_fd = lock_fd

    def record_pid(self) -> None:
        """Write down that this process is the supervisor."""
        state = {"pid": os.getpid(), "block": self.folder.block, "token": self.folder.token}
        temporary = self.folder.path / "state.json.new"
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self.folder.path / "state.json")

    def forget(self) -> None:
        """After a fork: the other process holds it now."""
        os.close(self._lock_fd)

    def release(self) -> None:
        """Remove the folder; the group runs no more."""
        with _base_lock(self.folder.path.parent):
            shutil.rmtree(self.folder.path, ignore_errors=True)
            os.close(self._lock_fd)


def base_folder() -> Path:
    """The folder with all groups of this user, created if absent. Raises LocalError if it cannot be trusted."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) / "rbg" if runtime else Path(f"/tmp/rbg-{os.getuid()}")
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        info = base.lstat()
    except OSError as error:
        raise LocalError(f"cannot create {base}: {error.strerror}; set XDG_RUNTIME_DIR to a folder of yours") from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise LocalError(f"{base} is not a folder that only you can use; remove it or set XDG_RUNTIME_DIR to another")
    return base


def running(base: Path) -> list[GroupFolder]:
    """The groups that run, by name. Cleans up what killed supervisors left."""
    with _base_lock(base):
        return _running(base)


def is_running(folder: GroupFolder) -> bool:
    """Whether the supervisor of that folder still lives."""
    with _base_lock(folder.path.parent):
        found = _read(folder.path)
        return found is not None and found.token == folder.token and _is_locked(folder.path)


def claim(base: Path, group: str) -> Claim:
    """Create and lock the folder of a group. Raises LocalError if the group runs already."""
    with _base_lock(base):
        others = _running(base)
        for other in others:
            if other.name == group:
                raise LocalError(
                    f"the group {group} runs already (supervisor {other.pid}); change the number of pods with "
                    f"rbg scale {group} ROLE=N, or apply a changed manifest with rbg down {group} and rbg up"
                )
        block = choose_block(group, str(base), {other.block for other in others})
        folder = GroupFolder(base / group, os.getpid(), block, uuid.uuid4().hex)
        if len(os.fsencode(folder.socket)) > MAX_SOCKET_PATH:
            raise LocalError(f"the path {folder.socket} is too long for a socket; set XDG_RUNTIME_DIR to a shorter one")
        folder.path.mkdir(mode=0o700)
        claimed = Claim(folder, _lock(folder.path / "lock"))
        folder.logs.mkdir()
        claimed.record_pid()
        return claimed


@contextlib.contextmanager
def _base_lock(base: Path) -> Iterator[None]:
    descriptor = os.open(base / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise LocalError(f"another rbg command holds {base / 'lock'} for {LOCK_SECONDS:g} s; is one stopped?")
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _running(base: Path) -> list[GroupFolder]:
    found = []
    for path in sorted(base.iterdir()):
        if path.is_dir() and not path.is_symlink():
            folder = _read(path)
            if _is_locked(path):
                if folder:
                    found.append(folder)
                continue
            if folder:
                kill_marked(folder.token)
            shutil.rmtree(path, ignore_errors=True)
    return found


def _read(path: Path) -> GroupFolder | None:
    try:
        state = json.loads((path / "state.json").read_text())
        return GroupFolder(path, int(state["pid"]), str(state["block"]), str(state["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _is_locked(path: Path) -> bool:
    try:
        os.close(_lock(path / "lock"))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
