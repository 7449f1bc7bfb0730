"""What is observed of one role: its workload, and its pods as instances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rbg_operator.plan import labels
from rbg_operator.plan.decide import pods as facts
from rbg_operator.plan.decide.workload import Workload, read_workload
from rbg_operator.plan.observed import Live, ObjectKey, Pod, Snapshot
from rbg_operator.plan.rendering import RenderedRole, Rendering


@dataclass(frozen=True)
class Instance:
    """One replica: its pods, and since when all of them are ready (seconds since the epoch; None: they are not)."""

    leader: Pod | None
    workers: tuple[Pod, ...]
    is_updated: bool  # every pod is there and runs the current revision
    is_old: bool  # its leader is there and runs another one
    ready_at: float | None

    @property
    def pods(self) -> tuple[Pod, ...]:
        """All of its pods, the leader first."""
        return (self.leader, *self.workers) if self.leader else self.workers


@dataclass(frozen=True, kw_only=True)
class ObservedRole:
    """One role. `pods` are those that live; `ended` failed or were evicted; terminating ones count nowhere."""

    rendered: RenderedRole
    workload: Workload | None
    now: float
    pods: tuple[Pod, ...]
    ended: tuple[Pod, ...]

    @property
    def name(self) -> str:
        """The role's name."""
        return self.rendered.role.name

    @property
    def wanted(self) -> int:
        """Instances that the manifest or the scaling adapter wants."""
        return self.rendered.role.replicas

    @cached_property
    def kind(self) -> str:
        """Kind of the workload."""
        return str(self.rendered.workload["kind"])

    @property
    def has_ordinals(self) -> bool:
        """Whether instances are numbered and replaced from the highest."""
        return self.kind != "Deployment"

    @cached_property
    def instances(self) -> Mapping[int, Instance]:
        """By ordinal; the pods of a Deployment are numbered as they come."""
        grouped: dict[int, list[Pod]] = {}
        for position, pod in enumerate(self.pods):
            ordinal = facts.instance_of(pod) if self.has_ordinals else position
            if ordinal is not None:
                grouped.setdefault(ordinal, []).append(pod)
        return {ordinal: self._instance(members) for ordinal, members in sorted(grouped.items())}

    def _instance(self, members: Sequence[Pod]) -> Instance:
        current = self.rendered.revision
        leader = next((pod for pod in members if facts.is_leader(pod)), None)
        since = [facts.ready_since(pod) for pod in members]
        is_whole = len(members) == self.rendered.size
        return Instance(
            leader=leader,
            workers=tuple(pod for pod in members if pod is not leader),
            is_updated=is_whole and all(facts.revision(pod) == current for pod in members),
            is_old=leader is not None and facts.revision(leader) != current,
            ready_at=max(time for time in since if time is not None) if is_whole and None not in since else None,
        )

    def is_available(self, instance: Instance) -> bool:
        """Whether it has been ready for minReadySeconds."""
        return instance.ready_at is not None and instance.ready_at + self.rendered.role.min_ready_seconds <= self.now

    @cached_property
    def num_existing(self) -> int:
        """Instances of which at least one pod is there."""
        return len(self.instances)

    @cached_property
    def num_available(self) -> int:
        """Instances that have been ready for minReadySeconds."""
        return sum(map(self.is_available, self.instances.values()))

    @cached_property
    def num_updated(self) -> int:
        """Instances at the current revision."""
        return sum(instance.is_updated for instance in self.instances.values())

    @cached_property
    def num_progressed(self) -> int:
        """Instances that are updated and available: what coordinated rollouts compare."""
        return sum(instance.is_updated and self.is_available(instance) for instance in self.instances.values())

    @property
    def has_current_template(self) -> bool:
        """Whether the workload carries the current revision already."""
        return self.workload is not None and self.workload.revision == self.rendered.revision

    @cached_property
    def is_pending(self) -> bool:
        """Whether anything of an existing workload is not at the current revision yet, or its controller not done."""
        if self.workload is None:
            return False
        old = not self.has_current_template or any(instance.is_old for instance in self.instances.values())
        return old or self.workload.is_changing

    @cached_property
    def has_old(self) -> bool:
        """Whether something is still to be replaced."""
        if not self.is_pending:
            return False
        if self.has_ordinals:
            return self.stands_at > 0
        return not self.has_current_template or any(instance.is_old for instance in self.instances.values())

    @cached_property
    def stands_at(self) -> int:
        """The partition that keeps a rollout where it is: one above the highest instance not at the current revision.

        A missing instance counts as old if it will come back as such: below the present partition, or not made yet.
        """
        if self.workload is None:
            return self.wanted
        if not self.has_current_template:  # what it has is where this goes, or nothing of it is there yet
            return 0 if self.num_updated == self.num_existing == self.wanted else self.wanted
        old = [ordinal for ordinal, instance in self.instances.items() if instance.is_old and ordinal < self.wanted]
        below = self._highest_missing(0, min(self.workload.partition, self.wanted))
        above = self._highest_missing(self.workload.replicas, self.wanted)
        return 1 + max((*old, below, above))

    def _highest_missing(self, start: int, stop: int) -> int:
        """The highest ordinal of the range without an instance, -1 if all are there."""
        return next((ordinal for ordinal in range(stop - 1, start - 1, -1) if ordinal not in self.instances), -1)

    def has_reached(self, partition: int) -> bool:
        """Whether all instances from the partition on are updated and available."""
        if not self.has_ordinals:
            return self.num_progressed >= self.wanted and self.num_updated == self.num_existing
        return all(self._is_done(ordinal) for ordinal in range(partition, self.wanted))

    def _is_done(self, ordinal: int) -> bool:
        instance = self.instances.get(ordinal)
        return instance is not None and instance.is_updated and self.is_available(instance)

    @cached_property
    def is_complete(self) -> bool:
        """Whether exactly the wanted instances exist, all at the current revision and available."""
        exact = self.num_existing == self.num_updated == self.num_available == self.wanted
        return exact and self.has_current_template and self.has_reached(0)

    @property
    def next_available(self) -> float | None:
        """Seconds until minReadySeconds of the next instance are over; None if none waits for that."""
        delay = self.rendered.role.min_ready_seconds
        ends = [one.ready_at + delay - self.now for one in self.instances.values() if one.ready_at is not None]
        return min((end for end in ends if end > 0), default=None)


def observe_roles(rendering: Rendering, snapshot: Snapshot, owned: Mapping[ObjectKey, Live]) -> dict[str, ObservedRole]:
    """Every role of the manifest as it stands, in manifest order."""
    pods = facts.pods_by_role(snapshot.pods, rendering.group.uid)
    return {
        name: _observed(rendered, pods.get(name, ()), owned, snapshot.now) for name, rendered in rendering.roles.items()
    }


def _observed(rendered: RenderedRole, pods: Iterable[Pod], owned: Mapping[ObjectKey, Live], now: float) -> ObservedRole:
    workload = rendered.workload
    live = owned.get((workload["kind"], workload["metadata"]["name"]))
    owner = "ReplicaSet" if workload["kind"] == "Deployment" else "StatefulSet"
    ours = [pod for pod in pods if not facts.is_terminating(pod) and facts.owner_kind(pod) == owner]
    return ObservedRole(
        rendered=rendered,
        workload=read_workload(live) if live else None,
        now=now,
        pods=tuple(pod for pod in ours if not facts.has_ended(pod)),
        ended=tuple(pod for pod in ours if facts.has_ended(pod)),
    )


def role_of(live: Live) -> str:
    """The role that an object was made for, "" for objects of the whole group."""
    return live.metadata.labels.get(labels.ROLE_NAME, "")
