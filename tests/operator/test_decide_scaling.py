"""Scaling: by the manifest, by the adapter, and who wins."""

from __future__ import annotations

from typing import Any

import pytest

from tests.operator.groups import manifest, role
from tests.operator.simulator import Cluster
from tests.operator.test_decide_lifecycle import settled

ADAPTER = "RoleBasedGroupScalingAdapter"


def scaled_role() -> dict[str, Any]:
    return manifest(role("a", "serve", replicas=2) | {"scalingAdapter": {"enable": True}})


def kubectl_scale(cluster: Cluster, replicas: Any) -> None:
    adapter = cluster.objects[ADAPTER, "g-a"]
    adapter["spec"]["replicas"] = replicas
    adapter["metadata"]["generation"] += 1


def test_up_and_down_by_the_manifest() -> None:
    cluster = settled(manifest(role("a", "serve", replicas=2), role("b", "serve", after=("a",))))
    for replicas in (4, 1, 0, 3):
        cluster.scale("a", replicas)
        cluster.settle()
        assert [step for step in cluster.take() if "StatefulSet" in step] == [f"apply StatefulSet g-a x{replicas}"]
        assert len(cluster.role_pods("a")) == replicas
        assert cluster.condition("Ready")[0] == "True"


def test_surplus_pods_leave_at_once_and_ready_does_not_wait_for_their_end() -> None:
    cluster = settled(manifest(role("a", "serve", replicas=3)), drain=100.0)
    cluster.scale("a", 1)
    cluster.settle(5.0)
    assert len(cluster.pods) == 3
    assert cluster.condition("Ready")[0] == "True"


def test_who_lists_every_replica_learns_of_a_new_one_when_it_answers() -> None:
    server = ("python3", "-m", "epd_runtime.launch_server")
    lists = {"annotations": {"rbg.workloads.x-k8s.io/stage-urls": "PerReplica"}}
    cluster = settled(manifest(
        role("e", *server, "--encoder-only", replicas=2),
        role("p", *server, "--disaggregation-mode", "prefill", after=("e",)) | lists,
        role("r", "python3", "-m", "epd_runtime.router", after=("p",)),
    ))  # fmt: skip
    cluster.ready_after = lambda pod: 30.0 if pod.name == "g-e-2" else 1.0
    cluster.scale("e", 3)
    cluster.settle(20.0)
    assert cluster.phases()["p"] == "Held"
    assert [pod.created for pod in cluster.role_pods("p")] < [cluster.pods["g-e-2"].created], "rolled before its time"
    cluster.settle(60.0)
    new = [pod.created for pod in cluster.role_pods("p")]
    assert new >= [cluster.pods["g-e-2"].ready_at], "it never learned of the third encoder"
    assert cluster.condition("Ready")[0] == "True"
    assert [pod.created for pod in cluster.role_pods("r")] < new, "nobody else is rolled"


def test_the_adapter_is_made_and_scales() -> None:
    cluster = Cluster(scaled_role())
    cluster.settle()
    assert f"create {ADAPTER} g-a x2" in cluster.take()
    kubectl_scale(cluster, 5)
    cluster.settle()
    assert [step for step in cluster.take() if "StatefulSet" in step or "dapter" in step] == [
        "apply StatefulSet g-a x5",
        "status of adapter g-a 2",
        "status of adapter g-a 5",
    ]
    status = cluster.objects[ADAPTER, "g-a"]["status"]
    assert status["selector"] == "rbg.workloads.x-k8s.io/group-name=g,rbg.workloads.x-k8s.io/role-name=a"
    assert cluster.condition("Ready")[0] == "True"


def test_the_same_manifest_again_leaves_a_scaled_role_alone_and_a_changed_number_wins() -> None:
    cluster = settled(scaled_role())
    kubectl_scale(cluster, 5)
    cluster.settle()
    cluster.take()
    cluster.scale("a", 2)  # the number it always was
    cluster.settle()
    assert not [step for step in cluster.take() if "StatefulSet" in step or ADAPTER in step]
    assert len(cluster.role_pods("a")) == 5
    cluster.scale("a", 3)
    cluster.settle()
    steps = cluster.take()
    assert f"apply {ADAPTER} g-a x3" in steps
    assert [step for step in steps if "StatefulSet" in step] == ["apply StatefulSet g-a x3"]
    assert len(cluster.role_pods("a")) == 3
    kubectl_scale(cluster, 4)
    cluster.settle()
    assert len(cluster.role_pods("a")) == 4


def test_a_number_equal_to_the_scaled_one_is_taken_over_too() -> None:
    cluster = settled(scaled_role())
    kubectl_scale(cluster, 5)
    cluster.settle()
    cluster.scale("a", 5)
    cluster.settle()
    kubectl_scale(cluster, 6)
    cluster.settle()
    assert len(cluster.role_pods("a")) == 6


@pytest.mark.parametrize("garbage", [None, -1, "7", True, 2.5, [], {}])
def test_garbage_in_the_adapter_counts_as_absent(garbage: Any) -> None:
    cluster = settled(scaled_role())
    kubectl_scale(cluster, garbage)
    cluster.settle()
    assert len(cluster.role_pods("a")) == 2


def test_without_its_adapter_a_role_goes_back_to_the_manifest() -> None:
    cluster = settled(scaled_role())
    kubectl_scale(cluster, 5)
    cluster.settle()
    cluster.edit(lambda _: cluster.role("a").pop("scalingAdapter"))
    cluster.settle()
    assert f"delete {ADAPTER} g-a" in cluster.take()
    assert len(cluster.role_pods("a")) == 2
