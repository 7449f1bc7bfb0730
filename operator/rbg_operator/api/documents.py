"""From the bytes of a manifest to one plain mapping, whatever the bytes are.

Invariants of what comes out: dicts with string keys, lists, strings, numbers, booleans and None only; no cycles; at
most MAX_DEPTH levels and MAX_NODES nodes with aliases expanded. Work is bounded before it is done: the size is checked
first, then the depth on the event stream (the composer recurses), then the expanded size by a walk with a budget.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, TypeAlias

import yaml

from rbg_operator.api.problems import ManifestError, Problem

Json: TypeAlias = dict[str, Any]

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 50
MAX_NODES = 100_000


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C parser where it was built
    """SafeLoader that refuses a key given twice and reads dates as text, as Kubernetes does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice; keep one", key.start_mark
                    )
                seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_manifest(data: bytes, source: str) -> Json:
    """The single mapping in a YAML or JSON document. `source` names the file in errors; raises ManifestError."""
    if len(data) > MAX_BYTES:
        _refuse(source, f"is {len(data):,} bytes; a manifest has at most {MAX_BYTES:,}")
    try:
        _check_events(data, source)
        value = yaml.load(data, Loader=_Loader)
    except yaml.YAMLError as error:
        _refuse(source, f"is not valid YAML: {_one_line(error)}")
    except (ValueError, RecursionError) as error:
        if isinstance(error, ManifestError):
            raise
        _refuse(source, f"holds a value that cannot be read: {error}")
    if not isinstance(value, dict):
        what = "is empty" if value is None else f"holds a {kind_of(value)}"
        _refuse(source, f"{what}; a manifest is a mapping with apiVersion, kind, metadata and spec")
    manifest: Json = value
    _check_values(manifest, source)
    return manifest


def kind_of(value: object) -> str:
    """What a value is in the words of YAML, for error messages."""
    names = {dict: "mapping", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _refuse(source: str, message: str) -> None:
    raise ManifestError([Problem("", f"{source} {message}")])


def _check_events(data: bytes, source: str) -> None:
    """Refuse several documents and deep nesting from the event stream, before anything recurses."""
    depth = documents = 0
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                _refuse(source, "holds several YAML documents; put one RoleBasedGroup in each file")
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(source, f"is nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and event.value == "<<" and not event.style:
            _refuse(source, "uses the merge key <<, which can expand without bound; write the fields out")


def _check_values(root: Json, source: str) -> None:
    """Refuse what JSON cannot say, cycles, and aliases that expand to a huge document."""
    budget = MAX_NODES
    stack: list[tuple[Any, int]] = [(root, 0)]
    while stack:
        value, depth = stack.pop()
        budget -= 1
        if budget < 0 or depth > MAX_DEPTH:
            _refuse(
                source, f"expands to more than {MAX_NODES:,} values or {MAX_DEPTH} levels; write it without aliases"
            )
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    _refuse(source, f"has the key {key!r}, a {kind_of(key)}; keys are strings: put it in quotes")
            stack.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            stack.extend((item, depth + 1) for item in value)
        elif isinstance(value, float) and not math.isfinite(value):
            _refuse(source, f"holds the number {value}, which JSON cannot say; put it in quotes")
        elif not isinstance(value, str | int | float | bool | None):
            _refuse(source, f"holds a {kind_of(value)}; only YAML that is also JSON is allowed")


def _one_line(error: yaml.YAMLError) -> str:
    """What and where, without PyYAML's quotation of the file."""
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error).replace("\n", " ")
    return f"line {mark.line + 1}, column {mark.column + 1}: {text}" if mark else text
