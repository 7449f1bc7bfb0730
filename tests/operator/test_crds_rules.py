"""What the API server refuses at admission, with which field and words, and the nearest manifest that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from custom_resources import API_VERSION, Admission, Json
from tests.cluster.control_plane import ControlPlane
from tests.cluster.programs import ClusterError

KEP_75 = Path(__file__).parent / "data" / "kep-75.yaml"

POD = {"spec": {"containers": [{"name": "server", "image": "server:1"}]}}


@pytest.fixture(scope="module")
def admission(cluster: ControlPlane) -> Admission:
    return Admission(cluster)


def role(name: str = "a", **fields: object) -> Json:
    return {"name": name, **({} if {"template", "templateRef"} & set(fields) else {"template": POD}), **fields}


def group(*roles: Json, name: str = "g", **spec: object) -> Json:
    return _manifest("RoleBasedGroup", name, {"roles": list(roles), **spec})


def group_set(replicas: int, *roles: Json, name: str = "g") -> Json:
    return _manifest("RoleBasedGroupSet", name, {"replicas": replicas, "template": {"roles": list(roles)}})


def adapter(**spec: object) -> Json:
    return _manifest("RoleBasedGroupScalingAdapter", "g-a", spec)


def profile(**spec: object) -> Json:
    return _manifest("ClusterEngineRuntimeProfile", "sidecars", spec)


def rolling(**update: object) -> Json:
    return {"rollingUpdate": update}


def _manifest(kind: str, name: str, spec: Json) -> Json:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


class Case(NamedTuple):
    bad: Json
    field: str
    words: str
    good: Json


def in_role(field: str, words: str, bad: Json, good: Json) -> Case:
    """Two manifests of one role that differ in some fields."""
    return Case(group(role(**bad)), f"spec.roles[0]{field}", words, group(role(**good)))


SHARED = [{"name": "t", "template": POD}]
BY_REF = role(templateRef={"name": "t"})
DEPLOYMENT = {"workload": {"kind": "Deployment"}}
FULL_NAME = role("r" * 25)

CASES = {
    "role name is a DNS label": Case(
        group(role("Vlm_Encoder")), "spec.roles[0].name", "should match", group(role("vlm-encoder"))
    ),
    "role name is a string": Case(group(role(7)), "spec.roles[0].name", "must be of type string", group(role("7"))),
    "role names are unique": Case(group(role(), role()), "spec.roles[1]", "Duplicate", group(role(), role("b"))),
    "a group has roles": Case(group(), "spec.roles", "at least 1 items", group(role())),
    "a group has at most 100 roles": Case(
        group(*(role(f"r{i}") for i in range(101))),
        "spec.roles",
        "at most 100 items",
        group(*(role(f"r{i}") for i in range(100))),
    ),
    "group name is a DNS label": Case(
        group(role(), name="g.example"), "metadata.name", "should match", group(role(), name="g-example")
    ),
    "group name and role name fit": Case(
        group(FULL_NAME, role("b"), name="g" * 27),
        "spec.roles",
        f'role ["{FULL_NAME["name"]}"]: <metadata.name>-<role> has more than 52 characters',
        group(FULL_NAME, role("b"), name="g" * 26),
    ),
    "set name, number and role name fit": Case(
        group_set(1, FULL_NAME, name="g" * 22),
        "spec.template.roles",
        "more than 47 characters",
        group_set(1, FULL_NAME, name="g" * 21),
    ),
    "a set checks its template": Case(
        group_set(1, role(dependencies=["b"])), "spec.template.roles", "not in this group", group_set(1, role())
    ),
    "dependencies exist": Case(
        group(role("enc"), role("dec"), role("pre", dependencies=["enc", "decode"])),
        "spec.roles",
        'role ["pre"] depends on a role that is not in this group',
        group(role("enc"), role("dec"), role("pre", dependencies=["enc", "dec"])),
    ),
    "no dependency on itself": in_role(
        ".dependencies", "cannot depend on itself", {"dependencies": ["a"]}, {"dependencies": []}
    ),
    "dependencies are unique": Case(
        group(role(), role("b", dependencies=["a", "a"])),
        "spec.roles[1].dependencies[1]",
        "Duplicate",
        group(role(), role("b", dependencies=["a"])),
    ),
    "no role is named like a pod of another": Case(
        group(role("a"), role("a-0")), "spec.roles", 'role ["a-0"] is named like a pod', group(role("a"), role("b-0"))
    ),
    "no role is named like a nodes Service": Case(
        group(role("a", leaderWorkerSet={"size": 2}), role("a-nodes")),
        "spec.roles",
        'role ["a-nodes"] is named like the nodes Service',
        group(role("a"), role("a-nodes")),
    ),
    "template or templateRef, not both": Case(
        group(role(template=POD, templateRef={"name": "t"}), roleTemplates=SHARED),
        "spec.roles[0].template",
        "give either template",
        group(BY_REF, roleTemplates=SHARED),
    ),
    "template or templateRef, not neither": Case(
        group({"name": "a"}), "spec.roles[0].template", "give either template", group(role())
    ),
    "templateRef exists": Case(
        group(role(), role("b", templateRef={"name": "u"}), roleTemplates=SHARED),
        "spec.roles",
        'role ["b"] has a templateRef',
        group(role(), role("b", templateRef={"name": "t"}), roleTemplates=SHARED),
    ),
    "templateRef needs templates": Case(
        group(BY_REF), "spec.roles", 'role ["a"] has a templateRef', group(BY_REF, roleTemplates=SHARED)
    ),
    "templatePatch needs templateRef": Case(
        group(role(templatePatch={"spec": {"nodeName": "n"}})),
        "spec.roles[0].templatePatch",
        "needs templateRef",
        group({**BY_REF, "templatePatch": {"spec": {"nodeName": "n"}}}, roleTemplates=SHARED),
    ),
    "a template has containers": in_role(
        ".template.spec.containers",
        "Required",
        {"template": {"spec": {}}},
        {"template": POD},
    ),
    "a container's port is a number": in_role(
        ".template.spec.containers[0].ports[0].containerPort",
        "must be of type integer",
        {"template": {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": "http"}]}]}}},
        {"template": {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]}}},
    ),
    "a quantity is a quantity": in_role(
        ".template.spec.containers[0].resources.limits.memory",
        "should match",
        {"template": {"spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "1 GB"}}}]}}},
        {"template": {"spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "1G", "cpu": 2}}}]}}},
    ),
    "replicas are not negative": in_role(".replicas", "greater than or equal to 0", {"replicas": -1}, {"replicas": 0}),
    "replicas fit 32 bits": in_role(
        ".replicas", "less than or equal to 2147483647", {"replicas": 2**31}, {"replicas": 2**31 - 1}
    ),
    "partition is below replicas": in_role(
        ".rolloutStrategy.rollingUpdate.partition",
        "must be below replicas",
        {"replicas": 2, "rolloutStrategy": rolling(partition=2)},
        {"replicas": 2, "rolloutStrategy": rolling(partition=1)},
    ),
    "partition 0 of no replicas": in_role(
        ".rolloutStrategy.rollingUpdate.partition",
        "must be below replicas",
        {"replicas": 0, "rolloutStrategy": rolling(partition=1)},
        {"replicas": 0, "rolloutStrategy": rolling()},
    ),
    "partition is a percentage": in_role(
        ".rolloutStrategy.rollingUpdate.partition",
        "should match",
        {"rolloutStrategy": rolling(partition="101%")},
        {"rolloutStrategy": rolling(partition="100%")},
    ),
    "some pod can be replaced": in_role(
        ".rolloutStrategy.rollingUpdate.maxUnavailable",
        "and maxSurge are both 0",
        {"rolloutStrategy": rolling(maxUnavailable=0)},
        {"rolloutStrategy": rolling(maxUnavailable=0, maxSurge=1)},
    ),
    "some pod can be replaced, in percent": in_role(
        ".rolloutStrategy.rollingUpdate.maxUnavailable",
        "and maxSurge are both 0",
        {"rolloutStrategy": rolling(maxUnavailable="0%", maxSurge="0%")},
        {"rolloutStrategy": rolling(maxUnavailable="1%", maxSurge="0%")},
    ),
    "a Deployment has no partition": in_role(
        ".rolloutStrategy.rollingUpdate.partition",
        "a Deployment has no ordinals",
        {"replicas": 3, "rolloutStrategy": rolling(partition=1), **DEPLOYMENT},
        {"replicas": 3, "rolloutStrategy": rolling(maxSurge=1), **DEPLOYMENT},
    ),
    "a Deployment has no multi-node instances": in_role(
        ".leaderWorkerSet.size",
        "instances of several pods",
        {"leaderWorkerSet": {"size": 2}, **DEPLOYMENT},
        {"leaderWorkerSet": {"size": 1}, **DEPLOYMENT},
    ),
    "a workload kind is known": in_role(
        ".workload.kind",
        "Unsupported value",
        {"workload": {"kind": "DaemonSet"}},
        {"workload": {"kind": "InstanceSet"}},
    ),
    "kind and apiVersion belong together": in_role(
        ".workload.apiVersion",
        "is not the API version of this kind",
        {"workload": {"kind": "LeaderWorkerSet", "apiVersion": "apps/v1"}},
        {"workload": {"kind": "LeaderWorkerSet", "apiVersion": "leaderworkerset.x-k8s.io/v1"}},
    ),
    "no components": in_role(
        ".components", "use leaderWorkerSet", {"components": [{"name": "c", "size": 2}]}, {"components": []}
    ),
    "restart policies are known": in_role(
        ".restartPolicy", "Unsupported value", {"restartPolicy": "Always"}, {"restartPolicy": "None"}
    ),
    "one gang scheduler": Case(
        group(role(), podGroupPolicy={"kubeScheduling": {}, "volcanoScheduling": {}}),
        "spec.podGroupPolicy.kubeScheduling",
        "excludes volcanoScheduling",
        group(role(), podGroupPolicy={"volcanoScheduling": {"queue": "q"}}),
    ),
    "coordinated roles exist": Case(
        group(role(), coordination=[{"name": "c", "roles": ["a", "b"]}]),
        "spec.coordination",
        "names a role that is not in this group",
        group(role(), role("b"), coordination=[{"name": "c", "roles": ["a", "b"]}]),
    ),
    "a role is in one coordination": Case(
        group(role(), role("b"), coordination=[{"name": "c", "roles": ["a", "b"]}, {"name": "d", "roles": ["b"]}]),
        "spec.coordination",
        "has a role in two coordinations",
        group(role(), role("b"), coordination=[{"name": "c", "roles": ["a"]}, {"name": "d", "roles": ["b"]}]),
    ),
    "maxSkew is a percentage": Case(
        group(role(), coordination=[{"name": "c", "roles": ["a"], "strategy": rolling(maxSkew="10")}]),
        "spec.coordination[0].strategy.rollingUpdate.maxSkew",
        "should match",
        group(role(), coordination=[{"name": "c", "roles": ["a"], "strategy": rolling(maxSkew="10%")}]),
    ),
    "an adapter has a target": Case(
        adapter(replicas=1, scaleTargetRef={"name": "g"}),
        "spec.scaleTargetRef.role",
        "Required",
        adapter(replicas=1, scaleTargetRef={"name": "g", "role": "a"}),
    ),
    "a profile's containers have names": Case(
        profile(containers=[{"image": "i"}]),
        "spec.containers[0].name",
        "Required",
        profile(containers=[{"name": "c", "image": "i"}], updateStrategy="RollingUpdate"),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_mistake_is_refused_with_its_field_and_its_neighbour_is_taken(admission: Admission, case: Case) -> None:
    refused = admission.refusals(case.bad)
    assert any(field == case.field and case.words in message for field, message in refused), refused
    assert admission.refusals(case.good) == []


DEFAULTS = {"minReadySeconds": 0, "workload": {"kind": "StatefulSet"}}
UNKNOWN = {
    "spec.roles[0].replica": group(role(replica=4)),
    "spec.roles[0].template.spec.containers[0].imagePullPolice": group(
        role(template={"spec": {"containers": [{"name": "c", "imagePullPolice": "Never"}]}})
    ),
    "spec.roles[0].template.spec.ephemeralContainers": group(
        role(template={"spec": {**POD["spec"], "ephemeralContainers": [{"name": "c"}]}})
    ),
    "spec.coordinations": group(role(), coordinations=[]),
    "spec.template.roles[0].depends": group_set(1, role(depends=["a"])),
    "spec.scaleTargetRef.kind": adapter(scaleTargetRef={"name": "g", "role": "a", "kind": "RoleBasedGroup"}),
    "spec.volume": profile(volume=[]),
}


@pytest.mark.parametrize("field", UNKNOWN)
def test_an_unknown_field_is_refused_by_strict_validation(admission: Admission, field: str) -> None:
    (message,) = [message for _, message in admission.refusals(UNKNOWN[field])]
    assert f'unknown field "{field}"' in message


def test_patches_take_any_field(admission: Admission) -> None:
    patch = {"spec": {"containers": [{"name": "server", "fieldOfALaterKubernetes": [1, {"a": None}]}]}}
    multi_node = {"leaderWorkerSet": {"size": 2, "patchLeaderTemplate": patch, "patchWorkerTemplate": patch}}
    manifest = group({**BY_REF, "templatePatch": patch, **multi_node}, roleTemplates=SHARED)
    assert admission.refusals(manifest) == []
    assert admission.created(manifest)["spec"]["roles"][0]["templatePatch"] == patch


def test_a_shared_template_may_lack_what_a_patch_adds(admission: Admission) -> None:
    partial = [{"name": "t", "template": {"metadata": {"labels": {"a": "b"}}}}, {"name": "u", "template": {"spec": {}}}]
    assert admission.refusals(group(BY_REF, roleTemplates=partial)) == []


def test_null_is_the_same_as_absent(admission: Admission) -> None:
    """Helm templates with empty lists and clients with empty timestamps write it."""
    template = {"metadata": {"creationTimestamp": None, "labels": None}, **POD}
    manifest = group(role(template=template, dependencies=None, replicas=None, labels=None), coordination=None)
    stored = admission.created(manifest)["spec"]
    assert stored == {"roles": [{"name": "a", "replicas": 1, **DEFAULTS, "template": {"metadata": {}, **POD}}]}


def test_the_largest_group_stays_within_the_cost_limits(admission: Admission, control_plane: ControlPlane) -> None:
    names = [f"{i:03}-" + "r" * 40 for i in range(100)]
    roles = [role(name, dependencies=names[max(0, i - 32) : i]) for i, name in enumerate(names)]
    coordination = [{"name": f"c{i}", "roles": names[6 * i : 6 * i + 6]} for i in range(16)]
    manifest = group(*roles, name="g" * 7, coordination=coordination)
    dry_run = ("create", "--dry-run=server", "-f", "-")  # kubectl waits long enough for a busy machine
    control_plane.kubectl(*dry_run, input=json.dumps(manifest))
    roles[99]["dependencies"][0] = "absent"
    with pytest.raises(ClusterError, match=rf'role \["{names[99]}"\] depends on a role that is not in this group'):
        control_plane.kubectl(*dry_run, input=json.dumps(manifest))


def test_defaults_appear(admission: Admission) -> None:
    manifest = group(
        role(),
        role("b", replicas=None, rolloutStrategy=rolling(), leaderWorkerSet={}, scalingAdapter={}),
        podGroupPolicy={"kubeScheduling": {}},
    )
    plain, full = admission.created(manifest)["spec"]["roles"]
    stored = {"replicas": 1, "template": POD, **DEFAULTS}
    assert plain == {"name": "a", **stored}
    update = {"partition": 0, "maxUnavailable": 1, "maxSurge": 0, "paused": False}
    assert full == {
        "name": "b",
        **stored,
        "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdate": update},
        "leaderWorkerSet": {"size": 1},
        "scalingAdapter": {"enable": False},
    }
    assert admission.created(manifest)["spec"]["podGroupPolicy"] == {"kubeScheduling": {"scheduleTimeoutSeconds": 60}}
    assert admission.created(group_set(1, role()))["spec"]["template"]["roles"][0] == plain
    assert admission.created(profile())["spec"] == {"updateStrategy": "NoUpdate"}


def test_the_manifest_of_kep_75_is_taken_as_it_was_written(admission: Admission) -> None:
    assert admission.refusals(yaml.safe_load(KEP_75.read_text(encoding="utf-8"))) == []
