"""Putting into a rendered workload what observation decides."""

from __future__ import annotations

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.compare import sealed
from rbg_operator.plan.rendering import Knobs, RenderedRole


def with_knobs(rendered: RenderedRole, knobs: Knobs) -> Json:
    """The workload, ready to be applied."""
    spec: Json = {**rendered.workload["spec"], "replicas": knobs.replicas}
    kind = rendered.workload["kind"]
    if kind == "Deployment":
        spec["paused"] = knobs.paused
    elif kind == "LeaderWorkerSet":
        rollout = spec["rolloutStrategy"]
        pace = {**rollout["rollingUpdateConfiguration"], "partition": knobs.partition}
        spec["rolloutStrategy"] = {**rollout, "rollingUpdateConfiguration": pace}
    else:
        spec["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": {"partition": knobs.partition}}
    return sealed({**rendered.workload, "spec": spec})


def workers_of(rendered: RenderedRole, instance: int) -> Json:
    """The StatefulSet of one instance's other nodes. Raises ValueError for a role that has none."""
    if rendered.workers is None:
        raise ValueError(f"instances of {rendered.role.name} have no workers")
    mark = {labels.INSTANCE: str(instance)}
    metadata, spec = rendered.workers["metadata"], rendered.workers["spec"]
    template = spec["template"]
    pod = template["metadata"]
    return sealed({
        **rendered.workers,
        "metadata": {**metadata, "name": f"{metadata['name']}-{instance}", "labels": {**metadata["labels"], **mark}},
        "spec": {
            **spec,
            "replicas": rendered.size - 1,
            "selector": {"matchLabels": {**spec["selector"]["matchLabels"], **mark}},
            "template": {**template, "metadata": {**pod, "labels": {**pod["labels"], **mark}}},
        },
    })  # fmt: skip
