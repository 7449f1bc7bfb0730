"""Words for OpenAPI schemas, so that a definition reads as a list of fields with their limits and their manual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
PERCENT = r"^(100|[1-9]?[0-9])%$"
MAX_INT32 = 2**31 - 1


def text(description: str, **limits: Any) -> Schema:
    """A string; limits are OpenAPI's: enum, default, pattern, minLength, maxLength."""
    return {"description": description, "type": "string", **limits}


def dns_label(description: str, longest: int = 63) -> Schema:
    """A DNS-1123 label of at most `longest` characters."""
    return text(description, minLength=1, maxLength=longest, pattern=DNS_LABEL)


def timestamp(description: str) -> Schema:
    """A time in RFC 3339."""
    return text(description, format="date-time")


def integer(description: str, *, minimum: int = 0, maximum: int = MAX_INT32, **limits: Any) -> Schema:
    """A whole number between two limits that fit 32 bits: the server does not hold numbers to their format."""
    schema = {"description": description, "type": "integer", "format": "int32"}
    return {**schema, "minimum": minimum, "maximum": maximum, **limits}


def generation(description: str) -> Schema:
    """A metadata.generation."""
    return {"description": description, "type": "integer", "format": "int64", "minimum": 0}


def number_or_percent(description: str, default: int) -> Schema:
    """A whole number, or a percentage from "0%" to "100%"."""
    return {
        "description": description,
        "x-kubernetes-int-or-string": True,
        "minimum": 0,
        "maximum": MAX_INT32,
        "pattern": PERCENT,
        "default": default,
    }


def boolean(description: str, default: bool = False) -> Schema:
    """true or false."""
    return {"description": description, "type": "boolean", "default": default}


def string_map(description: str) -> Schema:
    """A mapping of strings, such as labels."""
    return {"description": description, "type": "object", "additionalProperties": {"type": "string"}}


def anything(description: str) -> Schema:
    """A mapping whose fields nobody checks at admission."""
    return {"description": description, "type": "object", "x-kubernetes-preserve-unknown-fields": True}


def record(
    description: str,
    fields: Mapping[str, Schema],
    *,
    required: Iterable[str] = (),
    rules: Iterable[Schema] = (),
    **limits: Any,
) -> Schema:
    """A mapping with known fields and the rules between them."""
    schema: Schema = {"description": description, "type": "object", **limits, "properties": dict(fields)}
    if required := list(required):
        schema["required"] = required
    if rules := list(rules):
        schema["x-kubernetes-validations"] = rules
    return schema


def list_by(key: str, description: str, item: Schema, max_items: int, **limits: Any) -> Schema:
    """A list of records told apart by one required field, so that appliers merge it item by item."""
    merge = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    return {"description": description, "type": "array", "maxItems": max_items, **limits, **merge, "items": item}


def set_of(description: str, item: Schema, max_items: int, **limits: Any) -> Schema:
    """A list of strings without repetition; `item` carries their limits."""
    merge = {"x-kubernetes-list-type": "set"}
    return {"description": description, "type": "array", "maxItems": max_items, **limits, **merge, "items": item}


def rule(expression: str, message: str, *, at: str = "", detail: str = "") -> Schema:
    """A CEL rule: what must hold, what to do if it does not, and the field that is told.

    `detail` is a CEL expression for a message with names from the manifest; `message` is told when that one fails.
    """
    schema: Schema = {"rule": expression, "message": message}
    if detail:
        schema["messageExpression"] = detail
    if at:
        schema["fieldPath"] = at
    return schema
