"""The folders of running control planes, one a name, below the cache folder; and the ports they have."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import processes, programs
from tests.cluster.programs import ClusterError

PORT_RANGE = range(20000, 30000)  # below the ports that the kernel gives to outgoing connections


def folder_of(name: str) -> Path:
    """Everything of a control plane; raises ClusterError for a name that is no plain word."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,40}", name):
        raise ClusterError(f"control plane name {name!r}: use at most 41 of a-z, 0-9, '-' and '.'")
    return _all() / name


def lock() -> Path:
    """The file whose lock is held while ports are chosen and noted."""
    return programs.cache_folder() / "run.lock"


def claim(name: str) -> Path:
    """Make the folder, after what a dead control plane of that name left; raises ClusterError if one runs."""
    folder = folder_of(name)
    if folder.exists() and not processes.running(folder):
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise ClusterError(f"control plane {name} is up: `python -m tests.cluster down --name {name}`") from None
    return folder


def remove(name: str) -> None:
    """Kill everything of a control plane (its data goes with it, so there is nothing to drain) and its folder."""
    folder = folder_of(name)
    pids = [pid for pid in processes.running(folder).values() if pid != os.getpid()]
    processes.end(pids, grace=0.0)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def settings_file(name: str) -> Path:
    """Where a control plane's settings, its ports among them, are noted."""
    return folder_of(name) / "settings.json"


def free_ports(wanted: Sequence[str]) -> dict[str, int]:
    """Ports by the wanted names that nobody listens on and no other control plane has; raises ClusterError."""
    taken: set[int] = set()
    for path in _all().glob("*/settings.json"):
        with contextlib.suppress(FileNotFoundError):
            taken.update(json.loads(path.read_text())["ports"].values())
    found: list[int] = []
    for port in random.sample(PORT_RANGE, len(PORT_RANGE)):
        if port not in taken and _is_free(port):
            found.append(port)
        if len(found) == len(wanted):
            return dict(zip(wanted, found, strict=True))
    raise ClusterError(f"no {len(wanted)} free ports in {PORT_RANGE}")


def _all() -> Path:
    return programs.cache_folder() / "run"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
