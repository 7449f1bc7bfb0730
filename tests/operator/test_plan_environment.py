"""Names, kinds, ports, expansion, injected variables, probes: what each pod of a group is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbg_operator.api.model import Role, RoleBasedGroup
from rbg_operator.api.parse import parse_group, parse_manifest
from rbg_operator.api.problems import ManifestError
from rbg_operator.plan.actions import PodId
from rbg_operator.plan.arguments import flag, module
from rbg_operator.plan.environment import stage_urls, stages
from rbg_operator.plan.expand import expand
from rbg_operator.plan.kinds import RoleKind, role_kind, serving_port
from rbg_operator.plan.labels import ROLE_KIND
from rbg_operator.plan.probes import AliveProbe, ExecProbe, HttpProbe, TcpProbe
from rbg_operator.plan.processes import ignored_fields, plan_all, plan_process
from tests.operator.groups import manifest, role

EXAMPLE = Path(__file__).parents[2] / "manifests" / "examples" / "01-handwriting-epd.yaml"


def group(*roles: dict[str, Any]) -> RoleBasedGroup:
    return parse_group(manifest(*roles))


def only(*command: str, **container: Any) -> Role:
    return group(role("a", *command, **container)).roles[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"), ("x$(A)$(B)y", "x12y"), ("$(NONE)", "$(NONE)"), ("$$(A)", "$(A)"), ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"), ("$A $", "$A $"), ("$(A", "$(A"), ("$()", "$()"), ("$(C)", "$(A)"), ("a$$b", "a$b"),
    ],
)  # fmt: skip
def test_expansion_as_kubernetes(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2", "C": "$(A)"}) == expected


@given(st.text(alphabet="$()Ax", max_size=30))
def test_expansion_without_variables_only_halves_double_dollars(text: str) -> None:
    assert expand(text.replace("$", "$$"), {"A": "1"}) == text


def test_expansion_of_hostile_text_is_linear() -> None:
    assert expand("$(" * 300_000, {}) == "$(" * 300_000


@pytest.mark.parametrize(
    "argv",
    [
        ["python3", "-m", "x.y", "--port", "80", "--on"],
        ["python3", "-m", "x.y", "--port=80", "--on"],
        ["python3", "-m x.y", "--port 80", "--on"],
        ["sh", "-c", "exec python3 -m x.y \\\n --port 80 --on; true"],
        ["/bin/bash", "-ec", "python3 -m x.y --port '80'; x --on"],
        ["sh", "-c", "python3 -m x.y --on --port 80 'unclosed"],
    ],
)
def test_flags_in_every_spelling(argv: list[str]) -> None:
    assert (flag(argv, "--port"), flag(argv, "--on") is not None, module(argv)) == ("80", True, "x.y")
    assert flag(argv, "--por") is None


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["s", "--encoder-only"], RoleKind.ENCODER),
        (["s", "--disaggregation-mode", "prefill", "--language-only"], RoleKind.PREFILL),
        (["s", "--disaggregation-mode=decode"], RoleKind.DECODE),
        (["r", "--pd-disaggregation"], RoleKind.ROUTER),
        (["python", "-m", "sglang_router.launch_router"], RoleKind.ROUTER),
        (["s", "--language-only"], RoleKind.OTHER),
    ],
)
def test_kind_from_flags(command: list[str], kind: RoleKind) -> None:
    assert role_kind(only(*command)) is kind


def test_kind_from_label_wins() -> None:
    for where in ("labels", "annotations"):
        assert role_kind(group({**role("a", "s", "--encoder-only"), where: {ROLE_KIND: "router"}}).roles[0]) == "router"
    assert role_kind(group({**role("a", "s", "--encoder-only"), "labels": {ROLE_KIND: "?"}}).roles[0]) == "encoder"


def test_port() -> None:
    assert serving_port(only("s", "--port", "81")) == 81
    assert serving_port(only("s", "--port", "$(P)", env=[{"name": "P", "value": "82"}])) == 82
    ports = [{"containerPort": 1}, {"containerPort": 83, "name": "http"}]
    assert serving_port(only("s", "--port", "99999", ports=ports)) == 83
    assert serving_port(group({**role("a", "s"), "servicePorts": [{"port": 84}]}).roles[0]) == 84
    assert serving_port(only("python3", "-m", "sglang.launch_server")) == 30000
    assert serving_port(only("s")) is None


def test_each_stage_gets_the_addresses_that_it_calls() -> None:
    example = parse_manifest(EXAMPLE.read_bytes(), "example")
    encoders = ("ENCODER_URLS", "http://s-sglang-vlm-epd-vlm-encoder:30002")
    prefill = ("PREFILL_URLS", "http://s-sglang-vlm-epd-vlm-prefill:30000")
    decode = ("DECODE_URLS", "http://s-sglang-vlm-epd-vlm-decode:30001")
    found = stages(example)
    assert {stage.role.name: stage_urls(example, stage, found) for stage in found} == {
        "vlm-encoder": [],
        "vlm-prefill": [encoders],
        "vlm-decode": [],
        "sglang-router": [encoders, prefill, decode],
    }


def test_scaling_changes_nothing_in_any_pod() -> None:
    example = parse_manifest(EXAMPLE.read_bytes(), "example")
    more = example.with_replicas("vlm-encoder", 7)
    assert plan_all(example, "127.1.1.1") == plan_all(more, "127.1.1.1")


def test_variables_of_a_pod() -> None:
    env = [
        {"name": "MINE", "value": "$(RBG_ROLE_NAME)-$(ROLE_INDEX)"},
        {"name": "AGAIN", "value": "$(MINE)!"},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "ENCODER_URLS", "value": "http://mine:1"},
    ]
    planned = plan_process(
        group(role("e", "s", "--encoder-only", "--port", "1"), role("p", "s", "$(IP)", "$(ENCODER_URLS)", env=env)),
        PodId("p", 2),
        "127.1.2.3",
    )
    assert planned.argv == ("s", "127.1.2.3", "http://mine:1")
    assert planned.env == {
        "RBG_GROUP_NAME": "g", "RBG_ROLE_NAME": "p", "RBG_ROLE_INDEX": "2",
        "GROUP_NAME": "g", "ROLE_NAME": "p", "ROLE_INDEX": "2",
        "POD_NAME": "g-p-2", "POD_IP": "127.1.2.3", "POD_NAMESPACE": "default",
        "ENCODER_URLS": "http://mine:1", "MINE": "p-2", "AGAIN": "p-2!", "IP": "127.1.2.3",
    }  # fmt: skip
    assert planned.names_always[:2] == ("g-p-2", "s-g-p-2")
    assert "g-p-2.s-g-p.default.svc.cluster.local" in planned.names_always
    assert planned.names_ready[0] == "s-g-p"


def test_what_a_process_cannot_have_is_named() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    bad = group(role("a", env=env), role("b", "x", readinessProbe={"grpc": {"port": 1}}), role("c", "x", envFrom=[{}]))
    with pytest.raises(ManifestError) as caught:
        plan_all(bad, "127.0.0.1")
    container = "spec.roles[{}].template.spec.containers[0]"
    assert [problem.path for problem in caught.value.problems] == [
        container.format(0) + ".env[1].valueFrom",
        container.format(0) + ".command",
        container.format(1) + ".readinessProbe.grpc",
        container.format(2) + ".envFrom",
    ]
    assert "refers to secretKeyRef" in caught.value.problems[0].message


def test_ignored_fields_are_listed() -> None:
    some = role("a", "x", image="i", resources={})
    some["template"]["spec"]["volumes"] = []
    assert ignored_fields(group(some)) == ["image", "resources", "volumes"]


@pytest.mark.parametrize(
    ("command", "probe", "check"),
    [
        (["python3", "-m", "epd_runtime.launch_server", "--port", "5"], None, HttpProbe(5, "/health")),
        (["python3", "-m", "epd_runtime.router"], None, HttpProbe(30000, "/health")),
        (["sleep", "9"], None, AliveProbe()),
        (["x"], {"httpGet": {"port": "web"}}, HttpProbe(7, "/")),
        (["x"], {"httpGet": {"port": 8, "path": "ok"}}, HttpProbe(8, "/ok")),
        (["x"], {"tcpSocket": {"port": 8}}, TcpProbe(8)),
        (["x"], {"exec": {"command": ["a", "b"]}}, ExecProbe(("a", "b"))),
    ],
)
def test_probe(command: list[str], probe: dict[str, Any] | None, check: object) -> None:
    planned = plan_all(
        group(role("a", *command, readinessProbe=probe, ports=[{"name": "web", "containerPort": 7}])), "127.0.0.1"
    )
    assert planned[0].probe.check == check


@pytest.mark.parametrize(
    ("probe", "problem"),
    [
        ({"periodSeconds": 1}, "needs exactly one of httpGet, tcpSocket and exec"),
        ({"httpGet": {"port": "nope"}}, "must be a number from 1 to 65535, not 'nope'"),
        ({"httpGet": {"port": 8, "scheme": "HTTPS"}}, "only HTTP is supported"),
        ({"exec": {}}, "name the program to run in command"),
        ({"tcpSocket": {"port": 8}, "periodSecond": 1}, "did you mean periodSeconds?"),
    ],
)
def test_probe_problems(probe: dict[str, Any], problem: str) -> None:
    with pytest.raises(
        ManifestError, match=r"spec\.roles\[0\]\.template\.spec\.containers\[0\]\.readinessProbe"
    ) as caught:
        plan_all(group(role("a", "x", readinessProbe=probe)), "127.0.0.1")
    assert problem in str(caught.value)
