"""What differs between two specs, in few words and as a diff. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import yaml

from rbg_operator.api.documents import Json
from rbg_operator.kubectl.read import mappings, one_line, text

MAX_VALUE = 60
_MISSING = object()


def role_changes(old: Json, new: Json) -> list[str]:
    """One line for each difference between two specs: `vlm-encoder: image of server epd:1 → epd:2`."""
    before = {text(role, "name"): role for role in mappings(old, "roles")}
    after = {text(role, "name"): role for role in mappings(new, "roles")}
    found = [f"{name}: removed" for name in before if name not in after]
    found += [f"{name}: added" for name in after if name not in before]
    for name in before:
        if name in after:
            found += [f"{name}: {change}" for change in differences(before[name], after[name])]
    rest_before = {key: value for key, value in old.items() if key != "roles"}
    rest_after = {key: value for key, value in new.items() if key != "roles"}
    return found + list(differences(rest_before, rest_after))


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Every leaf that differs, with its path; items of lists are told apart by name where they have one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from differences(old.get(key, _MISSING), new.get(key, _MISSING), f"{path}.{key}" if path else key)
    elif (names := _by_name(old)) is not None and (others := _by_name(new)) is not None:
        for name in dict.fromkeys((*names, *others)):
            yield from differences(names.get(name, _MISSING), others.get(name, _MISSING), f"{path}[{name}]")
    elif old is _MISSING:
        yield f"{path} added"
    elif new is _MISSING:
        yield f"{path} removed"
    elif old != new:
        yield f"{path} {_short(old)} → {_short(new)}"


def unified_diff(old: Any, new: Any, old_name: str, new_name: str) -> str:
    """Two values as YAML, compared as diff -u does; "" if they are the same."""
    before, after = (as_yaml(value, sort_keys=True).splitlines(keepends=True) for value in (old, new))
    return "".join(difflib.unified_diff(before, after, old_name, new_name))


def as_yaml(value: Any, sort_keys: bool = False) -> str:
    """YAML without aliases, with long texts as blocks."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=sort_keys, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """No aliases, list items indented, texts of several lines as blocks."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text_node(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text_node)


def _by_name(value: Any) -> dict[str, Any] | None:
    """A list of objects that all have different names, by name."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    names = [item.get("name") for item in value]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return None
    return dict(zip(names, value, strict=True))


def _short(value: Any) -> str:
    shown = one_line(value if isinstance(value, str) else repr(value))
    return shown if len(shown) <= MAX_VALUE else shown[: MAX_VALUE - 1] + "…"
