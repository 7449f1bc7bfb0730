"""Kinds that some clusters have and others not: LeaderWorkerSet and the PodGroups of two schedulers; no controllers.

Their own definitions are not on the package indexes; these take any spec, so they show what is written, not whether it
is right.
"""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from rbg_operator.kube.resources import LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP, Resource
from tests.cluster.control_plane import ControlPlane

Json: TypeAlias = dict[str, Any]
OPTIONAL = (LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP)


def install_optional(control_plane: ControlPlane) -> None:
    """Apply the definitions and wait until they are served; harmless when they are there already."""
    definitions = json.dumps({"apiVersion": "v1", "kind": "List", "items": [_definition(each) for each in OPTIONAL]})
    control_plane.kubectl("apply", "--server-side", "-f", "-", input=definitions)
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", "-", input=definitions)


def _definition(resource: Resource) -> Json:
    group, version = resource.api_version.split("/")
    open_object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": open_object, "status": open_object}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{resource.plural}.{group}",
            # The API server asks for this on groups that belong to Kubernetes.
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {
            "group": group,
            "names": {"kind": resource.kind, "plural": resource.plural, "singular": resource.kind.lower()},
            "scope": "Namespaced",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }
