"""RoleBasedGroupScalingAdapter: the scale of one role as an object of its own."""

from __future__ import annotations

from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.api.fields import Fields
from rbg_operator.api.header import Header, read_header
from rbg_operator.api.model import MAX_REPLICAS
from rbg_operator.api.problems import Findings

ADAPTER_KIND = "RoleBasedGroupScalingAdapter"


@dataclass(frozen=True, kw_only=True)
class ScalingAdapter(Header):
    """replicas of a group's role; None: as the manifest says."""

    replicas: int | None
    group: str
    role: str


def parse_adapter(manifest: Json) -> ScalingAdapter:
    """Read an adapter. Raises ManifestError with all problems."""
    findings = Findings()
    root = Fields(manifest, "", findings)
    header = read_header(root, ADAPTER_KIND, "name the adapter")
    spec = root.inner("spec")
    spec.reject_unknown(("replicas", "scaleTargetRef"))
    target = spec.inner("scaleTargetRef")
    target.reject_unknown(("name", "role"))
    adapter = ScalingAdapter(
        **vars(header),
        replicas=spec.integer("replicas", 0, maximum=MAX_REPLICAS) if spec.has("replicas") else None,
        group=target.required_string("name", "name the RoleBasedGroup"),
        role=target.required_string("role", "name the role"),
    )
    findings.raise_errors()
    return adapter
