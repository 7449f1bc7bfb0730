"""Asks the supervisor of a running group; the other end is control.py. Every question has a deadline."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import Any

from rbg_operator.local.preflight import LocalError
from rbg_operator.local.report import GroupReport, from_json
from rbg_operator.local.state import GroupFolder, is_running

ANSWER_SECONDS = 10.0
MAX_ANSWER = 16 * 1024 * 1024
POLL_SECONDS = 0.05


def ask(folder: GroupFolder, request: dict[str, Any]) -> dict[str, Any]:
    """One question; LocalError if the supervisor refuses or does not answer."""
    try:
        answer = json.loads(_exchange(folder, json.dumps(request).encode() + b"\n"))
    except (OSError, ValueError) as error:
        raise LocalError(
            f"the supervisor of {folder.name} (process {folder.pid}) does not answer: {error or type(error).__name__}; "
            f"try again, or kill process {folder.pid}: its pods end with it"
        ) from error
    if not isinstance(answer, dict) or not answer.get("ok"):
        raise LocalError(str(answer.get("error") if isinstance(answer, dict) else answer))
    return answer


def status(folder: GroupFolder) -> GroupReport:
    """The state of the group."""
    try:
        return from_json(ask(folder, {"command": "status"})["group"])
    except (TypeError, KeyError, ValueError) as error:
        raise LocalError(
            f"the supervisor of {folder.name} is of another version of rbg; end it with rbg down"
        ) from error


def down(folder: GroupFolder) -> None:
    """Take the group down and wait for its end; a supervisor that does not end in the time it named is killed."""
    try:
        deadline = time.monotonic() + float(ask(folder, {"command": "down"})["seconds"])
    except LocalError:
        if not is_running(folder):
            return
        raise
    while is_running(folder):
        if time.monotonic() > deadline:
            os.kill(folder.pid, signal.SIGKILL)
            deadline = time.monotonic() + ANSWER_SECONDS
        time.sleep(POLL_SECONDS)


def _exchange(folder: GroupFolder, line: bytes) -> bytes:
    deadline = time.monotonic() + ANSWER_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(str(folder.socket))
        connection.sendall(line)
        answer = b""
        while not answer.endswith(b"\n"):
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            data = connection.recv(65536)
            if not data or len(answer) > MAX_ANSWER:
                raise ValueError("the answer is not complete")
            answer += data
    return answer
