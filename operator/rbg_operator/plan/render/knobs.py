"""Putting into a rendered workload what observation decides."""

from __future__ import annotations

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.compare import sealed
from rbg_operator.plan.observed import Live
from rbg_operator.plan.render.pinned import keeping_sidecars
from rbg_operator.plan.rendering import Knobs, RenderedRole


def with_knobs(rendered: RenderedRole, knobs: Knobs, live: Live | None = None) -> Json:
    """The workload, ready to be applied. live: the one that stands; it keeps sidecars of profiles with NoUpdate."""
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
    return sealed(keeping_sidecars({**rendered.workload, "spec": spec}, live))


def workers_of(rendered: RenderedRole, instance: int, live: Live | None = None) -> Json:
    """The StatefulSet of one instance's other nodes. Raises ValueError for a role that has none."""
    if rendered.workers is None:
        raise ValueError(f"instances of {rendered.role.name} have no workers")
    mark = {labels.INSTANCE: str(instance)}
    metadata, spec = rendered.workers["metadata"], rendered.workers["spec"]
    template = spec["template"]
    pod = template["metadata"]
    wanted = {
        **rendered.workers,
        "metadata": {**metadata, "name": f"{metadata['name']}-{instance}", "labels": {**metadata["labels"], **mark}},
        "spec": {
            **spec,
            "replicas": rendered.size - 1,
            "selector": {"matchLabels": {**spec["selector"]["matchLabels"], **mark}},
            "template": {**template, "metadata": {**pod, "labels": {**pod["labels"], **mark}}},
        },
    }
    return sealed(keeping_sidecars(wanted, live))
