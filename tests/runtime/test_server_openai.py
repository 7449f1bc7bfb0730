"""Routes around generation, with a scripted engine: completions, logprobs, tools, reasoning, tokens, administration."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from server_harness import SILENT, SLOW, ScriptedServer, scripted

CHAT = "/v1/chat/completions"
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
CALL = 'Sure.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
TWO_CALLS = CALL + '\n<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call>'
ARRAY = '[{"name": "add", "parameters": {"a": 1}}, {"name": "look_up", "parameters": {}}]'
ANSWERS = {1: CALL, 2: TWO_CALLS, 3: ARRAY, 4: '{"a": 2}', 5: "<think>Well…</think>\n\nFour.", 6: "naïve 🙂",
           7: "<think>Add.</think>" + CALL}  # fmt: skip
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}},
    {"type": "function", "function": {"name": "look_up"}},
]


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    flags = ("--served-model-name", "digits", "--reasoning-parser", "qwen3")
    with scripted(*flags, SCRIPT_ANSWERS=json.dumps(ANSWERS)) as running:
        yield running


@pytest.fixture
async def http(server: ScriptedServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(30)) as session:
        yield session


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as opened:
        yield opened


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


async def events(http: aiohttp.ClientSession, path: str, body: Any) -> list[Any]:
    async with http.post(path, json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        lines = [line.decode().strip() async for line in response.content]
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


# --- completions ------------------------------------------------------------------------------------------------------


async def test_completions_of_texts_and_tokens(client: openai.AsyncOpenAI) -> None:
    one = await client.completions.create(model="digits", prompt="abcdef", max_tokens=3)
    assert [choice.text for choice in one.choices] == ["abc"]
    assert (one.object, one.choices[0].finish_reason) == ("text_completion", "length")
    assert one.usage is not None
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (6, 3)
    several = await client.completions.create(model="digits", prompt=["ab", "xyz"], max_tokens=2, n=2, echo=True)
    assert [choice.text for choice in several.choices] == ["abab", "abab", "xyzxy", "xyzxy"]
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage is not None
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (5, 8)
    ids = await client.completions.create(model="digits", prompt=[64, 65], max_tokens=1, echo=True)
    assert ids.choices[0].text == "aba"
    lists = await client.completions.create(model="digits", prompt=[[64], [65, 66]], max_tokens=1)
    assert [choice.text for choice in lists.choices] == ["a", "b"]


async def test_completions_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="digits", prompt=["ab", "xy"], max_tokens=2, stream=True, echo=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[typeddict-unknown-key]
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    for index, text in enumerate(("abab", "xyxy")):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.text for choice in choices) == text
        assert [choice.finish_reason for choice in choices][-1] == "length"
    assert all(chunk.usage is not None for chunk in chunks)
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (4, 4)


async def test_completion_logprobs(client: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    expected = {
        "tokens": ["a", "b", "a"], "token_logprobs": [None, -0.65, -0.64], "text_offset": [0, 1, 2],
        "top_logprobs": [None, {"b": -0.65}, {"a": -0.64}],
    }  # fmt: skip
    answer = await client.completions.create(model="digits", prompt="ab", max_tokens=1, echo=True, logprobs=1)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.model_dump() == expected
    body = {"prompt": "ab", "max_tokens": 1, "echo": True, "logprobs": 1}
    pieces = [chunk["choices"][0]["logprobs"] for chunk in await events(http, "/v1/completions", body)]
    joined = {name: [item for piece in pieces if piece for item in piece[name]] for name in expected}
    assert joined == expected


# --- chat -------------------------------------------------------------------------------------------------------------


async def test_chat_logprobs(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "digits", "messages": MESSAGES, "seed": 6, "logprobs": True, "top_logprobs": 2}
    whole = await client.chat.completions.create(**asked)
    content = whole.choices[0].logprobs and whole.choices[0].logprobs.content
    assert content
    assert bytes(byte for one in content for byte in one.bytes or []).decode() == ANSWERS[6]
    smile = next(one for one in content if one.token.startswith("bytes:"))  # half a character
    assert smile.token == "bytes:" + "".join(f"\\x{byte:02x}" for byte in smile.bytes or [])
    assert [top.logprob for top in content[0].top_logprobs] == [content[0].logprob, -9999.0]
    stream = await client.chat.completions.create(**asked, stream=True)
    choices = [chunk.choices[0] async for chunk in stream if chunk.choices]
    streamed = [one for choice in choices if choice.logprobs for one in choice.logprobs.content or []]
    assert streamed == content
    assert "".join(choice.delta.content or "" for choice in choices) == ANSWERS[6]


async def test_incomplete_characters_are_never_sent(http: aiohttp.ClientSession) -> None:
    for path, body in ((CHAT, {"messages": MESSAGES}), ("/v1/completions", {"prompt": "x", "max_tokens": 99})):
        received = await events(http, path, {**body, "seed": 6})
        choices = [choice for chunk in received for choice in chunk["choices"]]
        pieces = [choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices]
        assert "".join(pieces) == ANSWERS[6]
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(("seed", "names"), [(1, ["add"]), (2, ["add", "look_up"]), (7, ["add"])])
async def test_tool_calls(client: openai.AsyncOpenAI, seed: int, names: list[str]) -> None:
    asked: Any = {"model": "digits", "messages": MESSAGES, "seed": seed, "tools": TOOLS}
    whole = (await client.chat.completions.create(**asked)).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content == "Sure."
    calls: Any = whole.message.tool_calls
    assert [call.function.name for call in calls] == names
    assert json.loads(calls[0].function.arguments) == {"a": 1, "b": "é"}
    assert len({call.id for call in calls}) == len(names)
    found: dict[int, list[str]] = {}
    reason, arguments = None, 0
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function is not None
            found.setdefault(call.index, [call.function.name or "", ""])[1] += call.function.arguments or ""
            arguments += 1
        reason = chunk.choices[0].finish_reason or reason
    assert reason == "tool_calls"
    assert [name for name, _ in found.values()] == names
    assert json.loads(found[0][1]) == {"a": 1, "b": "é"}
    assert arguments > 2 * len(names)  # they came in pieces


async def test_required_and_named_calls(client: openai.AsyncOpenAI, server: ScriptedServer) -> None:
    before = len(server.told("GenerateRequest"))
    asked: Any = {"model": "digits", "messages": MESSAGES, "tools": TOOLS}
    required = await client.chat.completions.create(**asked, seed=3, tool_choice="required")
    calls: Any = required.choices[0].message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [("add", '{"a": 1}'), ("look_up", "{}")]
    named = await client.chat.completions.create(
        **asked, seed=4, tool_choice={"type": "function", "function": {"name": "add"}}
    )
    calls = named.choices[0].message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [("add", '{"a": 2}')]
    none = await client.chat.completions.create(**asked, seed=1, tool_choice="none")
    assert none.choices[0].message.content == CALL
    assert none.choices[0].finish_reason == "stop"
    grammars = [request["sampling"]["grammar"] for request in server.told("GenerateRequest")[before:]]
    assert [grammar and grammar["kind"] for grammar in grammars] == ["json_schema", "json_schema", None]


async def test_answers_to_tools_go_to_the_template(http: aiohttp.ClientSession) -> None:
    function = {"name": "add", "arguments": '{"a": 1}'}
    call = {"id": "call_1", "type": "function", "function": function}
    turns = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "call_1", "content": "2"}]  # fmt: skip
    status, _ = await post(http, CHAT, {"messages": turns, "tools": TOOLS, "max_tokens": 1})
    assert status == 200
    for wrong in ('{"a"', "[1]", 5):
        function["arguments"] = wrong  # type: ignore[assignment]
        status, answer = await post(http, CHAT, {"messages": turns, "tools": TOOLS, "max_tokens": 1})
        assert status == 400
        assert "tool_calls[0]" in answer["error"]["message"]


async def test_reasoning(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "digits", "messages": MESSAGES, "seed": 5}
    message: Any = (await client.chat.completions.create(**asked)).choices[0].message
    assert (message.reasoning_content, message.content) == ("Well…", "Four.")
    thought, said = "", ""
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        delta: Any = chunk.choices[0].delta
        thought += getattr(delta, "reasoning_content", None) or ""
        said += delta.content or ""
    assert (thought, said) == ("Well…", "Four.")
    together = await client.chat.completions.create(**asked, extra_body={"separate_reasoning": False})
    assert together.choices[0].message.content == ANSWERS[5]


async def test_response_formats_reach_the_engine(http: aiohttp.ClientSession, server: ScriptedServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    bodies: list[Any] = [
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"regex": "[0-9]+"},
        {"ebnf": 'root ::= "a"'},
    ]
    before = len(server.told("GenerateRequest"))
    for body in bodies:
        status, answer = await post(http, CHAT, {"messages": MESSAGES, "max_tokens": 1, **body})
        assert status == 200, answer
    grammars = [request["sampling"]["grammar"] for request in server.told("GenerateRequest")[before:]]
    assert [grammar and grammar["kind"] for grammar in grammars] == [None, "json", "json_schema", "regex", "ebnf"]
    assert json.loads(grammars[2]["text"]) == schema
    wrong: list[Any] = [
        {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema"}}, {"response_format": {}},
        {"regex": "a", "ebnf": "b"}, {"regex": "a", "tools": TOOLS}, {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21}, {"tools": TOOLS, "tool_choice": "x"}, {"priority": 1 << 40},
        {"continue_final_message": True}, {"messages": [{"role": "assistant", "content": "a"}],
        "continue_final_message": True, "add_generation_prompt": True},
    ]  # fmt: skip
    for body in wrong:
        status, answer = await post(http, CHAT, {"messages": MESSAGES, **body})
        assert (status, bool(answer["error"]["param"])) == (400, True), (body, answer)


async def test_the_last_message_is_continued(http: aiohttp.ClientSession, server: ScriptedServer) -> None:
    async def prompt(**extra: Any) -> list[int]:
        status, answer = await post(http, "/tokenize", extra)
        assert status == 200, answer
        return list(answer["tokens"])

    begun = [*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "One, "}]}]
    opened = await prompt(messages=MESSAGES)
    assert await prompt(messages=begun, continue_final_message=True) == [
        *opened, *await prompt(prompt="One, ", add_special_tokens=False)
    ]  # fmt: skip
    assert len(await prompt(messages=MESSAGES, add_generation_prompt=False)) < len(opened)
    before = len(server.told("GenerateRequest"))
    body = {"messages": begun, "continue_final_message": True, "max_tokens": 1, "priority": 3}
    status, _ = await post(http, CHAT, body)
    assert status == 200
    request = server.told("GenerateRequest")[before]
    assert request["input_ids"] == await prompt(messages=begun, continue_final_message=True)
    assert request["priority"] == 3


async def test_stops_can_stay(http: aiohttp.ClientSession) -> None:
    body = {"prompt": "abcdef", "max_tokens": 9, "stop": ["cd"]}
    for extra, text in (({}, "ab"), ({"include_stop_str_in_output": True}, "abcd"), ({"no_stop_trim": True}, "abcd")):
        _, answer = await post(http, "/v1/completions", {**body, **extra})
        assert (answer["choices"][0]["text"], answer["choices"][0]["matched_stop"]) == (text, "cd")
    params = {"stop_token_ids": [66], "max_new_tokens": 9, "no_stop_trim": True}
    _, answer = await post(http, "/generate", {"input_ids": [64, 65, 66, 67], "sampling_params": params})
    assert answer["text"] == "abc"


# --- native -----------------------------------------------------------------------------------------------------------


async def test_native_logprobs(http: aiohttp.ClientSession) -> None:
    body = {
        "input_ids": [64, 65, 66], "sampling_params": {"max_new_tokens": 2}, "return_logprob": True,
        "logprob_start_len": 1, "top_logprobs_num": 1, "return_text_in_logprobs": True,
    }  # fmt: skip
    _, answer = await post(http, "/generate", body)
    meta = answer["meta_info"]
    assert meta["input_token_logprobs"] == [[-0.65, 65, "b"], [-0.66, 66, "c"]]
    assert meta["output_token_logprobs"] == [[-0.64, 64, "a"], [-0.65, 65, "b"]]
    assert meta["output_top_logprobs"] == [[[-0.64, 64, "a"]], [[-0.65, 65, "b"]]]
    streamed = (await events(http, "/generate", body))[-1]["meta_info"]
    assert streamed["output_token_logprobs"] == meta["output_token_logprobs"]
    _, plain = await post(http, "/generate", {**body, "return_logprob": False})
    assert "output_token_logprobs" not in plain["meta_info"]


async def test_too_many_samples_are_refused_before_anything_is_made(http: aiohttp.ClientSession) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": [[64]] * 300_000, "n": 128}),
        ("/generate", {"text": ["a"] * 300_000, "sampling_params": {"n": 128}}),
    ):
        status, answer = await post(http, path, body)
        assert status == 400
        assert str(300_000 * 128) in answer["error"]["message"]


async def test_native_parameters_per_prompt(http: aiohttp.ClientSession) -> None:
    params = [{"max_new_tokens": 1}, {"max_new_tokens": 2}]
    _, answer = await post(http, "/generate", {"text": ["ab", "cd"], "sampling_params": params})
    assert [item["text"] for item in answer] == ["a", "cd"]
    for wrong in ([{}], [{}, {}, {}], [{"n": 1}, {"n": 2}], [{"no_stop_trim": True}, {}]):
        status, _ = await post(http, "/generate", {"text": ["ab", "cd"], "sampling_params": wrong})
        assert status == (200 if len(wrong) == 1 else 400)
    for field in ({"token_ids_logprob": [1]}, {"lora_path": "x"}, {"sampling_params": {"stop_regex": "a"}}):
        status, answer = await post(http, "/generate", {"text": "ab", **field})
        assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_tokens_there_and_back(http: aiohttp.ClientSession, prefix: str) -> None:
    status, one = await post(http, prefix + "/tokenize", {"prompt": "ab🙂", "return_token_strs": True})
    assert status == 200
    assert one["count"] == len(one["tokens"]) == len(one["token_strs"])
    assert one["max_model_len"] == 4096
    _, back = await post(http, prefix + "/detokenize", {"tokens": one["tokens"]})
    assert back["text"] == back["prompt"] == "ab🙂"
    _, several = await post(http, prefix + "/tokenize", {"prompt": ["a", ""]})
    assert several["tokens"] == [[64], []]
    _, back = await post(http, prefix + "/detokenize", {"tokens": several["tokens"]})
    assert back["text"] == ["a", ""]
    for wrong in ({}, {"prompt": "a", "messages": MESSAGES}, {"messages": []}, {"prompt": "a" * 600_000}):
        status, _ = await post(http, prefix + "/tokenize", wrong)
        assert status == 400
    for tokens in ([384], [-1], [[1], 2], "a"):
        status, _ = await post(http, prefix + "/detokenize", {"tokens": tokens})
        assert status == 400
    for path, field in (("/v1/completions", "prompt"), ("/generate", "input_ids")):
        status, answer = await post(http, path, {field: [1, 384]})
        assert (status, answer["error"]["param"]) == (400, field)


# --- administration ---------------------------------------------------------------------------------------------------


async def test_a_request_is_aborted_by_its_id(http: aiohttp.ClientSession, server: ScriptedServer) -> None:
    known, ended = len(server.told("GenerateRequest")), len(server.told("AbortRequest"))
    native = {"text": "ab", "rid": "mine", "sampling_params": {"top_k": SILENT}}
    chat = {"messages": MESSAGES, "rid": "ours", "top_k": SLOW, "max_tokens": 900}
    tasks = [asyncio.create_task(post(http, "/generate", native)), asyncio.create_task(post(http, CHAT, chat))]
    await asyncio.to_thread(server.wait_told, "GenerateRequest", known + 2)
    assert await post(http, "/abort_request", {"rid": "nobody"}) == (200, {"aborted": 0})
    assert await post(http, "/abort_request", {"rid": "mine"}) == (200, {"aborted": 1})
    status, answer = await tasks[0]
    assert status == 200
    assert (answer["text"], answer["meta_info"]["finish_reason"]["type"]) == ("", "abort")
    status, flushed = await post(http, "/flush_cache", None)
    assert status == 400
    assert "under way" in flushed["error"]["message"]
    assert await post(http, "/abort_request", {"abort_all": True}) == (200, {"aborted": 1})
    status, answer = await tasks[1]
    assert (status, answer["id"], answer["choices"][0]["finish_reason"]) == (200, "ours", "abort")
    requests = server.told("GenerateRequest")[known:]
    aborts = await asyncio.to_thread(server.wait_told, "AbortRequest", ended + 2)
    assert {request["rid"] for request in requests} <= {abort["rid"] for abort in aborts}
    status, _ = await post(http, "/abort_request", {})
    assert status == 400


async def test_an_idle_server_flushes(http: aiohttp.ClientSession) -> None:
    assert (await post(http, "/flush_cache", None))[0] == 200
    async with http.get("/flush_cache") as response:
        assert (await response.json())["success"] is True


async def test_health_is_proven_by_a_token(http: aiohttp.ClientSession, server: ScriptedServer) -> None:
    known = len(server.told("GenerateRequest"))
    async with http.get("/health_generate") as response:
        assert response.status == 200
    assert server.told("GenerateRequest")[known]["sampling"]["max_new_tokens"] == 1


async def test_information(http: aiohttp.ClientSession) -> None:
    answers = {}
    for path in ("/ping", "/version", "/v1/loads", "/get_load", "/v1/models/digits", "/openapi.json"):
        async with http.get(path) as response:
            assert response.status == 200, path
            answers[path] = await response.json()
    load = answers["/v1/loads"]["loads"][0]
    assert answers["/get_load"] == [load]
    assert (load["num_running_reqs"], load["num_used_tokens"], load["token_usage"]) == (1, 25 * 16, 0.25)
    assert answers["/v1/models/digits"]["id"] == "digits"
    async with http.get("/v1/models/other") as response:
        assert response.status == 404
    document = answers["/openapi.json"]
    assert document["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["name"] == "model"
    body = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "top_logprobs" in document["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]["properties"]


async def test_keys() -> None:
    with scripted("--api-key", "user-key", "--admin-api-key", "admin-key") as server:

        async def status(method: str, path: str, key: str | None, scheme: str = "Bearer") -> int:
            headers = {"Authorization": f"{scheme} {key}"} if key is not None else {}
            body = {"messages": MESSAGES, "max_tokens": 1, "abort_all": True}
            async with (
                aiohttp.ClientSession(server.url, headers=headers) as http,
                http.request(method, path, json=body if method == "POST" else None) as response,
            ):
                if response.status == 401:
                    assert (await response.json())["error"]["code"] == "invalid_api_key"
                return response.status

        for path in ("/health", "/metrics", "/ping", "/ready", "/health_generate"):
            assert await status("GET", path, None) == 200
        for path in ("/v1/models", "/server_info", "/openapi.json"):
            assert [await status("GET", path, key) for key in (None, "", "wrong", "user-key", "admin-key")] == [
                401, 401, 401, 200, 200
            ]  # fmt: skip
        assert await status("POST", CHAT, "user-key") == 200
        assert await status("POST", CHAT, "user-key", "bearer") == 200
        assert await status("POST", CHAT, "user-key", "Basic") == 401
        for path in ("/abort_request", "/flush_cache"):
            assert [await status("POST", path, key) for key in (None, "user-key", "admin-key")] == [401, 401, 200]
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
        headers = {"Authorization": "Bearer user-key"}
        async with aiohttp.ClientSession(server.url, headers=headers) as http, http.get("/server_info") as response:
            assert "-key" not in await response.text()
