"""What bodies say about the form of an answer, as a Grammar for the engine. Pure."""

from __future__ import annotations

import json

from epd_runtime.frontend.errors import bad_request
from epd_runtime.messages import Grammar
from epd_runtime.server.protocol.openai import ResponseFormat


def plan_grammar(
    response_format: ResponseFormat | None, regex: str | None, ebnf: str | None, json_schema: str | None = None
) -> Grammar | None:
    """The one form that was asked for, None for any text; raises RequestError 400."""
    given = {
        "response_format": None if response_format is None else _from_format(response_format),
        "json_schema": None if json_schema is None else Grammar("json_schema", json_schema),
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
            return Grammar("json_schema", json.dumps(asked.json_schema.schema))
        case other:
            raise bad_request(
                f"response_format.type is {other[:40]!r}; supported are text, json_object and json_schema",
                "response_format",
            )
