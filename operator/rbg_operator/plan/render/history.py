"""The record of a revision of the group's spec, from which it can be brought back."""

from __future__ import annotations

from rbg_operator.api.documents import Json
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.plan import labels
from rbg_operator.plan.compare import content_hash, sealed
from rbg_operator.plan.render.metadata import object_metadata
from rbg_operator.plan.render.scope import copied, without


def revision_and_record(group: RoleBasedGroup) -> tuple[str, Json]:
    """Hash of the spec without replicas, and the ControllerRevision that holds it; its number is set when applied."""
    roles = [without(role, "replicas") for role in group.spec["roles"]]
    spec = copied({**group.spec, "roles": roles})
    revision = content_hash(spec)
    metadata = object_metadata(group, f"{group.name}-{revision}", extra_labels={labels.GROUP_REVISION: revision})
    record = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "data": spec, "revision": 0}
    return revision, sealed(record)
