"""The shim with real processes: nothing of a command stays behind, however it, its parent or the shim itself ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rbg_operator.local.orphans import SHIM_PATH
from tests.operator.conftest import wait_for

# A command that leaves children in every way there is: a child, a child of a child that died, one in its own session.
FAMILY = """
import os, subprocess, sys, time
subprocess.Popen(["sleep", "1000"])
subprocess.Popen(["sh", "-c", "sleep 1000 & exit"])
subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 1000; done"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
print("family", flush=True)
"""


class Shim:
    """A shim under the test's control."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        status_read, status_write = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", SHIM_PATH, str(status_write)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(status_write,), start_new_session=True,
        )  # fmt: skip
        os.close(status_write)
        self.status = os.fdopen(status_read)

    def send(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def run(self, *argv: str, cwd: str = "") -> None:
        env = {"PATH": os.environ["PATH"], "SHIM_TEST_MARK": self.mark}
        self.send(json.dumps({"argv": argv, "env": env, "cwd": cwd}))

    def report(self) -> dict[str, Any]:
        line = self.status.readline()
        return dict(json.loads(line)) if line else {}

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def alive(self) -> int:
        count = 0
        for process in psutil.process_iter():
            try:
                marked = process.environ().get("SHIM_TEST_MARK") == self.mark
                count += marked and process.status() != psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
        return count

    def family(self, ending: str) -> None:
        self.run(sys.executable, "-c", FAMILY + ending)
        assert self.line() == "family"
        wait_for(lambda: self.alive() >= 4)


@pytest.fixture
def shim() -> Iterator[Shim]:
    one = Shim()
    yield one
    assert one.process.stdin
    one.process.stdin.close()
    one.process.wait(10)
    wait_for(lambda: not one.alive(), 10)
    assert one.process.stdout
    one.process.stdout.close()
    one.status.close()


def test_exit_code_and_output(shim: Shim, tmp_path: Path) -> None:
    shim.run("sh", "-c", "pwd; exit 7", cwd=str(tmp_path))
    assert shim.report()["pid"] > 0
    assert shim.report() == {"exit": 7}
    assert shim.line() == str(tmp_path)
    assert shim.process.wait(5) == 0


def test_death_by_signal_is_reported(shim: Shim) -> None:
    shim.run("sh", "-c", "kill -SEGV $$")
    shim.report()
    assert shim.report() == {"exit": -signal.SIGSEGV}


@pytest.mark.parametrize(
    ("argv", "cwd", "message"),
    [
        (["no-such-program"], "", "the program no-such-program was not found"),
        (["/etc/passwd"], "", "may not be executed"),
        (["true"], "/no/folder", "workingDir /no/folder is no folder"),
        (["a\0b"], "", "cannot be started"),
    ],
)
def test_command_that_cannot_run(shim: Shim, argv: list[str], cwd: str, message: str) -> None:
    shim.run(*argv, cwd=cwd)
    assert message in shim.report()["error"]
    assert shim.process.wait(5) == 0


def test_when_the_command_ends_its_family_ends(shim: Shim) -> None:
    shim.family("sys.exit(5)")
    shim.report()
    assert shim.report() == {"exit": 5}
    assert shim.process.wait(5) == 0
    assert shim.alive() == 0


def test_when_the_supervisor_dies_the_family_ends(shim: Shim) -> None:
    shim.family("time.sleep(1000)")
    assert shim.process.stdin
    shim.process.stdin.close()
    shim.process.wait(5)
    assert shim.alive() == 0


def test_supervisor_that_dies_before_it_has_spoken(shim: Shim) -> None:
    assert shim.process.stdin
    shim.process.stdin.write(b'{"argv": ["sl')
    shim.process.stdin.close()
    assert shim.process.wait(5) == 0
    assert shim.report() == {}


def test_stop_kills_what_ignores_it_after_the_grace_period(shim: Shim) -> None:
    shim.family("time.sleep(1000)")
    shim.report()
    began = time.monotonic()
    shim.send("stop 0.5")
    assert shim.report() == {"exit": -signal.SIGTERM}
    assert 0.4 < time.monotonic() - began < 5
    assert shim.alive() == 0


def test_stop_lets_a_command_end_its_own_children(shim: Shim) -> None:
    """The child must not get SIGTERM while its parent drains."""
    shim.run(
        sys.executable, "-c",
        "import signal, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "def drain(*_):\n"
        "    time.sleep(0.5)\n"
        "    code = child.poll()\n"
        "    child.kill()\n"
        "    sys.exit(0 if code is None else 1)\n"
        "signal.signal(signal.SIGTERM, drain)\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(1)\n",
    )  # fmt: skip
    assert shim.line() == "up"
    shim.report()
    shim.send("stop 20")
    assert shim.report() == {"exit": 0}


def test_stop_reaches_through_a_shell(shim: Shim) -> None:
    code = "import os,signal,time; signal.signal(15, lambda *_: (os.write(1, b'term\\n'), os._exit(0)))\n"
    shim.run("sh", "-c", f"{sys.executable} -c \"{code}print('up', flush=True)\ntime.sleep(1000)\"; true")
    assert shim.line() == "up"
    shim.report()
    shim.send("stop 20")
    assert shim.line() == "term"
    assert shim.report()["exit"] == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_shim_ends_the_family(shim: Shim, number: int) -> None:
    shim.family("time.sleep(1000)")
    shim.process.send_signal(number)
    shim.process.wait(5)
    assert shim.alive() == 0


def test_command_dies_with_a_killed_shim(shim: Shim) -> None:
    shim.run("sleep", "1000")
    shim.report()
    shim.process.kill()
    wait_for(lambda: not shim.alive(), 5)
