"""The operator with exactly the rights of the chart: nothing it needs is missing, nothing it has is idle."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from operated_groups import Groups, until
from operator_process import OperatorProcess
from optional_kinds import install_optional_kinds
from rbg_operator.controller.reconcile import CONFIRMED_SECONDS
from tests.cluster.control_plane import ControlPlane
from tests.operator.groups import manifest, role

Json = dict[str, Any]
INSTALLATION = Path(__file__).parents[2] / "config" / "default" / "operator.yaml"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
NAMESPACE = "rbg-system"
ACCOUNT = "rbg-operator"
ROLES = (ACCOUNT, f"{ACCOUNT}-profiles", f"{ACCOUNT}-leases")  # not those for people
CRASH = "test.rbg/crash"

# Checked by admission plugins of some clusters (OwnerReferencesPermissionEnforcement), never by a request of ours.
NOT_REQUESTED = {("update", "rolebasedgroups/finalizers"), ("update", "rolebasedgroupsets/finalizers")}


@pytest.fixture
def account(cluster: ControlPlane) -> Iterator[Path]:
    """The rights of the installation, and a kubeconfig of its service account."""
    install_optional_kinds(cluster)
    documents = [each for each in yaml.safe_load_all(INSTALLATION.read_text()) if each and each["kind"] in RIGHTS]
    if not cluster.api().exists(f"/api/v1/namespaces/{NAMESPACE}"):  # a reused plane has it, and the Lease
        cluster.make_namespace(NAMESPACE)
    cluster.kubectl("delete", "lease", ACCOUNT, "-n", NAMESPACE, "--ignore-not-found")
    cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(documents))
    yield cluster.service_account_kubeconfig(NAMESPACE, ACCOUNT)
    cluster.kubectl("delete", "--wait=false", "-f", "-", input=yaml.safe_dump_all(documents))


def granted() -> set[tuple[str, str]]:
    """(verb, resource) of every rule."""
    rules = []
    for document in yaml.safe_load_all(INSTALLATION.read_text()):
        if document and document["kind"] in ("ClusterRole", "Role") and document["metadata"]["name"] in ROLES:
            rules += document.get("rules") or []
    return {(verb, resource) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def used(control_plane: ControlPlane, mark: int) -> dict[tuple[str, str], set[str]]:
    """What the authorizer said to the service account's requests, by (verb, resource): allow, forbid."""
    found: dict[tuple[str, str], set[str]] = {}
    for event in control_plane.audit(mark):
        reference = event.get("objectRef") or {}
        if event["user"]["username"] == f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}" and "resource" in reference:
            resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
            decision = event["annotations"]["authorization.k8s.io/decision"]
            found.setdefault((event["verb"], resource), set()).add(decision)
            if event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201:
                found.setdefault(("create", resource), set()).add(decision)  # applying something new needs both
    return found


def gang(name: str, scheduler: str) -> Json:
    group = manifest(role("a", image="example/a:1"), name=name)
    group["spec"]["podGroupPolicy"] = {scheduler: {}}
    return group


def leader_workers(name: str) -> Json:
    group = manifest(role("a", image="example/a:1"), role("b", image="example/b:1"), name=name)
    workload = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet"}
    group["spec"]["roles"][0] |= {"workload": workload, "leaderWorkerSet": {"size": 2}}
    return group


def test_every_right_is_used_and_none_is_missing(
    control_plane: ControlPlane, account: Path, namespace: str, tmp_path: Path
) -> None:
    mark = control_plane.audit_mark()
    groups = Groups(control_plane, namespace)
    arguments = ("--lease-namespace", NAMESPACE, "--lease-name", ACCOUNT)
    with OperatorProcess(account, tmp_path, *arguments) as operator:
        for chapter in (sets, scaled_and_removed, restarted, gangs_and_leaders, repaired, sets_again):
            chapter(control_plane, groups)
        assert operator.terminate() == 0  # gives the lease back

    requests = used(control_plane, mark)
    refused = sorted(key for key, decisions in requests.items() if "forbid" in decisions)
    assert not refused, f"rights are missing: {refused}"
    idle = granted() - requests.keys() - NOT_REQUESTED
    assert not idle, f"rights are never used: {sorted(idle)}"


def scaled_and_removed(control_plane: ControlPlane, groups: Groups) -> None:
    """A StatefulSet with an adapter and a Deployment; then both kinds, their Services and the adapter go."""
    wanted = manifest(
        role("a", replicas=2, image="example/a:1"), role("b", image="example/b:1"), role("c", image="c:1")
    )
    wanted["spec"]["roles"][0]["scalingAdapter"] = {"enable": True}
    wanted["spec"]["roles"][0]["annotations"] = {"rbg.workloads.x-k8s.io/ordinal-services": "true"}
    wanted["spec"]["roles"][1]["workload"] = {"apiVersion": "apps/v1", "kind": "Deployment"}
    groups.apply(wanted)
    groups.wait_ready("g")
    control_plane.kubectl("scale", "rbgsa/g-a", "--replicas=3", "-n", groups.namespace)
    until(lambda: len(groups.pods("a")) == 3, "the adapter does not scale")
    wanted["spec"]["roles"] = wanted["spec"]["roles"][2:]
    groups.apply(wanted)
    until(lambda: not (groups.pods("a") or groups.core("deployments", "g-b")), "removed roles stay")
    groups.wait_ready("g")
    for number in range(12):  # more revisions than are kept
        wanted["spec"]["roles"][0]["template"]["spec"]["containers"][0]["image"] = f"c:{number + 2}"
        groups.apply(wanted)
        until(
            lambda: groups.get("g")["status"]["observedGeneration"] == groups.get("g")["metadata"]["generation"], "slow"
        )
    groups.wait_ready("g")


