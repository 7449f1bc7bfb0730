"""Kubernetes' own types inside ours: taken from an API server, kept in kubernetes/types.json, made structural here.

To take them anew, with the current context on a server of the wanted version:
`kubectl get --raw /openapi/v3/api/v1 | python -m crds.kubernetes`
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from crds import FOLDER
from crds.schema import Schema, record, string_map, text, timestamp

TYPES = FOLDER / "kubernetes" / "types.json"
PREFIX = "io.k8s.api.core.v1."
ROOTS = (PREFIX + "PodTemplateSpec", PREFIX + "ServicePort")
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
WRITTEN_HERE = (QUANTITY, INT_OR_STRING, OBJECT_META)

KEPT = ("type", "format", "required", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type")
QUANTITY_PATTERN = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
KEY_DEFAULTS = {"protocol": "TCP", "name": ""}
NOT_IN_TEMPLATES = {PREFIX + "PodSpec": ("ephemeralContainers",)}  # the API server refuses them in a template


def trim(openapi: Schema) -> dict[str, Schema]:
    """The types that ROOTS need, by name, with the first sentence of every description."""
    published: dict[str, Schema] = openapi["components"]["schemas"]
    wanted = list(ROOTS)
    kept: dict[str, Schema] = {}
    while wanted:
        name = wanted.pop()
        if name not in kept and name not in WRITTEN_HERE:
            kept[name] = _trim_node(published[name], NOT_IN_TEMPLATES.get(name, ()))
            wanted.extend(_references(kept[name]))
    return dict(sorted(kept.items()))


def _trim_node(node: Schema, without: tuple[str, ...] = ()) -> Schema:
    trimmed = {key: node[key] for key in KEPT if key in node}
    if sentence := _first_sentence(node.get("description", "")):
        trimmed["description"] = sentence
    for part in (node, *node.get("allOf", ())):
        if "$ref" in part:
            trimmed["$ref"] = part["$ref"].rsplit("/", 1)[-1]
    if "properties" in node:
        trimmed["properties"] = {k: _trim_node(v) for k, v in sorted(node["properties"].items()) if k not in without}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            trimmed[key] = _trim_node(node[key])
    return trimmed


def _first_sentence(description: str) -> str:
    """Up to the first full stop that ends a sentence, without links."""
    line = description.split("\n", 1)[0].split(" More info:", 1)[0].strip()
    return re.split(r"(?<!e\.g)(?<!i\.e)(?<!etc)\.\s", line, maxsplit=1)[0].removesuffix(".")


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)


@cache
def _types() -> dict[str, Schema]:
    types: dict[str, Schema] = json.loads(TYPES.read_text(encoding="utf-8"))
    return types


def structural(name: str, described: bool = True) -> Schema:
    """A core type such as "Container" as a structural schema; without Kubernetes' descriptions if not `described`."""
    return _resolve({"$ref": PREFIX + name}, described)


def pod_template(description: str, *, described: bool = True, partial: bool = False) -> Schema:
    """A pod template; a partial one is completed by a patch, so it may lack containers."""
    schema = structural("PodTemplateSpec", described)
    spec: Schema = schema["properties"]["spec"]
    if partial:
        spec["required"] = [key for key in spec["required"] if key != "containers"]
        if not spec["required"]:
            del spec["required"]
    else:
        schema["required"] = ["spec"]
        spec["properties"]["containers"]["minItems"] = 1
    return {**schema, "description": description}


def _resolve(node: Schema, described: bool) -> Schema:
    name = node.get("$ref")
    target = {} if name is None else _written_here(name) if name in WRITTEN_HERE else _types()[name]
    merged = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    if not described:
        merged.pop("description", None)
    if "properties" in merged:
        merged["properties"] = {key: _resolve(value, described) for key, value in merged["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in merged:
            merged[key] = _resolve(merged[key], described)
    return default_list_keys(merged)


def default_list_keys(node: Schema) -> Schema:
    """A key of a list is required or has a default. No other default is kept: Kubernetes sets them on the workload."""
    for key in node.get("x-kubernetes-list-map-keys", ()):
        item = node["items"]
        if key not in item.get("required", ()):
            item["properties"][key]["default"] = KEY_DEFAULTS[key]
    return node


def _written_here(name: str) -> Schema:
    if name == OBJECT_META:
        return _template_metadata()
    schema: Schema = {"x-kubernetes-int-or-string": True}
    return {**schema, "pattern": QUANTITY_PATTERN} if name == QUANTITY else schema


def _template_metadata() -> Schema:
    return record(
        "Labels and annotations of the pods",
        {
            "annotations": string_map("Annotations of every pod"),
            "creationTimestamp": timestamp("Ignored; some tools write null here"),
            "finalizers": {
                "description": "Finalizers of every pod",
                "type": "array",
                "items": {"type": "string"},
                "x-kubernetes-list-type": "set",
            },
            "labels": string_map("Labels of every pod; those of the operator win"),
            "name": text("Ignored: pods are named after their workload"),
        },
    )


if __name__ == "__main__":
    TYPES.parent.mkdir(exist_ok=True)
    TYPES.write_text(json.dumps(trim(json.load(sys.stdin)), indent=1) + "\n", encoding="utf-8")
    print(f"{TYPES}: {TYPES.stat().st_size / 1024:.0f} KiB; now run python -m crds")
