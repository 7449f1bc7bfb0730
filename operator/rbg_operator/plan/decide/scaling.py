"""Scaling adapters: a role's replicas are those of its adapter, until the manifest's number changes.

The adapter remembers in an annotation which number of the manifest it last saw. Applying the same manifest again leaves
a scaled role alone; a changed number wins and is copied to the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rbg_operator.api.model import MAX_REPLICAS, Role, RoleBasedGroup
from rbg_operator.plan import labels
from rbg_operator.plan.decide.owned import ADAPTER_KIND, is_blocked, is_leaving, key_of
from rbg_operator.plan.decide.roles import ObservedRole
from rbg_operator.plan.decide.times import format_time
from rbg_operator.plan.names import workload_name
from rbg_operator.plan.observed import Live, ObjectKey, Snapshot
from rbg_operator.plan.render import adapter_object
from rbg_operator.plan.steps import Apply, WriteAdapterStatus


def effective(manifest: RoleBasedGroup, objects: Mapping[ObjectKey, Live]) -> RoleBasedGroup:
    """The group with the replicas that its adapters say."""
    group = manifest
    for role in manifest.roles:
        live = _adapter(manifest, role, objects)
        if live is not None and _has_seen(live, role):
            replicas = _replicas(live)
            if replicas is not None and replicas != role.replicas:
                group = group.with_replicas(role.name, replicas)
    return group


def wanted_adapters(manifest: RoleBasedGroup) -> set[ObjectKey]:
    """Keys of the adapters that should be there."""
    return {(ADAPTER_KIND, workload_name(manifest.name, role.name)) for role in manifest.roles if role.scaling_adapter}


def adapter_applies(manifest: RoleBasedGroup, snapshot: Snapshot, owned: Mapping[ObjectKey, Live]) -> list[Apply]:
    """Adapters that are missing, or have not seen the manifest's number; the replicas of others are the user's."""
    found = []
    for role in manifest.roles:
        live = _adapter(manifest, role, owned)
        if not role.scaling_adapter or (live is not None and _has_seen(live, role)):
            continue
        wanted = adapter_object(manifest, role, role.replicas)
        if not is_blocked(snapshot, manifest.uid, key_of(wanted)):
            found.append(Apply(wanted, create=live is None, uid=live.metadata.uid if live else ""))
    return found


def adapter_statuses(
    manifest: RoleBasedGroup, roles: Mapping[str, ObservedRole], owned: Mapping[ObjectKey, Live]
) -> list[WriteAdapterStatus]:
    """What has changed in the adapters' statuses, from which the scale subresource and the HPA read."""
    found = []
    for role in manifest.roles:
        live = _adapter(manifest, role, owned)
        if live is None:
            continue
        before = live.body("status")
        status = _status(manifest.name, roles[role.name], live, before if isinstance(before, dict) else {})
        if status != before:
            found.append(WriteAdapterStatus(live.metadata.name, status))
    return found


def _status(group: str, one: ObservedRole, live: Live, before: dict[str, Any]) -> dict[str, Any]:
    is_same = before.get("observedGeneration") == live.metadata.generation
    time = before.get("lastScaleTime")
    return {
        "observedGeneration": live.metadata.generation,
        "phase": "Bound",
        "replicas": one.num_existing,
        "selector": f"{labels.GROUP_NAME}={group},{labels.ROLE_NAME}={one.name}",
        "lastScaleTime": time if is_same and isinstance(time, str) else format_time(one.now),
    }


def _adapter(manifest: RoleBasedGroup, role: Role, objects: Mapping[ObjectKey, Live]) -> Live | None:
    if not role.scaling_adapter:
        return None
    live = objects.get((ADAPTER_KIND, workload_name(manifest.name, role.name)))
    return live if live and live.metadata.controlled_by(manifest.uid) and not is_leaving(live) else None


def _has_seen(live: Live, role: Role) -> bool:
    return live.metadata.annotations.get(labels.ADAPTER_ROLE_REPLICAS) == str(role.replicas)


def _replicas(live: Live) -> int | None:
    spec = live.body("spec")
    replicas = spec.get("replicas") if isinstance(spec, dict) else None
    return min(replicas, MAX_REPLICAS) if type(replicas) is int and replicas >= 0 else None
