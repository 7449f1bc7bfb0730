"""What bodies say about the form of an answer, as a Grammar for the engine. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.messages import Grammar
from epd_runtime.server.protocol.openai import ResponseFormat

# What the compiler of grammars leaves out without a word, or answers with JSON that is none.
IGNORED = ("uniqueItems", "not", "if", "dependentRequired", "dependentSchemas", "dependencies")
NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")  # their keys are names, no keywords
DATA = ("enum", "const", "default", "examples")
CLASS = re.compile(r"\[(\\.|[^\]\\])*\]")
QUOTE = re.compile(r'"|\\(x|u00)22')  # in a pattern, outside of classes: it would end the string of the answer
BACKSLASH = re.compile(r"\\\\|\\(x|u00)5c", re.IGNORECASE)


def plan_grammar(
    response_format: ResponseFormat | None, regex: str | None, ebnf: str | None, json_schema: str | None = None
) -> Grammar | None:
    """The one form that was asked for, None for any text; raises RequestError 400."""
    given = {
        "response_format": None if response_format is None else _from_format(response_format),
        "json_schema": None if json_schema is None else _from_text(json_schema),
        "regex": None if regex is None else Grammar("regex", regex),
        "ebnf": None if ebnf is None else Grammar("ebnf", ebnf),
    }
    asked = {name: grammar for name, grammar in given.items() if grammar is not None}
    if len(asked) > 1:
        raise bad_request(f"{' and '.join(asked)} exclude each other; send one of them", next(iter(asked)))
    return next(iter(asked.values()), None)


def _from_format(asked: ResponseFormat) -> Grammar | None:
    match asked.type:
        case "text":
            return None
        case "json_object":
            return Grammar("json")
        case "json_schema":
            if asked.json_schema is None or asked.json_schema.schema is None:
                raise bad_request("response_format.json_schema.schema is missing", "response_format")
            _check_schema(asked.json_schema.schema, "response_format")
            return Grammar("json_schema", json.dumps(asked.json_schema.schema))
        case other:
            raise bad_request(
                f"response_format.type is {other[:40]!r}; supported are text, json_object and json_schema",
                "response_format",
            )


def _from_text(schema: str) -> Grammar:
    try:
        _check_schema(json.loads(schema), "json_schema")
    except (ValueError, RecursionError) as error:
        raise bad_request(f"json_schema is not JSON: {error}", "json_schema") from None
    return Grammar("json_schema", schema)


def _check_schema(schema: Any, param: str) -> None:
    """Raise RequestError 400 naming a keyword that no grammar would keep."""
    try:
        lost = next(_lost_keywords(schema), None)
    except RecursionError:
        raise bad_request(f"the schema of {param} is nested too deep", param) from None
    if lost is not None:
        raise RequestError(
            400, f"{param}: this server cannot keep {lost} in an answer; leave it out", param, "unsupported_parameter"
        )


def _lost_keywords(schema: Any) -> Iterator[str]:
    """Keywords of a schema, and of those inside it, that the compiler of grammars does not keep."""
    if isinstance(schema, list):
        for one in schema:
            yield from _lost_keywords(one)
    if not isinstance(schema, dict):
        return
    yield from (repr(name) for name in IGNORED if schema.get(name))
    if isinstance(every := schema.get("allOf"), list) and len(every) > 1:
        yield "'allOf' of several schemas"
    if isinstance(pattern := schema.get("pattern"), str):
        if "minLength" in schema or "maxLength" in schema:
            yield "'pattern' together with 'minLength' or 'maxLength'"
        if QUOTE.search(CLASS.sub("", pattern)) or BACKSLASH.search(pattern):
            yield "a 'pattern' with quotes or backslashes in the text"
    for name, value in schema.items():
        if name in NAMED_SCHEMAS and isinstance(value, dict):
            yield from _lost_keywords(list(value.values()))
        elif name not in DATA:
            yield from _lost_keywords(value)
