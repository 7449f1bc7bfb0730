"""The operator when things go wrong: it is killed, the API server is away or refuses, two operators meet."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api_proxy import ApiProxy
from custom_resources import install
from operated_groups import Groups, edit_image, epd, image_of, until
from operator_process import OperatorProcess
from tests.cluster import control_plane as clusters
from tests.cluster.control_plane import ControlPlane

Json = dict[str, Any]


@pytest.fixture
def groups(cluster: ControlPlane, namespace: str) -> Groups:
    return Groups(cluster, namespace)


@pytest.fixture
def replica(cluster: ControlPlane, namespace: str, tmp_path: Path) -> Callable[..., OperatorProcess]:
    """Makes one more replica for the test's namespace."""

    def make(name: str, wait: bool = True) -> OperatorProcess:
        arguments = ("--namespaces", namespace, "--lease-namespace", namespace)
        return OperatorProcess(cluster.kubeconfig, tmp_path, *arguments, name=name, wait=wait)

    return make


def administrator(cluster: ControlPlane, namespace: str) -> Path:
    """A kubeconfig with a token: a proxy cannot pass a client's certificate on."""
    account = f"{namespace}:default"
    cluster.kubectl(
        "create", "clusterrolebinding", namespace, "--clusterrole=cluster-admin", f"--serviceaccount={account}"
    )
    return cluster.service_account_kubeconfig(namespace, "default")


def test_a_second_replica_takes_over_when_the_leader_is_killed(
    groups: Groups, replica: Callable[..., OperatorProcess]
) -> None:
    with replica("first") as first:
        until(lambda: first.logged("this replica leads"), "the first does not lead")
        with replica("second") as second:
            groups.apply(epd())
            groups.wait_ready("g")
            assert not second.logged("this replica leads")
            first.kill()
            killed = time.monotonic()
            edit_image(groups, "g", 0, "example/encoder:2")
            until(lambda: image_of(groups.core("statefulsets", "g-encoder")) == "example/encoder:2", "nobody works")
            assert time.monotonic() - killed < 15
            groups.wait_ready("g")


def test_sigterm_hands_over_at_once_and_exits_cleanly(groups: Groups, replica: Callable[..., OperatorProcess]) -> None:
    with replica("first") as first:
        until(lambda: first.logged("this replica leads"), "the first does not lead")
        with replica("second") as second:
            groups.apply(epd())
            asked = time.monotonic()
            assert first.terminate(10) == 0
            assert first.logged("stopped")
            until(lambda: second.logged("this replica leads"), "no hand-over")
            assert time.monotonic() - asked < 10, "the Lease was not given back"
            groups.wait_ready("g")


def test_a_replica_that_loses_the_lease_stops_working(groups: Groups, replica: Callable[..., OperatorProcess]) -> None:
    with replica("only") as only:
        until(lambda: only.logged("this replica leads"), "it does not lead")
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{groups.namespace}/leases/rbg-operator"
        taken = {"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 3600}}
        groups.request("PATCH", lease, taken, "application/merge-patch+json")
        until(lambda: only.logged("this replica leads no longer"), "it does not notice")
        groups.apply(epd())
        time.sleep(2)
        assert groups.get("g")["metadata"].get("finalizers") is None, "it works without the Lease"
        assert groups.pods() == []
        given_back = {"spec": {"holderIdentity": ""}}
        groups.request("PATCH", lease, given_back, "application/merge-patch+json")
        groups.wait_ready("g")


@pytest.fixture(scope="module")
def own_cluster(cluster_programs: None) -> Iterator[ControlPlane]:
    """A control plane of which nobody else needs anything."""
    with clusters.up(f"controller-faults-{os.getpid()}", nodes=1) as running:
        running.make_namespace("ours")
        yield running


def test_an_operator_without_its_definitions_waits_for_them(own_cluster: ControlPlane, tmp_path: Path) -> None:
    groups = Groups(own_cluster, "ours")
    with OperatorProcess(own_cluster.kubeconfig, tmp_path, "--lease-namespace", "ours", wait=False) as operator:
        until(lambda: operator.logged("the cluster has no "), "it does not say what is missing")
        assert operator.ask("/readyz")[0] == 503
        assert operator.ask("/healthz")[0] == 200
        install(own_cluster)
        groups.apply(epd("late"))
        groups.wait_ready("late")
        groups.delete("late")
        until(lambda: not groups.get("late"), "the group is still there")


def test_an_api_server_that_goes_away_costs_time_and_nothing_else(own_cluster: ControlPlane, tmp_path: Path) -> None:
    install(own_cluster)
    groups = Groups(own_cluster, "ours")
    with OperatorProcess(own_cluster.kubeconfig, tmp_path, "--lease-namespace", "ours") as operator:
        for number in range(4):
            groups.apply(epd(f"g-{number}"))
        own_cluster.restart("kube-apiserver", grace=0)
        for number in range(4):
            groups.wait_ready(f"g-{number}")
        own_cluster.pause("kube-apiserver")
        time.sleep(1)
        own_cluster.resume("kube-apiserver")
        edit_image(groups, "g-0", 1, "example/prefill:2")
        groups.wait_ready("g-0")
        images = {pod["metadata"]["name"]: image_of(pod) for pod in groups.pods("prefill")}
        assert images["g-0-prefill-0"] == "example/prefill:2"
        assert images["g-1-prefill-0"] == "example/prefill:1"
        assert operator.process.poll() is None


async def test_writes_that_fail_are_done_later(cluster: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """Every fourth write is refused, with a different answer each time."""
    answers = (429, 500, 503, 504, 409)
    writes, refused = itertools.count(1), []

    def refuse(method: str, path: str) -> int | None:
        if method in ("GET", "POST") or "/leases" in path or next(writes) % 4:
            return None
        refused.append(answers[len(refused) % len(answers)])
        return refused[-1]

    groups = Groups(cluster, namespace)
    async with ApiProxy(cluster, administrator(cluster, namespace), tmp_path) as proxy:
        proxy.before = refuse
        arguments = ("--namespaces", namespace, "--lease-namespace", namespace)
        with OperatorProcess(proxy.kubeconfig, tmp_path, *arguments, wait=False) as process:
            await asyncio.to_thread(groups.apply, epd())
            await asyncio.to_thread(groups.wait_ready, "g", 90)
            assert process.process.poll() is None
    assert len(refused) >= 3, "there was not much to refuse"


async def test_an_api_server_that_takes_its_time_costs_time_and_nothing_else(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """Each request takes half a second: the Lease is kept, nothing is written twice."""
    groups = Groups(cluster, namespace)
    async with ApiProxy(cluster, administrator(cluster, namespace), tmp_path) as proxy:
        proxy.delay = 0.5
        arguments = ("--namespaces", namespace, "--lease-namespace", namespace)
        with OperatorProcess(proxy.kubeconfig, tmp_path, *arguments, wait=False) as process:
            await asyncio.to_thread(groups.apply, epd())
            await asyncio.to_thread(groups.wait_ready, "g", 120)
            assert not process.logged("this replica does not lead any more")
    objects = [write.path.rsplit("/", 1)[-1] for write in proxy.writes if write.method == "PATCH"]
    assert {name: objects.count(name) for name in ("g-encoder", "s-g-encoder", "g-router")} == dict.fromkeys(
        ("g-encoder", "s-g-encoder", "g-router"), 1
    )
