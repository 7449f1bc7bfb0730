"""Pure parts of the API process: rooms, sampling, bodies, and what it imports."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from epd_runtime.config import Role
from epd_runtime.frontend.errors import RequestError
from epd_runtime.frontend.model_folder import SamplingDefaults
from epd_runtime.messages import Bootstrap, EngineStats, Grammar
from epd_runtime.server import http as server_http
from epd_runtime.server.metrics import PREFIX, TOKEN_BUCKETS, Metrics
from epd_runtime.server.protocol.base import RoomFields, parse_body, refuse_unsupported
from epd_runtime.server.protocol.native import NativeRequest
from epd_runtime.server.protocol.openai import ChatRequest, JsonSchemaFormat, ResponseFormat
from epd_runtime.server.rooms import ROOMS, derive_room, plan_rooms
from epd_runtime.server.sampling import TO_END_OF_CONTEXT, SamplingPlan, SamplingRequest, plan_sampling
from epd_runtime.server.structured_output import plan_grammar

VOCAB = 300
NOTHING = SamplingRequest(None, None, None, None, None, None, None, None, None, None)


def plan(defaults: SamplingDefaults | None = None, **fields: Any) -> SamplingPlan:
    return plan_sampling(SamplingRequest(**{**vars(NOTHING), **fields}), defaults or SamplingDefaults(), 7, VOCAB)


def rooms(num_prompts: int, n: int, role: Role = Role.DECODE, **fields: Any) -> list[Bootstrap | None]:
    return plan_rooms(RoomFields(**fields), num_prompts, n, role, None, 8998)


def test_the_api_process_never_imports_torch() -> None:
    code = """
