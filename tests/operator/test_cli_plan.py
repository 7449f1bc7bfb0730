"""`rbg plan` as a user runs it, alone and against a real cluster with the real operator; `kubectl rbg` on the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from operator_process import OperatorProcess
from tests.cluster import programs
from tests.cluster.control_plane import ControlPlane
from tests.operator.groups import manifest, role

EXAMPLE = Path(__file__).parents[2] / "manifests" / "examples" / "01-handwriting-epd.yaml"
KUBECTL = next(program for program in programs.CONTROL_PLANE if program.name == "kubectl")
SECONDS = 120.0
Json = dict[str, Any]


def run(module: str, *arguments: str, code: int = 0, stdin: str = "", env: dict[str, str] | None = None) -> str:
    """What a program prints; to standard error, if it fails as it must."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        input=stdin, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def test_the_steps_come_first() -> None:
    assert run("rbg_operator.cli", "plan", "-f", str(EXAMPLE)).splitlines()[:6] == [
        "sglang-vlm-epd in namespace default: 4 roles, 5 pods",
        "",
        "  1  vlm-encoder    start 2 pods",
        "     vlm-decode     start 1 pod",
        "  2  vlm-prefill    start 1 pod   when vlm-encoder is ready",
        "  3  sglang-router  start 1 pod   when vlm-prefill and vlm-decode are ready",
    ]


def test_json_holds_steps_and_objects() -> None:
    value = json.loads(run("rbg_operator.cli", "plan", "-f", "-", "-o", "json", stdin=EXAMPLE.read_text()))
    assert [step["role"] for step in value["steps"][0]] == ["vlm-encoder", "vlm-decode"]
    assert value["steps"][2][0]["after"] == ["vlm-prefill", "vlm-decode"]
    assert [item["kind"] for item in value["objects"]].count("StatefulSet") == 4


def test_mistakes_are_named() -> None:
    a, b = role("a", image="i", after=("b",)), role("b", image="i", after=("a",))
    circle = json.dumps(manifest(a, b))
    assert "dependencies" in run("rbg_operator.cli", "plan", "-f", "-", code=1, stdin=circle)
    assert "cannot read the manifest" in run("rbg_operator.cli", "plan", "-f", "/no/such/file", code=1)
    sidecar = manifest({**role("a", image="i"), "engineRuntimes": [{"profileName": "none"}]})
    assert "none" in run("rbg_operator.cli", "plan", "-f", "-", code=1, stdin=json.dumps(sidecar))
    many = json.dumps(manifest(role("a", image="i", replicas=5_000)))
    assert "5,000 pods" in run("rbg_operator.cli", "plan", "-f", "-", code=1, stdin=many)


class Cluster:
    """A namespace with an operator, and the two programs that look at it."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        path = os.pathsep.join((str(Path(programs.path_of(KUBECTL)).parent), os.environ["PATH"]))
        cache = str(control_plane.folder / "kubectl-cache")
        self.env = {"PATH": path, "KUBECONFIG": str(control_plane.kubeconfig), "KUBECACHEDIR": cache}

    def plan(self, value: Json, *flags: str, code: int = 0) -> str:
        """rbg plan --diff."""
        arguments = ("plan", "-f", "-", "--diff", "-n", self.namespace, *flags)
        return run("rbg_operator.cli", *arguments, stdin=json.dumps(value), env=self.env, code=code)

    def rbg(self, *arguments: str, code: int = 0) -> str:
        """kubectl rbg."""
        return run("rbg_operator.kubectl.main", *arguments, "-n", self.namespace, env=self.env, code=code)

    def apply(self, value: Json) -> None:
        """kubectl apply, then wait until the operator has done its work."""
        self.kubectl("apply", "-f", "-", input=json.dumps(value))
        self.wait_ready()

    def wait_ready(self) -> None:
        """kubectl rbg rollout status."""
        self.rbg("rollout", "status", "g", "--timeout", "100s")

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Any other command of kubectl."""
        return self.control_plane.kubectl(*arguments, "-n", self.namespace, input=input)

    def pods(self) -> dict[str, str]:
        """uid of each pod by its name without the group's."""
        items = json.loads(self.kubectl("get", "pods", "-o", "json"))["items"]
        return {item["metadata"]["name"].removeprefix("g-"): item["metadata"]["uid"] for item in items}


