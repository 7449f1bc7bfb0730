"""The chart on a real API server: install, upgrade, uninstall, and what becomes of definitions and groups.

Pods are simulated: their admission is real, what the operator does in them is tested elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from charts import CHART, NAMESPACE, PLAIN
from crds import crd_files
from operated_groups import Groups, until
from operator_process import OperatorProcess
from tests.charts.conftest import Helm, HelmError
from tests.cluster import control_plane as clusters
from tests.cluster.control_plane import ControlPlane
from tests.cluster.programs import ClusterError
from tests.operator.groups import manifest, role

RELEASE = "rbg-operator"
GROUPS = "rolebasedgroups.workloads.x-k8s.io"
KEPT = "helm.sh/resource-policy"
MAX_SECRET = 1024 * 1024


@pytest.fixture(scope="module")
def cluster(cluster_programs: None) -> Iterator[ControlPlane]:
    """One without definitions, with a namespace that takes restricted pods only."""
    with clusters.up(f"charts-{os.getpid()}") as running:
        running.make_namespace(NAMESPACE)
        running.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        yield running


def install(there: Helm) -> None:
    """A release of default values, all pods of which run; another may have had the definitions before."""
    there("install", RELEASE, CHART, "-n", NAMESPACE, "--take-ownership", "--wait", "--timeout", "120s")


def is_installed(there: Helm) -> bool:
    return any(release["name"] == RELEASE for release in json.loads(there("list", "-n", NAMESPACE, "-o", "json")))


@pytest.fixture(scope="module")
def there(helm: Helm, cluster: ControlPlane) -> Helm:
    """helm on the cluster, which has the definitions from here on; whoever changes the release puts it back."""
    there = helm.on(cluster.kubeconfig)
    install(there)
    return there


@pytest.fixture
def installed(there: Helm) -> Helm:
    """helm with a release of default values."""
    if not is_installed(there):
        install(there)
    return there


@pytest.fixture
def removed(there: Helm) -> Helm:
    """helm without the release; its definitions have stayed."""
    if is_installed(there):
        there("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
    return there


@pytest.fixture
def group(there: Helm, cluster: ControlPlane) -> Iterator[str]:
    """A group's uid."""
    made = cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(manifest(role("server"), name="g")))
    yield json.loads(made)["metadata"]["uid"]
    cluster.kubectl("delete", "rbg", "g", "--ignore-not-found")


def uid_of_group(cluster: ControlPlane) -> str:
    return cluster.kubectl("get", "rbg", "g", "-o", "jsonpath={.metadata.uid}")


def next_chart(folder: Path) -> Path:
    """A next version of the chart: groups have one more field."""
    chart = shutil.copytree(CHART, folder / "chart")
    definition = chart / "files" / "crds" / "rolebasedgroups.yaml"
    fields = "            description: What the group shall be\n            type: object\n            properties:\n"
    before, after = definition.read_text().split(fields)
    definition.write_text(f"{before}{fields}              novelty:\n                type: string\n{after}")
    return chart


def test_release_runs_and_its_test_passes(installed: Helm, cluster: ControlPlane) -> None:
    deployment = json.loads(cluster.kubectl("get", "deployment", RELEASE, "-n", NAMESPACE, "-o", "json"))
    assert deployment["status"]["readyReplicas"] == 2
    installed("test", RELEASE, "-n", NAMESPACE, "--timeout", "120s")


def test_release_holds_definitions_and_fits_into_its_secret(installed: Helm, cluster: ControlPlane) -> None:
    files = [f"--filename={path}" for path in crd_files()]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=120s", *files)
    for item in json.loads(cluster.kubectl("get", "-o", "json", *files))["items"]:
        assert item["metadata"]["annotations"][KEPT] == "keep"
    secrets = json.loads(cluster.kubectl("get", "secrets", "-n", NAMESPACE, "-l", "owner=helm", "-o", "json"))["items"]
    assert secrets
    assert all(len(json.dumps(secret)) < MAX_SECRET / 2 for secret in secrets)


