"""The real `rbg` with real processes: order, repair, scaling, every way to end, every mistake a user can make."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
import urllib.request
from typing import Any

import psutil
import pytest

from tests.operator.conftest import Rbg, wait_for
from tests.operator.groups import role


def epd(rbg: Rbg, *encoder_flags: str) -> list[dict[str, Any]]:
    """The four stages as small servers."""
    return [
        rbg.http("encoder", 30002, "--encoder-only", *encoder_flags, replicas=2),
        rbg.http("prefill", 30000, "--disaggregation-mode", "prefill", "--urls", "$(ENCODER_URLS)", after=("encoder",)),
        rbg.http("decode", 30001, "--disaggregation-mode", "decode"),
        rbg.http("router", 8000, "--pd-disaggregation", after=("prefill", "decode")),
    ]


def pids(rbg: Rbg) -> dict[str, int]:
    return {name: pod["pid"] for name, pod in rbg.pods().items()}


def lines_of(output: str, *parts: str) -> list[int]:
    """Line numbers at which texts first appear."""
    lines = output.splitlines()
    return [next(number for number, line in enumerate(lines) if part in line) for part in parts]


def test_up_in_the_background_status_scale_logs_down(rbg: Rbg) -> None:
    path = rbg.write(*epd(rbg))
    done = rbg.run("up", "-d", "-f", path)
    assert done.returncode == 0, done.stderr
    url = done.stderr.split("g is Ready: ")[1].strip()
    assert urllib.request.urlopen(f"{url}/health", timeout=10).status == 200

    group = rbg.status()
    assert (group["state"], group["url"]) == ("Ready", url)
    prefill = psutil.Process(rbg.pods()["prefill-0"]["pid"])
    assert "http://s-g-encoder:30002" in prefill.cmdline()
    assert len({pod["address"] for pod in rbg.pods().values()}) == 5
    folder = rbg.folder / "rbg" / "g"
    assert stat.S_IMODE((folder / "supervisor.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    again = rbg.run("up", "-f", path)
    assert again.returncode == 1
    assert "the group g runs already" in again.stderr

    before = pids(rbg)
    assert rbg.run("scale", "g", "encoder=3").stdout == "g: encoder 2 -> 3\n"
    wait_for(lambda: rbg.status()["roles"][0]["ready"] == 3)
    assert len(rbg.hosts()["s-g-encoder"]) == 3
    assert rbg.run("scale", "g", "encoder=1").returncode == 0
    wait_for(lambda: len(rbg.pods()) == 4)
    assert pids(rbg) == {name: pid for name, pid in before.items() if name != "encoder-1"}
    assert rbg.hosts()["s-g-encoder"] == rbg.hosts()["s-g-encoder-0"]
    assert "s-g-encoder-1" not in rbg.hosts()

    logs = rbg.run("logs", "g", "--tail", "50").stdout
    assert "decode-0  | serving g-decode-0" in logs
    assert rbg.run("logs", "g", "decode").stdout == "serving g-decode-0\n"
    assert "serving g-router-0" not in rbg.run("logs", "g", "decode-0").stdout
    assert "encoder" in rbg.run("status").stdout

    assert rbg.run("down").stdout == "g is down\n"
    assert not rbg.marked()
    assert os.listdir(rbg.folder / "rbg") == ["lock"]
    assert rbg.run("status").stdout.startswith("no group runs")


def test_start_order_and_ctrl_c(rbg: Rbg) -> None:
    process = rbg.start("up", "-f", rbg.write(*epd(rbg)))
    wait_for(lambda: "g is Ready: http://127." in rbg.output())
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert not rbg.marked()
    output = rbg.output()
    ready = lines_of(output, "encoder-1 | ready", "serving g-prefill-0", "prefill-0 | ready", "serving g-router-0")
    assert ready == sorted(ready)
    ending = lines_of(output, "router-0  | stopping", "prefill-0 | stopping", "encoder-0 | stopping")
    assert ending == sorted(ending)


def test_roles_wait_with_a_reason_and_hosts_list_ready_pods_only(rbg: Rbg) -> None:
    gate = rbg.folder / "gate"
    rbg.start("up", "-f", rbg.write(*epd(rbg, "--health-file", str(gate))))
    wait_for(lambda: rbg.pods().get("decode-0", {}).get("ready"))
    pods = rbg.pods()
    assert (pods["prefill-0"]["state"], pods["prefill-0"]["reason"]) == ("Waiting", "waits for encoder")
    assert pods["router-0"]["reason"] == "waits for prefill"
    wait_for(lambda: "answered 503" in rbg.pods()["encoder-0"]["reason"])
    assert "s-g-encoder" not in rbg.hosts()
    assert len(rbg.hosts()["s-g-encoder-1"]) == len(rbg.hosts()["s-g-prefill-0"]) == 1
    gate.touch()
    wait_for(rbg.is_ready)
    assert len(rbg.hosts()["s-g-encoder"]) == 2
    before = pids(rbg)
    gate.unlink()
    wait_for(lambda: "s-g-encoder" not in rbg.hosts())
    assert rbg.status()["state"] == "Degraded"
    assert rbg.run("scale", "g", "prefill=2").returncode == 0
    wait_for(lambda: rbg.pods()["prefill-1"]["ready"])
    assert {name: pid for name, pid in pids(rbg).items() if name in before} == before


def test_crashed_pod_restarts_alone_with_backoff(rbg: Rbg) -> None:
    rbg.start("up", "-f", rbg.write(*epd(rbg)))
    wait_for(rbg.is_ready)
    before = pids(rbg)
    for number in (1, 2):
        os.kill(rbg.pods()["encoder-0"]["pid"], signal.SIGKILL)
        wait_for(lambda number=number: rbg.pods()["encoder-0"]["restarts"] == number and rbg.is_ready())
    pod = rbg.pods()["encoder-0"]
    assert pod["last_exit"] == "killed by SIGKILL"
    assert pod["last_output"] == ["serving g-encoder-0"]
    assert "killed by SIGKILL; runs again in 0.5 s" in rbg.output()
    assert "killed by SIGKILL; runs again in 1 s" in rbg.output()
    assert {**pids(rbg), "encoder-0": 0} == {**before, "encoder-0": 0}


def test_killed_shim_takes_its_pod_along_and_the_pod_restarts(rbg: Rbg) -> None:
    command = "trap '' TERM; (setsid sleep 1000 &) ; sleep 1000"
    rbg.start("up", "-f", rbg.write(role("a", "sh", "-c", command)))
    wait_for(rbg.is_ready)
    wait_for(lambda: sum("sleep 1000" in text for text in rbg.marked()) >= 2)
    before = set(rbg.marked())
    shim = psutil.Process(rbg.pods()["a-0"]["pid"]).parent()
    assert shim
    shim.kill()
    wait_for(lambda: rbg.pods()["a-0"]["restarts"] == 1 and rbg.is_ready())
    assert not {text for text in before & set(rbg.marked()) if "sleep" in text}
    assert rbg.pods()["a-0"]["last_exit"] == "the process around it was killed"


@pytest.mark.parametrize("flags", [(), ("-d",)])
def test_killed_supervisor_leaves_nothing(rbg: Rbg, flags: tuple[str, ...]) -> None:
    shell = role("shell", "sh", "-c", f"(setsid sleep 1000 &); python3 {rbg.server} --port 700 --stubborn; true")
    rbg.start("up", *flags, "-f", rbg.write(*epd(rbg), shell))
    wait_for(rbg.is_ready)
    os.kill(rbg.status()["supervisor_pid"], signal.SIGKILL)
    wait_for(lambda: not rbg.marked(), 10)
    assert rbg.run("status").stdout.startswith("no group runs")
    assert os.listdir(rbg.folder / "rbg") == ["lock"]


def test_supervisor_killed_while_starting_leaves_nothing(rbg: Rbg) -> None:
    path = rbg.write(role("a", "sh", "-c", "sleep 1000 & sleep 1000", replicas=5))
    for delay in (0.15, 0.2, 0.25, 0.3, 0.4):
        process = rbg.start("up", "-f", path)
        time.sleep(delay)
        process.kill()
        process.wait()
        wait_for(lambda: not rbg.marked(), 10)


def test_second_ctrl_c_kills(rbg: Rbg) -> None:
    process = rbg.start("up", "-f", rbg.write(rbg.http("a", 700, "--stubborn")))
    wait_for(rbg.is_ready)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: "stopping g" in rbg.output())
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert not rbg.marked()


def test_grace_period_is_the_manifests(rbg: Rbg) -> None:
    stubborn = rbg.http("a", 700, "--stubborn")
    stubborn["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    assert rbg.run("up", "-d", "-f", rbg.write(stubborn)).returncode == 0
    began = time.monotonic()
    assert rbg.run("down", "g").returncode == 0
    assert 0.9 < time.monotonic() - began < 8
    assert not rbg.marked()


def test_pod_that_never_starts_fails_the_background_start(rbg: Rbg) -> None:
    done = rbg.run(
        "up", "-d", "-f", rbg.write(role("a", "sh", "-c", "echo cannot load >&2; exit 3"), role("b", "sleep", "9"))
    )
    assert done.returncode == 1
    assert "pod g-a-0 does not start: exited with code 3. Its last output:\n    cannot load\n" in done.stderr
    assert not rbg.marked()
    assert rbg.run("status").stdout.startswith("no group runs")


def test_pod_that_never_starts_is_tried_again_in_the_foreground(rbg: Rbg) -> None:
    process = rbg.start("up", "-f", rbg.write(role("a", "no-such-program")))
    wait_for(lambda: "runs again in 4 s" in rbg.output())
    assert "the program no-such-program was not found; install it" in rbg.output()
    assert "has not started in 3 attempts; it will be tried again" in rbg.output()
    assert rbg.status()["state"] == "Failing"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.parametrize("flags", [(), ("-d",)])
def test_timeout_takes_the_group_down(rbg: Rbg, flags: tuple[str, ...]) -> None:
    path = rbg.write(rbg.http("a", 700, "--health-file", "/no/file"))
    done = rbg.run("up", *flags, "--timeout", "1.5", "-f", path)
    assert done.returncode == 1
    output = done.stdout + done.stderr
    assert "not ready after 1.5 s" in output
    assert "pod g-a-0 is Starting: GET http://127." in output
    assert "answered 503" in output
    assert not rbg.marked()


def test_port_in_use(rbg: Rbg) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        path = rbg.write(rbg.http("a", port))
        for flags in ((), ("-d",)):
            done = rbg.run("up", *flags, "-f", path)
            assert done.returncode == 1
            assert done.stderr.startswith(f"rbg: pod g-a-0: port {port} on 127.")
            assert f"is in use by process {os.getpid()} (" in done.stderr
            assert len(done.stderr.splitlines()) == 1
    assert os.listdir(rbg.folder / "rbg") == ["lock"]


def test_missing_model(rbg: Rbg) -> None:
    command = ("python3", "-m", "epd_runtime.launch_server", "--model-path", "models/none")
    done = rbg.run("up", "-f", rbg.write(role("a", *command)))
    assert done.returncode == 1
    assert done.stderr.startswith("rbg: role a: --model-path models/none: there is no folder /")
    assert len(done.stderr.splitlines()) == 1


def test_bad_manifest(rbg: Rbg) -> None:
    done = rbg.run("up", "-f", rbg.write(role("a", "x", after=("b",))))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"rbg: {rbg.folder}/g.yaml cannot be used:",
        'spec.roles[0].dependencies[0]: no role is called "b"; roles are a',
    ]


def test_probe_kinds_and_exec_environment(rbg: Rbg) -> None:
    tcp = rbg.http("tcp", 700, readinessProbe={"tcpSocket": {"port": 700}})
    check = {"exec": {"command": ["sh", "-c", 'test "$POD_NAME" = g-exec-0 && sleep 0.1']}}
    command = role("exec", "sleep", "1000", readinessProbe=check)
    slow = role("slow", "sleep", "1000", readinessProbe={"exec": {"command": ["sleep", "999"]}, "timeoutSeconds": 1})
    rbg.start("up", "-f", rbg.write(tcp, command, slow))
    wait_for(lambda: rbg.pods().get("exec-0", {}).get("ready") and rbg.pods()["tcp-0"]["ready"])
    wait_for(lambda: rbg.pods()["slow-0"]["reason"] == "the readiness probe had no answer after 1 s")
    wait_for(lambda: sum("sleep 999" in text for text in rbg.marked()) <= 2)


def test_scale_refuses_nonsense(rbg: Rbg) -> None:
    assert rbg.run("up", "-d", "-f", rbg.write(role("a", "sleep", "1000"))).returncode == 0
    for argument, message in [("b=1", 'no role is called "b"; roles are a'), ("a=300", "one machine takes 254")]:
        done = rbg.run("scale", "g", argument)
        assert (done.returncode, message in done.stderr) == (1, True)
    assert rbg.run("scale", "g", "a").returncode == 2
    assert rbg.run("scale", "h", "a=1").stderr == 'rbg: no group called "h" runs on this machine; running are g\n'
    assert rbg.run("scale", "g", "a=0").returncode == 0
    wait_for(lambda: rbg.status()["roles"][0]["pods"] == [])


def test_hostile_requests_do_not_disturb_the_supervisor(rbg: Rbg) -> None:
    assert rbg.run("up", "-d", "-f", rbg.write(role("a", "sleep", "1000"))).returncode == 0
    for data in (
        b"",
        b"\n",
        b"[]\n",
        b'{"command": "scale", "replicas": {"a": true}}\n',
        b"[" * 60000 + b"\n",
        b"x" * 200_000,
    ):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(rbg.folder / "rbg" / "g" / "supervisor.sock"))
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(65536)
            except OSError:
                continue
            assert answer == b"" or b'"ok": false' in answer
    assert rbg.is_ready()


def test_logs_follow_until_the_group_ends(rbg: Rbg) -> None:
    assert (
        rbg.run(
            "up", "-d", "-f", rbg.write(role("a", "sh", "-c", "echo one; sleep 1.5; echo two; sleep 1000"))
        ).returncode
        == 0
    )
    follower = rbg.start("logs", "g", "-f")
    wait_for(lambda: rbg.output() == "one\ntwo\n")
    assert rbg.run("down").returncode == 0
    assert follower.wait(10) == 0


def test_two_groups_use_the_same_ports(rbg: Rbg) -> None:
    for name in ("first", "second"):
        assert rbg.run("up", "-d", "-f", rbg.write(rbg.http("a", 700), name=name)).returncode == 0
    assert rbg.is_ready("first")
    assert rbg.is_ready("second")
    done = rbg.run("down")
    assert (done.returncode, done.stderr) == (1, "rbg: several groups run; say which: first, second\n")
    assert rbg.run("down", "first").returncode == 0
    assert rbg.is_ready("second")


def test_a_flood_of_output_stops_nothing(rbg: Rbg) -> None:
    """The reader of rbg's output stops reading; pods are still supervised and stopped."""
    path = rbg.write(role("a", "sh", "-c", "yes flooooooooooooooooooooooood"), rbg.http("b", 700))
    process = subprocess.Popen(rbg._argv(("up", "-f", path)), env=rbg.env, cwd=rbg.folder, stdout=subprocess.PIPE)
    wait_for(rbg.is_ready)
    assert rbg.run("down").returncode == 0
    assert process.wait(10) == 0
    assert process.stdout
    process.stdout.close()


def test_help_is_fast_and_imports_little(rbg: Rbg) -> None:
    done = rbg.run("--help")
    assert "rbg up -f group.yaml" in done.stdout
    for command in ("up", "status", "logs", "scale", "down"):
        assert rbg.run(command, "--help").returncode == 0
