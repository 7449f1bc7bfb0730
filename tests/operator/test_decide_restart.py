"""Restart policies: what is recreated, when, and what survives the operator."""

from __future__ import annotations

from typing import Any

from tests.operator.groups import manifest, role
from tests.operator.simulator import NEVER, Cluster, seconds
from tests.operator.test_decide_lifecycle import settled

INSTANCE = {"restartPolicy": "RecreateRoleInstanceOnPodRestart"}
GROUP = {"restartPolicy": "RecreateRBGOnPodRestart"}


def deletions(cluster: Cluster) -> list[str]:
    return [step.removeprefix("delete Pod ") for step in cluster.take() if step.startswith("delete Pod")]


def restarts(cluster: Cluster, name: str = "a") -> dict[str, Any] | None:
    return next(one.get("restarts") for one in cluster.status["roleStatuses"] if one["name"] == name)


def test_policy_none_only_tells() -> None:
    cluster = settled(manifest(role("a", "serve", replicas=2) | {"restartPolicy": "None"}))
    cluster.fail_pod("g-a-1", 137, "first line\nCUDA out of memory")
    cluster.settle()
    assert cluster.take() == [
        "status Starting 0/1 ready",
        "event PodCrashed",
        "status Complete 1/1 ready Ready",
        "event Ready",
    ]
    crash = cluster.status["roleStatuses"][0]["lastCrash"]
    assert (crash["pod"], crash["container"], crash["exitCode"]) == ("g-a-1", "server", 137)
    assert crash["message"].endswith("CUDA out of memory")


def test_only_the_instance_is_recreated_and_only_after_the_backoff() -> None:
    cluster = settled(manifest(role("a", "serve", replicas=2) | INSTANCE))
    start = cluster.now
    cluster.fail_pod("g-a-1")
    plan = cluster.reconcile()
    assert plan.look_again is not None
    assert 9 <= plan.look_again <= 10
    assert cluster.phases() == {"a": "Restarting"}
    assert restarts(cluster) == {"count": 1, "nextTime": cluster.status["roleStatuses"][0]["restarts"]["nextTime"]}
    cluster.settle(60.0)
    assert cluster.take() == [
        "status Restarting 0/1 ready",
        "event PodCrashed",
        "event Restarting",
        "status Restarting 0/1 ready",
        "delete Pod g-a-1",
        "status Starting 0/1 ready",
        "status Complete 1/1 ready Ready",
        "event Ready",
    ]
    assert restarts(cluster) is not None
    assert cluster.pods["g-a-1"].created - start >= 9


def test_all_pods_of_the_group_are_recreated_the_crashed_one_last() -> None:
    cluster = settled(manifest(role("a", "serve", replicas=2) | GROUP, role("b", "serve")))
    cluster.fail_pod("g-a-0")
    cluster.settle(60.0)
    assert deletions(cluster) == ["g-a-1", "g-b-0", "g-a-0"]
    assert cluster.condition("Ready")[0] == "True"


def test_all_nodes_of_an_instance_are_recreated() -> None:
    cluster = settled(manifest(role("a", "serve", replicas=2) | INSTANCE | {"leaderWorkerSet": {"size": 3}}))
    cluster.fail_pod("g-a-1-2")
    cluster.settle(60.0)
    assert deletions(cluster) == ["g-a-1", "g-a-1-1", "g-a-1-2"]
    assert cluster.condition("Ready")[0] == "True"


def test_an_evicted_node_takes_its_instance_along() -> None:
    """The others have joined the node that is gone; they would wait for it for ever."""
    cluster = settled(manifest(role("a", "serve", replicas=2) | INSTANCE | {"leaderWorkerSet": {"size": 3}}))
    cluster.now += 60
    del cluster.pods["g-a-1-2"]
    cluster.settle(60.0)
    assert sorted(deletions(cluster)) == ["g-a-1", "g-a-1-1", "g-a-1-2"]
    assert cluster.condition("Ready")[0] == "True"
    assert restarts(cluster)["count"] == 1
    cluster.settle(60.0)
    assert not deletions(cluster)


