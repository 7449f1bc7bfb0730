"""The control plane that other tests stand on: its life, its faults, and the pods that only seem to run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import control_plane as clusters
from tests.cluster import processes, programs, runs
from tests.cluster.control_plane import ControlPlane
from tests.cluster.programs import ClusterError

REPOSITORY = Path(__file__).parents[2]
SECONDS = 30.0


def eventually(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first true value, or a failure that shows the last one."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


def name_of(what: str) -> str:
    return f"{what}-{os.getpid()}"


@pytest.fixture(scope="module")
def own(cluster_programs: None) -> Iterator[ControlPlane]:
    """A control plane that tests may hurt, if they heal it."""
    with clusters.up(name_of("harness"), nodes=1) as running:
        yield running


def fresh_namespace(running: ControlPlane) -> str:
    """The API path of a new namespace; no controller has seen it yet, as they are slow to return after a restart."""
    name = f"fresh-{uuid.uuid4().hex[:8]}"
    running.api().request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return f"/api/v1/namespaces/{name}"


# Its life


def test_two_side_by_side_share_nothing(control_plane: ControlPlane, own: ControlPlane) -> None:
    assert not set(control_plane.settings.ports.values()) & set(own.settings.ports.values())
    there = fresh_namespace(own)
    assert own.api().exists(there)
    assert not control_plane.api().exists(there)
    assert all(ready for _, _, ready in control_plane.status().values())


def test_a_name_that_is_up_is_refused(own: ControlPlane) -> None:
    with pytest.raises(ClusterError, match=f"{own.settings.name} is up"):
        clusters.up(own.settings.name)
    assert own.api().exists("/api/v1/namespaces/default")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a" * 42])
def test_a_name_that_would_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="use at most 41"):
        runs.remove(name)


def test_a_failed_start_says_why_and_leaves_nothing(cluster_programs: None) -> None:
    name = name_of("broken")
    with pytest.raises(ClusterError, match="unknown flag: --no-such-flag"):
        clusters.up(name, flags={"kube-apiserver": ["--no-such-flag"]})
    assert processes.running(runs.folder_of(name)) == {}
    assert not runs.folder_of(name).exists()


def test_it_goes_when_its_owner_is_killed(cluster_programs: None) -> None:
    name = name_of("orphan")
    command = [sys.executable, "-m", "tests.cluster", "up", "--wait", "--name", name]
    owner = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        assert "up in" in owner.stdout.readline()
        assert len(processes.running(runs.folder_of(name))) == 6
        owner.kill()
    eventually(lambda: not processes.running(runs.folder_of(name)) and not runs.folder_of(name).exists())


def test_commands_to_the_end_of_a_half_dead_one(cluster_programs: None) -> None:
    name = name_of("commands")

    def run(command: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "tests.cluster", command, "--name", name]
        return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS * 2)

    assert "no control plane" in run("status").stderr
    try:
        assert run("up").returncode == 0
        assert run("status").stdout.count(" ready") == 5
        running = clusters.attach(name)
        assert run("kubeconfig").stdout.strip() == str(running.kubeconfig)
        running.stop("etcd", grace=0)
        running.pause("kube-apiserver")
        status = run("status")
        assert (status.returncode, status.stdout.count("not ready")) == (1, 2)
    finally:
        assert run("down").returncode == 0
    assert processes.running(runs.folder_of(name)) == {}
    assert not runs.folder_of(name).exists()
    assert run("down").returncode == 0


# Faults


@pytest.mark.parametrize("grace", [1.0, 0.0], ids=["stopped", "killed"])
def test_a_restart_keeps_the_data(own: ControlPlane, grace: float) -> None:
    kept = fresh_namespace(own)
    for component in ("kube-apiserver", "etcd"):
        own.restart(component, grace)
    eventually(lambda: own.api().exists(kept))


def test_a_paused_server_answers_when_resumed(own: ControlPlane) -> None:
    own.pause("kube-apiserver")
    assert own.status()["kube-apiserver"][2] is False
    own.resume("kube-apiserver")
    own.wait_ready("kube-apiserver")


# Use


def test_the_audit_log_lists_a_request_with_its_user(control_plane: ControlPlane, namespace: str) -> None:
    mark = control_plane.audit_mark()
    control_plane.kubectl("create", "configmap", "seen", "-n", namespace)
    events = [event for event in control_plane.audit(mark) if event.get("objectRef", {}).get("name") == "seen"]
    assert [(event["verb"], event["user"]["username"], event["responseStatus"]["code"]) for event in events] == [
        ("create", "admin", 201)
    ]


def test_a_service_account_may_only_what_it_is_granted(control_plane: ControlPlane, namespace: str) -> None:
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "default")
    get = ("--kubeconfig", str(kubeconfig), "get", "configmaps")
    with pytest.raises(ClusterError, match=f'User "system:serviceaccount:{namespace}:default" cannot list'):
        control_plane.kubectl(*get)
    control_plane.kubectl("create", "role", "reader", "--verb=list", "--resource=configmaps", "-n", namespace)
    grant = ("--role=reader", f"--serviceaccount={namespace}:default", "-n", namespace)
    control_plane.kubectl("create", "rolebinding", "reader", *grant)
    assert "kube-root-ca.crt" in eventually(lambda: _quietly(lambda: control_plane.kubectl(*get)))


def test_pods_have_a_log(control_plane: ControlPlane, pod: MakePod) -> None:
    name = pod({})
    control_plane.write_pod_log("first line", "second line")
    shown = control_plane.kubectl("logs", name, "-n", pod.namespace, "--tail=1")
    assert shown == "second line\n"


def _quietly(what: Callable[[], str]) -> str:
    try:
        return what()
    except ClusterError:
        return ""


# Pods


class MakePod:
    """Pods with annotations, and what became of them."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.namespace = namespace
        self._api = control_plane.api()
        self._path = f"/api/v1/namespaces/{namespace}/pods"

    def __call__(self, notes: dict[str, str], **spec: Any) -> str:
        metadata = {"name": "pod", "annotations": {f"test.rbg/{key}": value for key, value in notes.items()}}
        containers = [{"name": "main", "image": "none"}, {"name": "side", "image": "none"}]
        self._api.request("POST", self._path, {"metadata": metadata, "spec": {"containers": containers, **spec}})
        return "pod"

    def note(self, **notes: str | None) -> None:
        body = {"metadata": {"annotations": {f"test.rbg/{key.replace('_', '-')}": text for key, text in notes.items()}}}
        self._api.request("PATCH", f"{self._path}/pod", body, "application/merge-patch+json")

    def delete(self) -> None:
        self._api.request("DELETE", f"{self._path}/pod")

    def exists(self) -> bool:
        return self._api.exists(f"{self._path}/pod")

    def status(self) -> dict[str, Any]:
        return dict(self._api.request("GET", f"{self._path}/pod")["status"])

    def state(self) -> tuple[str, bool, int]:
        """Phase, readiness, restarts of the first container."""
        status = self.status()
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
        return status["phase"], ready, status.get("containerStatuses", [{"restartCount": 0}])[0]["restartCount"]

    def becomes(self, phase: str, ready: bool, restarts: int = 0) -> None:
        eventually(lambda: self.state() == (phase, ready, restarts) or None)


