"""The part of an object that one field manager owns: what `rbg plan --diff` compares. Pure.

metadata.managedFields spells it as nested keys: f:NAME is a field, k:{"name":"x"} an item of a list by its key, v:VALUE
an item of a set, and "." the thing itself. A field without nested keys is owned whole.
"""

from __future__ import annotations

import json
from typing import Any

from rbg_operator.api.documents import Json


def owned_part(live: Json, manager: str) -> Json:
    """apiVersion, kind, name and the fields of an object that the manager applied; {} below if it owns none."""
    metadata = live.get("metadata", {})
    part: Json = {"apiVersion": live.get("apiVersion"), "kind": live.get("kind")}
    for entry in metadata.get("managedFields") or []:
        if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource"):
            part |= _selected(live, entry.get("fieldsV1") or {})
    names = {key: metadata[key] for key in ("name", "namespace") if key in metadata}
    part["metadata"] = {**names, **part.get("metadata", {})}
    return part


def _selected(value: Any, fields: Json) -> Any:
    """The part of a value that a fieldsV1 tree names."""
    nested = {key: sub for key, sub in fields.items() if key != "."}
    if not nested:
        return value
    if isinstance(value, dict):
        chosen = {key[2:]: sub for key, sub in nested.items() if key.startswith("f:")}
        return {key: _selected(item, chosen[key]) for key, item in value.items() if key in chosen}
    if isinstance(value, list):
        return [_selected(item, sub) for item in value for key, sub in nested.items() if _is_item(key, item)]
    return value


def _is_item(key: str, item: Any) -> bool:
    if key.startswith("v:"):
        return bool(json.loads(key[2:]) == item)
    if not key.startswith("k:") or not isinstance(item, dict):
        return False
    return all(item.get(name) == value for name, value in json.loads(key[2:]).items())
