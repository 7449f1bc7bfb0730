"""Groups come, lose parts, and go: whole sequences of steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.operator.groups import manifest, role
from tests.operator.simulator import NEVER, Cluster

ENCODER, PREFILL, DECODE, ROUTER = "encoder", "prefill", "decode", "router"


def epd(**encoder: Any) -> dict[str, Any]:
    """Encoder, prefill after it, decode, router after both."""
    return manifest(
        role(ENCODER, "serve", replicas=2, image="v1") | encoder,
        role(PREFILL, "serve", after=(ENCODER,), image="v1"),
        role(DECODE, "serve", image="v1"),
        role(ROUTER, "serve", after=(PREFILL, DECODE), image="v1"),
    )


def settled(spec: dict[str, Any], **options: Any) -> Cluster:
    """A group that has got Ready."""
    cluster = Cluster(spec, **options)
    cluster.settle()
    assert cluster.condition("Ready")[0] == "True"
    cluster.take()
    return cluster


def revision_numbers(cluster: Cluster) -> list[int]:
    return sorted(body["revision"] for (kind, _), body in cluster.objects.items() if kind == "ControllerRevision")


def workloads(steps: list[str]) -> list[str]:
    return [step for step in steps if "StatefulSet" in step]


def test_roles_start_in_order_and_siblings_together() -> None:
    cluster = Cluster(epd())
    cluster.settle()
    history = next(step for step in cluster.steps if "ControllerRevision" in step)
    assert cluster.steps == [
        "AddFinalizer",
        "create ConfigMap g",
        "create Service s-g-encoder",
        "create Service s-g-prefill",
        "create Service s-g-decode",
        "create Service s-g-router",
        "create StatefulSet g-encoder x2",
        "create StatefulSet g-decode x1",
        history,
        "status Starting 0/4 ready",
        "event Started",
        "create StatefulSet g-prefill x1",
        "create StatefulSet g-router x1",
        "status Complete 4/4 ready Ready",
        "event Ready",
    ]


@pytest.mark.parametrize("delay", [0.0, 1.0, 5.0])
def test_writes_of_a_creation_and_of_an_edit_stay_within_the_budget(delay: float) -> None:
    cluster = Cluster(epd(), ready_after=lambda pod: delay)
    cluster.settle()
    assert cluster.writes.total() - cluster.writes["Event"] <= 14
    assert cluster.writes["Event"] <= 3
    cluster.take()
    cluster.set_image(ENCODER)
    cluster.settle()
    assert cluster.condition("Ready")[0] == "True"
    assert cluster.writes.total() - cluster.writes["Event"] <= 5
    assert cluster.writes["Event"] <= 2


def test_a_stranger_that_never_gets_ready_blocks_nobody() -> None:
    cluster = Cluster(epd(), ready_after=lambda pod: NEVER if "decode" in pod.name else 1.0)
    cluster.settle()
    assert "create StatefulSet g-prefill x1" in cluster.steps
    assert cluster.phases() == {ENCODER: "Ready", PREFILL: "Ready", DECODE: "Starting", ROUTER: "Waiting"}
    assert cluster.condition("DependenciesReady") == ("False", "Waiting")


def test_a_role_of_no_replicas_is_ready_at_once() -> None:
    spec = epd()
    spec["spec"]["roles"][0]["replicas"] = 0
    cluster = Cluster(spec)
    cluster.reconcile()
    assert "create StatefulSet g-prefill x1" in cluster.steps


def test_a_gang_starts_together() -> None:
    spec = epd()
    spec["spec"]["podGroupPolicy"] = {"kubeScheduling": {}}
    cluster = Cluster(spec)
    cluster.reconcile()
    assert cluster.condition("Valid") == ("False", "KindNotServed")
    cluster.kinds = frozenset({"PodGroup.scheduling.x-k8s.io"})
    cluster.reconcile()
    assert len(workloads(cluster.steps)) == 4


def test_min_ready_seconds_delay_dependents_and_ready() -> None:
    cluster = Cluster(manifest(role("a", "serve") | {"minReadySeconds": 20}, role("b", "serve", after=("a",))))
    created: dict[str, float] = {}

    def watch() -> None:
        for name, pod in cluster.pods.items():
            created.setdefault(name, pod.created)

    cluster.settle(watch=watch)
    assert created["g-b-0"] - created["g-a-0"] >= 21
    assert cluster.condition("Ready")[0] == "True"


def test_a_lost_dependency_stops_neither_scaling_nor_repair() -> None:
    cluster = settled(epd())
    cluster.unready_pod("g-encoder-0", NEVER)
    cluster.scale(PREFILL, 3)
    cluster.settle()
    assert workloads(cluster.take()) == ["apply StatefulSet g-prefill x3"]
    assert len(cluster.role_pods(PREFILL)) == 3
    del cluster.objects["StatefulSet", "g-prefill"]
    cluster.settle()
    assert workloads(cluster.take()) == ["create StatefulSet g-prefill x3"]


@pytest.mark.parametrize("key", [("Service", "s-g-decode"), ("ConfigMap", "g"), ("StatefulSet", "g-decode")])
def test_a_deleted_object_comes_back(key: tuple[str, str]) -> None:
    cluster = settled(epd())
    del cluster.objects[key]
    cluster.settle()
    assert sum(step.startswith(f"create {key[0]} {key[1]}") for step in cluster.steps) == 1
    assert cluster.condition("Ready")[0] == "True"


def test_deletion_goes_in_reverse_order_and_waits_for_pods() -> None:
    cluster = settled(epd(), drain=20.0)
    cluster.delete_group()
    cluster.settle()
    assert cluster.is_gone
    assert [step for step in cluster.take() if not step.startswith("status")] == [
        "delete StatefulSet g-router",
        "delete StatefulSet g-decode",
        "delete StatefulSet g-prefill",
        "delete StatefulSet g-encoder",
        "RemoveFinalizer",
    ]


def test_deletion_does_not_wait_for_ever() -> None:
    cluster = settled(epd(), drain=1e6)
    start = cluster.now
    cluster.delete_group()
    cluster.settle()
    assert cluster.is_gone
    assert cluster.now - start < 3 * (120 + 60) + 10


def test_orphaning_deletes_nothing() -> None:
    cluster = settled(epd())
    cluster.delete_group("orphan")
    cluster.settle()
    assert cluster.take() == ["RemoveFinalizer"]


def test_deletion_of_a_group_with_an_invalid_manifest_keeps_the_order() -> None:
    cluster = settled(epd())
    cluster.edit(lambda _: cluster.role(ENCODER).update(dependencies=[ROUTER]))
    cluster.settle()
    cluster.take()
    cluster.delete_group()
    cluster.settle()
    order = [step.rpartition("-")[2] for step in cluster.steps if "StatefulSet" in step]
    assert order[0] == ROUTER
    assert order[-1] == ENCODER
    assert cluster.is_gone


def test_removed_roles_go_in_reverse_order_their_services_last() -> None:
    cluster = settled(epd(), drain=5.0)
    cluster.edit(lambda spec: spec.update(roles=[cluster.role(DECODE)]))
    cluster.settle()
    assert [step for step in cluster.take() if step.startswith("delete")] == [
        "delete StatefulSet g-router",
        "delete StatefulSet g-prefill",
        "delete Service s-g-router",
        "delete StatefulSet g-encoder",
        "delete Service s-g-prefill",
        "delete Service s-g-encoder",
    ]
    assert cluster.phases() == {DECODE: "Ready"}


def test_a_taken_name_is_told_and_left_alone() -> None:
    cluster = Cluster(epd(), foreign=frozenset({("StatefulSet", "g-decode")}))
    cluster.settle()
    assert cluster.condition("Valid") == ("False", "NameTaken")
    assert not any("g-decode" in step for step in workloads(cluster.steps))
    assert "create StatefulSet g-prefill x1" in cluster.steps
    cluster.foreign = frozenset()
    cluster.settle()
    assert cluster.condition("Valid") == ("True", "Accepted")
    assert cluster.condition("Ready")[0] == "True"


def test_what_a_deleted_group_of_the_same_name_left_is_waited_for() -> None:
    before = settled(epd())
    cluster = Cluster(epd(), objects=copy.deepcopy(before.objects), pods=dict(before.pods))
    cluster.manifest["metadata"]["uid"] = "another-uid"
    cluster.reconcile()
    assert not [step for step in cluster.steps if "StatefulSet" in step or "delete" in step]
    assert cluster.condition("Valid") == ("True", "Accepted")
    cluster.objects.clear()
    cluster.pods.clear()
    cluster.settle()
    assert cluster.condition("Ready")[0] == "True"


def test_an_invalid_edit_keeps_pods_and_says_what_is_wrong() -> None:
    cluster = settled(epd())
    before = dict(cluster.pods)
    cluster.edit(lambda _: cluster.role(ENCODER).update(dependencies=[ROUTER]))
    cluster.settle()
    assert cluster.take() == ["status InvalidSpec 0/4 ready", "event InvalidSpec"]
    assert cluster.pods == before
    message = next(one["message"] for one in cluster.status["conditions"] if one["type"] == "Valid")
    assert "encoder -> router -> prefill -> encoder" in message
    cluster.edit(lambda _: cluster.role(ENCODER).update(dependencies=[]))
    cluster.settle()
    assert cluster.condition("Ready")[0] == "True"
    assert cluster.pods == before


def test_refused_objects_stall_their_role_only() -> None:
    cluster = Cluster(epd(), refused={("StatefulSet", "g-decode"): "exceeded quota: gpus"})
    cluster.reconcile()
    assert cluster.phases()[DECODE] == "Stalled"
    assert "create StatefulSet g-encoder x2" in cluster.steps
    role_status = next(one for one in cluster.status["roleStatuses"] if one["name"] == DECODE)
    assert role_status["message"] == "StatefulSet g-decode: exceeded quota: gpus"


def test_history_keeps_ten_and_going_back_makes_an_old_revision_the_newest() -> None:
    cluster = settled(epd())
    for number in range(12):
        cluster.set_image(DECODE, image=f"image-{number}")
        cluster.settle()
    assert revision_numbers(cluster) == list(range(4, 14))
    cluster.set_image(DECODE, image="image-8")
    cluster.settle()
    assert revision_numbers(cluster) == [4, 5, 6, 7, 8, 9, 11, 12, 13, 14]


def test_a_change_of_kind_brings_the_new_workload_before_the_old_one_goes() -> None:
    cluster = settled(epd())
    cluster.edit(lambda _: cluster.role(DECODE).update(workload={"apiVersion": "apps/v1", "kind": "Deployment"}))
    cluster.settle()
    steps = [step for step in cluster.take() if "g-decode" in step]
    assert steps == ["create Deployment g-decode x1", "delete StatefulSet g-decode"]
    assert cluster.condition("Ready")[0] == "True"


def test_an_operator_killed_after_any_step_is_continued_by_the_next() -> None:
    whole = settled(epd())
    for victim in range(20):
        cluster = Cluster(epd())
        for steps in range(victim):
            cluster.reconcile(die_after=steps % 4)
            cluster.controllers()
        cluster.settle()
        assert cluster.objects.keys() == whole.objects.keys()
        assert cluster.phases() == whole.phases()
        assert cluster.condition("Ready")[0] == "True"