@pytest.fixture
def cluster(cluster: ControlPlane, namespace: str) -> Cluster:
    return Cluster(cluster, namespace)


@pytest.fixture
def operated(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """With an operator for this namespace alone."""
    flags = ("--namespaces", cluster.namespace, "--lease-namespace", cluster.namespace)
    with OperatorProcess(cluster.control_plane.kubeconfig, tmp_path, *flags):
        yield cluster


def pair(image: str = "epd:1", encoders: int = 2, **fields: Any) -> Json:
    """language after encoder."""
    encoder = {**role("encoder", image=image, replicas=encoders), **fields}
    return manifest(encoder, role("language", image="epd:1", after=("encoder",)))


def test_its_objects_can_be_applied(cluster: Cluster) -> None:
    objects = run("rbg_operator.cli", "plan", "-f", str(EXAMPLE), "-o", "yaml")
    documents = list(yaml.safe_load_all(objects))
    for document in documents:
        document["metadata"]["namespace"] = cluster.namespace
    applied = cluster.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(documents))
    assert applied.count("serverside-applied") == len(documents)


def test_diff_of_a_group_that_is_not_there(cluster: Cluster) -> None:
    shown = cluster.plan(pair())
    assert f"g in namespace {cluster.namespace}: 6 to create, 0 to change, 0 to delete" in shown
    assert "  2  language  start 1 pod   when encoder is ready" in shown
    assert "create  StatefulSet g-encoder" in shown
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s-g-encoder"}}
    cluster.kubectl("create", "-f", "-", input=json.dumps({**service, "spec": {"ports": [{"port": 80}]}}))
    assert "Service s-g-encoder" in (shown := cluster.plan(pair()))
    assert "belongs to somebody else" in shown


def test_diff_says_what_the_api_server_refuses(cluster: Cluster) -> None:
    refused = pair()
    refused["metadata"]["annotations"] = {"a b": "c"}
    assert "annotations" in (error := cluster.plan(refused, code=1))
    assert error.count("\n") == 1


def test_diff_tells_what_the_operator_then_does(operated: Cluster) -> None:
    operated.apply(pair())
    assert "0 to create, 0 to change, 0 to delete" in operated.plan(pair())
    shown = operated.plan(pair("epd:2", 3))
    assert "  1  encoder  start 1 pod, replace 2 pods" in shown
    lines = [line.strip() for line in shown.splitlines()]
    assert "change  StatefulSet g-encoder" in lines
    assert [line for line in lines if line[:1] in "+-" and "image:" in line] == [
        "-          image: epd:1",
        "+          image: epd:2",
    ]
    assert "change  StatefulSet g-language" not in lines
    before = operated.pods()
    operated.apply(pair("epd:2", 3))
    after = operated.pods()
    assert sorted(after) == ["encoder-0", "encoder-1", "encoder-2", "language-0"]
    assert [name for name in before if after[name] == before[name]] == ["language-0"]
    assert "0 to create, 0 to change, 0 to delete" in operated.plan(pair("epd:2", 3))


def test_restart_replaces_the_pods_of_one_role(operated: Cluster) -> None:
    operated.apply(pair())
    before = operated.pods()
    operated.rbg("restart", "g", "encoder")
    operated.wait_ready()
    after = operated.pods()
    assert [name for name in before if after[name] == before[name]] == ["language-0"]


def test_undo_brings_the_old_image_back_and_keeps_replicas(operated: Cluster) -> None:
    operated.apply(pair())
    operated.apply(pair("epd:2"))
    operated.rbg("scale", "g", "encoder=3")
    operated.wait_ready()
    assert "encoder: template.spec.containers[server].image epd:1 → epd:2" in operated.rbg("rollout", "history", "g")
    operated.rbg("rollout", "undo", "g")
    operated.wait_ready()
    images = operated.kubectl("get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].image}").split()
    assert images == ["epd:1"] * 4
    history = operated.rbg("rollout", "history", "g").splitlines()
    assert "*" in history[-2]  # going back makes the old revision the newest
    assert "3/3" in operated.rbg("status", "g")
