"""The operator as a process on a real control plane: groups come, change and go as their manifests say."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest

from operated_groups import Groups, edit_image, epd, image_of, until
from operator_process import OperatorProcess
from tests.cluster.control_plane import ControlPlane

Json = dict[str, Any]
NEVER_READY = "test.rbg/never-ready"


@pytest.fixture
def groups(cluster: ControlPlane, namespace: str) -> Groups:
    return Groups(cluster, namespace)


@pytest.fixture(scope="module")
def operator(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all tests here, which keep apart by namespaces."""
    with OperatorProcess(cluster.kubeconfig, tmp_path_factory.mktemp("operator")) as process:
        yield process
        defects = [line for line in process.lines() if line["level"] == "error"]
        assert not defects, defects


def annotate(groups: Groups, pod: str, value: str | None) -> None:
    path = f"/api/v1/namespaces/{groups.namespace}/pods/{pod}"
    body = {"metadata": {"annotations": {NEVER_READY: value}}}
    groups.request("PATCH", path, body, "application/merge-patch+json")


def test_roles_start_in_the_order_of_their_dependencies(groups: Groups, operator: OperatorProcess) -> None:
    groups.apply(epd(encoder={NEVER_READY: "true"}))
    until(
        lambda: len(groups.pods("encoder")) == 2 and groups.core("statefulsets", "g-decode"), "encoder, decode missing"
    )
    waiting = groups.condition("g", "DependenciesReady")
    until(lambda: groups.condition("g", "DependenciesReady").get("status") == "False", f"{waiting}")
    assert "prefill" in groups.condition("g", "DependenciesReady")["message"]
    assert groups.core("statefulsets", "g-prefill") == {}
    assert groups.core("statefulsets", "g-router") == {}

    for pod in groups.pods("encoder"):
        annotate(groups, pod["metadata"]["name"], None)
    group = groups.wait_ready("g")
    assert group["status"]["rolesReady"] == "4/4"
    assert len(groups.pods()) == 5
    assert groups.core("services", "s-g-encoder")["spec"]["clusterIP"] == "None"
    assert "g-encoder-1.s-g-encoder" in groups.core("configmaps", "g")["data"]["config.yaml"]


def test_scaling_and_image_edits_are_followed_and_ready_is_true(groups: Groups, operator: OperatorProcess) -> None:
    groups.apply(epd())
    groups.wait_ready("g")
    groups.change("g", {"op": "replace", "path": "/spec/roles/0/replicas", "value": 4})
    groups.wait_ready("g")
    assert len(groups.pods("encoder")) == 4
    groups.change("g", {"op": "replace", "path": "/spec/roles/0/replicas", "value": 1})
    groups.wait_ready("g")
    assert len(groups.pods("encoder")) == 1

    before = {pod["metadata"]["uid"] for pod in groups.pods() if "encoder" in pod["metadata"]["name"]}
    others = {pod["metadata"]["uid"] for pod in groups.pods()} - before
    edit_image(groups, "g", 0, "example/encoder:2")
    groups.wait_ready("g")
    after = groups.pods("encoder")
    assert [image_of(pod) for pod in after] == ["example/encoder:2"], "Ready while an old pod runs"
    assert before.isdisjoint(pod["metadata"]["uid"] for pod in after)
    assert others == {pod["metadata"]["uid"] for pod in groups.pods()} - {pod["metadata"]["uid"] for pod in after}


def test_a_removed_role_goes_with_its_objects(groups: Groups, operator: OperatorProcess) -> None:
    groups.apply(epd())
    groups.wait_ready("g")
    groups.change("g", {"op": "remove", "path": "/spec/roles/3"})
    until(lambda: not groups.core("statefulsets", "g-router"), "the router's workload is still there")
    until(lambda: not groups.core("services", "s-g-router"), "the router's Service is still there")
    group = groups.wait_ready("g")
    assert [each["name"] for each in group["status"]["roleStatuses"]] == ["encoder", "prefill", "decode"]
    assert len(groups.pods()) == 4


