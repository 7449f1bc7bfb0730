"""What a preview would write, compared with what a cluster has. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.kubectl.changes import unified_diff
from rbg_operator.plan.decide.owned import key_of
from rbg_operator.plan.labels import FIELD_MANAGER
from rbg_operator.plan.observed import ObjectKey
from rbg_operator.plan.preview import Preview
from rbg_operator.preview.owned import owned_part


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Objects by what happens to them. changed: as diff -u of the fields that the operator owns."""

    created: tuple[Json, ...]
    changed: Mapping[ObjectKey, str]
    deleted: tuple[ObjectKey, ...]


def difference(preview: Preview, objects: Mapping[ObjectKey, Json]) -> Difference:
    """The difference to the live objects, given with their managedFields."""
    created, changed = [], {}
    for item in preview.applied:
        key = key_of(item)
        if key not in objects:
            created.append(item)
        elif changes := unified_diff(owned_part(objects[key], FIELD_MANAGER), item, "now", "then"):
            changed[key] = changes
    return Difference(created=tuple(created), changed=changed, deleted=preview.deleted)
