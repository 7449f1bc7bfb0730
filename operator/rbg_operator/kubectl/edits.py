"""Edits of a group's spec. Pure: they return a new object and leave the given one alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from rbg_operator.api.documents import Json
from rbg_operator.kubectl.errors import unknown
from rbg_operator.kubectl.read import at, mappings, text
from rbg_operator.plan import labels


def restarted(group: Json, roles: Sequence[str], when: str) -> Json:
    """The group with the pods of these roles, or of all, to be replaced as in a rollout. when: RFC 3339 text."""
    check_roles(group, roles)
    changed = copy.deepcopy(group)
    for role in mappings(changed, "spec", "roles"):
        if not roles or text(role, "name") in roles:
            role["annotations"] = {**(role.get("annotations") or {}), labels.RESTARTED_AT: when}
    return changed


def scaled(group: Json, replicas: Mapping[str, int]) -> Json:
    """The group with other numbers of instances."""
    check_roles(group, list(replicas))
    changed = copy.deepcopy(group)
    for role in mappings(changed, "spec", "roles"):
        role["replicas"] = replicas.get(text(role, "name"), role.get("replicas", 1))
    return changed


def has_adapter(group: Json, role: str) -> bool:
    """Whether the role's number of instances is its scaling adapter's to say."""
    named = [item for item in mappings(group, "spec", "roles") if text(item, "name") == role]
    return bool(named) and at(named[0], "scalingAdapter", "enable") is True


def check_roles(group: Json, roles: Sequence[str]) -> None:
    """Raises UnknownNameError if the group has not all of them."""
    known = [text(role, "name") for role in mappings(group, "spec", "roles")]
    for role in roles:
        if role not in known:
            what = f'the group {text(group, "metadata", "name")} has no role "{role}"'
            raise unknown(what, role, known, "its spec has no roles")
