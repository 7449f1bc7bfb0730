"""Definitions of kinds that come with schedulers and controllers which no test has: enough to check what is applied."""

from __future__ import annotations

from typing import Any

import yaml

from crds.kubernetes import pod_template
from crds.schema import anything, integer, record, text
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import wait_until

Json = dict[str, Any]


def install_optional_kinds(control_plane: ControlPlane) -> None:
    """LeaderWorkerSet and both PodGroups; harmless when they are there already."""
    definitions = [_leader_worker_set(), *_pod_groups()]
    control_plane.kubectl("apply", "--server-side", "--filename=-", input=yaml.safe_dump_all(definitions))
    api = control_plane.api()
    for one in definitions:
        spec = one["spec"]
        path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/namespaces/default/{spec['names']['plural']}"
        wait_until(lambda path=path: api.exists(path), f"{path} is not served", 30.0)


def _leader_worker_set() -> Json:
    template = record(
        "Pods of an instance",
        {
            "size": integer("Pods"),
            "restartPolicy": text("What else restarts", enum=["None", "RecreateGroupOnPodRestart"]),
            "leaderTemplate": pod_template("First pod", described=False),
            "workerTemplate": pod_template("Other pods", described=False),
        },
        required=["workerTemplate"],
    )
    pace = record("Pace", {"partition": integer("Lowest ordinal"), "maxUnavailable": _number_or_percent(),
                           "maxSurge": _number_or_percent()})  # fmt: skip
    rollout = record("Rollout", {"type": text("Kind"), "rollingUpdateConfiguration": pace})
    spec = record(
        "Spec",
        {"replicas": integer("Instances"), "leaderWorkerTemplate": template, "rolloutStrategy": rollout},
        required=["leaderWorkerTemplate"],
    )
    return _definition("leaderworkerset.x-k8s.io", "v1", "LeaderWorkerSet", spec)


def _pod_groups() -> list[Json]:
    common = {"minMember": integer("Pods"), "minResources": anything("Resources")}
    kube = record("Spec", {**common, "scheduleTimeoutSeconds": integer("Timeout")})
    volcano = record("Spec", {**common, "queue": text("Queue"), "priorityClassName": text("Priority")})
    return [
        _definition("scheduling.x-k8s.io", "v1alpha1", "PodGroup", kube),
        _definition("scheduling.volcano.sh", "v1beta1", "PodGroup", volcano),
    ]


def _number_or_percent() -> Json:
    return {"x-kubernetes-int-or-string": True}


def _definition(group: str, version: str, kind: str, spec: Json) -> Json:
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "properties": {"spec": spec, "status": anything("Status")}}
    served = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    annotations = {"api-approved.kubernetes.io": "unapproved, for tests"}  # *.k8s.io is protected
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "annotations": annotations},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "versions": [served],
        },
    }
