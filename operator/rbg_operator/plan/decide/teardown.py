"""Taking roles down in the reverse of the order in which they start.

A workload is deleted when no remaining role depends on its role. It stays, marked as being deleted, until its pods have
drained; a level has their grace period and a minute for that, then the next one follows anyway. Dependencies are read
from the workloads' own annotation, for the role may be gone from the manifest, or the manifest be unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from rbg_operator.plan import labels
from rbg_operator.plan.decide.owned import WORKLOAD_KINDS, deletion, is_leaving
from rbg_operator.plan.decide.roles import role_of
from rbg_operator.plan.decide.times import parse_time
from rbg_operator.plan.observed import Live, ObjectKey
from rbg_operator.plan.steps import Delete

PATIENCE = 60.0  # seconds beyond the grace period that a level may take
DEFAULT_GRACE = 30.0  # Kubernetes' own

Workloads = Mapping[str, Mapping[ObjectKey, Live]]
"""Workloads by the name of their role."""


@dataclass(frozen=True)
class Teardown:
    """What to delete now. remaining: roles that are not gone yet and not overdue. look_again in seconds."""

    deletes: tuple[Delete, ...]
    remaining: tuple[str, ...]
    look_again: float | None


def workloads_by_role(owned: Mapping[ObjectKey, Live]) -> dict[str, dict[ObjectKey, Live]]:
    """Every workload of the group, also those of removed roles."""
    found: dict[str, dict[ObjectKey, Live]] = {}
    for key, live in owned.items():
        if key[0] in WORKLOAD_KINDS:
            found.setdefault(role_of(live), {})[key] = live
    return found


def teardown(roles: Workloads, now: float) -> Teardown:
    """The next step in taking all of these roles down."""
    deadlines = {name: _deadline(members) for name, members in roles.items()}
    remaining = [name for name, deadline in deadlines.items() if deadline is None or deadline > now]
    needed = {dependency for name in remaining for dependency in _dependencies(roles[name]) if dependency != name}
    free = [name for name in remaining if name not in needed]
    if remaining and not free:  # a circle, which only an edited annotation can make
        free = remaining
    deletes = tuple(
        deletion(key, live, "teardown", foreground=True)
        for name in free
        for key, live in roles[name].items()
        if not is_leaving(live)
    )
    waits = [deadline - now for deadline in deadlines.values() if deadline is not None and deadline > now]
    return Teardown(deletes, tuple(remaining), min(waits, default=None))


def _deadline(members: Mapping[ObjectKey, Live]) -> float | None:
    """When to stop waiting for the role, in seconds since the epoch; None while part of it is not being deleted."""
    ends = []
    for live in members.values():
        if live.metadata.deletion_timestamp is None:
            return None
        ends.append((parse_time(live.metadata.deletion_timestamp) or 0.0) + _grace(live) + PATIENCE)
    return max(ends, default=0.0)


def _dependencies(members: Mapping[ObjectKey, Live]) -> set[str]:
    listed = (live.metadata.annotations.get(labels.DEPENDENCIES, "") for live in members.values())
    return {name for names in listed for name in names.split(",") if name}


class _PodSpec(msgspec.Struct, rename="camel"):
    termination_grace_period_seconds: float = DEFAULT_GRACE


class _Template(msgspec.Struct):
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)


class _LeaderWorkers(msgspec.Struct, rename="camel"):
    worker_template: _Template = msgspec.field(default_factory=_Template)


class _Spec(msgspec.Struct, rename="camel"):
    template: _Template | None = None
    leader_worker_template: _LeaderWorkers | None = None


def _grace(live: Live) -> float:
    try:
        spec = msgspec.json.decode(live.spec, type=_Spec)
    except msgspec.MsgspecError:
        return DEFAULT_GRACE
    template = spec.template or (spec.leader_worker_template or _LeaderWorkers()).worker_template
    return template.spec.termination_grace_period_seconds
