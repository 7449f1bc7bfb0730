"""The objects of a group: what is in them, and what is left to the user."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings

from rbg_operator.api.documents import load_manifest
from rbg_operator.api.parse import parse_group
from rbg_operator.plan import labels
from rbg_operator.plan.compare import matches
from rbg_operator.plan.observed import Live
from rbg_operator.plan.render import adapter_object, render, with_knobs, workers_of
from rbg_operator.plan.rendering import (
    LEADER_WORKER_SET,
    POD_GROUP,
    VOLCANO_POD_GROUP,
    Context,
    Knobs,
    RenderedRole,
    Rendering,
)
from tests.operator.groups import PROFILE, PROFILES, manifest, manifests, role

Json = dict[str, Any]
CONTEXT = Context(profiles=PROFILES, kinds=frozenset({LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP}))
KEP = Path(__file__).parent / "data" / "kep-75.yaml"
SERVER = ("python3", "-m", "epd_runtime.launch_server", "--port", "30000")
PREFIX = "rbg.workloads.x-k8s.io/"


def rendered(
    *roles: Json, context: Context = CONTEXT, annotations: dict[str, str] | None = None, **spec: Any
) -> Rendering:
    value = manifest(*roles, **spec)
    value["metadata"] |= {"uid": "u1", "annotations": annotations or {}}
    return render(parse_group(value), context)


def only(*arguments: Any, **fields: Any) -> RenderedRole:
    """The first role."""
    return next(iter(rendered(*arguments, **fields).roles.values()))


def pod_spec(one: RenderedRole) -> Json:
    return dict(one.workload["spec"]["template"]["spec"])


def names(objects: Any) -> list[str]:
    return [one["metadata"]["name"] for one in objects]


def env(container: Json) -> dict[str, str]:
    """Variables in order; references in brackets."""
    return {
        item["name"]: item.get("value", f"[{item.get('valueFrom', {}).get('fieldRef', {}).get('fieldPath')}]")
        for item in container["env"]
    }


def test_a_stateful_set_in_full() -> None:
    value = {**role("a", "serve", image="i", env=[{"name": "X", "value": "$(POD_IP)"}]), "minReadySeconds": 3}
    value |= {"labels": {"team": "t"}, "annotations": {"note": "n"}}
    owner = {"apiVersion": "workloads.x-k8s.io/v1alpha1", "kind": "RoleBasedGroup", "name": "g", "uid": "u1",
             "controller": True, "blockOwnerDeletion": True}  # fmt: skip
    one = only(value)
    marks = {
        PREFIX + "group-name": "g", PREFIX + "group-uid": "u1", PREFIX + "role-name": "a",
        PREFIX + "role-kind": "other", PREFIX + "role-revision": one.revision,
        "rolebasedgroup.workloads.x-k8s.io/name": "g", "rolebasedgroup.workloads.x-k8s.io/role": "a",
    }  # fmt: skip
    pod_index = {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}
    container = {
        "name": "server",
        "command": ["serve"],
        "image": "i",
        "env": [
            {"name": "RBG_GROUP_NAME", "value": "g"},
            {"name": "RBG_ROLE_NAME", "value": "a"},
            {"name": "RBG_ROLE_INDEX", "valueFrom": pod_index},
            {"name": "GROUP_NAME", "value": "g"},
            {"name": "ROLE_NAME", "value": "a"},
            {"name": "ROLE_INDEX", "valueFrom": pod_index},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "X", "value": "$(POD_IP)"},
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "rbg-config", "mountPath": "/etc/rbg", "readOnly": True}],
    }
    wanted = with_knobs(one, Knobs(replicas=2, partition=1))
    seal = wanted["metadata"]["annotations"].pop(labels.APPLIED_HASH)
    assert len(seal) == 10
    assert wanted == {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {
            "name": "g-a",
            "namespace": "default",
            "labels": {**marks, "team": "t"},
            "annotations": {"note": "n"},
            "ownerReferences": [owner],
        },
        "spec": {
            "serviceName": "s-g-a",
            "podManagementPolicy": "Parallel",
            "minReadySeconds": 3,
            "replicas": 2,
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}},
            "selector": {
                "matchLabels": {
                    PREFIX + "group-name": "g", PREFIX + "role-name": "a", PREFIX + "group-uid": "u1",
                }
            },
            "template": {
                "metadata": {"labels": marks},
                "spec": {
                    "containers": [container],
                    "volumes": [{"name": "rbg-config", "configMap": {"name": "g"}}],
                },
            },
        },
    }  # fmt: skip


def test_kep_75_resolves() -> None:
    """Its manifest names the Services of single encoders, and writes two arguments as one."""
    value = load_manifest(KEP.read_bytes(), "kep")
    roles = render(parse_group(value), Context()).roles
    assert {name: names(one.services) for name, one in roles.items()} == {
        "vlm-encoder": [f"s-sglang-vlm-epd-vlm-encoder{end}" for end in ("", "-0", "-1")],
        "vlm-prefill": ["s-sglang-vlm-epd-vlm-prefill"],
        "vlm-decode": ["s-sglang-vlm-epd-vlm-decode"],
        "sglang-router": ["s-sglang-vlm-epd-sglang-router"],
    }
    one = roles["vlm-encoder"].services[1]["spec"]
    assert one["selector"][labels.POD_NAME] == "sglang-vlm-epd-vlm-encoder-0"
    assert one["publishNotReadyAddresses"] is True
    command = pod_spec(roles["vlm-encoder"])["containers"][0]["command"]
    assert command[:4] == ["python3", "-m", "sglang.launch_server", "--model-path"]
    prefill = pod_spec(roles["vlm-prefill"])["containers"][0]
    assert prefill["command"][1] == "-c"
    assert env(prefill)["ENCODER_URLS"].endswith("vlm-encoder-1:30002")


def test_services() -> None:
    ports = [{"port": 80, "name": "http", "targetPort": 8000}]
    one = only({**role("a", "x", replicas=2), "servicePorts": ports})
    assert [service["spec"] for service in one.services] == [
        {"clusterIP": "None", "selector": one.workload["spec"]["selector"]["matchLabels"], "ports": ports}
    ]
    asked = {PREFIX + "ordinal-services": "true"}
    assert names(only(role("a", "x", replicas=2), annotations=asked).services) == ["s-g-a", "s-g-a-0", "s-g-a-1"]
    beyond = role("a", "x", "http://s-g-a-0 s-g-a-7 s-g-ab-0 s-g-a-0x s-$(RBG_GROUP_NAME)-a-1", replicas=2)
    assert names(only(beyond).services) == ["s-g-a", "s-g-a-0", "s-g-a-1"]
    deployment = {**role("a", "x", "s-g-a-0"), "workload": {"kind": "Deployment"}}
    assert names(only(deployment, annotations=asked).services) == ["s-g-a"]


def test_urls_of_every_replica() -> None:
    encoder = role("e", *SERVER, "--encoder-only", replicas=2)
    prefill = {**role("p", *SERVER, "--disaggregation-mode", "prefill"),
               "annotations": {PREFIX + "stage-urls": "PerReplica"}}  # fmt: skip
    router = role("r", "python3", "-m", "epd_runtime.router")
    found = rendered(encoder, prefill, router)
    first = {name: env(pod_spec(one)["containers"][0]) for name, one in found.roles.items()}
    assert first["p"]["ENCODER_URLS"] == "http://s-g-e-0:30000 http://s-g-e-1:30000"
    assert first["r"]["ENCODER_URLS"] == "http://s-g-e:30000"
    assert names(found.roles["e"].services) == ["s-g-e", "s-g-e-0", "s-g-e-1"]
    more = render(found.group.with_replicas("e", 3), CONTEXT)
    assert {name for name in first if more.roles[name].revision != found.roles[name].revision} == {"p"}


def test_what_a_known_server_gets() -> None:
    (container,) = pod_spec(only(role("a", *SERVER)))["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": 30000}
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert pod_spec(only(role("a", *SERVER)))["terminationGracePeriodSeconds"] == 120
    stranger = pod_spec(only(role("a", "serve", ports=[{"containerPort": 1}])))
    assert "terminationGracePeriodSeconds" not in stranger
    assert {"readinessProbe", "lifecycle"}.isdisjoint(stranger["containers"][0])


def test_no_pause_before_the_end_where_there_is_no_time_for_it() -> None:
    """Kubernetes refuses a preStop sleep that is not shorter than the grace period."""
    value = role("a", *SERVER)
    value["template"]["spec"]["terminationGracePeriodSeconds"] = 5
    assert "lifecycle" not in pod_spec(only(value))["containers"][0]


def test_what_the_user_says_wins() -> None:
    own = {
        "readinessProbe": {"tcpSocket": {"port": 1}},
        "lifecycle": {"preStop": {"exec": {"command": ["x"]}}, "postStart": {"exec": {"command": ["y"]}}},
        "terminationMessagePolicy": "File",
        "env": [{"name": "ROLE_INDEX", "value": "7"}, {"name": "POD_IP", "value": "mine"}],
        "volumeMounts": [{"name": "mine", "mountPath": "/etc/rbg/"}],
    }
    value = role("a", *SERVER, **own)
    value["template"]["spec"]["terminationGracePeriodSeconds"] = 0
    value["template"]["spec"]["volumes"] = [{"name": "mine", "emptyDir": {}}]
    spec = pod_spec(only(value))
    (container,) = spec["containers"]
    assert spec["terminationGracePeriodSeconds"] == 0
    assert {key: container[key] for key in own if key != "env"} == {key: own[key] for key in own if key != "env"}
    assert list(env(container))[-2:] == ["ROLE_INDEX", "POD_IP"]
    assert list(env(container)).count("POD_IP") == 1
    value["template"]["spec"]["volumes"] = [{"name": "rbg-config", "emptyDir": {}}]
    assert pod_spec(only(value))["volumes"] == [{"name": "rbg-config", "emptyDir": {}}]


def test_labels_that_are_ours_stay_ours() -> None:
    forged = {PREFIX + "group-name": "other", PREFIX + "role-revision": "r", PREFIX + "group-uid": "u", "app": "x"}
    value = {**role("a", "x"), "labels": forged}
    value["template"]["metadata"] = {"labels": forged}
    one = only(value)
    for found in (one.workload["metadata"]["labels"], one.workload["spec"]["template"]["metadata"]["labels"]):
        assert (found[PREFIX + "group-name"], found[PREFIX + "group-uid"], found["app"]) == ("g", "u1", "x")
        assert found[PREFIX + "role-revision"] == one.revision


def test_discovery() -> None:
    found = rendered(
        role("true", "x", replicas=2, ports=[{"containerPort": 9, "name": "metrics"}, {"containerPort": 8}]),
        {**role("d", "x", "--port", "5"), "workload": {"kind": "Deployment"}},
        {**role("m", "x"), "leaderWorkerSet": {"size": 2}},
    )
    (config,) = found.first
    ports = {"http": 9, "metrics": 9, "port-8": 8}
    assert config["metadata"]["name"] == "g"
    assert yaml.safe_load(config["data"]["config.yaml"]) == {
        "group": {"name": "g", "size": 3, "roles": ["true", "d", "m"]},
        "roles": {
            "true": {"size": 2, "instances": [{"address": f"g-true-{i}.s-g-true", "ports": ports} for i in (0, 1)]},
            "d": {"size": 1, "instances": [{"address": "s-g-d", "ports": {"http": 5}}]},
            "m": {"size": 1, "instances": [{"address": "g-m-0.s-g-m-nodes", "ports": {}}]},
        },
    }


def test_a_deployment() -> None:
    value = {**role("a", "x", replicas=4), "workload": {"kind": "Deployment"}}
    value["rolloutStrategy"] = {"rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}}
    wanted = with_knobs(only(value), Knobs(replicas=4, paused=True))
    assert wanted["kind"] == "Deployment"
    assert wanted["spec"]["paused"] is True
    assert wanted["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": "50%", "maxUnavailable": 0}
    assert not {"RBG_ROLE_INDEX", "ROLE_INDEX"} & set(env(wanted["spec"]["template"]["spec"]["containers"][0]))
    pace = {"name": "c", "roles": ["a"], "strategy": {"rollingUpdate": {"maxUnavailable": "10%"}}}
    paced = only(value, coordination=[pace]).workload["spec"]["strategy"]["rollingUpdate"]
    assert paced == {"maxSurge": "50%", "maxUnavailable": "10%"}


WORKER = {"spec": {"containers": [{"name": "server", "args": ["--worker"]}]}}
MULTI = {**role("a", *SERVER, replicas=2), "leaderWorkerSet": {"size": 3, "patchWorkerTemplate": WORKER}}


def test_multi_node_without_a_controller_for_it() -> None:
    one = only({**MULTI, "workload": {"kind": "LeaderWorkerSet"}}, context=Context())
    leader = with_knobs(one, Knobs(replicas=2))
    workers = workers_of(one, 1)
    assert (leader["kind"], leader["metadata"]["name"], leader["spec"]["replicas"]) == ("StatefulSet", "g-a", 2)
    assert (workers["kind"], workers["metadata"]["name"], workers["spec"]["replicas"]) == ("StatefulSet", "g-a-1", 2)
    assert leader["spec"]["serviceName"] == workers["spec"]["serviceName"] == "s-g-a-nodes"
    assert workers["spec"]["ordinals"] == {"start": 1}
    for found in (workers["metadata"]["labels"], workers["spec"]["template"]["metadata"]["labels"]):
        assert found[labels.INSTANCE] == "1"
    assert workers["spec"]["selector"]["matchLabels"][labels.INSTANCE] == "1"
    (first,), (other,) = (item["spec"]["template"]["spec"]["containers"] for item in (leader, workers))
    assert "readinessProbe" in first
    assert "readinessProbe" not in other
    assert ("args" in first, other["args"]) == (False, ["--worker"])
    index = "[metadata.labels['apps.kubernetes.io/pod-index']]"
    instance = "[metadata.labels['rbg.workloads.x-k8s.io/role-instance-index']]"
    assert [env(item)["RBG_ROLE_INDEX"] for item in (first, other)] == [index, instance]
    assert [env(item)["RBG_LWP_WORKER_INDEX"] for item in (first, other)] == ["0", index]
    for item in (first, other):
        assert env(item)["RBG_LWP_LEADER_ADDRESS"] == "g-a-$(RBG_ROLE_INDEX).s-g-a-nodes"
        assert env(item)["RBG_LWP_GROUP_SIZE"] == "3"
        assert env(item)["LWS_LEADER_ADDRESS"] == "$(RBG_LWP_LEADER_ADDRESS)"
    headless, nodes = one.services
    assert headless["spec"]["selector"][labels.NODE] == "leader"
    assert nodes["spec"].get("publishNotReadyAddresses") is True
    assert labels.NODE not in nodes["spec"]["selector"]
    assert workers_of(one, 0)["metadata"]["name"] == "g-a-0"
    assert one.num_pods == 6


def test_leader_worker_set() -> None:
    one = only({**MULTI, "workload": {"kind": "LeaderWorkerSet"}})
    wanted = with_knobs(one, Knobs(replicas=2, partition=1))
    assert one.workers is None
    template = wanted["spec"]["leaderWorkerTemplate"]
    assert (wanted["kind"], wanted["spec"]["replicas"], template["size"]) == ("LeaderWorkerSet", 2, 3)
    assert wanted["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"] == {
        "partition": 1, "maxUnavailable": 1, "maxSurge": 0,
    }  # fmt: skip
    (leader,), (worker,) = (template[key]["spec"]["containers"] for key in ("leaderTemplate", "workerTemplate"))
    assert env(leader)["RBG_LWP_LEADER_ADDRESS"] == "$(LWS_LEADER_ADDRESS)"
    assert "LWS_LEADER_ADDRESS" not in env(leader)
    assert worker["args"] == ["--worker"]
    assert one.services[0]["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    assert len(one.services) == 1


def test_gangs() -> None:
    roles = (role("a", "x", replicas=2), {**role("b", "x"), "leaderWorkerSet": {"size": 3}})
    found = rendered(*roles, podGroupPolicy={"kubeScheduling": {}})
    group = found.first[1]
    assert (group["apiVersion"], group["spec"]) == (
        "scheduling.x-k8s.io/v1alpha1", {"minMember": 5, "scheduleTimeoutSeconds": 60},
    )  # fmt: skip
    for one in found.roles.values():
        template = one.workload["spec"]["template"]
        assert template["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] == "g"
        assert template["spec"]["schedulerName"] == "scheduler-plugins-scheduler"
    mine = copy.deepcopy(roles[0])
    mine["template"]["spec"]["schedulerName"] = "mine"
    found = rendered(mine, podGroupPolicy={"volcanoScheduling": {"queue": "q"}})
    assert found.first[1]["spec"] == {"minMember": 2, "queue": "q"}
    template = found.roles["a"].workload["spec"]["template"]
    assert template["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == "g"
    assert template["spec"]["schedulerName"] == "mine"


def test_a_scheduler_that_is_missing_is_named() -> None:
    found = rendered(role("a", "x"), context=Context(), podGroupPolicy={"kubeScheduling": {}})
    assert [str(problem) for problem in found.problems] == [
        "spec.podGroupPolicy.kubeScheduling: PodGroup.scheduling.x-k8s.io is not served by this cluster; install its "
        "scheduler, or remove podGroupPolicy"
    ]


def runtime(name: str = "rolls", **fields: Any) -> Json:
    return {**role("a", "x", image="i"), "engineRuntimes": [{"profileName": name, **fields}]}


def test_sidecars() -> None:
    override = {"name": "agent", "args": ["walk"], "env": [{"name": "LEVEL", "value": "2"}]}
    spec = pod_spec(only(runtime(injectContainers=["agent"], containers=[override])))
    server, agent = spec["containers"]
    assert (server["name"], agent["name"], agent["args"]) == ("server", "agent", ["walk"])
    assert env(agent)["LEVEL"] == "2"
    assert env(agent)["RBG_ROLE_NAME"] == "a"
    assert [container["name"] for container in spec["initContainers"]] == ["fetch"]
    assert [volume["name"] for volume in spec["volumes"]] == ["shared", "rbg-config"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (runtime("none"), 'engineRuntimes[0].profileName: there is no ClusterEngineRuntimeProfile "none"'),
        (runtime("broken"), '"broken" cannot be used: spec.containers[0].name: is missing'),
        (runtime("odd"), '"odd" cannot be used: spec: must be a mapping, not a number'),
        (runtime(injectContainers=["x"]), 'injectContainers[0]: the profile has no container "x"; it has agent, meter'),
        (runtime(containers=[{"name": "x"}]), "engineRuntimes[0].containers[0].name: the profile has no"),
        (runtime("clash"), 'adds a container "server", and the pod has one of that name; rename one'),
    ],
)
def test_problems_with_profiles(value: Json, problem: str) -> None:
    profiles = {**PROFILES, "broken": {"containers": [{}]}, "odd": 7, "clash": {"containers": [{"name": "server"}]}}
    found = rendered(value, context=Context(profiles=profiles))  # type: ignore[arg-type]
    assert problem in str(found.problems[0])


def changed_profile(name: str) -> Context:
    profile = copy.deepcopy(PROFILES[name])
    profile["containers"] = [{"name": "agent", "image": "agent:2"}]
    return Context(profiles={name: profile})


def test_a_change_of_a_profile_rolls_or_not() -> None:
    assert only(runtime()).revision != only(runtime(), context=changed_profile("rolls")).revision
    assert only(runtime("stays")).revision == only(runtime("stays"), context=changed_profile("stays")).revision
    assert only(runtime("stays")).revision != only(role("a", "x", image="i")).revision


@pytest.mark.parametrize("value", [runtime("stays"), {**runtime("stays"), "workload": {"kind": "LeaderWorkerSet"}}])
def test_a_profile_that_does_not_roll_stays_as_it_stands(value: Json) -> None:
    knobs = Knobs(replicas=1)
    before = with_knobs(only(value), knobs)
    stands = msgspec.json.decode(json.dumps(before), type=Live)
    after = only(value, context=Context(profiles=changed_profile("stays").profiles, kinds=CONTEXT.kinds))
    assert with_knobs(after, knobs, stands) == before
    assert not matches(with_knobs(after, knobs), stands)
    edited = copy.deepcopy(value)
    edited["template"]["spec"]["containers"][0]["image"] = "j"
    after = only(edited, context=Context(profiles=changed_profile("stays").profiles, kinds=CONTEXT.kinds))
    assert with_knobs(after, knobs, stands) == with_knobs(after, knobs)
    hostile = {**before, "metadata": {**before["metadata"], "annotations": {labels.SIDECARS: '{"content": 7}'}}}
    after = only(value, context=CONTEXT)
    assert with_knobs(after, knobs, msgspec.json.decode(json.dumps(hostile), type=Live)) == before


def test_revisions() -> None:
    base = role("a", "x", image="i")
    found = rendered(base)
    for same in ({**base, "replicas": 5}, {**base, "minReadySeconds": 5}, {**base, "labels": {"x": "y"}}):
        assert only(same).revision == found.roles["a"].revision
    restarted = {**base, "annotations": {PREFIX + "restarted-at": "noon"}}
    for other in (role("a", "x", image="j"), restarted, {**base, "leaderWorkerSet": {"size": 2}}):
        assert only(other).revision != found.roles["a"].revision
    template = only(restarted).workload["spec"]["template"]
    assert template["metadata"]["annotations"] == {PREFIX + "restarted-at": "noon"}
    assert rendered({**base, "replicas": 5}).revision == found.revision
    assert rendered({**base, "minReadySeconds": 5}).revision != found.revision


def test_history() -> None:
    found = rendered(role("a", "x", replicas=3))
    assert found.history["metadata"]["name"] == f"g-{found.revision}"
    assert found.history["metadata"]["labels"][labels.GROUP_REVISION] == found.revision
    assert found.history["data"] == {
        "roles": [{key: value for key, value in role("a", "x").items() if key != "replicas"}]
    }


def test_adapter() -> None:
    value = {**role("a", "x", replicas=3), "scalingAdapter": {"enable": True, "labels": {"l": "v"}}}
    group = rendered(value).group
    found = adapter_object(group, group.roles[0], 3)
    assert found["spec"] == {"replicas": 3, "scaleTargetRef": {"name": "g", "role": "a"}}
    assert found["metadata"]["annotations"][labels.ADAPTER_ROLE_REPLICAS] == "3"
    assert found["metadata"]["labels"]["l"] == "v"


def test_without_a_uid_nothing_claims_to_be_owned() -> None:
    one = next(iter(render(parse_group(manifest(role("a", "x"))), Context()).roles.values()))
    assert "ownerReferences" not in one.workload["metadata"]
    assert labels.GROUP_UID not in one.workload["spec"]["selector"]["matchLabels"]


def everything(found: Rendering) -> list[Json]:
    objects = [*found.first, found.history]
    for one in found.roles.values():
        objects += [with_knobs(one, Knobs(replicas=one.role.replicas)), *one.services]
        objects += [workers_of(one, instance) for instance in range(one.role.replicas) if one.workers]
    return objects


@settings(max_examples=30, deadline=None)
@given(manifests())
def test_any_group(value: Json) -> None:
    before = copy.deepcopy(value)
    group = parse_group(value)
    found = render(group, CONTEXT)
    objects = everything(found)
    assert found.problems == ()
    keys = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(keys)) == len(keys)
    assert all(len(name) <= 63 for _, name in keys)
    for one in objects:
        marks = one["metadata"]["labels"]
        assert marks[labels.GROUP_NAME] == marks[labels.OLD_GROUP_NAME] == "g"
        assert all(isinstance(mark, str) and len(mark) <= 63 for mark in marks.values())
        assert labels.APPLIED_HASH in one["metadata"]["annotations"]
        _scribble(one)
    assert value == before
    assert everything(render(parse_group(_reversed(value)), CONTEXT)) == everything(render(parse_group(value), CONTEXT))


@settings(max_examples=30, deadline=None)
@given(manifests())
def test_variables_come_before_those_that_refer_to_them(value: Json) -> None:
    for one in render(parse_group(value), CONTEXT).roles.values():
        for template in (one.workload["spec"].get("template"), one.workers and one.workers["spec"]["template"]):
            for container in template["spec"]["containers"] if template else ():
                found = list(env(container))
                assert len(set(found)) == len(container["env"])
                assert found[:2] == ["RBG_GROUP_NAME", "RBG_ROLE_NAME"]
                seen: set[str] = set()
                for item in container["env"]:
                    text = item.get("value") or ""
                    assert all(f"$({name})" not in text for name in set(found) - seen), item
                    seen.add(item["name"])


def _scribble(value: Any) -> None:
    """Spoil every list and mapping, to see who else holds it."""
    for inner in list(value.values() if isinstance(value, dict) else value):
        if isinstance(inner, dict | list):
            _scribble(inner)
    value.clear()


def _reversed(value: Any) -> Any:
    """The same mapping with its keys in another order."""
    if isinstance(value, dict):
        return {key: _reversed(inner) for key, inner in reversed(value.items())}
    return [_reversed(inner) for inner in value] if isinstance(value, list) else value


def test_a_profile_stays_as_it_is() -> None:
    before = copy.deepcopy(PROFILE)
    for one in everything(rendered(runtime())):
        _scribble(one)
    assert before == PROFILE