def restarted(control_plane: ControlPlane, groups: Groups) -> None:
    """A pod is deleted by restart policy."""
    wanted = manifest(role("a", image="example/a:1"), name="crashing")
    wanted["spec"]["roles"][0]["restartPolicy"] = "RecreateRoleInstanceOnPodRestart"
    template = wanted["spec"]["roles"][0]["template"]
    template["metadata"] = {"annotations": {CRASH: "1", "test.rbg/restart-after": "1s"}}
    groups.apply(wanted)
    until(lambda: groups.pods("a"), "no pod")
    first = {pod["metadata"]["uid"] for pod in groups.pods("a") if pod["metadata"]["name"] == "crashing-a-0"}
    until(lambda: first.isdisjoint(pod["metadata"]["uid"] for pod in groups.pods("a")), "the pod is not recreated")


def gangs_and_leaders(control_plane: ControlPlane, groups: Groups) -> None:
    """PodGroups of both schedulers and a LeaderWorkerSet; they go when they are not wanted any more."""
    for each in (gang("kube", "kubeScheduling"), gang("volcano", "volcanoScheduling"), leader_workers("lws")):
        groups.apply(each)
    paths = {
        "kube": ("scheduling.x-k8s.io/v1alpha1", "podgroups", "kube"),
        "volcano": ("scheduling.volcano.sh/v1beta1", "podgroups", "volcano"),
        "lws": ("leaderworkerset.x-k8s.io/v1", "leaderworkersets", "lws-a"),
    }

    def there(name: str) -> Json:
        version, plural, object_name = paths[name]
        return groups.object(f"/apis/{version}/namespaces/{groups.namespace}/{plural}/{object_name}")

    for name in paths:
        until(lambda name=name: there(name), f"{name} is missing")  # type: ignore[misc]
    for each in (manifest(role("a", image="example/a:1"), name=name) for name in ("kube", "volcano")):
        groups.apply(each)
    without = leader_workers("lws")
    without["spec"]["roles"] = without["spec"]["roles"][1:]
    groups.apply(without)
    for name in paths:
        until(lambda name=name: not there(name), f"{name} stays")  # type: ignore[misc]


def repaired(control_plane: ControlPlane, groups: Groups) -> None:
    """The discovery ConfigMap is deleted by a user and comes back; one that only looks like ours goes."""
    path = f"/api/v1/namespaces/{groups.namespace}/configmaps"
    metadata = groups.core("configmaps", "g")["metadata"]
    kept = {key: metadata[key] for key in ("labels", "ownerReferences")}
    groups.request("POST", path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**kept, "name": "stray"}})
    groups.request("DELETE", f"{path}/g")
    until(lambda: groups.core("configmaps", "g"), "the ConfigMap does not come back")
    until(lambda: not groups.core("configmaps", "stray"), "what nobody wants stays")


def sets(control_plane: ControlPlane, groups: Groups) -> None:
    """A set of two groups that becomes one."""
    spec = manifest(role("x", image="x:1"))["spec"]
    wanted = {
        "apiVersion": "workloads.x-k8s.io/v1alpha1",
        "kind": "RoleBasedGroupSet",
        "metadata": {"name": "many", "namespace": groups.namespace},
        "spec": {"replicas": 2, "template": spec},
    }
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(wanted))
    groups.wait_ready("many-1")
    scale(control_plane, groups, 1)
    until(lambda: not groups.get("many-1"), "the surplus group stays")


def sets_again(control_plane: ControlPlane, groups: Groups) -> None:
    """The set grows so long after it was made that the operator first asks whether it is still there."""
    made = groups.object(f"/apis/workloads.x-k8s.io/v1alpha1/namespaces/{groups.namespace}/rolebasedgroupsets/many")
    age = datetime.now(UTC) - datetime.fromisoformat(made["metadata"]["creationTimestamp"])
    time.sleep(max(0.0, CONFIRMED_SECONDS + 1 - age.total_seconds()))
    scale(control_plane, groups, 2)
    groups.wait_ready("many-1")


def scale(control_plane: ControlPlane, groups: Groups, replicas: int) -> None:
    control_plane.kubectl("scale", "rbgs/many", f"--replicas={replicas}", "-n", groups.namespace)


def is_seen(group: Json) -> bool:
    return bool(group["status"]["observedGeneration"] == group["metadata"]["generation"])
