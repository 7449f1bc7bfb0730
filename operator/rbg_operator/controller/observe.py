"""What the caches hold of one group or set, as the planner's snapshot."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from rbg_operator.controller.memory import Memory
from rbg_operator.controller.objects import Custom
from rbg_operator.plan.decide import Identity
from rbg_operator.plan.observed import Live, ObjectKey, Pod, Snapshot


def snapshot(target: Custom, memory: Memory, objects: Mapping[ObjectKey, Live], pods: tuple[Pod, ...] = ()) -> Snapshot:
    """Of this moment."""
    return Snapshot(
        now=time.time(),
        pods=pods,
        objects=objects,
        foreign=frozenset(memory.foreign),
        refused={key: refusal.message for key, refusal in memory.refused.items()},
        status=target.status if isinstance(target.status, dict) else {},
        status_written_at=memory.status_written_at,
        status_interval=memory.status_interval,
        finalizers=target.metadata.finalizers,
        deletion_timestamp=target.metadata.deletion_timestamp,
    )


def identity(target: Custom) -> Identity:
    """Who it is, when its manifest cannot say more."""
    meta = target.metadata
    return Identity(meta.name, meta.namespace, meta.uid, meta.generation)


def as_live(group: Custom) -> Live:
    """A group as an object that a set owns."""
    return Live(
        metadata=group.metadata,
        api_version=group.api_version,
        spec=msgspec.Raw(msgspec.json.encode(group.spec)),
        status=msgspec.Raw(msgspec.json.encode(group.status)),
    )
