"""`kubectl rbg` as a user runs it: the real kubectl finds it on PATH and talks to a real API server."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from custom_resources import API_VERSION, Json, install
from rbg_operator.kubectl import cluster
from rbg_operator.kubectl.kubectl import Kubectl, KubectlError
from rbg_operator.plan import labels
from tests.cluster import control_plane as clusters
from tests.cluster import programs
from tests.cluster.control_plane import ControlPlane
from tests.operator.conftest import wait_for
from tests.operator.kubectl_objects import condition, role_status, spec_role

KUBECTL = next(program for program in programs.CONTROL_PLANE if program.name == "kubectl")
SECONDS = 60.0


class Plugin:
    """Runs `kubectl rbg` in one namespace; makes the objects that an operator would make."""

    def __init__(self, control_plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self.kubectl_path = str(programs.path_of(KUBECTL))
        wrapper = folder / "kubectl-rbg"
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rbg_operator.kubectl.main "$@"\n')
        wrapper.chmod(0o755)
        path = os.pathsep.join((str(folder), str(Path(self.kubectl_path).parent), os.environ["PATH"]))
        self.env = {**os.environ, "PATH": path, "KUBECONFIG": str(control_plane.kubeconfig)}
        self.env["KUBECACHEDIR"] = str(control_plane.folder / "kubectl-cache")

    def argv(self, line: str) -> list[str]:
        """The command line of `kubectl rbg LINE`."""
        return [self.kubectl_path, "rbg", *shlex.split(line), "-n", self.namespace]

    def run(self, line: str, code: int = 0) -> str:
        """What it prints, to standard error if it fails, as it must with that exit status."""
        done = subprocess.run(self.argv(line), env=self.env, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr if code else done.stdout

    def group(self, name: str, *roles: Json) -> Json:
        """Create a group, as kubectl apply does."""
        manifest = {"apiVersion": API_VERSION, "kind": "RoleBasedGroup", "metadata": {"name": name}}
        text = json.dumps({**manifest, "spec": {"roles": list(roles)}})
        self.control_plane.kubectl("apply", "-n", self.namespace, "-f", "-", input=text)
        return self.read(name)

    def read(self, name: str) -> Json:
        """The group as it is now."""
        return dict(json.loads(self.control_plane.kubectl("get", "rbg", "-n", self.namespace, name, "-o", "json")))

    def spec(self, name: str, role: str) -> Json:
        """A role of the group as it is now."""
        return next(item for item in self.read(name)["spec"]["roles"] if item["name"] == role)

    def status(self, name: str, *conditions: Json, statuses: Any = (), generation: int = 0) -> None:
        """Write a status as the operator does."""
        now = "2026-11-21T12:00:00Z"
        value = {
            "observedGeneration": generation or self.read(name)["metadata"]["generation"],
            "conditions": [{**item, "lastTransitionTime": now} for item in conditions],
            "roleStatuses": list(statuses),
        }
        patch = json.dumps({"status": value})
        flags = ("--subresource=status", "--type=merge", "-p", patch)
        self.control_plane.kubectl("patch", "rbg", "-n", self.namespace, name, *flags)

    def workload(self, group: Json, role: str, replicas: int = 1, containers: int = 1, **annotations: str) -> None:
        """A StatefulSet whose pods are those of a role."""
        name, uid = group["metadata"]["name"], group["metadata"]["uid"]
        marks = {labels.GROUP_NAME: name, labels.ROLE_NAME: role, labels.GROUP_UID: uid, labels.ROLE_REVISION: "new"}
        images = [{"name": f"server-{number}", "image": "epd:1"} for number in range(containers)]
        notes = {f"test.rbg/{key.replace('_', '-')}": value for key, value in annotations.items()}
        spec = {
            "replicas": replicas,
            "podManagementPolicy": "Parallel",
            "serviceName": "none",
            "selector": {"matchLabels": marks},
            "template": {"metadata": {"labels": marks, "annotations": notes}, "spec": {"containers": images}},
        }
        metadata = {"name": f"{name}-{role}", "labels": marks}
        self.create({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec})

    def revision(self, group: Json, number: int, *roles: Json) -> None:
        """A ControllerRevision of the group with a spec of these roles."""
        name, uid = group["metadata"]["name"], group["metadata"]["uid"]
        owner = {"apiVersion": API_VERSION, "kind": "RoleBasedGroup", "name": name, "uid": uid, "controller": True}
        marks = {labels.GROUP_NAME: name, labels.GROUP_REVISION: f"r{number}"}
        metadata = {"name": f"{name}-r{number}", "labels": marks, "ownerReferences": [owner]}
        bare = [{key: value for key, value in role.items() if key != "replicas"} for role in roles]
        kind = {"apiVersion": "apps/v1", "kind": "ControllerRevision"}
        self.create({**kind, "metadata": metadata, "revision": number, "data": {"roles": bare}})

    def create(self, value: Json) -> None:
        """Create any object."""
        self.control_plane.kubectl("create", "-n", self.namespace, "-f", "-", input=json.dumps(value))

    def pods_ready(self, count: int) -> bool:
        """Whether so many pods of the namespace are ready."""
        output = self.control_plane.kubectl("get", "pods", "-n", self.namespace, "--no-headers")
        return output.count(" Running ") == count and "0/" not in output


@pytest.fixture
def plugin(cluster: ControlPlane, namespace: str, tmp_path: Path) -> Plugin:
    return Plugin(cluster, namespace, tmp_path)


@pytest.fixture(scope="module")
def own_control_plane(cluster_programs: None) -> Iterator[ControlPlane]:
    """One that a test may restart: the controllers of the shared one would be slow for the tests after it."""
    with clusters.up(f"plugin-{os.getpid()}", nodes=1) as running:
        install(running)
        yield running


@pytest.fixture
def restartable(own_control_plane: ControlPlane, tmp_path: Path) -> Plugin:
    return Plugin(own_control_plane, "default", tmp_path)


ENCODER, PREFILL = spec_role("encoder", replicas=2), spec_role("prefill", "encoder")
READY = condition("Ready", True, "AllRolesReady")
WAITING = condition("Ready", False, "RolesNotReady", "prefill waits for encoder")


def test_status_shows_roles_pods_and_why_one_crashed(plugin: Plugin) -> None:
    group = plugin.group("vl", PREFILL, ENCODER)
    plugin.workload(
        group, "encoder", 2, crash="137", crash_message="loading\nCUDA out of memory", crash_reason="OOMKilled"
    )
    stalled = role_status("encoder", "Stalled", ready=0, updated=2, message="server-0 is in CrashLoopBackOff")
    waiting = role_status("prefill", "Waiting", ready=0, updated=0, message="waits for encoder")
    plugin.status(
        "vl", condition("Progressing", False, "Stalled", "encoder does not start"), statuses=[stalled, waiting]
    )
    shown = wait_for(lambda: text if (text := plugin.run("status vl")).count("OOMKilled") == 2 else "", SECONDS)
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0].startswith(f"{plugin.namespace}/vl Stalled 0/2 roles ready")
    assert lines[1] == "encoder does not start"
    assert "encoder Stalled 0/2 2/2" in lines[4]
    assert "│ server-0 is in CrashLoopBackOff" in lines
    assert any(line.startswith("├─ vl-encoder-0 CrashLoopBackOff no yes") for line in lines)
    assert "│ │ CUDA out of memory" in lines
    assert lines.index("prefill Waiting 0/1 0/1 after encoder") > lines.index("│ CUDA out of memory")
    assert lines[-1] == "waits for encoder"
    assert "\x1b" not in shown


def test_status_as_json_and_of_several_groups(plugin: Plugin) -> None:
    assert plugin.run("status") == f"there are no RoleBasedGroups in namespace {plugin.namespace}\n"
    plugin.group("one", ENCODER)
    assert plugin.run("status").startswith(f"{plugin.namespace}/one ")
    plugin.group("two", ENCODER)
    plugin.status("two", READY, statuses=[role_status("encoder", "Ready", 2, 2)])
    assert json.loads(plugin.run("status two -o json"))["roles"][0]["ready"] == 2
    assert {view["name"] for view in json.loads(plugin.run("status -o json"))} == {"one", "two"}
    lines = plugin.run("status").splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["one", "Unknown", "0/1"], ["two", "Ready", "1/1"]]
    assert f"{plugin.namespace}/two" in plugin.run("status -A")


def test_errors_are_one_line_that_says_what_to_do(plugin: Plugin, tmp_path: Path) -> None:
    assert "nor any" not in plugin.run("status vl", code=1)
    plugin.group("vlm", ENCODER)
    assert plugin.run("status vl", code=1) == (
        f'kubectl rbg: no RoleBasedGroup "vl" in namespace {plugin.namespace}; did you mean "vlm"?\n'
    )
    assert "did you mean" in plugin.run("scale vlm encodr=1", code=1)
    assert "nothing of group vlm runs yet" in plugin.run("logs vlm", code=1)
    assert 'context "none" does not exist' in plugin.run("status --context none", code=1)
    where = {"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}], "current-context": "c"}
    who = {"users": [{"name": "u", "user": {"token": "t"}}]}
    contexts = {"contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}
    (tmp_path / "dead").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **where, **who, **contexts}))
    error = plugin.run(f"status --kubeconfig {tmp_path / 'dead'}", code=1)
    assert "cannot be reached" in error
    assert error.count("\n") == 1


def test_scale_and_restart_change_only_what_they_say(plugin: Plugin) -> None:
    before = plugin.group("vl", ENCODER, PREFILL)
    plugin.run("scale vl encoder=5")
    plugin.run("restart vl prefill")
    after = plugin.read("vl")
    assert plugin.spec("vl", "encoder") == {**before["spec"]["roles"][0], "replicas": 5}
    assert list(plugin.spec("vl", "prefill")["annotations"]) == [labels.RESTARTED_AT]
    applied = "kubectl.kubernetes.io/last-applied-configuration"
    assert after["metadata"]["annotations"][applied] == before["metadata"]["annotations"][applied]
    plugin.run("restart vl")
    assert labels.RESTARTED_AT in plugin.spec("vl", "encoder")["annotations"]


def test_scale_goes_through_the_adapter_of_a_role_that_has_one(plugin: Plugin) -> None:
    plugin.group("vl", {**ENCODER, "scalingAdapter": {"enable": True}}, PREFILL)
    plugin.run("scale vl encoder=3")  # there is no adapter yet
    assert plugin.spec("vl", "encoder")["replicas"] == 3
    metadata = {"name": "vl-encoder", "labels": {labels.GROUP_NAME: "vl", labels.ROLE_NAME: "encoder"}}
    adapter = {"apiVersion": API_VERSION, "kind": "RoleBasedGroupScalingAdapter", "metadata": metadata}
    plugin.create({**adapter, "spec": {"replicas": 3, "scaleTargetRef": {"name": "vl", "role": "encoder"}}})
    plugin.run("scale vl encoder=4 prefill=2")
    assert [plugin.spec("vl", role)["replicas"] for role in ("encoder", "prefill")] == [3, 2]
    assert json.loads(plugin.run("status vl -o json"))["roles"][0]["replicas"] == 4


def test_edits_at_the_same_time_are_all_made(plugin: Plugin) -> None:
    plugin.group("vl", *(spec_role(f"role-{number}") for number in range(4)))
    started = [
        subprocess.Popen(plugin.argv(f"scale vl role-{number}=7"), env=plugin.env, stdout=subprocess.DEVNULL)
        for number in range(4)
    ]
    assert [process.wait(SECONDS) for process in started] == [0] * 4
    assert [role["replicas"] for role in plugin.read("vl")["spec"]["roles"]] == [7] * 4


def test_a_write_over_somebody_elses_edit_is_a_conflict(plugin: Plugin) -> None:
    plugin.group("vl", ENCODER)
    kubectl = Kubectl(plugin.namespace, kubeconfig=str(plugin.control_plane.kubeconfig), binary=plugin.kubectl_path)
    stale = cluster.get_group(kubectl, "vl")
    plugin.status("vl", READY)
    cluster.replace_spec(kubectl, stale)  # a status that was written since is no edit
    plugin.run("scale vl encoder=5")
    with pytest.raises(KubectlError) as caught:
        cluster.replace_spec(kubectl, stale)
    assert caught.value.reason == "Conflict"
    assert plugin.spec("vl", "encoder")["replicas"] == 5


def newer(role: Json, image: str) -> Json:
    """The role with another image."""
    return {**role, "template": {"spec": {"containers": [{"name": "server", "image": image}]}}}


def test_history_and_undo_keep_replicas(plugin: Plugin) -> None:
    group = plugin.group("vl", newer(ENCODER, "epd:2"))
    assert plugin.run("rollout history vl").startswith("no revisions are kept yet")
    plugin.revision(group, 1, *_stored(plugin, ENCODER, PREFILL))
    plugin.revision(group, 2, *group["spec"]["roles"])
    lines = [" ".join(line.split()) for line in plugin.run("rollout history vl").splitlines()]
    assert lines[2].startswith("2 * ")
    assert lines[2].endswith("s prefill: removed")
    assert lines[3] == "encoder: template.spec.containers[server].image epd:1 → epd:2"
    assert "image: epd:1" in plugin.run("rollout history vl --revision 1")
    assert "+          - image: epd:1" in plugin.run("rollout undo vl --dry-run")
    assert plugin.read("vl")["spec"] == group["spec"]
    plugin.run("scale vl encoder=6")
    assert "role prefill comes back with 1 replica" in plugin.run("rollout undo vl")
    roles = plugin.read("vl")["spec"]["roles"]
    assert [(role["name"], role["replicas"]) for role in roles] == [("encoder", 6), ("prefill", 1)]
    assert roles[0]["template"]["spec"]["containers"][0]["image"] == "epd:1"
    assert plugin.run("rollout undo vl --to-revision 1") == "vl is at revision 1 already\n"
    assert "kept are 1, 2" in plugin.run("rollout undo vl --to-revision 3", code=1)


def _stored(plugin: Plugin, *roles: Json) -> list[Json]:
    """Roles with the defaults that the API server adds."""
    stored: list[Json] = plugin.group("other", *roles)["spec"]["roles"]
    return stored


def test_rollout_status_waits_for_the_present_generation(plugin: Plugin) -> None:
    plugin.group("vl", ENCODER, PREFILL)
    plugin.status("vl", WAITING)
    with started(plugin, "rollout status vl") as wait:
        assert wait.stdout
        assert "prefill waits for encoder" in wait.stdout.readline()
        plugin.run("scale vl encoder=3")
        plugin.status("vl", READY, generation=1)  # of the generation before
        assert "has seen generation 1 of 2" in wait.stdout.readline()
        plugin.status("vl", READY)
        assert wait.stdout.read() == "vl is Ready at generation 2\n"
        assert wait.wait(SECONDS) == 0


def test_rollout_status_outlives_an_api_server_that_restarts(restartable: Plugin) -> None:
    plugin = restartable
    plugin.group("vl", ENCODER)
    plugin.status("vl", WAITING)
    with started(plugin, "rollout status vl") as wait:
        assert wait.stdout
        assert "prefill waits for encoder" in wait.stdout.readline()
        plugin.control_plane.stop("kube-apiserver")
        assert wait.stdout.readline() == "the API server is away\n"
        plugin.control_plane.start("kube-apiserver")
        plugin.status("vl", READY)
        assert wait.stdout.read().endswith("vl is Ready at generation 1\n")
        assert wait.wait(SECONDS) == 0


def test_rollout_status_says_why_not(plugin: Plugin) -> None:
    plugin.group("vl", ENCODER)
    plugin.status("vl", WAITING)
    assert "vl is not Ready after 1 s; see" in plugin.run("rollout status vl --timeout 1s", code=1)
    plugin.status("vl", condition("Valid", False, "NameTaken", "the Service s-vl-encoder is somebody else's"))
    done = subprocess.run(
        plugin.argv("rollout status vl"), env=plugin.env, capture_output=True, text=True, timeout=SECONDS
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "NameTaken: the Service s-vl-encoder is somebody else's" in done.stdout


def test_logs_of_all_pods_have_prefixes(plugin: Plugin) -> None:
    group = plugin.group("vl", ENCODER, PREFILL)
    plugin.workload(group, "encoder", 2)
    plugin.workload(group, "prefill", 1, containers=2)
    wait_for(lambda: plugin.pods_ready(3), SECONDS)
    plugin.control_plane.write_pod_log(f"hello {plugin.namespace}")
    shown = [line for line in plugin.run("logs vl --tail 1").splitlines() if plugin.namespace in line]
    who = ["encoder-0         ", "encoder-1         ", "prefill-0/server-0", "prefill-0/server-1"]
    assert sorted(shown) == [f"{name} │ hello {plugin.namespace}" for name in who]
    assert plugin.run("logs vl encoder --tail 1").count("hello") == 2
    head = subprocess.run(
        f"{shlex.join(plugin.argv('logs vl --tail 1'))} | head -1",
        shell=True, env=plugin.env, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert (head.stdout.count("\n"), head.stderr) == (1, "")


def test_logs_follow_new_lines_and_new_pods(plugin: Plugin) -> None:
    group = plugin.group("vl", ENCODER)
    plugin.workload(group, "encoder")
    wait_for(lambda: plugin.pods_ready(1), SECONDS)
    with following(plugin, "logs vl -f --tail 0") as lines:
        _write_until(plugin, "first", lambda: any("encoder-0 │ first" in line for line in lines))
        plugin.control_plane.kubectl("scale", "-n", plugin.namespace, "statefulset/vl-encoder", "--replicas=2")
        _write_until(plugin, "second", lambda: any("encoder-1 │ second" in line for line in lines))


def test_logs_end_with_their_readers_when_terminated(plugin: Plugin) -> None:
    group = plugin.group("vl", ENCODER)
    plugin.workload(group, "encoder")
    wait_for(lambda: plugin.pods_ready(1), SECONDS)
    with started(plugin, "logs vl -f --tail 0") as process:
        readers = wait_for(lambda: _readers(process.pid), SECONDS)
        process.terminate()
        process.wait(SECONDS)
        assert psutil.wait_procs(readers, timeout=SECONDS)[1] == []


def _readers(pid: int) -> list[psutil.Process]:
    """The children that run kubectl logs."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):  # it ended since
            found += [child] if "logs" in child.cmdline() else []
    return found


