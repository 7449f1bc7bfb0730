"""Chat messages to prompt text, by the model's own Jinja template, in a sandbox.

Templates come with models and are not trusted: they see plain JSON values only, cannot change them, and reach no Python
internals. The environment offers what templates in Hugging Face layout expect: tojson, raise_exception, strftime_now,
loop controls, trimmed blocks, and the tokenizer's bos_token and eos_token.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from epd_runtime.frontend.errors import bad_request

EMPTY: Mapping[str, Any] = {}


class _GenerationBlock(jinja2.ext.Extension):
    """Accepts {% generation %} ... {% endgeneration %}, which marks answers for training; here it only renders."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


class ChatTemplate:
    """A compiled template. variables are visible to every rendering (bos_token, eos_token, …)."""

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._template = environment.from_string(source)
        self._variables = variables

    def render(self, messages: Sequence[dict[str, Any]], variables: Mapping[str, Any] = EMPTY) -> str:
        """Prompt text of the messages, ending where the assistant begins; raises RequestError 400 with the reason.

        variables come from the client and are visible to the template; they cannot replace the messages.
        """
        defaults = {"tools": None, "documents": None, "add_generation_prompt": True}
        try:
            return self._template.render({**defaults, **self._variables, **variables, "messages": list(messages)})
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise bad_request(f"the model's chat template cannot render these messages: {error}", "messages") from None
