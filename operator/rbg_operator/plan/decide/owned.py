"""Which observed objects are ours, and how to name them in a request."""

from __future__ import annotations

from collections.abc import Iterable

from rbg_operator.api.documents import Json
from rbg_operator.plan.observed import Live, ObjectKey, Snapshot
from rbg_operator.plan.steps import Delete

WORKLOAD_KINDS = frozenset({"StatefulSet", "Deployment", "LeaderWorkerSet"})
ADAPTER_KIND = "RoleBasedGroupScalingAdapter"
HISTORY_KIND = "ControllerRevision"

_API_VERSIONS = {
    "Service": "v1",
    "ConfigMap": "v1",
    "StatefulSet": "apps/v1",
    "Deployment": "apps/v1",
    "ControllerRevision": "apps/v1",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1",
    "PodGroup": "scheduling.x-k8s.io/v1alpha1",
    "RoleBasedGroup": "workloads.x-k8s.io/v1alpha1",
    ADAPTER_KIND: "workloads.x-k8s.io/v1alpha1",
}


def owned_objects(snapshot: Snapshot, uid: str) -> dict[ObjectKey, Live]:
    """The observed objects that the group of this uid controls."""
    return {key: live for key, live in snapshot.objects.items() if live.metadata.controlled_by(uid)}


def key_of(rendered: Json) -> ObjectKey:
    """(kind, name)."""
    return rendered["kind"], rendered["metadata"]["name"]


def is_leaving(live: Live) -> bool:
    """Whether it is being deleted already."""
    return live.metadata.deletion_timestamp is not None


def deletion(key: ObjectKey, live: Live, why: str, *, foreground: bool = False) -> Delete:
    """The step that deletes an observed object."""
    kind, name = key
    version = live.api_version or _API_VERSIONS.get(kind, "v1")
    return Delete(version, kind, name, live.metadata.uid, why, foreground)


def taken_names(snapshot: Snapshot, uid: str, group: str, wanted: Iterable[ObjectKey]) -> list[ObjectKey]:
    """Names that we need and somebody else has. What a deleted group of our name leaves behind goes away by itself."""
    return [key for key in wanted if key in snapshot.foreign or _is_strangers(snapshot.objects.get(key), uid, group)]


def is_blocked(snapshot: Snapshot, uid: str, key: ObjectKey) -> bool:
    """Whether the object may not be written: another's, or one on its way out."""
    live = snapshot.objects.get(key)
    return key in snapshot.foreign or (live is not None and (is_leaving(live) or not live.metadata.controlled_by(uid)))


def _is_strangers(live: Live | None, uid: str, group: str) -> bool:
    if live is None or live.metadata.controlled_by(uid):
        return False
    owners = live.metadata.owner_references
    return not any(owner.kind == "RoleBasedGroup" and owner.name == group and owner.controller for owner in owners)
