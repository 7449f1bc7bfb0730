"""From a mapping to a RoleBasedGroup: defaults, and every mistake named with its path."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbg_operator.api.model import RestartPolicy
from rbg_operator.api.parse import parse_group, parse_manifest
from rbg_operator.api.problems import ManifestError
from tests.operator.groups import manifest, role

EXAMPLE = Path(__file__).parents[2] / "manifests" / "examples" / "01-handwriting-epd.yaml"


def problems(value: dict[str, Any]) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_group(value)
    return [str(problem) for problem in caught.value.problems]


def changed(**fields: Any) -> dict[str, Any]:
    return manifest({**role("a", "true"), **fields})


def test_defaults() -> None:
    value = manifest(role("a", "true"))
    del value["spec"]["roles"][0]["replicas"], value["spec"]["roles"][0]["dependencies"]
    group = parse_group(value)
    (only,) = group.roles
    assert (group.name, group.namespace, group.generation, group.warnings) == ("g", "default", 0, ())
    assert (only.replicas, only.dependencies, only.restart_policy) == (1, (), RestartPolicy.NONE)
    assert only.workload_kind == "StatefulSet"
    assert (only.rolling_update.max_unavailable, only.rolling_update.max_surge) == (1, 0)
    assert only.main_container["command"] == ["true"]


def test_example_has_no_warnings() -> None:
    group = parse_manifest(EXAMPLE.read_bytes(), "example")
    assert [item.name for item in group.roles] == ["vlm-encoder", "vlm-prefill", "vlm-decode", "sglang-router"]
    assert group.warnings == ()


def test_all_problems_at_once() -> None:
    value = manifest(
        {**role("a", "true", after=("b", "x")), "replica": 3},
        role("b", "true", after=("c",)),
        role("c", "true", after=("a",)),
        role("c", "true"),
        role("A_b", "true"),
    )
    assert problems(value) == [
        "spec.roles[0].replica: unknown field; did you mean replicas?",
        'spec.roles[3].name: "c" is already the name of spec.roles[2]; give each role its own',
        "spec.roles[4].name: 'A_b' is no DNS-1123 label; use lower-case letters, digits and -, with a letter or digit "
        "at both ends, such as vlm-encoder",
        'spec.roles[0].dependencies[1]: no role is called "x"; roles are a, b, c, A_b',
        "spec.roles[0].dependencies: is a cycle: a -> b -> c -> a; remove one of these dependencies",
    ]


def test_every_cycle_is_spelled_out() -> None:
    value = manifest(
        role("a", "x", after=("a",)),
        role("b", "x", after=("d",)),
        role("c", "x", after=("b",)),
        role("d", "x", after=("c", "b")),
    )
    found = problems(value)
    assert found[0].startswith("spec.roles[0].dependencies: is a cycle: a -> a;")
    assert "is a cycle: b -> d -> " in found[1]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (manifest(), "spec.roles: is empty; a group has at least one role"),
        (manifest(role("a" * 60, "x")), "spec.roles[0].name: "),
        (manifest(role("a", "x"), name="x" * 51), "has 53 characters and at most 52 fit"),
        (manifest(role("a", "x"), role("a-0", "x")), '"a-0" is also pod 0 of role "a"'),
        (changed(replicas=-1), "spec.roles[0].replicas: must be between 0 and 10000, not -1"),
        (changed(replicas=True), "replicas: must be a whole number, not the boolean true"),
        (changed(replicas="2"), "replicas: must be a whole number, not the string '2'"),
        (changed(dependencies="b"), "dependencies: must be a list, not the string 'b'"),
        (changed(labels={"a": 1}), 'spec.roles[0].labels["a"]: must be a string, not the number 1: put it in quotes'),
        (changed(restartPolicy="Always"), "must be one of None, RecreateRBGOnPodRestart"),
        (changed(template=None), "spec.roles[0].template: is missing"),
        (changed(templateRef={"name": "t"}), "spec.roles[0].templateRef: excludes template"),
        (changed(template=None, templateRef={"name": "t"}), 'no template of spec.roleTemplates is called "t"'),
        (changed(templatePatch={}), "templatePatch: needs templateRef"),
        (changed(template={"spec": {"containers": []}}), "template.spec.containers: is empty"),
        (changed(template={"spec": {"containers": ["x"]}}), "containers[0]: must be a mapping, not a string"),
        (
            manifest(role("a", "x", env=[{"name": "A", "value": 1}])),
            "containers[0].env[0].value: must be a string, not the number 1: put it in quotes",
        ),
        (manifest(role("a", "x", ports=[{"containerPort": 0}])), "ports[0].containerPort: must be between 1"),
        (
            changed(rolloutStrategy={"rollingUpdate": {"maxUnavailable": 0}}),
            "maxUnavailable: and maxSurge are both 0",
        ),
        (changed(rolloutStrategy={"rollingUpdate": {"maxSurge": "120%"}}), "maxSurge: must be a number of pods"),
        (changed(rolloutStrategy={"rollingUpdate": {"partition": 1}}), "partition: must be below replicas (1)"),
        ({**manifest(role("a", "x")), "kind": "Pod"}, "kind: is 'Pod'; this program runs RoleBasedGroup manifests"),
        (
            {**manifest(role("a", "x")), "apiVersion": "workloads.x-k8s.io/v1alpha2"},
            "apiVersion: is 'workloads.x-k8s.io/v1alpha2', another version of it; write workloads.x-k8s.io/v1alpha1",
        ),
    ],
)
def test_problem_names_the_field(value: dict[str, Any], problem: str) -> None:
    assert any(problem in line for line in problems(value)), problems(value)


def test_template_reference_with_patch() -> None:
    value = manifest({"name": "a", "templateRef": {"name": "t"}, "templatePatch": {
        "spec": {"containers": [{"name": "server", "env": [{"name": "B", "value": "2"}], "image": None}]},
    }})  # fmt: skip
    base = role("x", "run", image="i", env=[{"name": "A", "value": "1"}])["template"]
    value["spec"]["roleTemplates"] = [{"name": "t", "template": base}]
    before = copy.deepcopy(value)
    container = parse_group(value).roles[0].main_container
    assert container == {
        "name": "server",
        "command": ["run"],
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
    }
    assert value == before


def test_two_words_in_one_argument_are_warned_of() -> None:
    group = parse_group(manifest(role("a", "python3", "-m x", "--port 80", "--a=b c", "say hello")))
    assert [str(warning).partition(";")[0] for warning in group.warnings] == [
        'spec.roles[0].template.spec.containers[0].command[1]: "-m x" is one argument with a space in it',
        'spec.roles[0].template.spec.containers[0].command[2]: "--port 80" is one argument with a space in it',
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "template", "spec", "containers", "env", "command", "dependencies", "replicas", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=3), JSON)
def test_no_mapping_raises_anything_else(roles: list[Any], templates: Any) -> None:
    value = manifest(*roles)
    value["spec"]["roleTemplates"] = templates
    with contextlib.suppress(ManifestError):
        parse_group(value)
