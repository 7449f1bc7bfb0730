"""One group as a cluster has it, read through kubectl: the planner's input for `rbg plan --diff`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.kubectl.cluster import GROUPS, get_pods
from rbg_operator.kubectl.kubectl import Kubectl, KubectlError
from rbg_operator.kubectl.read import mapping, mappings, strings, text
from rbg_operator.plan import labels
from rbg_operator.plan.observed import Live, ObjectKey, Snapshot
from rbg_operator.plan.rendering import LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP, Context

PROFILES = "clusterengineruntimeprofiles.workloads.x-k8s.io"
KINDS = (
    "statefulsets.apps",
    "deployments.apps",
    "services",
    "configmaps",
    "controllerrevisions.apps",
    "rolebasedgroupscalingadapters.workloads.x-k8s.io",
)
OPTIONAL = {  # name of the resource → as `Context.kinds` calls it
    "leaderworkersets.leaderworkerset.x-k8s.io": LEADER_WORKER_SET,
    "podgroups.scheduling.x-k8s.io": POD_GROUP,
    "podgroups.scheduling.volcano.sh": VOLCANO_POD_GROUP,
}


@dataclass(frozen=True)
class Cluster:
    """What a cluster holds of one group. group: {} if it has none; objects: as sent, managedFields included."""

    group: Json
    objects: dict[ObjectKey, Json]
    snapshot: Snapshot
    context: Context


def read_cluster(kubectl: Kubectl, name: str) -> Cluster:
    """Everything that belongs to the group of that name. Raises KubectlError."""
    served = [resource for resource in OPTIONAL if _is_served(kubectl, resource)]
    group = _group(kubectl, name)
    items = _objects(kubectl, name, ",".join((*KINDS, *served)))
    lives = {key: msgspec.json.decode(msgspec.json.encode(item), type=Live) for key, item in items.items()}
    snapshot = Snapshot(
        now=time.time(),
        pods=get_pods(kubectl, name),
        objects=lives,
        status=mapping(group, "status"),
        finalizers=tuple(strings(group, "metadata", "finalizers")),
        deletion_timestamp=text(group, "metadata", "deletionTimestamp") or None,
    )
    context = Context(profiles=_profiles(kubectl), kinds=frozenset(OPTIONAL[resource] for resource in served))
    return Cluster(group, items, snapshot, context)


def taken(kubectl: Kubectl, keys: Iterable[ObjectKey]) -> frozenset[ObjectKey]:
    """Which of these names exist already; for names of objects that were not found by label."""
    names = [f"{kind}/{name}" for kind, name in keys]
    if not names:
        return frozenset()
    found = kubectl.run("get", *names, "--ignore-not-found", "-o", "json")
    value = json.loads(found) if found.strip() else {}
    items = mappings(value, "items") if "items" in value else [value]
    return frozenset((text(item, "kind"), text(item, "metadata", "name")) for item in items if item)


def _group(kubectl: Kubectl, name: str) -> Json:
    try:
        return kubectl.json("get", GROUPS, name)
    except KubectlError as error:
        if error.reason == "NotFound":
            return {}
        raise


def _objects(kubectl: Kubectl, name: str, resources: str) -> dict[ObjectKey, Json]:
    selector = f"{labels.GROUP_NAME}={name}"
    found = kubectl.json("get", resources, "-l", selector, "--show-managed-fields")
    return {(text(item, "kind"), text(item, "metadata", "name")): item for item in mappings(found, "items")}


def _is_served(kubectl: Kubectl, resource: str) -> bool:
    group = resource.partition(".")[2]
    return resource in kubectl.run("api-resources", f"--api-group={group}", "-o", "name").split()


def _profiles(kubectl: Kubectl) -> dict[str, Any]:
    items = mappings(kubectl.json("get", PROFILES), "items")
    return {text(item, "metadata", "name"): mapping(item, "spec") for item in items}
