"""The last revisions of a group's spec, as ControllerRevisions; going back to an older one makes it the newest."""

from __future__ import annotations

from collections.abc import Mapping

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.decide.owned import HISTORY_KIND, deletion, is_blocked, is_leaving, key_of
from rbg_operator.plan.observed import Live, ObjectKey, Snapshot
from rbg_operator.plan.steps import Apply, Delete

KEPT = 10


def record(history: Json, uid: str, snapshot: Snapshot, owned: Mapping[ObjectKey, Live]) -> list[Apply]:
    """Write down the current revision unless it is the newest already."""
    key = key_of(history)
    if is_blocked(snapshot, uid, key):
        return []
    numbers = _numbers(owned)
    newest = max(numbers.values(), default=0)
    if numbers.get(key) == newest and newest > 0:
        return []
    metadata = history["metadata"]
    annotations = {**metadata.get("annotations", {}), labels.REVISION_NUMBER: str(newest + 1)}
    numbered = {**history, "revision": newest + 1, "metadata": {**metadata, "annotations": annotations}}
    live = owned.get(key)
    return [Apply(numbered, create=live is None, uid=live.metadata.uid if live else "")]


def prune(current: ObjectKey, owned: Mapping[ObjectKey, Live]) -> list[Delete]:
    """Delete all but the newest; the current one stays."""
    numbers = _numbers(owned)
    older = sorted((key for key in numbers if key != current), key=lambda key: (-numbers[key], key))
    surplus = [key for key in older[KEPT - 1 :] if not is_leaving(owned[key])]
    return [deletion(key, owned[key], "history") for key in surplus]


def _numbers(owned: Mapping[ObjectKey, Live]) -> dict[ObjectKey, int]:
    return {key: _number(live) for key, live in owned.items() if key[0] == HISTORY_KIND}


def _number(live: Live) -> int:
    text = live.metadata.annotations.get(labels.REVISION_NUMBER, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else 0
