"""The command `rbg plan`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from typing import Any

from rbg_operator.api.documents import Json, load_manifest
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.api.parse import parse_group
from rbg_operator.api.problems import ManifestError, Problem
from rbg_operator.colours import use_colour
from rbg_operator.kubectl.changes import as_yaml
from rbg_operator.kubectl.kubectl import Kubectl
from rbg_operator.kubectl.read import mapping, text
from rbg_operator.plan.decide import effective
from rbg_operator.plan.decide.owned import key_of
from rbg_operator.plan.observed import Snapshot
from rbg_operator.plan.preview import Preview, preview
from rbg_operator.plan.render import render
from rbg_operator.plan.rendering import LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP, Context, Rendering
from rbg_operator.preview.difference import Difference, difference
from rbg_operator.preview.live import after_apply, read_cluster, taken
from rbg_operator.preview.report import counted, difference_text, plan_text

EVERYTHING = Context(kinds=frozenset((LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP)))
MAX_PODS = 2_000
NO_UID = "00000000-0000-0000-0000-000000000000"  # of a group that no cluster holds yet
SERVER_FIELDS = ("uid", "generation", "resourceVersion", "creationTimestamp", "managedFields")


def plan(data: bytes, source: str, arguments: argparse.Namespace) -> int:
    """Print the preview of a manifest. Raises ManifestError, and KubectlError with --diff."""
    manifest = load_manifest(data, source)
    metadata = mapping(manifest, "metadata")
    kept = {key: metadata[key] for key in metadata if key not in SERVER_FIELDS}
    group = parse_group({**manifest, "metadata": {**kept, "uid": NO_UID}})
    for warning in group.warnings:
        print(f"rbg: warning: {warning}", file=sys.stderr)
    if arguments.diff:
        return _against_cluster({**manifest, "metadata": kept}, arguments)
    rendering = _rendered(group, EVERYTHING)
    seen = preview(rendering, Snapshot(now=time.time()), group)
    size = f"{counted(len(group.roles), 'role')}, {counted(_pods(rendering), 'pod')}"
    where = f"{group.name} in namespace {group.namespace}: {size}"
    _show(arguments.output, seen, plan_text(where, seen, use_colour(sys.stdout)), None)
    return 0


def _against_cluster(manifest: Json, arguments: argparse.Namespace) -> int:
    namespace = "" if text(manifest, "metadata", "namespace") else arguments.namespace
    kubectl = Kubectl(namespace, arguments.context, arguments.kubeconfig)
    cluster = read_cluster(kubectl, manifest)
    kubectl = dataclasses.replace(kubectl, namespace=text(cluster.group, "metadata", "namespace"))
    group = parse_group(cluster.group)
    rendering = _rendered(effective(group, cluster.snapshot.objects), cluster.context)
    seen = preview(rendering, cluster.snapshot, group)
    unlabelled = [key for item in seen.applied if (key := key_of(item)) not in cluster.objects]
    if foreign := taken(kubectl, unlabelled):
        seen = preview(rendering, dataclasses.replace(cluster.snapshot, foreign=foreign), group)
    present = [item for item in seen.applied if key_of(item) in cluster.objects]
    found = difference(seen, cluster.objects, after_apply(kubectl, present))
    counts = f"{len(found.created)} to create, {len(found.changed)} to change, {len(found.deleted)} to delete"
    where = f"{group.name} in namespace {group.namespace}: {counts}"
    _show(arguments.output, seen, difference_text(where, seen, found, use_colour(sys.stdout)), found)
    return 0


def _rendered(group: RoleBasedGroup, context: Context) -> Rendering:
    pods = sum(role.replicas * role.size for role in group.roles)
    if pods > MAX_PODS:
        raise ManifestError([Problem("spec.roles", f"ask for {pods:,} pods; rbg plan looks ahead for {MAX_PODS:,}")])
    rendering = render(group, context)
    if rendering.problems:
        raise ManifestError(rendering.problems)
    return rendering


def _pods(rendering: Rendering) -> int:
    return sum(role.num_pods for role in rendering.roles.values())


def _show(output: str, seen: Preview, as_text: str, found: Difference | None) -> None:
    objects = [_applicable(item) for item in seen.applied]
    if output == "yaml":
        print("---\n".join(as_yaml(item) for item in objects), end="")
    elif output == "json":
        value: dict[str, Any] = {"steps": [[dataclasses.asdict(step) for step in steps] for steps in seen.steps]}
        if found:
            names = {" ".join(key): changes for key, changes in found.changed.items()}
            value |= {"changed": names, "deleted": [" ".join(key) for key in found.deleted]}
        print(json.dumps({**value, "message": seen.message, "objects": objects}, indent=2))
    else:
        print(as_text)


def _applicable(item: Json) -> Json:
    """The object without its owner, which is not there before the group is."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "ownerReferences"}
    return {**item, "metadata": metadata}
