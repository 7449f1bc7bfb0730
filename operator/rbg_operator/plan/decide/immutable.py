"""Fields that the API server lets nobody change: a workload in which one differs has to be made anew.

That happens when a role becomes multi-node, or is not any more: its pods are then governed by another Service.
"""

from __future__ import annotations

from typing import Any

from rbg_operator.api.documents import Json
from rbg_operator.plan.observed import Live

_FIELDS = {"StatefulSet": ("serviceName", "podManagementPolicy", "selector"), "Deployment": ("selector",)}


def must_be_made_anew(wanted: Json, live: Live) -> bool:
    """Whether applying the object to the one that stands would be refused."""
    fields = _FIELDS.get(wanted["kind"], ())
    if not fields:
        return False
    spec: Any = live.body("spec")
    return isinstance(spec, dict) and any(wanted["spec"].get(field) != spec.get(field) for field in fields)
