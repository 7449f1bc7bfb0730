"""Random groups under random events: what must hold whatever happens, and that it always ends well.

Events come in any order between the passes of the operator, which may be killed after any of its steps; controllers and
time move on only as far as the events let them. In the end everything is healed and the group has to get Ready.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.decide import effective
from rbg_operator.plan.render import render
from rbg_operator.plan.rendering import Context, RenderedRole
from rbg_operator.plan.steps import Apply, Delete, Plan, WriteStatus
from tests.operator.groups import manifest, role
from tests.operator.simulator import Cluster, SimulatedPod

NAMES = ("a", "b", "c", "d")
BOUNDS = st.sampled_from([0, 1, 2, "30%", "100%"])
Event = tuple[Any, ...]


@st.composite
def rolling_updates(draw: st.DrawFn) -> Json:
    surge = draw(BOUNDS)
    unavailable = draw(BOUNDS) if surge in (1, 2) else draw(st.sampled_from([1, 2, "50%"]))
    return {"maxSurge": surge, "maxUnavailable": unavailable, "paused": draw(st.booleans())}


@st.composite
def roles(draw: st.DrawFn, name: str, earlier: tuple[str, ...]) -> Json:
    after = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=2)) if earlier else []
    found = role(name, "serve", replicas=draw(st.integers(0, 4)), after=tuple(after), image="v1")
    if draw(st.booleans()):
        found["rolloutStrategy"] = {"rollingUpdate": draw(rolling_updates())}
    shape = draw(st.sampled_from(["plain", "plain", "nodes", "Deployment"]))
    if shape == "nodes":
        found["leaderWorkerSet"] = {"size": 2}
    elif shape == "Deployment":
        found["workload"] = {"apiVersion": "apps/v1", "kind": "Deployment"}
    policies = ["None", "RecreateRoleInstanceOnPodRestart", "RecreateRBGOnPodRestart"]
    return found | {
        "restartPolicy": draw(st.sampled_from(policies)),
        "minReadySeconds": draw(st.sampled_from([0, 0, 3])),
    }


@st.composite
def groups(draw: st.DrawFn) -> Json:
    names = NAMES[: draw(st.integers(1, 4))]
    spec = manifest(*(draw(roles(name, names[:index])) for index, name in enumerate(names)))
    if len(names) > 1 and draw(st.booleans()):
        strategy = {"rollingUpdate": {"maxSkew": draw(st.sampled_from(["1%", "34%", "100%"]))}}
        spec["spec"]["coordination"] = [{"name": "pace", "roles": list(names[:2]), "strategy": strategy}]
    return spec


ROLE = st.sampled_from(NAMES)
EVENTS = st.one_of(
    st.tuples(st.just("pass")),
    st.tuples(st.just("killed"), st.integers(0, 6)),
    st.tuples(st.just("controllers")),
    st.tuples(st.just("time"), st.sampled_from([1.0, 2.0, 11.0])),
    st.tuples(st.just("image"), st.sets(ROLE, min_size=1), st.sampled_from(["v1", "v2", "v3"])),
    st.tuples(st.just("scale"), ROLE, st.integers(0, 5)),
    st.tuples(st.just("pause"), ROLE, st.booleans()),
    st.tuples(st.sampled_from(["fail", "unready", "evict"]), st.integers(0, 20)),
    st.tuples(st.just("lose"), st.integers(0, 20)),
)


class Watched(Cluster):
    """A cluster that checks every plan before it is carried out."""

    def roles(self) -> dict[str, RenderedRole]:
        group = effective(self._parse(), self.snapshot().objects)
        return dict(render(group, Context()).roles)

    def reconcile(self, *, die_after: int | None = None) -> Plan:
        rendered = self.roles()
        plan = self.plan()
        for step in plan.steps:
            match step:
                case WriteStatus(status):
                    self.check_ready(status, rendered)
                case Apply(create=True, object=body) if body["kind"] in ("StatefulSet", "Deployment"):
                    self.check_start(body["metadata"]["labels"][labels.ROLE_NAME], rendered)
        self.check_deletions(plan, rendered)
        super().reconcile(die_after=die_after)
        if die_after is None:
            self.check_order(rendered)
        return plan

    def is_current(self, pod: SimulatedPod, one: RenderedRole) -> bool:
        return pod.labels[labels.ROLE_REVISION] == one.revision

    def leaders(self, name: str) -> list[SimulatedPod]:
        return [pod for pod in self.role_pods(name) if labels.INSTANCE not in pod.labels]

    def is_available(self, pod: SimulatedPod, one: RenderedRole) -> bool:
        """With its workers, for as long as minReadySeconds."""
        index = pod.labels.get(labels.POD_INDEX)
        workers = [other for other in self.role_pods(one.role.name) if other.labels.get(labels.INSTANCE) == index] * (
            one.size > 1
        )
        whole = len(workers) == one.size - 1
        return whole and all(each.is_ready(self.now - one.role.min_ready_seconds) for each in (pod, *workers))

    def num_available(self, one: RenderedRole) -> int:
        return sum(self.is_available(pod, one) for pod in self.leaders(one.role.name))

    def check_ready(self, status: Json, rendered: dict[str, RenderedRole]) -> None:
        """Ready is True only if every role has exactly its pods, all current and ready."""
        ready = next(one["status"] for one in status["conditions"] if one["type"] == "Ready")
        if ready != "True":
            return
        for name, one in rendered.items():
            pods = self.role_pods(name)
            assert len(pods) == one.num_pods
            assert all(pod.is_ready(self.now) and self.is_current(pod, one) for pod in pods)

    def check_start(self, name: str, rendered: dict[str, RenderedRole]) -> None:
        """The first workload of a role comes after its dependencies are ready."""
        if name in self.started:
            return
        self.started.add(name)
        for dependency in rendered[name].role.dependencies:
            assert self.num_available(rendered[dependency]) >= rendered[dependency].role.replicas

    def check_deletions(self, plan: Plan, rendered: dict[str, RenderedRole]) -> None:
        """For the sake of a rollout no more available instances are deleted than maxUnavailable leaves."""
        doomed = [step.name for step in plan.steps if isinstance(step, Delete) and step.why.startswith("old")]
        for name, one in rendered.items():
            victims = [pod for pod in self.leaders(name) if pod.name in doomed]
            assert not any(self.is_current(pod, one) for pod in victims)
            lost = sum(self.is_available(pod, one) for pod in victims)
            bound = one.role.rolling_update.max_unavailable
            least = one.role.replicas - (
                bound if isinstance(bound, int) else int(bound[:-1]) * one.role.replicas // 100
            )
            assert lost == 0 or self.num_available(one) - lost >= least

    def check_order(self, rendered: dict[str, RenderedRole]) -> None:
        """While a dependency rolls out nothing old of its dependents may be replaced."""
        pace = {name for one in self.manifest["spec"].get("coordination", ()) for name in one["roles"]}
        for name, one in rendered.items():
            for dependency in one.role.dependencies:
                if {name, dependency} <= pace or not self.has_old(rendered[dependency]):
                    continue
                workload = self.objects.get((one.workload["kind"], one.workload["metadata"]["name"]))
                if workload is None:
                    continue
                for pod in self.leaders(name):
                    assert self.is_current(pod, one) or self.is_held(pod, workload)

    def has_old(self, one: RenderedRole) -> bool:
        return any(not self.is_current(pod, one) for pod in self.leaders(one.role.name)[: one.role.replicas])

    def is_held(self, pod: SimulatedPod, workload: Json) -> bool:
        if workload["kind"] == "Deployment":
            return bool(workload["spec"]["paused"])
        return pod.ordinal < workload["spec"]["updateStrategy"]["rollingUpdate"].get("partition", 0)

    started: set[str]


def happen(cluster: Watched, event: Event) -> None:
    """Let one event happen; those that name what is not there do nothing."""
    names = [one["name"] for one in cluster.manifest["spec"]["roles"]]
    pods = sorted(cluster.pods)
    match event:
        case ("pass",):
            cluster.reconcile()
        case ("killed", steps):
            cluster.reconcile(die_after=steps)
        case ("controllers",):
            cluster.controllers()
        case ("time", seconds):
            cluster.now += seconds
        case ("image", chosen, image) if chosen & set(names):
            cluster.set_image(*sorted(chosen & set(names)), image=image)
        case ("scale", name, replicas) if name in names:
            cluster.scale(name, replicas)
        case ("pause", name, paused) if name in names:
            pause(cluster, name, paused)
        case ("lose", index) if cluster.objects:
            keys = [key for key in sorted(cluster.objects) if key[0] not in ("ControllerRevision",)]
            for pod in cluster.owned_pods(cluster.objects.pop(keys[index % len(keys)])):
                cluster.pods.pop(pod.name)
        case (what, index) if pods and what in ("fail", "unready", "evict"):
            name = pods[index % len(pods)]
            match what:
                case "fail":
                    cluster.fail_pod(name)
                case "unready":
                    cluster.unready_pod(name, 30.0)
                case _:
                    cluster.end_pod(name)


def pause(cluster: Cluster, name: str, paused: bool) -> None:
    def change(_: Json) -> None:
        strategy = cluster.role(name).setdefault("rolloutStrategy", {})
        strategy.setdefault("rollingUpdate", {})["paused"] = paused

    cluster.edit(change)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=groups(), events=st.lists(EVENTS, max_size=25), drain=st.sampled_from([0.0, 0.0, 4.0]))
def test_invariants_hold_and_every_group_gets_ready_in_the_end(spec: Json, events: list[Event], drain: float) -> None:
    cluster = Watched(spec, drain=drain)
    cluster.started = set()
    for event in events:
        happen(cluster, event)
    for one in cluster.manifest["spec"]["roles"]:
        pause(cluster, one["name"], False)
    cluster.settle()
    assert cluster.condition("Ready")[0] == "True", cluster.status
    assert cluster.condition("Progressing") == ("False", "Complete")
    assert cluster.status["observedGeneration"] == cluster.manifest["metadata"]["generation"]
    assert all(cluster.is_current(pod, one) for name, one in cluster.roles().items() for pod in cluster.role_pods(name))
    assert not cluster.plan().steps


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=groups(), delay=st.sampled_from([0.0, 1.0, 2.0]))
def test_an_undisturbed_creation_costs_no_more_than_its_objects_and_three_statuses(spec: Json, delay: float) -> None:
    cluster = Cluster(spec, ready_after=lambda pod: delay)
    cluster.settle()
    assert cluster.writes["WriteStatus"] <= 3
    assert cluster.writes["Event"] <= 3
    others = cluster.writes.total() - cluster.writes["WriteStatus"] - cluster.writes["Event"]
    assert others == 1 + len(cluster.objects)  # the finalizer, and every object once


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=groups(), drain=st.sampled_from([0.0, 50.0, 1e5]))
def test_a_deleted_group_goes_in_order_and_in_bounded_time(spec: Json, drain: float) -> None:
    cluster = Cluster(spec, drain=drain)
    cluster.settle(60.0)
    dependencies = {one["name"]: one.get("dependencies", ()) for one in cluster.manifest["spec"]["roles"]}
    start = cluster.now
    cluster.delete_group()
    cluster.take()
    cluster.settle()
    assert cluster.is_gone
    assert cluster.now - start <= len(dependencies) * (130 + 60)
    gone = [step.split()[2].removeprefix("g-")[0] for step in cluster.take() if step.startswith("delete")]
    for name, needed in dependencies.items():
        for dependency in needed:
            assert gone.index(name) < gone.index(dependency)