@pytest.fixture
def pod(control_plane: ControlPlane, namespace: str) -> MakePod:
    return MakePod(control_plane, namespace)


def test_a_statefulset_gets_ready_pods_with_addresses(control_plane: ControlPlane, namespace: str) -> None:
    labels = {"app": "web"}
    gpu = {"limits": {"nvidia.com/gpu": "8"}}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "web", "image": "none", "resources": gpu}]},
    }
    spec = {"serviceName": "web", "replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    path = f"/apis/apps/v1/namespaces/{namespace}/statefulsets"
    control_plane.api().request("POST", path, {"metadata": {"name": "web"}, "spec": spec})
    eventually(lambda: control_plane.api().request("GET", f"{path}/web")["status"].get("readyReplicas") == 2)
    pods = control_plane.api().request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
    assert sorted(item["metadata"]["name"] for item in pods) == ["web-0", "web-1"]
    assert len({item["status"]["podIP"] for item in pods}) == 2


def test_ready_after(pod: MakePod) -> None:
    pod({"ready-after": "2s"})
    pod.becomes("Running", ready=False)
    pod.becomes("Running", ready=True)


def test_readiness_withheld_and_given_back(pod: MakePod) -> None:
    pod({"never-ready": "true"})
    pod.becomes("Running", ready=False)
    pod.note(never_ready=None)
    pod.becomes("Running", ready=True)
    pod.note(never_ready="true")
    pod.becomes("Running", ready=False)


def test_a_crash_leaves_its_evidence_and_is_over_after_two(pod: MakePod) -> None:
    pod({"crash": "137", "crashes": "2", "restart-after": "100ms", "crash-message": 'out of memory\nat "main"'})
    pod.becomes("Running", ready=True, restarts=2)
    main, side = pod.status()["containerStatuses"]
    ended = main["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (137, "Error", 'out of memory\nat "main"')
    assert (side["restartCount"], side["lastState"]) == (0, {})


def test_a_pod_that_crashes_at_its_start_is_never_ready(pod: MakePod) -> None:
    pod({"crash": "1", "restart-after": "1h"})
    pod.becomes("Running", ready=False, restarts=1)
    waiting = pod.status()["containerStatuses"][0]["state"]["waiting"]
    assert waiting["reason"] == "CrashLoopBackOff"


def test_a_ready_pod_can_be_made_to_crash(pod: MakePod) -> None:
    pod({})
    pod.becomes("Running", ready=True)
    pod.note(crash="2", crash_after="0s", crashes="1")
    pod.becomes("Running", ready=True, restarts=1)


def test_stop_after_keeps_a_deleted_pod_for_a_while(pod: MakePod) -> None:
    pod({"stop-after": "2s"})
    pod.becomes("Running", ready=True)
    pod.delete()
    assert pod.exists()
    eventually(lambda: not pod.exists())


@pytest.mark.parametrize(("notes", "phase"), [({}, "Succeeded"), ({"crash": "3"}, "Failed")])
def test_a_pod_that_does_not_restart_ends(pod: MakePod, notes: dict[str, str], phase: str) -> None:
    pod(notes, restartPolicy="Never")
    eventually(lambda: pod.state()[0] == phase)


# Building, with a stand-in for the compiler: the real one takes minutes


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `go` that does what the file `script` beside it says; nothing else is on PATH but the shell's own tools."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "go").write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\n. {tmp_path}/script\n")
    (tools / "go").chmod(0o755)
    for tool in ("sh", "sleep", "touch", "openssl"):
        found = next(path for folder in ("/usr/bin", "/bin") if (path := Path(folder, tool)).exists())
        (tools / tool).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("RBG_CLUSTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "script"


OUTPUT_ARGUMENT = 'while [ "$1" != -o ]; do shift; done; '
BUILD = [sys.executable, "-m", "tests.cluster", "build"]


def test_two_builders_build_once(compiler: Path) -> None:
    compiler.write_text(OUTPUT_ARGUMENT + 'sleep 0.1; touch "$2"')
    builders = [subprocess.Popen(BUILD, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [builder.communicate(timeout=SECONDS)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert (compiler.parent / "runs").read_text().count("run") == len(programs.CONTROL_PLANE)
    assert sorted("another process is building" in output for output in outputs) == [False, True]


def test_a_killed_build_leaves_no_program_and_the_next_waits_for_its_compiler(compiler: Path) -> None:
    compiler.write_text(OUTPUT_ARGUMENT + f'touch "$2" {compiler.parent}/begun; sleep 1; touch {compiler.parent}/ended')
    builder = subprocess.Popen(BUILD, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    eventually((compiler.parent / "begun").exists)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert programs.find(programs.CONTROL_PLANE[0]) is None
    (compiler.parent / "next").write_text(OUTPUT_ARGUMENT + 'touch "$2"')
    (compiler.parent / "next").rename(compiler)
    programs.build(programs.CONTROL_PLANE[:1])
    assert (compiler.parent / "ended").exists()
    assert programs.find(programs.CONTROL_PLANE[0]) is not None


def test_a_failed_build_shows_the_compilers_words(compiler: Path) -> None:
    compiler.write_text("echo no route to the module index >&2; exit 1")
    with pytest.raises(ClusterError, match=r"building etcd failed:\nno route to the module index"):
        programs.build()
    assert programs.find(programs.CONTROL_PLANE[0]) is None


@pytest.mark.parametrize(("version", "fits"), [("v1.34.4", True), ("v1.34.40", False), ("v1.34.4-rc.1", False)])
def test_a_program_on_path_is_taken_only_in_its_version(compiler: Path, version: str, fits: bool) -> None:
    kubectl = compiler.parent / "bin" / "kubectl"
    kubectl.write_text(f"#!/bin/sh\necho Client Version: {version}\n")
    kubectl.chmod(0o755)
    assert (programs.find(programs.named("kubectl")) is not None) == fits


def test_without_programs_and_go_the_message_names_them(compiler: Path) -> None:
    (compiler.parent / "bin" / "go").unlink()
    obstacle = programs.obstacle()
    assert obstacle is not None
    assert "kube-apiserver 1.34.4" in obstacle
    assert "install Go" in obstacle


@pytest.mark.parametrize(("require", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_a_missing_control_plane_skips_or_fails(compiler: Path, require: str, outcome: str) -> None:
    (compiler.parent / "bin" / "go").unlink()
    test = f"{Path(__file__).relative_to(REPOSITORY)}::test_ready_after"
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test]
    environment = {**os.environ, "CI": "", "RBG_REQUIRE_CLUSTER": require}
    done = subprocess.run(argv, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=SECONDS * 2)
    assert outcome in done.stdout
    assert "needs a control plane: etcd 3.6.7" in done.stdout
    assert (done.returncode == 0) == (require == "")


def test_a_refused_request_shows_the_servers_words(control_plane: ControlPlane, namespace: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        control_plane.service_account_kubeconfig(namespace, "nobody")
