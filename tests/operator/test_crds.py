"""The definitions as such: what is committed is what the generator makes, and a real API server serves it."""

from __future__ import annotations

import json

import pytest
import yaml

from crds import crd_files
from crds.definition import as_yaml
from crds.kinds import definitions
from crds.kubernetes import TYPES, trim
from custom_resources import API_VERSION, Json
from tests.cluster.control_plane import ControlPlane
from tests.cluster.programs import ClusterError

DEFINITIONS = {definition["spec"]["names"]["plural"]: definition for definition in definitions()}
POD = {"spec": {"containers": [{"name": "server", "image": "server:1"}]}}


def test_the_committed_files_are_what_the_generator_makes() -> None:
    committed = {path.stem: path.read_text(encoding="utf-8") for path in crd_files()}
    assert committed == {plural: as_yaml(definition) for plural, definition in DEFINITIONS.items()}


def test_the_committed_types_are_those_of_the_api_server(cluster: ControlPlane) -> None:
    openapi = json.loads(cluster.kubectl("get", "--raw", "/openapi/v3/api/v1"))
    assert json.loads(TYPES.read_text(encoding="utf-8")) == trim(openapi)


def test_every_file_is_small_enough_for_etcd_and_client_side_apply() -> None:
    for path in crd_files():
        as_json = json.dumps(yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader), separators=(",", ":"))
        assert len(as_json) < 256 * 1024, f"{path.name}: kubectl apply keeps a copy in an annotation of at most 256 KiB"
        assert "{{" not in as_json, f"{path.name}: a Helm template would read this"


def test_every_field_of_ours_is_described() -> None:
    """Kubernetes' own fields have descriptions where they are not repeated; ours have one everywhere."""
    for plural, definition in DEFINITIONS.items():
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        assert _undescribed(schema["properties"]["spec"], f"{plural}.spec") == []
        if "status" in schema["properties"]:
            assert _undescribed(schema["properties"]["status"], f"{plural}.status") == []


KUBERNETES_OWN = ("template", "env", "servicePorts", "containers", "initContainers", "volumes")


def _undescribed(schema: Json, path: str) -> list[str]:
    missing = [] if schema.get("description") else [path]
    for name, field in schema.get("properties", {}).items():
        if name in KUBERNETES_OWN and "roles" not in field.get("properties", {}):
            missing += [] if field.get("description") else [f"{path}.{name}"]
        else:
            missing += _undescribed(field, f"{path}.{name}")
    if schema.get("items", {}).get("type") == "object":
        missing += _undescribed({"description": "-", **schema["items"]}, path)
    return missing


def test_all_definitions_are_served_without_a_complaint(cluster: ControlPlane) -> None:
    answer = json.loads(cluster.kubectl("get", "crds", "-o", "json"))
    found = {item["spec"]["names"]["plural"]: item for item in answer["items"]}
    assert set(DEFINITIONS) <= set(found)
    for plural in DEFINITIONS:
        conditions = {item["type"]: item["status"] for item in found[plural]["status"]["conditions"]}
        assert conditions["Established"] == conditions["NamesAccepted"] == "True"
        assert "NonStructuralSchema" not in conditions
        assert found[plural]["spec"]["versions"] == DEFINITIONS[plural]["spec"]["versions"], "the server dropped a part"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("rbg.spec.roles.dependencies", "Roles that must be ready before this one is created"),
        ("rbg.spec.roles.template.spec.containers.resources", "Compute Resources required by this container"),
        ("rbg.status.roleStatuses.lastCrash.exitCode", "128 + n when signal n ended it"),
        ("rbgs.spec.replicas", "Number of groups"),
        ("rbgsa.spec.scaleTargetRef", "cannot be changed"),
        ("cerp.spec.updateStrategy", "NoUpdate: pods get it when they are updated for another reason"),
    ],
)
def test_kubectl_explain_is_the_manual(cluster: ControlPlane, field: str, words: str) -> None:
    assert words in " ".join(cluster.kubectl("explain", field).split())


