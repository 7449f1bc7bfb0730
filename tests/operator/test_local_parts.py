"""The pure and small parts of local mode: addresses, backoff, hosts, logs, reports, state folders."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbg_operator.api.parse import parse_group
from rbg_operator.local import hosts
from rbg_operator.local.addresses import MAX_PODS, choose_block, next_address
from rbg_operator.local.backoff import Crashes
from rbg_operator.local.follow import LogFile, select_pods
from rbg_operator.local.logbook import PodLog, Terminal
from rbg_operator.local.ports import port_problem
from rbg_operator.local.preflight import LocalError, check_group
from rbg_operator.local.report import GroupReport, GroupState, PodReport, RoleReport, failure, from_json, render
from rbg_operator.local.state import base_folder, claim, is_running, running
from rbg_operator.plan.actions import PodId
from rbg_operator.plan.processes import plan_process
from tests.operator.groups import manifest, role


@given(st.text(max_size=20), st.text(max_size=5))
def test_blocks_are_loopback_and_never_shared(name: str, owner: str) -> None:
    taken: set[str] = set()
    for _ in range(5):
        block = choose_block(name, owner, taken)
        _, second, third = (int(part) for part in block.split("."))
        assert block.startswith("127.")
        assert block not in taken
        assert 1 <= second <= 254
        assert 0 <= third <= 255
        taken.add(block)
    assert choose_block(name, owner, set()) == choose_block(name, owner, set())


def test_addresses_of_a_block_run_out() -> None:
    taken: set[str] = set()
    for _ in range(MAX_PODS):
        taken.add(next_address("127.1.2", taken))
    assert len(taken) == MAX_PODS
    with pytest.raises(ValueError, match="at most 254 pods"):
        next_address("127.1.2", taken)


def test_backoff_doubles_and_is_forgiven_after_a_healthy_minute() -> None:
    crashes, delays = Crashes(), []
    for _ in range(9):
        crashes = crashes.after_crash(None)
        delays.append(crashes.delay)
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert crashes.failing
    assert crashes.after_crash(59.9).delay == 30
    assert crashes.after_crash(60.0).delay == 0.5
    assert not crashes.after_crash(1.0).failing


def test_hosts_lists_ready_pods_under_the_headless_name() -> None:
    group = parse_group(manifest(role("a", "x", replicas=2)))
    first, second = (plan_process(group, PodId("a", ordinal), f"127.1.1.{ordinal + 1}") for ordinal in range(2))
    lines = [line.split() for line in hosts.render([(first, True), (second, False)]).splitlines()]
    assert [line[0] for line in lines] == ["127.1.1.1", "127.1.1.2"]
    assert "s-g-a" in lines[0]
    assert "s-g-a" not in lines[1]
    assert "s-g-a-1" in lines[1]


def test_hosts_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    hosts.replace(path, "old\n")
    with path.open() as reader:
        hosts.replace(path, "new\n")
        assert reader.read() == "old\n"
    assert path.read_text() == "new\n"
    assert os.listdir(tmp_path) == ["hosts"]


def test_port_in_use_names_the_process() -> None:
    with socket.create_server(("127.9.9.9", 0)) as server:
        port = server.getsockname()[1]
        problem = port_problem("127.9.9.9", port)
        assert f"port {port} on 127.9.9.9 is in use by process {os.getpid()} (" in problem
        assert port_problem("127.9.9.8", port) == ""
    assert port_problem("127.9.9.9", port) == ""


def test_missing_model_names_role_flag_and_folder() -> None:
    server = ("python3", "-m", "epd_runtime.launch_server", "--model-path")
    with pytest.raises(LocalError) as caught:
        check_group(parse_group(manifest(role("a", *server, "no/model"), role("b", "x", "--model-path", "/no"))))
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"role a: --model-path no/model: there is no folder {os.getcwd()}/no/model; put the model")
    assert second.startswith("role b: --model-path /no: ")
    check_group(parse_group(manifest(role("a", "python3", "-m", "sglang.launch_server", "--model-path", "org/name"))))


def test_too_many_pods() -> None:
    with pytest.raises(LocalError, match="10000 pods and one machine takes 254"):
        check_group(parse_group(manifest(role("a", "x", replicas=10_000))))


class Report:
    """A small report."""

    pod = PodReport(name="g-a-0", state="Ready", ready=True, address="127.1.1.1", port=80, pid=5)
    bad = PodReport(
        name="g-a-1", state="CrashLoopBackOff", address="127.1.1.2", port=None, reason="exited with code 3",
        failing=True, last_exit="exited with code 3", last_output=["boom"],
    )  # fmt: skip
    a = RoleReport(name="a", kind="other", replicas=2, ready=1, dependencies=["b"], pods=[pod, bad])
    group = GroupReport(
        name="g", namespace="default", state=GroupState.FAILING, url="http://127.1.1.1:80", supervisor_pid=1,
        uptime_seconds=3725.0, roles=[a],
    )  # fmt: skip


def test_report_survives_json_and_explains_failure() -> None:
    assert from_json(json.loads(json.dumps(dataclasses.asdict(Report.group)))) == Report.group
    assert failure(Report.group) == "pod g-a-1 does not start: exited with code 3. Its last output:\n    boom"


def test_report_as_text() -> None:
    assert render(Report.group, colour=False).splitlines() == [
        "g   Failing   http://127.1.1.1:80   up 1h2m",
        "",
        "NAME       STATE             READY  RESTARTS  ADDRESS       PID  WHY",
        "a          other             1/2                                 after b",
        "├─ g-a-0   Ready             yes    0         127.1.1.1:80  5",
        "└─ g-a-1   CrashLoopBackOff  no     0         127.1.1.2     -    exited with code 3",
    ] or render(Report.group, colour=False)
    assert "\x1b[31mCrashLoopBackOff\x1b[0m" in render(Report.group, colour=True)


def test_pods_are_selected_by_role_or_name() -> None:
    assert select_pods(Report.group, None) == ["g-a-0", "g-a-1"] == select_pods(Report.group, "a")
    assert select_pods(Report.group, "a-1") == ["g-a-1"] == select_pods(Report.group, "g-a-1")
    with pytest.raises(LocalError, match='no role or pod called "b"; roles are a'):
        select_pods(Report.group, "b")


def test_log_is_bounded_and_read_on_across_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbg_operator.local.logbook.MAX_FILE", 200)
    log = PodLog(tmp_path / "p.log", "", None)
    reader = LogFile(tmp_path / "p.log", "> ")
    log.line("first")
    assert [text for _, text in reader.history()] == ["> first"]
    for number in range(100):
        log.line(f"line {number}")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 500
    assert list(log.last)[-1] == "line 99"
    log.line("end")
    assert [text for _, text in reader.new_lines()][-1] == "> end"


def test_terminal_never_blocks_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbg_operator.local.logbook.QUEUE_LINES", 10)
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        terminal = Terminal(stream)
        began = time.monotonic()
        for _ in range(5000):
            terminal.line("x" * 100)
        terminal.close(0.1)
        assert time.monotonic() - began < 2
        os.close(read)


def test_terminal_writes_in_order(tmp_path: Path) -> None:
    with (tmp_path / "output").open("w") as stream:
        terminal = Terminal(stream)
        for number in range(100):
            terminal.line(str(number))
        terminal.close()
    assert (tmp_path / "output").read_text().split() == [str(number) for number in range(100)]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return base_folder()


def test_state_folder_is_private(base: Path) -> None:
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    base.chmod(0o755)
    with pytest.raises(LocalError, match="not a folder that only you can use"):
        base_folder()


def test_state_folder_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "rbg").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(LocalError, match="not a folder"):
        base_folder()


def test_two_groups_have_different_blocks_and_one_name_is_claimed_once(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbg_operator.local.state.choose_block", lambda group, owner, taken: f"127.1.{len(taken)}")
    first, second = claim(base, "a"), claim(base, "b")
    assert (first.folder.block, second.folder.block) == ("127.1.0", "127.1.1")
    with pytest.raises(LocalError, match=r"runs already .* rbg scale a ROLE=N"):
        claim(base, "a")
    first.release()
    assert [folder.name for folder in running(base)] == ["b"]
    assert not is_running(first.folder)
    second.release()
    assert os.listdir(base) == ["lock"]


def test_stale_folder_is_removed_and_its_processes_killed(base: Path) -> None:
    code = "from rbg_operator.local.state import *; c = claim(base_folder(), 'g'); print(c.folder.token, flush=True)"
    token = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    left: subprocess.Popen[Any] = subprocess.Popen(["sleep", "60"], env={**os.environ, "RBG_SUPERVISOR_TOKEN": token})
    assert (base / "g").is_dir()
    assert running(base) == []
    assert left.wait(5) == -9
    assert not (base / "g").exists()


def test_path_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ("x" * 90)).mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 90)))
    with pytest.raises(LocalError, match="too long for a socket"):
        claim(base_folder(), "g")