def test_an_upgrade_changes_definitions_and_touches_neither_groups_nor_pods(
    installed: Helm, cluster: ControlPlane, tmp_path: Path
) -> None:
    """The release's own pods are simulated, so the operator runs here, before and after as a new version would."""
    groups = Groups(cluster, "default")
    scaled = role("server", image="server:1") | {"scalingAdapter": {"enable": True}}

    def novelty() -> str:
        path = "{.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.novelty.type}"
        return cluster.kubectl("get", "crd", GROUPS, "-o", f"jsonpath={path}")

    def pods() -> set[str]:
        return {pod["metadata"]["uid"] for pod in groups.pods("server")}

    with OperatorProcess(cluster.kubeconfig, tmp_path, "--lease-namespace", "default", name="before"):
        groups.apply(manifest(scaled, name="g"))
        groups.wait_ready("g")
        cluster.kubectl("scale", "rolebasedgroupscalingadapter/g-server", "--replicas=4")
        until(lambda: len(pods()) == 4, "it was not scaled")
        groups.wait_ready("g")
    running, uid = pods(), uid_of_group(cluster)
    assert novelty() == ""
    installed("upgrade", RELEASE, next_chart(tmp_path), "-n", NAMESPACE, "--set", "replicaCount=3", "--wait")
    assert novelty() == "string"
    assert uid_of_group(cluster) == uid
    with OperatorProcess(cluster.kubeconfig, tmp_path, "--lease-namespace", "default", name="after"):
        groups.apply(manifest(scaled, role("another", image="server:1"), name="g"))
        groups.wait_ready("g")
        assert pods() == running
        installed("rollback", RELEASE, "1", "-n", NAMESPACE, "--wait")
        assert novelty() == ""
        assert uid_of_group(cluster) == uid
        cluster.kubectl("delete", "rbg", "g")


def test_uninstall_leaves_definitions_and_groups(installed: Helm, cluster: ControlPlane, group: str) -> None:
    installed("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
    assert uid_of_group(cluster) == group
    left = cluster.kubectl(
        "get", "all,networkpolicy,pdb,serviceaccount,role,rolebinding", "-n", NAMESPACE, "-o", "name"
    )
    assert RELEASE not in left
    assert RELEASE not in cluster.kubectl("get", "clusterrole,clusterrolebinding", "-o", "name")
    installed("install", RELEASE, CHART, "-n", NAMESPACE)
    assert uid_of_group(cluster) == group


def test_another_release_takes_definitions_only_when_told(removed: Helm, cluster: ControlPlane, group: str) -> None:
    other = ("install", "other", CHART, "-n", NAMESPACE)
    with pytest.raises(HelmError, match="cannot be imported into the current release"):
        removed(*other)
    removed(*other, "--take-ownership")
    assert uid_of_group(cluster) == group
    removed("uninstall", "other", "-n", NAMESPACE, "--wait")


@pytest.mark.usefixtures("removed")
def test_plain_manifests_after_uninstall(cluster: ControlPlane) -> None:
    cluster.kubectl("apply", "-k", str(PLAIN))
    cluster.kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", NAMESPACE, "--timeout=120s")
    cluster.kubectl("delete", "-f", str(PLAIN / "operator.yaml"))


@pytest.mark.parametrize(
    ("verb", "resource", "namespace", "allowed"),
    [
        ("patch", "statefulsets.apps", "mine", "yes"),
        ("patch", "statefulsets.apps", "other", "no"),
        ("list", GROUPS, "mine", "yes"),
        ("list", GROUPS, "other", "no"),
        ("list", "clusterengineruntimeprofiles.workloads.x-k8s.io", "", "yes"),
        ("get", "secrets", "mine", "no"),
        ("get", "pods/log", "mine", "no"),
        ("create", "pods", "mine", "no"),
        ("create", "leases.coordination.k8s.io", NAMESPACE, "yes"),
        ("create", "leases.coordination.k8s.io", "mine", "no"),
    ],
)
def test_rights_end_at_the_namespaces(
    confined: ControlPlane, verb: str, resource: str, namespace: str, allowed: str
) -> None:
    account = f"--as=system:serviceaccount:{NAMESPACE}:{RELEASE}"
    scope = ("-n", namespace) if namespace else ()
    try:
        answer = confined.kubectl("auth", "can-i", verb, resource, account, *scope)
    except ClusterError:  # kubectl fails where the answer is no
        answer = "no"
    assert answer.strip() == allowed


@pytest.fixture(scope="module")
def confined(there: Helm, cluster: ControlPlane) -> ControlPlane:
    """The cluster with an operator for the namespace `mine` only."""
    for name in ("mine", "other"):
        cluster.make_namespace(name)
    there("upgrade", "--install", RELEASE, CHART, "-n", NAMESPACE, "--set", "namespaces={mine}", "--take-ownership")
    return cluster
