"""Kubernetes' strategic merge of a pod template, for `templateRef` with `templatePatch`.

A mapping merges key by key, null deletes, a list is replaced, except the lists below, whose items are merged by a key.
`$patch: replace` in a mapping keeps only the patch; `$patch: delete` removes the mapping (or the list item).
"""

from __future__ import annotations

import copy
from typing import Any

from rbg_operator.api.documents import Json

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
DIRECTIVE = "$patch"


def merge(base: Json, patch: Json) -> Json:
    """A new mapping: base with patch applied. Both are left as they were."""
    if patch.get(DIRECTIVE) == "replace":
        return copy.deepcopy({key: value for key, value in patch.items() if key != DIRECTIVE})
    if patch.get(DIRECTIVE) == "delete":
        return {}
    merged = copy.deepcopy(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_value(key, merged.get(key), value)
    return merged


def _merge_value(key: str, base: Any, patch: Any) -> Any:
    if isinstance(patch, dict):
        return merge(base if isinstance(base, dict) else {}, patch)
    if isinstance(patch, list) and isinstance(base, list) and key in MERGE_KEYS:
        return _merge_list(MERGE_KEYS[key], base, patch)
    return copy.deepcopy(patch)


def _merge_list(merge_key: str, base: list[Any], patch: list[Any]) -> list[Any]:
    """Items of the patch change, delete or follow those of the base."""
    merged = list(base)
    for item in patch:
        keyed = isinstance(item, dict) and merge_key in item
        same = [i for i, old in enumerate(merged) if keyed and isinstance(old, dict) and _same(old, item, merge_key)]
        if same and item.get(DIRECTIVE) == "delete":
            del merged[same[0]]
        elif same:
            merged[same[0]] = merge(merged[same[0]], item)
        else:
            merged.append(copy.deepcopy(item))
    return merged


def _same(left: Json, right: Json, merge_key: str) -> bool:
    return merge_key in left and left[merge_key] == right[merge_key]