def test_the_columns_of_kubectl_get(cluster: ControlPlane, namespace: str) -> None:
    _apply(cluster, namespace, "RoleBasedGroup", "g", {"roles": [{"name": "a", "template": POD}]})
    conditions = [
        {
            "type": kind,
            "status": "False",
            "reason": reason,
            "message": "a waits",
            "lastTransitionTime": "2026-11-21T12:00:00Z",
        }
        for kind, reason in (("Ready", "RolesNotReady"), ("Progressing", "Stalled"))
    ]
    status = json.dumps({"status": {"rolesReady": "0/1", "conditions": conditions}})
    cluster.kubectl("patch", "rbg", "g", "-n", namespace, "--subresource=status", "--type=merge", "-p", status)
    head, row = cluster.kubectl("get", "rbg", "-n", namespace).splitlines()
    assert head.split() == ["NAME", "ROLES", "READY", "AGE"]
    assert row.split()[:3] == ["g", "0/1", "False"]
    wide = cluster.kubectl("get", "rbg", "-n", namespace, "-o", "wide").splitlines()[1]
    assert wide.split()[4:] == ["Stalled", "a", "waits"]
    assert "rolebasedgroup.workloads.x-k8s.io/g" in cluster.kubectl("get", "inference", "-n", namespace)


def test_status_and_spec_are_written_apart(cluster: ControlPlane, namespace: str) -> None:
    _apply(cluster, namespace, "RoleBasedGroup", "g", {"roles": [{"name": "a", "template": POD}]})
    patch = json.dumps({"spec": {"roles": []}, "status": {"rolesReady": "1/1"}})
    cluster.kubectl("patch", "rbg", "g", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
    stored = json.loads(cluster.kubectl("get", "rbg", "g", "-n", namespace, "-o", "json"))
    assert stored["status"] == {"rolesReady": "1/1"}
    assert len(stored["spec"]["roles"]) == 1
    assert stored["metadata"]["generation"] == 1


SCALABLE = {
    "RoleBasedGroupScalingAdapter": {"replicas": 1, "scaleTargetRef": {"name": "g", "role": "a"}},
    "RoleBasedGroupSet": {"replicas": 1, "template": {"roles": [{"name": "a", "template": POD}]}},
}


@pytest.mark.parametrize("kind", SCALABLE)
def test_scale_is_a_subresource_with_a_selector(cluster: ControlPlane, namespace: str, kind: str) -> None:
    _apply(cluster, namespace, kind, "s", SCALABLE[kind])
    status = json.dumps({"status": {"replicas": 1, "selector": "role=a"}})
    cluster.kubectl("patch", kind, "s", "-n", namespace, "--subresource=status", "--type=merge", "-p", status)
    cluster.kubectl("scale", kind, "s", "-n", namespace, "--replicas=3", "--current-replicas=1")
    path = f"/apis/{API_VERSION}/namespaces/{namespace}/{kind.lower()}s/s/scale"
    scale = json.loads(cluster.kubectl("get", "--raw", path))
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 1, "selector": "role=a"}


def test_a_set_has_at_most_as_many_groups_as_its_names_allow(cluster: ControlPlane, namespace: str) -> None:
    _apply(cluster, namespace, "RoleBasedGroupSet", "s", SCALABLE["RoleBasedGroupSet"])
    cluster.kubectl("scale", "rbgs", "s", "-n", namespace, "--replicas=10000")
    with pytest.raises(ClusterError, match="less than or equal to 10000"):
        cluster.kubectl("scale", "rbgs", "s", "-n", namespace, "--replicas=10001")


def test_the_target_of_an_adapter_stays(cluster: ControlPlane, namespace: str) -> None:
    kind = "RoleBasedGroupScalingAdapter"
    _apply(cluster, namespace, kind, "s", SCALABLE[kind])
    with pytest.raises(ClusterError, match=r"scaleTargetRef.*cannot be changed"):
        _apply(cluster, namespace, kind, "s", {"replicas": 1, "scaleTargetRef": {"name": "g", "role": "b"}})


def test_the_workload_kind_of_a_role_can_change(cluster: ControlPlane, namespace: str) -> None:
    """Nothing that was defaulted for the first kind stands in the way of the second."""
    for kind in ("StatefulSet", "LeaderWorkerSet", "Deployment"):
        spec = {"roles": [{"name": "a", "template": POD, "workload": {"kind": kind}}]}
        _apply(cluster, namespace, "RoleBasedGroup", "g", spec)
    stored = cluster.kubectl("get", "rbg", "g", "-n", namespace, "-o", "jsonpath={.spec.roles[0].workload}")
    assert json.loads(stored) == {"kind": "Deployment"}


def _apply(control_plane: ControlPlane, namespace: str, kind: str, name: str, spec: Json) -> None:
    manifest = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(manifest))
