"""One group as a cluster has it, read through kubectl: the planner's input for `rbg plan --diff`.

What the API server would make of a manifest or an object - defaults, refusals - it is asked for by dry runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.kubectl.cluster import get_pods
from rbg_operator.kubectl.kubectl import Kubectl
from rbg_operator.kubectl.read import mapping, mappings, strings, text
from rbg_operator.plan import labels
from rbg_operator.plan.decide.owned import key_of
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
    """What a cluster holds of one group. group: as it would be after kubectl apply; objects: with managedFields."""

    group: Json
    objects: dict[ObjectKey, Json]
    snapshot: Snapshot
    context: Context


def read_cluster(kubectl: Kubectl, manifest: Json) -> Cluster:
    """Everything that belongs to the group of this manifest. Raises KubectlError, also where it would be refused."""
    group = kubectl.json("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
    name = text(group, "metadata", "name")
    resources = set(kubectl.run("api-resources", "-o", "name").split())
    served = [resource for resource in OPTIONAL if resource in resources]
    objects = _objects(kubectl, name, (*KINDS, *served))
    snapshot = Snapshot(
        now=time.time(),
        pods=get_pods(kubectl, name),
        objects={key: msgspec.json.decode(json.dumps(item), type=Live) for key, item in objects.items()},
        status=mapping(group, "status"),
        finalizers=tuple(strings(group, "metadata", "finalizers")),
        deletion_timestamp=text(group, "metadata", "deletionTimestamp") or None,
    )
    profiles = {text(item, "metadata", "name"): mapping(item, "spec") for item in _items(kubectl.json("get", PROFILES))}
    context = Context(profiles=profiles, kinds=frozenset(OPTIONAL[resource] for resource in served))
    return Cluster(group, objects, snapshot, context)


def taken(kubectl: Kubectl, keys: Iterable[ObjectKey]) -> frozenset[ObjectKey]:
    """Which of these names exist already; for names of objects that were not found by label."""
    names = [f"{kind}/{name}" for kind, name in keys]
    if not names:
        return frozenset()
    found = kubectl.run("get", *names, "--ignore-not-found", "-o", "json")
    return frozenset(key_of(item) for item in _items(json.loads(found))) if found.strip() else frozenset()


def after_apply(kubectl: Kubectl, objects: Sequence[Json]) -> dict[ObjectKey, Json]:
    """The objects as they would be if the operator applied these, with managedFields."""
    if not objects:
        return {}
    flags = ("--server-side", "--dry-run=server", "--force-conflicts", f"--field-manager={labels.FIELD_MANAGER}")
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    result = kubectl.json("apply", *flags, "--show-managed-fields", "-f", "-", stdin=document)
    return {key_of(item): item for item in _items(result)}


def _objects(kubectl: Kubectl, name: str, resources: Iterable[str]) -> dict[ObjectKey, Json]:
    selector = f"{labels.GROUP_NAME}={name}"
    found = kubectl.json("get", ",".join(resources), "-l", selector, "--show-managed-fields")
    return {key_of(item): item for item in _items(found)}


def _items(answer: Json) -> list[Json]:
    """The objects that kubectl printed: it makes a list of all but one."""
    return mappings(answer, "items") if answer.get("kind") == "List" or "items" in answer else [answer]