def test_logs_go_on_after_the_api_server_was_away(restartable: Plugin) -> None:
    plugin = restartable
    group = plugin.group("logged", ENCODER)
    plugin.workload(group, "encoder")
    wait_for(lambda: plugin.pods_ready(1), SECONDS)
    with following(plugin, "logs logged -f --tail 0") as lines:
        _write_until(plugin, "before", lambda: any("before" in line for line in lines))
        plugin.control_plane.restart("kube-apiserver")
        _write_until(plugin, "after", lambda: any("after" in line for line in lines))
        written = [line for line in lines if "│" in line]
        assert len(written) == len(set(written)), "a line came twice"


def _write_until(plugin: Plugin, text: str, seen: Callable[[], bool]) -> None:
    """Print numbered lines in every pod until one is seen."""
    deadline, number = time.monotonic() + SECONDS, 0
    while not seen():
        assert time.monotonic() < deadline, f"{text} was never shown"
        plugin.control_plane.write_pod_log(f"{text} {number}")
        number += 1
        time.sleep(0.2)


@contextlib.contextmanager
def started(plugin: Plugin, line: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on; killed at the end if it still does."""
    process = subprocess.Popen(
        plugin.argv(line), env=plugin.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def following(plugin: Plugin, line: str) -> Iterator[list[str]]:
    """Lines of a command that goes on, as they come; at the end Ctrl-C must end it."""
    with started(plugin, line) as process:
        lines: list[str] = []
        assert process.stdout
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)
        reader.start()
        yield lines
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130, lines
        reader.join(SECONDS)
        assert not [line for line in lines if "Traceback" in line], lines


def test_watching_shows_changes_until_interrupted(plugin: Plugin) -> None:
    plugin.group("vl", ENCODER)
    with following(plugin, "status vl -w") as lines:
        wait_for(lambda: any("no operator has looked" in line for line in lines), SECONDS)
        plugin.status("vl", READY, statuses=[role_status("encoder", "Ready", 2, 2)])
        wait_for(lambda: any("Ready   1/1 roles ready" in line for line in lines), SECONDS)


def test_without_kubectl_it_says_so(plugin: Plugin, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rbg_operator.kubectl.main", "status"]
    empty = {**plugin.env, "PATH": str(tmp_path / "nothing")}
    done = subprocess.run(command, env=empty, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (1, "kubectl rbg: kubectl is not on PATH; install kubectl\n")
