"""From a mapping to a RoleBasedGroup: defaults, and every mistake named with its path."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbg_operator.api.adapter import parse_adapter
from rbg_operator.api.groupset import parse_groupset
from rbg_operator.api.model import Coordination, EngineRuntime, KubeGang, RestartPolicy, RollingUpdate, VolcanoGang
from rbg_operator.api.parse import parse_group, parse_manifest
from rbg_operator.api.problems import ManifestError
from rbg_operator.api.profile import parse_profile
from rbg_operator.plan.processes import plan_all
from tests.operator.groups import PROFILE, manifest, role

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
        (changed(replicas=10_001), "replicas: must be between 0 and 10000, not 10001"),
        (changed(components=[{}]), "components: components are not supported; use leaderWorkerSet"),
        (changed(rolloutStrategy={"type": "Recreate"}), "rolloutStrategy.type: must be one of RollingUpdate"),
        (changed(rolloutStrategy={"rollingUpdate": {"partition": "x%"}}), "partition: must be a number of pods"),
        (
            changed(workload={"kind": "Deployment"}, replicas=2, rolloutStrategy={"rollingUpdate": {"partition": 1}}),
            "partition: needs ordinals, which a Deployment has not",
        ),
        (changed(workload={"kind": "Deployment"}, leaderWorkerSet={"size": 2}), "leaderWorkerSet.size: a Deployment"),
        (changed(workload={"kind": "Deployment", "apiVersion": "v1"}), "workload.apiVersion: is 'v1', but Deployment"),
        (changed(leaderWorkerSet={"size": 0}), "leaderWorkerSet.size: must be between 1 and 1000, not 0"),
        (
            changed(leaderWorkerSet={"patchLeaderTemplate": {"spec": {"containers": None}}}),
            "template(spec.roles[0].leaderWorkerSet.patchLeaderTemplate).spec.containers: is empty",
        ),
        (changed(engineRuntimes=[{}]), "engineRuntimes[0].profileName: is missing"),
        (changed(engineRuntimes=[{"profileName": "p", "containers": [{"image": "i"}]}]), "image: unknown field"),
        (changed(engineRuntimes=[{"profileName": "p"}] * 2), 'engineRuntimes[1].profileName: "p" is listed twice'),
        (
            manifest({**role("a", "x"), "leaderWorkerSet": {"size": 2}}, name="g" * 46),
            "at most 47 fit into the names derived from it of a role with leaderWorkerSet.size 2",
        ),
        (
            manifest({**role("a", "x"), "leaderWorkerSet": {"size": 2}}, role("a-nodes", "x")),
            'spec.roles[1].name: "a-nodes" stands for the nodes of role "a"',
        ),
        (manifest(role("a", "x"), podGroupPolicy={}), "spec.podGroupPolicy: needs one of kubeScheduling and volcano"),
        (manifest(role("a", "x"), coordination=[{"name": "c", "roles": ["b"]}]), 'roles[0]: no role is called "b"'),
        (manifest(role("a", "x"), coordination=[{"name": "c"}]), "spec.coordination[0].roles: is empty"),
        (
            manifest(role("a", "x"), coordination=[{"name": "c", "roles": ["a"]}, {"name": "d", "roles": ["a"]}]),
            'spec.coordination[1].roles[0]: "a" is already in "c"; keep it in one coordination',
        ),
        (
            manifest(
                role("a", "x"),
                coordination=[{"name": "c", "roles": ["a"], "strategy": {"rollingUpdate": {"maxSkew": 1}}}],
            ),
            "rollingUpdate.maxSkew: must be a string",
        ),
        (manifest(role("a", "x", env=[{"name": "A"}, {"name": "A"}])), 'env[1].name: "A" is the name of two variables'),
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


def test_two_words_in_one_argument_are_split_for_python() -> None:
    value = manifest(role("a", "python3.11", "-m x", "--port 80", "--a=b c", "say hello", args=["--x  y\n", "--f a b"]))
    before = copy.deepcopy(value)
    group = parse_group(value)
    container = group.roles[0].main_container
    assert container["command"] == ["python3.11", "-m", "x", "--port", "80", "--a=b c", "say hello"]
    assert container["args"] == ["--x", "y", "--f a b"]
    path = "spec.roles[0].template.spec.containers[0]"
    assert [str(warning) for warning in group.warnings][:2] == [
        f'{path}.command[1]: "-m x" is one argument with a space in it; it is read as two items: -m and x',
        f'{path}.command[2]: "--port 80" is one argument with a space in it; it is read as two items: --port and 80',
    ]
    assert str(group.warnings[3]).endswith('"--f a b" is one argument with a space in it; write two items: --f and a b')
    assert value == before


@pytest.mark.parametrize("command", [("sh", "-c", "--port 80"), ("serve", "--port 80")])
def test_two_words_in_one_argument_of_others_are_left(command: tuple[str, ...]) -> None:
    group = parse_group(manifest(role("a", *command)))
    assert group.roles[0].main_container["command"] == list(command)
    assert "write two items: --port and 80" in str(group.warnings[0])


def test_local_mode_runs_the_same_arguments() -> None:
    (process,) = plan_all(parse_group(manifest(role("a", "python3", "--port 80"))), "127.0.0.1")
    assert process.argv == ("python3", "--port", "80")


def test_the_whole_contract() -> None:
    patch = {"spec": {"containers": [{"name": "server", "args": ["w"]}]}}
    value = manifest(
        {
            **role("a", "x", replicas=4),
            "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdate": {
                "type": "InPlaceIfPossible", "partition": "50%", "maxUnavailable": "25%", "maxSurge": 1, "paused": True,
                "inPlaceUpdateStrategy": {"gracePeriodSeconds": 5}}},
            "leaderWorkerSet": {"size": 2, "patchWorkerTemplate": patch},
            "engineRuntimes": [{"profileName": "p", "injectContainers": ["c"], "containers": [{"name": "c"}]}],
            "scalingAdapter": {"enable": True, "labels": {"l": "v"}},
            "workload": {"apiVersion": "workloads.x-k8s.io/v1alpha1", "kind": "InstanceSet"},
            "components": [],
        },
        {**role("b", "x"), "workload": {"apiVersion": "apps/v1", "kind": "Deployment"}},
        podGroupPolicy={"volcanoScheduling": {"queue": "q"}},
        coordination=[{"name": "c", "roles": ["a", "b"], "strategy": {"rollingUpdate": {"maxSkew": "10%"}}}],
    )  # fmt: skip
    value["metadata"] |= {"resourceVersion": "7", "managedFields": [{}], "generation": 3, "uid": "u"}
    value["status"] = "ignored"
    group = parse_group(value)
    first, second = group.roles
    assert first.rolling_update == RollingUpdate(partition="50%", max_unavailable="25%", max_surge=1, paused=True)
    assert (first.size, first.worker_template and first.worker_template["spec"]["containers"][0]["args"]) == (2, ["w"])
    assert "args" not in first.main_container
    assert (first.workload_kind, second.workload_kind) == ("StatefulSet", "Deployment")
    assert first.engine_runtimes == (EngineRuntime(profile="p", inject=("c",), overrides=({"name": "c"},)),)
    assert (first.scaling_adapter, first.adapter_labels) == (True, {"l": "v"})
    assert group.gang == VolcanoGang(queue="q", priority_class="")
    assert group.coordination == (Coordination(name="c", roles=("a", "b"), max_skew="10%"),)
    assert (group.uid, group.generation) == ("u", 3)


def test_restart_policy_of_nodes_that_need_each_other() -> None:
    nodes = {"leaderWorkerSet": {"size": 2}}
    assert parse_group(changed(**nodes)).roles[0].restart_policy is RestartPolicy.RECREATE_INSTANCE
    assert parse_group(changed(**nodes, restartPolicy="None")).roles[0].restart_policy is RestartPolicy.NONE
    assert parse_group(changed(leaderWorkerSet={"size": 1})).roles[0].restart_policy is RestartPolicy.NONE


def test_gangs() -> None:
    found = parse_group(manifest(role("a", "x"), podGroupPolicy={"kubeScheduling": {}})).gang
    assert found == KubeGang(schedule_timeout_seconds=60)
    assert parse_group(manifest(role("a", "x"))).gang is None


SET = {"apiVersion": "workloads.x-k8s.io/v1alpha1", "kind": "RoleBasedGroupSet", "metadata": {"name": "s"}}


def test_sets() -> None:
    template = manifest(role("a", "python3", "--port 80"))["spec"]
    found = parse_groupset({**SET, "spec": {"replicas": 3, "template": template}})
    assert (found.name, found.replicas, found.template) == ("s", 3, template)
    assert len(found.warnings) == 1
    bad = {**SET, "spec": {"template": manifest(role("a" * 46, "x"), replica=1)["spec"]}}
    with pytest.raises(ManifestError) as caught:
        parse_groupset(bad)
    assert [problem.path for problem in caught.value.problems] == [
        "spec.template.replica", "spec.template.roles[0].name",
    ]  # fmt: skip
    assert '"s-9999-' in str(caught.value)


def test_adapters() -> None:
    header = {**SET, "kind": "RoleBasedGroupScalingAdapter"}
    found = parse_adapter({**header, "spec": {"replicas": 2, "scaleTargetRef": {"name": "g", "role": "a"}}})
    assert (found.group, found.role, found.replicas) == ("g", "a", 2)
    with pytest.raises(ManifestError, match=r"spec\.scaleTargetRef\.role: is missing; name the role"):
        parse_adapter({**header, "spec": {"scaleTargetRef": {"name": "g"}}})


def test_profiles() -> None:
    found = parse_profile(PROFILE)
    assert ([item["name"] for item in found.containers], found.rolls) == (["agent", "meter"], True)
    with pytest.raises(ManifestError, match=r"spec\.updateStrategy: must be one of NoUpdate, RollingUpdate"):
        parse_profile({"updateStrategy": "Never"})


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