def test_a_slow_rollout_of_an_instance_is_no_eviction() -> None:
    cluster = settled(manifest(role("a", "serve", replicas=2) | INSTANCE | {"leaderWorkerSet": {"size": 3}}))
    cluster.drain = 8.0
    cluster.set_image("a")
    cluster.settle(300.0)
    assert cluster.condition("Ready")[0] == "True"
    assert restarts(cluster) is None


def test_the_wait_doubles_with_every_crash_in_a_row_and_starts_again_after_ten_healthy_minutes() -> None:
    cluster = settled(manifest(role("a", "serve") | INSTANCE))
    waits = []
    for _ in range(7):
        failed = cluster.now
        cluster.fail_pod("g-a-0")
        cluster.settle(330.0)
        waits.append(round(cluster.pods["g-a-0"].created - failed))
    assert all(abs(wait - wanted) <= 1 for wait, wanted in zip(waits, [10, 20, 40, 80, 160, 300, 300], strict=True))
    assert restarts(cluster)["count"] == 7
    cluster.settle(700.0)
    assert restarts(cluster) is None
    failed = cluster.now
    cluster.fail_pod("g-a-0")
    cluster.settle(60.0)
    assert cluster.pods["g-a-0"].created - failed <= 11


def test_a_loading_pod_is_not_taken_for_a_healthy_one() -> None:
    cluster = settled(manifest(role("a", "serve") | INSTANCE))
    cluster.ready_after = lambda pod: 1200.0
    cluster.fail_pod("g-a-0")
    cluster.settle(1000.0)
    cluster.fail_pod("g-a-0")
    cluster.reconcile()
    assert restarts(cluster)["count"] == 2


def test_an_operator_killed_before_or_amid_the_deletions_forgets_nothing() -> None:
    for die_after in range(5):
        cluster = settled(manifest(role("a", "serve", replicas=3) | GROUP, role("b", "serve")))
        before = {pod.uid for pod in cluster.pods.values()}
        cluster.fail_pod("g-a-0")
        cluster.reconcile(die_after=die_after)
        if die_after:
            due = seconds(restarts(cluster)["nextTime"])
            cluster.now += 11
            cluster.reconcile(die_after=die_after)
        cluster.settle(120.0)
        assert restarts(cluster)["count"] == 1
        if die_after:
            assert seconds(restarts(cluster)["lastTime"]) == due
        assert not before & {pod.uid for pod in cluster.pods.values()}
        assert cluster.condition("Ready")[0] == "True"


def test_a_pod_that_crashes_again_at_once_waits_again() -> None:
    cluster = settled(manifest(role("a", "serve") | INSTANCE))
    cluster.fail_pod("g-a-0")
    cluster.reconcile()
    cluster.now += 12
    cluster.reconcile()
    cluster.controllers()
    cluster.now += 2
    cluster.fail_pod("g-a-0")
    cluster.take()
    cluster.reconcile()
    assert not deletions(cluster)
    assert restarts(cluster)["count"] == 2


def test_garbage_in_the_stored_backoff_does_no_harm() -> None:
    entries: list[Any] = [
        {"count": "many", "nextTime": 7},
        {"count": 10**30, "nextTime": "9999-12-31T23:59:59Z"},
        {"count": -5, "nextTime": "yesterday"},
        [],
        None,
    ]
    for entry in entries:
        cluster = settled(manifest(role("a", "serve") | INSTANCE))
        cluster.status["roleStatuses"][0]["restarts"] = entry
        cluster.fail_pod("g-a-0")
        cluster.settle(700.0)
        assert cluster.condition("Ready")[0] == "True"
        assert cluster.pods["g-a-0"].crash is None


def test_stalled_tells_the_evidence() -> None:
    cluster = Cluster(manifest(role("a", "serve", replicas=2)), ready_after=lambda pod: NEVER)
    cluster.reconcile()
    cluster.controllers()
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "nowhere/x"'}
    cluster.pods["g-a-1"].evidence = {"state": {"waiting": waiting}}
    cluster.settle()
    assert cluster.condition("Progressing") == ("False", "Stalled")
    message = cluster.status["roleStatuses"][0]["message"]
    assert message == (
        '0 of 2 instances ready; pod g-a-1, container server: ImagePullBackOff: Back-off pulling image "nowhere/x"'
    )
    assert cluster.take()[-1] == "event Stalled"