def test_deletion_goes_in_reverse_order(groups: Groups, operator: OperatorProcess, cluster: ControlPlane) -> None:
    slow = {"test.rbg/stop-after": "1s"}
    groups.apply(epd(router=slow, prefill=slow, decode=slow))
    groups.wait_ready("g")
    mark = cluster.audit_mark()
    groups.delete("g")
    until(lambda: not groups.get("g"), "the group is still there")
    deleted = [
        event["objectRef"]["name"]
        for event in cluster.audit(mark)
        if event["verb"] == "delete"
        and event["objectRef"]["resource"] == "statefulsets"
        and event["objectRef"]["namespace"] == groups.namespace
        and "rbg-operator" in event.get("userAgent", "")
    ]
    assert deleted[0] == "g-router"
    assert set(deleted[1:3]) == {"g-prefill", "g-decode"}
    assert deleted[3] == "g-encoder"
    until(lambda: not groups.pods(), "pods are still there")


def test_drift_is_repaired(groups: Groups, operator: OperatorProcess) -> None:
    groups.apply(epd())
    groups.wait_ready("g")
    namespace = groups.namespace
    service = groups.core("services", "s-g-encoder")["metadata"]["uid"]
    groups.request("DELETE", f"/api/v1/namespaces/{namespace}/services/s-g-encoder")
    until(
        lambda: groups.core("services", "s-g-encoder").get("metadata", {}).get("uid", service) != service, "not again"
    )

    path = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/g-decode"
    edit = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "example/stranger:1"}]
    groups.request("PATCH", path, edit, "application/json-patch+json")
    until(lambda: image_of(groups.core("statefulsets", "g-decode")) == "example/decode:1", "the edit stays")
    labels = [{"op": "remove", "path": "/metadata/labels"}]
    groups.request("PATCH", f"/api/v1/namespaces/{namespace}/configmaps/g", labels, "application/json-patch+json")
    until(lambda: groups.core("configmaps", "g")["metadata"].get("labels"), "labels are gone")
    groups.wait_ready("g")


