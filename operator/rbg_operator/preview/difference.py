"""What a preview would write, compared with what a cluster has. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.kubectl.changes import unified_diff
from rbg_operator.plan import labels
from rbg_operator.plan.decide.owned import key_of
from rbg_operator.plan.observed import ObjectKey
from rbg_operator.plan.preview import Preview
from rbg_operator.preview.owned import owned_part


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Objects by what happens to them. changed: as diff -u of the fields that the operator owns."""

    created: tuple[Json, ...]
    changed: Mapping[ObjectKey, str]
    deleted: tuple[ObjectKey, ...]


def difference(preview: Preview, before: Mapping[ObjectKey, Json], after: Mapping[ObjectKey, Json]) -> Difference:
    """The difference between objects as they are and as they would be, both with their managedFields."""
    diffs = {key: unified_diff(_shown(before[key]), _shown(item), "now", "then") for key, item in after.items()}
    return Difference(
        created=tuple(item for item in preview.applied if key_of(item) not in before),
        changed={key: text for key, text in diffs.items() if text},
        deleted=preview.deleted,
    )


def _shown(item: Json) -> Json:
    """What the operator owns, without the hash that it keeps for itself."""
    part = owned_part(item, labels.FIELD_MANAGER)
    part["metadata"].get("annotations", {}).pop(labels.APPLIED_HASH, None)
    return part
