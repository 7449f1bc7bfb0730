"""Brings the demonstration's group up and down through the same commands that a user types."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

GROUP = "sglang-vlm-epd"
MANIFEST = Path(__file__).parents[1] / "manifests" / "examples" / "01-handwriting-epd.yaml"
START_SECONDS = 120


class GroupError(RuntimeError):
    """The group did not come up; the message holds what `rbg` said."""


def rbg(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start `rbg` with arguments, from the root of the repository so that relative model paths resolve."""
    command = [sys.executable, "-m", "rbg_operator.cli", *arguments]
    return subprocess.Popen(command, cwd=MANIFEST.parents[2], text=True, stdin=subprocess.DEVNULL, **options)


@contextlib.contextmanager
def running_group(console: Console) -> Iterator[str]:
    """The group, Ready; yields the router's URL and takes everything down afterwards."""
    arguments = ("up", "-d", "-f", str(MANIFEST), "--timeout", str(START_SECONDS))
    up = rbg(*arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        _show_start(console, up)
        yield status()["url"]
    finally:
        if up.poll() in (0, None):  # else `rbg up` took down what it started, or refused because the group was there
            rbg("down", GROUP, stdout=subprocess.DEVNULL).wait()


def _show_start(console: Console, up: subprocess.Popen[str]) -> None:
    """One live line per pod until `rbg up` returns."""
    started = time.monotonic()
    with console.status("starting") as line:
        while up.poll() is None:
            pods = pods_of(status())
            ready = [pod["name"] for pod in pods if pod["ready"]]
            waiting = [pod["name"] for pod in pods if not pod["ready"]]
            seconds = time.monotonic() - started
            line.update(f"{seconds:4.1f} s  ready: {', '.join(ready) or '-'}  starting: {', '.join(waiting) or '-'}")
            time.sleep(0.3)
    output = up.stdout.read() if up.stdout else ""
    if up.returncode != 0:
        raise GroupError(output.strip())
    console.print(f"All {len(pods_of(status()))} processes ready after {time.monotonic() - started:.1f} s.")


def status() -> dict[str, Any]:
    """`rbg status -o json`; empty while there is none."""
    process = rbg("status", GROUP, "-o", "json", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    output, _ = process.communicate()
    try:
        parsed: dict[str, Any] = json.loads(output)
    except ValueError:
        return {}
    return parsed


def pods_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod of a status report."""
    return [pod for role in report.get("roles", []) for pod in role["pods"]]