def test_others_objects_are_left_alone(groups: Groups, operator: OperatorProcess) -> None:
    path = f"/api/v1/namespaces/{groups.namespace}/services"
    theirs = {"metadata": {"name": "s-g-decode"}, "spec": {"ports": [{"port": 80}]}}
    made = groups.request("POST", path, theirs)
    groups.apply(epd())
    until(lambda: groups.condition("g", "Valid").get("reason") == "NameTaken", lambda: str(groups.get("g")))
    assert "s-g-decode" in groups.condition("g", "Valid")["message"]
    assert groups.core("services", "s-g-decode")["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    groups.request("DELETE", f"{path}/s-g-decode")
    groups.wait_ready("g")
    assert groups.core("services", "s-g-decode")["spec"]["clusterIP"] == "None"


def test_a_manifest_that_cannot_be_used_keeps_what_runs(groups: Groups, operator: OperatorProcess) -> None:
    groups.apply(epd())
    groups.wait_ready("g")
    before = {pod["metadata"]["uid"] for pod in groups.pods()}
    groups.change("g", {"op": "add", "path": "/spec/roles/0/dependencies", "value": ["router"]})
    until(lambda: groups.condition("g", "Valid").get("status") == "False", "a cycle is Valid")
    message = groups.condition("g", "Valid")["message"]
    assert "encoder" in message
    assert "router" in message
    assert groups.condition("g", "Ready")["status"] == "False"
    groups.change("g", {"op": "remove", "path": "/spec/roles/0/dependencies"})
    groups.wait_ready("g")
    assert {pod["metadata"]["uid"] for pod in groups.pods()} == before


def test_kubectl_scale_works_on_a_role(groups: Groups, operator: OperatorProcess, cluster: ControlPlane) -> None:
    group = epd()
    group["spec"]["roles"][0]["scalingAdapter"] = {"enable": True}
    groups.apply(group)
    groups.wait_ready("g")
    cluster.kubectl("scale", "rbgsa/g-encoder", "--replicas=3", "-n", groups.namespace)
    until(lambda: len(groups.pods("encoder")) == 3, "not scaled")
    groups.wait_ready("g")
    groups.apply(group)
    groups.change("g", {"op": "add", "path": "/metadata/labels", "value": {"touched": "yes"}})
    groups.wait_ready("g")
    assert len(groups.pods("encoder")) == 3, "applying the same manifest again resets a scaled role"


def test_what_the_api_server_refuses_is_told_and_others_go_on(groups: Groups, operator: OperatorProcess) -> None:
    quota = f"/api/v1/namespaces/{groups.namespace}/resourcequotas"
    hard = {"metadata": {"name": "q"}, "spec": {"hard": {"count/deployments.apps": "0"}}}
    groups.request("POST", quota, hard)
    until(lambda: groups.object(f"{quota}/q").get("status", {}).get("hard"), "the quota is not in force")
    group = epd()
    group["spec"]["roles"][2]["workload"] = {"apiVersion": "apps/v1", "kind": "Deployment"}
    groups.apply(group)
    until(lambda: "quota" in str(groups.get("g").get("status")), lambda: str(groups.get("g").get("status")))
    assert "g-decode" in str(groups.get("g")["status"])
    until(lambda: groups.core("statefulsets", "g-prefill"), "the others do not go on")
    groups.request("DELETE", f"{quota}/q")
    groups.wait_ready("g")


def test_a_field_that_no_pod_has_is_told_and_others_go_on(groups: Groups, operator: OperatorProcess) -> None:
    """A patch is free text to the schema of groups, and the API server answers 500 to a pod with such a field."""
    group = epd()
    group["spec"]["roleTemplates"] = [{"name": "t", "template": group["spec"]["roles"][2].pop("template")}]
    group["spec"]["roles"][2] |= {"templateRef": {"name": "t"}, "templatePatch": {"spec": {"volume": {}}}}
    groups.apply(group)
    until(lambda: "spec.volume" in str(groups.get("g").get("status")), lambda: str(groups.get("g").get("status")))
    until(lambda: groups.core("statefulsets", "g-prefill"), "the others do not go on")
    del group["spec"]["roles"][2]["templatePatch"]
    groups.apply(group)
    groups.wait_ready("g")


def test_sets_of_groups(groups: Groups, operator: OperatorProcess, cluster: ControlPlane) -> None:
    template = epd()["spec"]
    path = f"/apis/workloads.x-k8s.io/v1alpha1/namespaces/{groups.namespace}/rolebasedgroupsets"
    body = {
        "apiVersion": "workloads.x-k8s.io/v1alpha1",
        "kind": "RoleBasedGroupSet",
        "metadata": {"name": "many"},
        "spec": {"replicas": 2, "template": template},
    }
    groups.request("POST", path, body)
    groups.wait_ready("many-0")
    groups.wait_ready("many-1")
    until(lambda: groups.object(f"{path}/many").get("status", {}).get("readyReplicas") == 2, "the set does not say so")
    cluster.kubectl("scale", "rbgs/many", "--replicas=1", "-n", groups.namespace)
    until(lambda: not groups.get("many-1"), "the second group is still there")
    assert groups.is_ready("many-0")


def test_a_quiet_group_costs_nothing_but_the_lease(
    groups: Groups, operator: OperatorProcess, cluster: ControlPlane
) -> None:
    groups.apply(epd())
    groups.wait_ready("g")
    until(lambda: is_quiet(cluster, groups.namespace), "there are requests in a quiet time", 60)


def is_quiet(cluster: ControlPlane, namespace: str, seconds: float = 4.0) -> bool:
    """Whether the operator of a namespace asks for nothing but its Lease for so long."""
    mark = cluster.audit_mark()
    time.sleep(seconds)
    resources = {
        event["objectRef"]["resource"]
        for event in cluster.audit(mark)
        if "rbg-operator" in event.get("userAgent", "")
        and event.get("objectRef", {}).get("namespace") in (namespace, "default")
    }
    return resources == {"leases"}


def test_hostile_statuses_are_replaced(groups: Groups, operator: OperatorProcess) -> None:
    groups.apply(epd())
    groups.wait_ready("g")
    status = copy.deepcopy(groups.get("g")["status"])
    lie = [{"op": "replace", "path": "/status", "value": {"conditions": [], "rolesReady": "99/4"}}]
    path = f"/apis/workloads.x-k8s.io/v1alpha1/namespaces/{groups.namespace}/rolebasedgroups/g/status"
    groups.request("PATCH", path, lie, "application/json-patch+json")
    until(lambda: groups.get("g")["status"].get("rolesReady") == status["rolesReady"], "the lie stays")
    groups.wait_ready("g")
