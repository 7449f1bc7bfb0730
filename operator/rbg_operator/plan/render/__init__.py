"""A group as Kubernetes objects. Pure, deterministic, and without mutable state shared with the manifest."""

from rbg_operator.plan.render.adapter import adapter_object
from rbg_operator.plan.render.group import render
from rbg_operator.plan.render.knobs import with_knobs, workers_of

__all__ = ["adapter_object", "render", "with_knobs", "workers_of"]
