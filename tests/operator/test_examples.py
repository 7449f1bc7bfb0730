"""Every numbered example is what its first paragraph says: understood, runnable, and accepted by a real API server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from epd_runtime import config, router
from epd_runtime.router import options
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.api.parse import parse_manifest
from rbg_operator.plan.actions import PodId
from rbg_operator.plan.arguments import module, raw_argv
from rbg_operator.plan.labels import GROUP_NAME, ROLE_NAME
from rbg_operator.plan.processes import plan_process
from rbg_operator.plan.render import adapter_object, render
from rbg_operator.plan.rendering import Context, Rendering
from tests.cluster.control_plane import ControlPlane

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))
LITERAL = "05-kep-75-literal.yaml"
PARSERS = {"epd_runtime.launch_server": config.from_argv, router.__name__: options.from_argv}


def documents() -> dict[str, dict[str, Any]]:
    """Every file as one mapping."""
    return {path.name: yaml.safe_load(path.read_text()) for path in FILES}


GROUPS = [name for name, document in documents().items() if document["kind"] == "RoleBasedGroup"]


def group_of(name: str, **metadata: str) -> RoleBasedGroup:
    """The example as a group, with metadata as a cluster would give it."""
    document = documents()[name]
    document["metadata"] |= metadata
    return parse_manifest(json.dumps(document).encode(), name)


def rendered(name: str, **metadata: str) -> Rendering:
    """The example's objects."""
    return render(group_of(name, **metadata), Context())


def test_numbers_follow_each_other() -> None:
    numbers = sorted({int(path.name[:2]) for path in FILES})
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_begins_with_one_paragraph(path: Path) -> None:
    first = re.match(r"(# \S.*\n){2,8}apiVersion: ", path.read_text())
    assert first, "one paragraph of comment on when to use it, then the manifest"


@pytest.mark.parametrize("name", GROUPS)
def test_is_understood(name: str) -> None:
    group = group_of(name)
    assert bool(group.warnings) == (name == LITERAL), group.warnings
    assert not rendered(name).problems


@pytest.mark.parametrize("name", GROUPS)
def test_commands_are_understood_by_the_runtime(name: str) -> None:
    group = group_of(name)
    for role in group.roles:
        parse = PARSERS.get(module(raw_argv(role)))
        if parse:
            argv = plan_process(group, PodId(role.name, 0), "127.0.0.1").argv
            assert argv[:2] == ("python3", "-m")
            parse(argv[3:])  # ends the test with its message if a flag is wrong


@pytest.mark.parametrize("name", GROUPS)
def test_depends_on_those_that_it_calls(name: str) -> None:
    """Otherwise the first requests would find nobody."""
    group = group_of(name)
    for role in group.roles:
        command = " ".join(plan_process(group, PodId(role.name, 0), "127.0.0.1").argv)
        called = [other.name for other in group.roles if f"//s-{group.name}-{other.name}" in command]
        assert called == list(role.dependencies), f"{role.name}: {command}"


@pytest.mark.parametrize("name", GROUPS)
def test_group_and_its_objects_are_accepted(name: str, cluster: ControlPlane, namespace: str) -> None:
    created = cluster.kubectl("create", "--validate=strict", "-n", namespace, "-f", str(EXAMPLES / name), "-o", "json")
    uid = json.loads(created)["metadata"]["uid"]
    text = yaml.safe_dump_all(list(objects(rendered(name, namespace=namespace, uid=uid))))
    cluster.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", input=text)


def objects(rendering: Rendering) -> Iterator[dict[str, Any]]:
    """All objects of a group, as they are first applied."""
    yield from rendering.first
    for role in rendering.roles.values():
        yield from role.services
        yield role.workload
        if role.role.scaling_adapter:
            yield adapter_object(rendering.group, role.role, role.role.replicas)


def test_autoscaler_scales_the_adapter(cluster: ControlPlane, namespace: str) -> None:
    cluster.kubectl("create", "--validate=strict", "-n", namespace, "-f", str(EXAMPLES / "07-autoscaling-hpa.yaml"))
    target = documents()["07-autoscaling-hpa.yaml"]["spec"]["scaleTargetRef"]
    made = list(objects(rendered("07-autoscaling-group.yaml", namespace=namespace, uid="u")))
    assert target in [
        {"apiVersion": item["apiVersion"], "kind": item["kind"], "name": item["metadata"]["name"]} for item in made
    ]
    (role,) = [role for role in group_of("07-autoscaling-group.yaml").roles if role.scaling_adapter]
    assert role.main_container["resources"]["requests"]["cpu"], "an HPA by CPU needs what the pod asks for"


def test_monitor_finds_the_pods_and_their_port() -> None:
    monitor = documents()["10-prometheus-podmonitor.yaml"]["spec"]
    assert monitor["selector"]["matchExpressions"] == [{"key": GROUP_NAME, "operator": "Exists"}]
    assert monitor["podTargetLabels"] == [GROUP_NAME, ROLE_NAME]
    (endpoint,) = monitor["podMetricsEndpoints"]
    group = group_of("10-prometheus-group.yaml")
    for name, role in rendered("10-prometheus-group.yaml").roles.items():
        template = role.workload["spec"]["template"]
        assert {GROUP_NAME, ROLE_NAME} <= set(template["metadata"]["labels"])
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert ports[endpoint["port"]] == plan_process(group, PodId(name, 0), "127.0.0.1").port
