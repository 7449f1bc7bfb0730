"""Rolling updates: whole sequences of steps, and what stays available meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from rbg_operator.plan import labels
from tests.operator.groups import manifest, role
from tests.operator.simulator import NEVER, Cluster, SimulatedPod
from tests.operator.test_decide_lifecycle import DECODE, ENCODER, PREFILL, ROUTER, epd, settled


def one_role(replicas: int, **rolling_update: Any) -> dict[str, Any]:
    strategy = {"rolloutStrategy": {"rollingUpdate": rolling_update}}
    return manifest(role("a", "serve", replicas=replicas, image="v1") | strategy)


def knobs(cluster: Cluster) -> list[str]:
    """Writes to workloads and deletions, without their kind."""
    steps = [step for step in cluster.take() if "StatefulSet" in step or "Pod" in step or "Deployment" in step]
    return [step.replace("StatefulSet ", "").replace("apply ", "") for step in steps]


def least_ready(cluster: Cluster, name: str = "a") -> int:
    """Settle; the least number of ready pods seen on the way."""
    seen: list[int] = []
    cluster.settle(watch=lambda: seen.append(sum(pod.is_ready(cluster.now) for pod in cluster.role_pods(name))))
    return min(seen)


def revisions(cluster: Cluster, name: str = "a") -> list[str]:
    return [pod.labels[labels.ROLE_REVISION] for pod in cluster.role_pods(name)]


def test_an_image_edit_of_one_role() -> None:
    cluster = settled(epd())
    cluster.set_image(ENCODER)
    cluster.settle()
    steps = cluster.take()
    assert [step for step in steps if "ControllerRevision" not in step] == [
        "apply StatefulSet g-encoder x2",
        "status RollingOut 3/4 ready",
        "event RolloutStarted",
        "status Complete 4/4 ready Ready",
        "event Ready",
    ]


def test_an_edit_of_all_roles_rolls_in_dependency_order() -> None:
    cluster = settled(epd())
    cluster.set_image(ENCODER, PREFILL, DECODE, ROUTER)
    cluster.settle()
    assert knobs(cluster) == [
        "g-encoder x2",
        "g-decode x1",
        "g-prefill x1 from 1",
        "g-router x1 from 1",
        "g-prefill x1",
        "g-router x1",
    ]


def test_a_held_role_is_repaired_at_its_old_revision() -> None:
    cluster = settled(epd())
    old = revisions(cluster, ROUTER)
    cluster.ready_after = lambda pod: NEVER if "encoder" in pod.name else 1.0
    cluster.set_image(ENCODER, ROUTER)
    cluster.settle()
    assert cluster.phases()[ROUTER] == "Held"
    cluster.end_pod("g-router-0")
    cluster.settle()
    assert revisions(cluster, ROUTER) == old
    cluster.scale(ROUTER, 2)
    cluster.settle()
    assert revisions(cluster, ROUTER) == old * 2


def test_a_dependency_that_is_merely_not_ready_holds_nobody() -> None:
    cluster = settled(epd())
    cluster.unready_pod("g-encoder-1", NEVER)
    cluster.set_image(ROUTER)
    cluster.settle()
    assert knobs(cluster) == ["g-router x1"]


def test_pausing_stops_a_rollout_where_it_is() -> None:
    cluster = settled(one_role(4), ready_after=lambda pod: 10.0)
    old = revisions(cluster)[0]
    cluster.set_image("a")
    cluster.settle(15.0)
    assert revisions(cluster).count(old) in (2, 3)
    stands = revisions(cluster)
    cluster.edit(lambda _: cluster.role("a").update(rolloutStrategy={"rollingUpdate": {"paused": True}}))
    cluster.settle()
    assert revisions(cluster) == stands
    assert cluster.condition("Progressing") == ("False", "Paused")
    cluster.end_pod("g-a-0")
    cluster.settle()
    assert revisions(cluster) == stands
    cluster.edit(lambda _: cluster.role("a").pop("rolloutStrategy"))
    cluster.settle()
    assert old not in revisions(cluster)
    assert cluster.condition("Ready")[0] == "True"


def test_a_partition_keeps_the_ordinals_below_it() -> None:
    cluster = settled(one_role(4, partition=2))
    old = revisions(cluster)[0]
    cluster.set_image("a")
    cluster.settle()
    assert [revision == old for revision in revisions(cluster)] == [True, True, False, False]
    assert cluster.condition("Progressing") == ("False", "Paused")
    assert cluster.condition("Ready")[0] == "False"


def test_surge_pods_come_before_old_ones_go() -> None:
    cluster = settled(one_role(2, maxSurge=1, maxUnavailable=0))
    cluster.set_image("a")
    assert least_ready(cluster) == 2
    assert cluster.steps.count("event Ready") == 1
    assert knobs(cluster) == ["g-a x3", "g-a x2"]


def test_two_may_be_unavailable() -> None:
    cluster = settled(one_role(5, maxUnavailable=2), ready_after=lambda pod: 10.0)
    start = cluster.now
    cluster.set_image("a")
    assert least_ready(cluster) == 3
    assert cluster.now - start < 35  # three rounds of two, not five of one
    assert cluster.condition("Ready")[0] == "True"


def test_a_share_of_unavailable_rounds_down() -> None:
    cluster = settled(one_role(5, maxUnavailable="50%"))
    cluster.set_image("a")
    assert least_ready(cluster) == 3


def broken(cluster: Cluster, *names: str) -> None:
    """Edit the image of roles to one that never gets ready."""
    good = {revision for name in names for revision in revisions(cluster, name)}

    def ready_after(pod: SimulatedPod) -> float:
        is_new = pod.labels[labels.ROLE_NAME] in names and pod.labels[labels.ROLE_REVISION] not in good
        return NEVER if is_new else 1.0

    cluster.ready_after = ready_after
    cluster.set_image(*names, image="broken")
    cluster.settle()


def test_a_broken_rollout_stops_at_one_pod_and_can_be_undone() -> None:
    cluster = settled(epd())
    broken(cluster, ENCODER)
    assert sum(pod.is_ready(cluster.now) for pod in cluster.role_pods(ENCODER)) == 1
    assert cluster.condition("Progressing") == ("True", "RollingOut")
    message = next(one["message"] for one in cluster.status["conditions"] if one["type"] == "Progressing")
    assert "g-encoder-1" in message
    cluster.take()
    cluster.set_image(ENCODER, image="v1")
    cluster.settle()
    assert knobs(cluster) == ["g-encoder x2"]
    assert cluster.condition("Ready")[0] == "True"


def test_a_broken_pod_below_others_is_replaced_at_once() -> None:
    cluster = settled(one_role(3), ready_after=lambda pod: 10.0)
    cluster.unready_pod("g-a-0", NEVER)
    cluster.set_image("a")
    cluster.settle()
    assert knobs(cluster) == ["g-a x3", "delete Pod g-a-0"]
    assert cluster.condition("Ready")[0] == "True"


def test_what_is_broken_already_does_not_count_against_those_that_may_be_unavailable() -> None:
    cluster = settled(one_role(5, maxUnavailable=3), ready_after=lambda pod: 10.0)
    cluster.unready_pod("g-a-0", NEVER)
    cluster.set_image("a")
    cluster.settle(1.0)
    assert knobs(cluster) == ["g-a x5", "delete Pod g-a-0", "delete Pod g-a-3"]  # the controller took 4
    cluster.settle()
    assert cluster.condition("Ready")[0] == "True"


def test_undoing_an_edit_of_roles_that_were_held_touches_no_pod_of_theirs() -> None:
    cluster = settled(epd())
    routers = dict.fromkeys(pod.uid for pod in cluster.role_pods(ROUTER))
    broken(cluster, ENCODER, ROUTER)
    cluster.take()
    cluster.set_image(ENCODER, ROUTER, image="v1")
    cluster.settle()
    assert knobs(cluster) == ["g-encoder x2", "g-router x1"]
    assert [pod.uid for pod in cluster.role_pods(ROUTER)] == list(routers)
    assert cluster.condition("Ready")[0] == "True"


def coordinated(skew: str, prefill: int, decode: int) -> dict[str, Any]:
    spec = manifest(
        role("p", "serve", replicas=prefill, image="v1"),
        role("d", "serve", replicas=decode, after=("p",), image="v1"),
    )
    strategy = {"rollingUpdate": {"maxSkew": skew}}
    spec["spec"]["coordination"] = [{"name": "pd", "roles": ["p", "d"], "strategy": strategy}]
    return spec


@pytest.mark.parametrize(("skew", "prefill", "decode"), [("25%", 4, 8), ("10%", 10, 3), ("1%", 2, 5), ("100%", 3, 3)])
def test_coordinated_roles_advance_together(skew: str, prefill: int, decode: int) -> None:
    cluster = settled(coordinated(skew, prefill, decode))
    old = {name: revisions(cluster, name)[0] for name in ("p", "d")}
    wanted = {"p": prefill, "d": decode}
    share = int(skew.removesuffix("%")) / 100
    cluster.set_image("p", "d")

    def watch() -> None:
        new = {name: [pod for pod in cluster.role_pods(name) if old[name] not in pod.labels.values()] for name in old}
        done = {name: sum(pod.is_ready(cluster.now) for pod in pods) / wanted[name] for name, pods in new.items()}
        for name, pods in new.items():
            assert len(pods) / wanted[name] <= max(min(done.values()) + share, done[name] + 1 / wanted[name]) + 1e-6

    cluster.settle(watch=watch)
    assert cluster.condition("Ready")[0] == "True"


def test_partitions_of_coordinated_roles_step_by_step() -> None:
    cluster = settled(coordinated("25%", 4, 8))
    cluster.set_image("p", "d")
    cluster.settle()
    assert knobs(cluster) == [
        "g-p x4 from 3",
        "g-d x8 from 6",
        "g-d x8 from 5",
        "g-p x4 from 2",
        "g-d x8 from 4",
        "g-d x8 from 3",
        "g-p x4 from 1",
        "g-d x8 from 2",
        "g-d x8 from 1",
        "g-p x4",
        "g-d x8",
    ]


def test_a_broken_role_stops_those_that_are_coordinated_with_it() -> None:
    cluster = settled(coordinated("25%", 4, 8))
    old = revisions(cluster, "d")[0]
    broken(cluster, "p")
    cluster.set_image("d", image="v2")
    cluster.settle()
    assert [revision == old for revision in revisions(cluster, "d")] == [True] * 6 + [False] * 2
    assert cluster.condition("Ready")[0] == "False"


def test_deployments_are_paused_while_they_are_held() -> None:
    kind = {"workload": {"apiVersion": "apps/v1", "kind": "Deployment"}}
    spec = manifest(
        role("a", "serve", replicas=2, image="v1") | kind,
        role("b", "serve", replicas=2, after=("a",), image="v1") | kind,
    )
    cluster = settled(spec)
    cluster.set_image("a", "b")
    cluster.settle()
    assert knobs(cluster) == ["Deployment g-a x2", "Deployment g-b x2 paused", "Deployment g-b x2"]
    assert cluster.condition("Ready")[0] == "True"


def test_a_deployment_holds_others_until_its_new_pods_are_ready() -> None:
    kind = {"workload": {"apiVersion": "apps/v1", "kind": "Deployment"}}
    spec = manifest(role("a", "serve", replicas=2, image="v1") | kind, role("b", "serve", after=("a",), image="v1"))
    cluster = settled(spec, ready_after=lambda pod: 10.0)
    old = {name: revisions(cluster, name)[0] for name in ("a", "b")}
    cluster.set_image("a", "b")

    def watch() -> None:
        done = [old["a"] not in pod.labels.values() and pod.is_ready(cluster.now) for pod in cluster.role_pods("a")]
        assert revisions(cluster, "b") == [old["b"]] or (all(done) and len(done) == 2)

    cluster.settle(watch=watch)
    assert cluster.condition("Ready")[0] == "True"
    assert old["b"] not in revisions(cluster, "b")


def test_a_deployment_ahead_of_those_it_is_coordinated_with_is_paused() -> None:
    spec = coordinated("25%", 4, 8)
    spec["spec"]["roles"][1]["workload"] = {"apiVersion": "apps/v1", "kind": "Deployment"}
    cluster = settled(spec)
    old = revisions(cluster, "d")[0]
    broken(cluster, "p")
    cluster.set_image("d", image="v2")
    cluster.settle()
    assert sum(revision != old for revision in revisions(cluster, "d")) == 2


def test_workers_follow_their_leader() -> None:
    cluster = settled(manifest(role("a", "serve", replicas=2, image="v1") | {"leaderWorkerSet": {"size": 3}}))
    seen: list[set[str]] = []

    def watch() -> None:
        leaders = {pod.name: pod.labels[labels.ROLE_REVISION] for pod in cluster.role_pods("a")}
        seen.append({f"{name}={revision}" for name, revision in leaders.items()})

    cluster.set_image("a")
    cluster.settle(watch=watch)
    assert cluster.condition("Ready")[0] == "True"
    assert len(set(revisions(cluster))) == 1
    mixed = [pods for pods in seen if len({pod.partition("=")[2] for pod in pods}) == 2]
    assert mixed  # instance 1 was replaced before instance 0
    steps = knobs(cluster)
    first, second = steps.index("g-a-1 x2"), steps.index("g-a-0 x2")
    assert first < second
    assert not [step for step in steps[:first] if step.startswith("delete")]
    assert not [step for step in steps[first:second] if step.startswith("delete Pod g-a-0")]


def test_a_role_that_becomes_multi_node_is_made_anew() -> None:
    cluster = settled(epd())
    cluster.edit(lambda _: cluster.role(DECODE).update(leaderWorkerSet={"size": 2}))
    cluster.settle()
    assert knobs(cluster) == ["delete g-decode", "create g-decode-0 x1", "create g-decode x1"]
    assert cluster.condition("Ready")[0] == "True"
    cluster.edit(lambda _: cluster.role(DECODE).pop("leaderWorkerSet"))
    cluster.settle()
    assert knobs(cluster) == ["delete g-decode", "create g-decode x1", "delete g-decode-0"]
    assert cluster.condition("Ready")[0] == "True"


def test_ready_is_never_claimed_while_old_pods_run() -> None:
    cluster = settled(one_role(3), ready_after=lambda pod: 5.0)
    old = revisions(cluster)[0]
    cluster.set_image("a")

    def watch() -> None:
        assert cluster.condition("Ready")[0] == "False" or old not in revisions(cluster)

    cluster.settle(watch=watch)
