"""`rbg logs`: reads the pods' log files (written by logbook.py) in order of time, and follows them as they grow."""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rbg_operator.colours import OF_PODS, paint
from rbg_operator.local.preflight import LocalError
from rbg_operator.local.report import GroupReport
from rbg_operator.local.state import GroupFolder, is_running

POLL_SECONDS = 0.2
MAX_CHUNK = 1024 * 1024


class LogFile:
    """One pod's file; remembers how far it was read."""

    def __init__(self, path: Path, prefix: str) -> None:
        self._path = path
        self._prefix = prefix
        self._offset = 0
        self._inode = 0

    def history(self) -> Iterator[tuple[float, str]]:
        """All lines there are, the older file first; following goes on from here."""
        with contextlib.suppress(OSError), self._path.with_name(self._path.name + ".1").open("rb") as old:
            yield from (self._parse(line) for line in old)
        yield from self.new_lines()

    def new_lines(self) -> Iterator[tuple[float, str]]:
        """Whole lines that were not read yet."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:  # the first time, or the file was rotated
                self._inode, self._offset = inode, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield self._parse(line)

    def _parse(self, line: bytes) -> tuple[float, str]:
        stamp, _, text = line.decode(errors="replace").rstrip("\n").partition(" ")
        try:
            return float(stamp), self._prefix + text
        except ValueError:
            return 0.0, self._prefix + text


def select_pods(report: GroupReport, name: str | None) -> list[str]:
    """Pods of a role, one pod, or all; LocalError if the name is neither. A pod's name may omit the group."""
    found = []
    for role in report.roles:
        for pod in role.pods:
            if name in (None, role.name, pod.name, pod.name.removeprefix(f"{report.name}-")):
                found.append(pod.name)
    if not found and name is not None:
        known = ", ".join(role.name for role in report.roles)
        raise LocalError(f'{report.name} has no role or pod called "{name}"; roles are {known}')
    return found


def show_logs(
    folder: GroupFolder, pods: list[str], tail: int | None, follow: bool, colour: bool, write: Callable[[str], None]
) -> None:
    """Write the last `tail` lines (None: all); following ends with the group."""
    short = {pod: pod.removeprefix(f"{folder.name}-") for pod in pods}
    width = max((len(name) for name in short.values()), default=0) + 1
    files = []
    for index, pod in enumerate(pods):
        prefix = paint(short[pod].ljust(width) + "| ", OF_PODS[index % len(OF_PODS)], colour) if len(pods) > 1 else ""
        files.append(LogFile(folder.logs / f"{pod}.log", prefix))
    for _, text in _last(heapq.merge(*(file.history() for file in files), key=lambda line: line[0]), tail):
        write(text)
    while follow and is_running(folder):
        time.sleep(POLL_SECONDS)
        for _, text in heapq.merge(*(file.new_lines() for file in files), key=lambda line: line[0]):
            write(text)


def _last(lines: Iterable[tuple[float, str]], tail: int | None) -> Iterable[tuple[float, str]]:
    return lines if tail is None else deque(lines, maxlen=tail)
