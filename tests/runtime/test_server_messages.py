"""Reasoning and tool calls out of text that arrives in pieces: any cut gives the same message."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epd_runtime.frontend.errors import RequestError
from epd_runtime.server.chat_message import MessageParser
from epd_runtime.server.reasoning import ReasoningParser
from epd_runtime.server.tools.base import ToolParser
from epd_runtime.server.tools.choice import parser_of, plan_tools
from epd_runtime.server.tools.formats import HermesParser, JsonArrayParser, Llama3Parser, NamedParser

NAMES = frozenset({"add", "look_up"})
FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "<tool", "</", "<|python_tag|>", "\n", " ", ";", "[", "]",
    '{"name": "add", "arguments": {"a": [1, {"b": "}"}]}}', '{"name": "add", "parameters": {"x": "\\"{<tool_call>"}}',
    '{"arguments": {"late": 1}, "name": "look_up"}', '{"name": "add"}', '{"name": "nobody", "arguments": {}}',
    '{"name": "add", "arguments": "{\\"a\\": 1}"}', '{"name": 5}', '{"x": }', '{"name": "add", "arguments": {"a": ]',
    '{"type": "function", "name": "add", "parameters": 12}', "{", "}", "é", "Text", '{"name": "add", "arguments"', ",",
]  # fmt: skip
PARSERS: list[type[ToolParser]] = [HermesParser, Llama3Parser, JsonArrayParser]


def stream(parser: MessageParser, pieces: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The message put together from its deltas as a client does it, and as the parser tells it."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
    for delta in deltas:
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name, "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"id": call["id"], "type": call["type"], "function": call["function"]})
            else:
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message, parser.message()


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "tool_calls": [call["function"] for call in message.get("tool_calls", ())]}


def read(kind: type[ToolParser], *pieces: str, parallel: bool = True) -> tuple[str, list[tuple[str, str]]]:
    message, _ = stream(MessageParser(None, kind(NAMES, parallel)), list(pieces))
    return message["content"], [(c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]]


@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join),
    st.lists(st.integers(0, 200)),
    st.sampled_from(PARSERS),
    st.sampled_from([None, False, True]),
    st.booleans(),
)
def test_any_cut_gives_the_same_message(
    text: str, cuts: list[int], kind: type[ToolParser], reasoning: bool | None, parallel: bool
) -> None:
    def parser() -> MessageParser:
        return MessageParser(None if reasoning is None else ReasoningParser(reasoning), kind(NAMES, parallel))

    whole, told = stream(parser(), [text])
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    cut_up, told_cut_up = stream(parser(), [text[a:b] for a, b in itertools.pairwise(bounds)])
    letters, _ = stream(parser(), list(text))
    assert without_ids(whole) == without_ids(cut_up) == without_ids(letters)
    assert without_ids(told) == without_ids(told_cut_up)
    assert (told["content"] or "") == whole["content"]
    assert [call["function"]["name"] in NAMES for call in whole["tool_calls"]] == [True] * len(whole["tool_calls"])


@given(st.text(), st.sampled_from(PARSERS), st.booleans())
def test_text_without_calls_stays_as_it_is(text: str, kind: type[ToolParser], always: bool) -> None:
    assert read(kind, text) == (text, [])
    message, _ = stream(MessageParser(ReasoningParser(False), None), list(text))
    if not text.lstrip().startswith("<think>"):
        assert message["content"] == text


@pytest.mark.parametrize(
    ("kind", "text", "content", "calls"),
    [
        (HermesParser, 'Let me.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n'
         '{"name": "look_up", "arguments": {}}\n</tool_call>', "Let me.", [("add", '{"a": 1}'), ("look_up", "{}")]),
        (HermesParser, '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
        (HermesParser, '<tool_call>{"name": "add", "arguments": {"a": "</tool_call>"}}</tool_call> Done.', " Done.",
         [("add", '{"a": "</tool_call>"}')]),
        (HermesParser, '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
         '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>', []),
        (HermesParser, "<tool_call>not JSON</tool_call>", "<tool_call>not JSON</tool_call>", []),
        (HermesParser, '<tool_call>{"na', '<tool_call>{"na', []),
        (HermesParser, '<tool_call>{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
        (Llama3Parser, '{"name": "add", "parameters": {"a": 1}}', "", [("add", '{"a": 1}')]),
        (Llama3Parser, '<|python_tag|>{"name": "add", "parameters": {}}; {"name": "look_up", "parameters": {"q": ""}}',
         "", [("add", "{}"), ("look_up", '{"q": ""}')]),
        (Llama3Parser, '{"answer": 42}', '{"answer": 42}', []),
        (Llama3Parser, 'Say {"name": "add"}', 'Say {"name": "add"}', []),
        (JsonArrayParser, '[{"name": "add", "parameters": {"a": [1, 2]}}, {"name": "add", "parameters": {}}]', "",
         [("add", '{"a": [1, 2]}'), ("add", "{}")]),
        (HermesParser, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "",
         [("add", '{"a": 1}')]),
        (HermesParser, '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', "", [("add", '{"a": 1}')]),
    ],
)  # fmt: skip
def test_calls(kind: type[ToolParser], text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(kind, *text) == (content, calls)


def test_arguments_stream_while_they_are_written() -> None:
    parser = HermesParser(NAMES)
    head = parser.feed('<tool_call>{"name": "add", "arguments": {"te')
    assert "".join(piece.arguments for piece in head if not isinstance(piece, str)) == '{"te'
    assert [piece.arguments for piece in parser.feed('xt": "a') if not isinstance(piece, str)] == ['xt": "a']


def test_without_parallel_calls_only_the_first_counts() -> None:
    text = '{"name": "add", "parameters": {"a": 1}}; {"name": "look_up", "parameters": {}}'
    assert read(Llama3Parser, text, parallel=False) == ("", [("add", '{"a": 1}')])


def test_a_named_function_gets_everything() -> None:
    parser = NamedParser(frozenset({"add"}))
    message, _ = stream(MessageParser(None, parser), ['{"a"', ": 1}"])
    assert without_ids(message)["tool_calls"] == [{"name": "add", "arguments": '{"a": 1}'}]


@pytest.mark.parametrize(
    ("always", "text", "reasoning", "content"),
    [
        (False, "<think>\nHm. \n</think>\n\nYes.", "Hm.", "Yes."),
        (False, "Yes. </think> No", "", "Yes. </think> No"),
        (False, " \n<think>a < b", "a < b", ""),
        (True, "Hm.</think>Yes.", "Hm.", "Yes."),
        (True, "<think>Hm.</think>Yes.</think>", "Hm.", "Yes.</think>"),
        (True, "Hm", "Hm", ""),
        (False, "<thin", "", "<thin"),
        (True, "Hm </thi", "Hm </thi", ""),
    ],
)
def test_reasoning(always: bool, text: str, reasoning: str, content: str) -> None:
    for pieces in ([text], list(text)):
        message, _ = stream(MessageParser(ReasoningParser(always), None), pieces)
        assert (message["reasoning_content"], message["content"]) == (reasoning, content)


def tool(name: Any = "add", parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_the_family_decides_the_parser() -> None:
    assert parser_of(None, "qwen2_5_vl") is HermesParser
    assert parser_of(None, "llama") is Llama3Parser
    assert parser_of("llama3", "qwen2") is Llama3Parser
    assert parser_of("none", "qwen2") is None
    assert parser_of(None, "other") is None


def test_required_calls_become_a_grammar() -> None:
    schema = {"type": "object", "properties": {"at": {"$ref": "#/$defs/At"}}, "$defs": {"At": {"type": "integer"}}}
    plan = plan_tools([tool("add", schema), tool("look_up")], "required", False, None)
    assert plan.grammar is not None
    grammar = json.loads(plan.grammar.text)
    assert grammar["$defs"] == {"At": {"type": "integer"}}
    assert (grammar["minItems"], grammar["maxItems"]) == (1, 1)
    assert [call["properties"]["name"]["enum"] for call in grammar["items"]["anyOf"]] == [["add"], ["look_up"]]
    assert "$defs" not in grammar["items"]["anyOf"][0]["properties"]["parameters"]


def test_a_named_choice_is_the_schema_of_its_arguments() -> None:
    choice = {"type": "function", "function": {"name": "add"}}
    plan = plan_tools([tool("add", {"type": "object"}), tool("look_up")], choice, True, None)
    assert plan.grammar is not None
    assert json.loads(plan.grammar.text) == {"type": "object"}


def test_no_tools_no_parser() -> None:
    assert plan_tools([tool()], "none", True, HermesParser).template is None
    assert plan_tools([tool()], "auto", True, None).new_parser is None
    assert plan_tools([], "auto", True, HermesParser).new_parser is None


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        ([tool()], "sometimes"), ([tool()], {"type": "function", "function": {"name": "nobody"}}), ([tool()], {}),
        ([], "required"), ([tool(), tool()], None), ([tool("a b")], None), ([tool(5)], None), ([5], None), ([{}], None),
        ([tool("add", [])], None), ([{"type": "function"}], None), ([tool(f"f{i}") for i in range(129)], None),
        ([tool("a", {"$defs": {"X": {}}}), tool("b", {"$defs": {"X": True}})], "required"),
    ],
)  # fmt: skip
def test_wrong_tools(tools: Any, choice: Any) -> None:
    with pytest.raises(RequestError) as caught:
        plan_tools(tools, choice, True, HermesParser)
    assert caught.value.status == 400
    assert caught.value.param is not None