import sys
import epd_runtime.launch_server, epd_runtime.server.main, epd_runtime.frontend.model_folder
import uvicorn, uvloop, httptools
from uvicorn.protocols.http import httptools_impl
model = epd_runtime.frontend.model_folder.load_model_folder(sys.argv[1])
assert model.chat_template.render([{"role": "user", "content": "x"}])
bad = {"torch", "transformers"} & set(sys.modules)
assert not bad, bad
"""
    folder = __file__.rsplit("/tests/", 1)[0] + "/models/handwriting"
    subprocess.run([sys.executable, "-c", code, folder], check=True)


def test_one_room_per_sample() -> None:
    assert rooms(1, 1, bootstrap_host="p", bootstrap_room=5) == [Bootstrap("p", 8998, 5)]
    assert rooms(1, 1, bootstrap_host=["p"], bootstrap_port=[None], bootstrap_room=[5]) == [Bootstrap("p", 8998, 5)]
    batch = rooms(2, 1, bootstrap_host=["p", "q"], bootstrap_port=[1, 2], bootstrap_room=[5, 6])
    assert batch == [Bootstrap("p", 1, 5), Bootstrap("q", 2, 6)]


def test_fewer_rooms_than_samples_are_derived_alike_for_scalars_and_lists() -> None:
    scalar = rooms(1, 3, bootstrap_host="p", bootstrap_room=5)
    assert scalar == rooms(1, 3, bootstrap_host=["p"], bootstrap_room=[5])
    assert [room.room for room in scalar if room] == [5, derive_room(5, 1), derive_room(5, 2)]
    spread = rooms(2, 2, bootstrap_host=["p", "q"], bootstrap_port=[1, None], bootstrap_room=[5, 6])
    assert spread == [
        Bootstrap("p", 1, 5),
        Bootstrap("p", 1, derive_room(5, 1)),
        Bootstrap("q", 8998, 6),
        Bootstrap("q", 8998, derive_room(6, 1)),
    ]


@given(st.integers(0, ROOMS - 1), st.integers(1, 128))
def test_derived_rooms_are_distinct_and_in_range(room: int, n: int) -> None:
    derived = [derive_room(room, index) for index in range(n)]
    assert len(set(derived)) == n
    assert all(0 <= value < ROOMS for value in derived)
    assert derived[0] == room


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "bootstrap_room"),
        ({"bootstrap_room": []}, "bootstrap_room"),
        ({"bootstrap_room": -1, "bootstrap_host": "p"}, "bootstrap_room"),
        ({"bootstrap_room": 1 << 63, "bootstrap_host": "p"}, "bootstrap_room"),
        ({"bootstrap_room": [1, 1], "bootstrap_host": "p"}, "bootstrap_room"),
        ({"bootstrap_room": [1, 2, 3], "bootstrap_host": "p"}, "bootstrap_room"),
        ({"bootstrap_room": 1}, "bootstrap_host"),
        ({"bootstrap_room": 1, "bootstrap_host": "p", "bootstrap_port": 0}, "bootstrap_port"),
        ({"bootstrap_room": 1, "bootstrap_host": ["p"] * 3}, "bootstrap_host"),
    ],
)
def test_broken_bootstrap_fields(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        rooms(2, 1, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_roles_without_a_handoff_ignore_the_fields() -> None:
    assert rooms(2, 2, Role.COLOCATED) == [None] * 4
    assert plan_rooms(RoomFields(bootstrap_room=3), 1, 1, Role.PREFILL, "own", 1)[0] == Bootstrap("own", 1, 3)


def test_defaults_come_from_the_model() -> None:
    params = plan(SamplingDefaults(0.5, 0.8, 20)).params
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.8, 20, 7)
    assert params.max_new_tokens == TO_END_OF_CONTEXT
    assert plan(SamplingDefaults(0.5), temperature=0.0, top_k=-1).params.temperature == 0.0


def test_every_field_reaches_the_engine() -> None:
    schema = Grammar("json_schema", '{"type": "object"}')
    params = plan(
        SamplingDefaults(min_p=0.1, repetition_penalty=1.05),
        presence_penalty=-2,
        frequency_penalty=0.5,
        logit_bias={"299": -100, "007": 1.5},
        min_new_tokens=5,
        max_new_tokens=5,
        logprobs=0,
        prompt_logprobs_from=2,
        grammar=schema,
    ).params
    assert (params.min_p, params.repetition_penalty, params.presence_penalty) == (0.1, 1.05, -2.0)
    assert (params.frequency_penalty, params.logit_bias, params.min_new_tokens) == (0.5, ((299, -100.0), (7, 1.5)), 5)
    assert (params.logprobs, params.prompt_logprobs_from, params.grammar) == (0, 2, schema)


def test_samples_differ_in_their_seed() -> None:
    both = plan(n=2, seed=-1)
    assert both.sample(1).seed == (both.sample(0).seed + 1) % ROOMS
    assert both.stop == ()
    assert plan(stop="x").stop == ("x",)
    assert plan(stop=["x", ""]).stop == ("x",)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": -5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"n": 0},
        {"n": 1000},
        {"stop": ["x"] * 17},
        {"stop": "x" * 257},
        {"stop_token_ids": [-1]},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {"300": 1.0}},
        {"logit_bias": {"-1": 1.0}},
        {"logit_bias": {"٣": 1.0}},
        {"logit_bias": {"9" * 5000: 1.0}},
        {"logit_bias": {"1": 101.0}},
        {"logit_bias": {"1": float("nan")}},
        {"min_new_tokens": -1},
        {"min_new_tokens": 6, "max_new_tokens": 5},
        {"logprobs": 21},
        {"prompt_logprobs_from": -2},
        {"grammar": Grammar("json_schema", "[1]")},
        {"grammar": Grammar("json_schema", "{")},
        {"grammar": Grammar("json_schema", "[" * 100_000)},
        {"grammar": Grammar("json_schema", '"\\ud800"')},
        {"grammar": Grammar("regex", "")},
        {"grammar": Grammar("regex", "\ud800")},
        {"grammar": Grammar("ebnf", "a" * (1 << 17))},
    ],
)
def test_fields_out_of_bounds(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        plan(**fields)
    assert caught.value.status == 400


def test_huge_numbers_stay_in_range() -> None:
    params = plan(seed=10**30, top_k=10**30, max_new_tokens=5).params
    assert 0 <= params.seed < ROOMS
    assert params.top_k < 1 << 32


async def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_http, "SEND_SECONDS", 0.1)
    closed = []

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: x"
        finally:
            closed.append(True)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    async with asyncio.timeout(30):
        await server_http.EventStream(frames(), lambda error: None)({"type": "http"}, receive, send)
    assert closed == [True]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"messages": 5}', b'{"max_tokens": "5"}', b'{"stop": {}}',
     b'{"messages": [], "x": "\\ud800"}', b"[" * 100_000, b'{"a":' * 100_000, b'{"temperature": 1e999}'],
)  # fmt: skip
def test_garbage_bodies(data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(data, ChatRequest)
    assert caught.value.status == 400


def test_nulls_and_unknown_fields_are_accepted() -> None:
    names = [name for name in ChatRequest.__struct_fields__ if name != "messages"]
    body = "{" + ",".join(f'"{name}": null' for name in names) + ', "messages": [], "surprise": [1]}'
    refuse_unsupported(parse_body(body.encode(), ChatRequest))
    names = list(NativeRequest.__struct_fields__)
    refuse_unsupported(parse_body(("{" + ",".join(f'"{name}": null' for name in names) + "}").encode(), NativeRequest))


def test_errors_name_the_field() -> None:
    with pytest.raises(RequestError) as caught:
        parse_body(b'{"max_tokens": "5"}', ChatRequest)
    assert caught.value.param == "max_tokens"
    with pytest.raises(RequestError, match="functions is not supported"):
        refuse_unsupported(parse_body(b'{"functions": [{}]}', ChatRequest))
    refuse_unsupported(parse_body(b'{"functions": [], "return_hidden_states": false}', ChatRequest))


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"properties": {"a": {"items": [{"not": {"type": "null"}}]}}}, "not"),
        ({"$defs": {"x": {"anyOf": [{"if": {"const": 1}, "then": False}]}}}, "if"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"allOf": [{"minimum": 5}, {"maximum": 7}]}, "allOf"),
        ({"pattern": "^x$", "minLength": 2}, "minLength"),
        ({"pattern": r"^\\$"}, "backslashes"),
        ({"patternProperties": {"not": {"pattern": r"\x22"}}}, "quotes"),
    ],
)
def test_what_no_grammar_keeps_is_refused_by_its_name(schema: dict[str, Any], keyword: str) -> None:
    asked = ResponseFormat("json_schema", JsonSchemaFormat(schema))
    for arguments in ((asked, None, None, None), (None, None, None, json.dumps(schema))):
        with pytest.raises(RequestError, match=keyword) as error:
            plan_grammar(*arguments)
        assert error.value.status == 400
        assert error.value.param in ("response_format", "json_schema")


def test_names_and_data_are_no_keywords() -> None:
    schema = {
        "properties": {"not": {"enum": [{"uniqueItems": True}]}, "if": {"const": {"allOf": [1, 2]}}},
        "uniqueItems": False, "allOf": [{"type": "object"}], "pattern": r'^\d+\.[^"]$', "multipleOf": 5,
    }  # fmt: skip
    assert plan_grammar(ResponseFormat("json_schema", JsonSchemaFormat(schema)), None, None) is not None


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000])
def test_a_schema_that_is_no_json_or_too_deep_is_refused(text: str) -> None:
    with pytest.raises(RequestError) as error:
        plan_grammar(None, None, None, text)
    assert error.value.status == 400


def test_the_histogram_of_tokens_is_the_librarys() -> None:
    ours = Metrics("m", EngineStats, lambda: 0)
    registry = CollectorRegistry()
    name = PREFIX + "inter_token_latency_seconds"
    known = Histogram(name, "Between tokens", ["model_name"], buckets=TOKEN_BUCKETS, registry=registry).labels("m")
    for seconds in (0, 0.001, 0.0010001, 0.3, 7, 5, 0.02):
        ours.inter_token_latency.observe(seconds)
        known.observe(seconds)
    expected = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    assert len(expected) > len(TOKEN_BUCKETS)
    assert set(expected) <= set(ours.render().decode().splitlines())
