"""tools and tool_choice of a body: what the template sees, what the grammar allows, which parser reads the answer.

none      no tools                               auto    the model decides; the family's parser reads it
required  a JSON array of calls, by grammar      named   the arguments of that function, by grammar
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from epd_runtime.frontend.errors import bad_request
from epd_runtime.messages import Grammar
from epd_runtime.server.tools.base import ToolParser
from epd_runtime.server.tools.formats import HermesParser, JsonArrayParser, Llama3Parser, NamedParser

MAX_TOOLS = 128
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
PARSERS: dict[str, type[ToolParser]] = {"hermes": HermesParser, "qwen25": HermesParser, "llama3": Llama3Parser}
FAMILIES = {"qwen": HermesParser, "llama": Llama3Parser}  # by the beginning of config.json's model_type

Schema = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ToolPlan:
    """What follows from tools and tool_choice. template: the tools as the template shows them, None for none."""

    template: Sequence[Any] | None = None
    grammar: Grammar | None = None
    new_parser: Callable[[], ToolParser] | None = None


NO_TOOLS = ToolPlan()


def parser_of(flag: str | None, model_type: str) -> type[ToolParser] | None:
    """The parser that --tool-call-parser names, or the family's own; None: calls stay text."""
    if flag is not None:
        return PARSERS.get(flag)
    return next((parser for family, parser in FAMILIES.items() if model_type.startswith(family)), None)


def plan_tools(tools: Sequence[Any] | None, choice: Any, parallel: bool, family: type[ToolParser] | None) -> ToolPlan:
    """Check both fields; raises RequestError 400."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise bad_request("tool_choice needs tools", "tool_choice")
        return NO_TOOLS
    schemas = _functions(tools)
    names = frozenset(schemas)
    match choice:
        case "none":
            return NO_TOOLS
        case None | "auto":
            return ToolPlan(tools, None, None if family is None else lambda: family(names, parallel))
        case "required":
            grammar = _grammar_of_calls(schemas, parallel)
            return ToolPlan(tools, grammar, lambda: JsonArrayParser(names, parallel))
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            grammar = Grammar("json_schema", json.dumps(schemas[name]))
            return ToolPlan(tools, grammar, lambda: NamedParser(frozenset({name})))
    raise bad_request("tool_choice must be none, auto, required, or name a function of tools", "tool_choice")


def _functions(tools: Sequence[Any]) -> dict[str, Schema]:
    """The schema of the parameters of every function."""
    if len(tools) > MAX_TOOLS:
        raise bad_request(f"tools has {len(tools)} entries; at most {MAX_TOOLS} are allowed", "tools")
    schemas: dict[str, Schema] = {}
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict):
            raise bad_request(f'{where} must be {{"type": "function", "function": {{…}}}}', where)
        name, schema = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise bad_request(f"{where}.function.name must be 1 to 64 letters, digits, or any of _ . -", where)
        if name in schemas:
            raise bad_request(f"{where}.function.name {name!r} is taken by another tool", where)
        if schema is not None and not isinstance(schema, dict):
            raise bad_request(f"{where}.function.parameters must be a JSON schema", where)
        schemas[name] = schema or {"type": "object", "properties": {}}
    return schemas


def _grammar_of_calls(schemas: dict[str, Schema], parallel: bool) -> Grammar:
    """A JSON array of one or more calls. Definitions move to the top, where references look for them."""
    definitions: Schema = {}
    for name, schema in schemas.items():
        for key, definition in (schema.get("$defs") or {}).items():
            if definitions.setdefault(key, definition) != definition:
                raise bad_request(f"tools define {key!r} in $defs twice, the second time for {name!r}", "tools")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": [name]},
                "parameters": {key: value for key, value in schema.items() if key != "$defs"},
            },
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for name, schema in schemas.items()
    ]
    array: Schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not parallel:
        array["maxItems"] = 1
    return Grammar("json_schema", json.dumps({**array, "$defs": definitions} if definitions else array))
