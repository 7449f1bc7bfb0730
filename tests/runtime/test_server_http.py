"""The API process over HTTP with a scripted engine: answers, errors, disconnects. No answer is ever a 500."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from server_harness import REFUSE, SILENT, SLOW, ScriptedServer, scripted

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted(
        "--served-model-name", "digits", "--max-queued-requests", "6", "--max-running-requests", "2"
    ) as running:
        yield running


@pytest.fixture
async def http(server: ScriptedServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    lines = [line.decode().strip() async for line in response.content]
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


def picture(width: int = 60, height: int = 40) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def with_image(url: str) -> list[dict[str, Any]]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "Read"}]}]


async def wait_idle(http: aiohttp.ClientSession) -> None:
    deadline = time.monotonic() + 30
    while True:
        async with http.get("/server_info") as response:
            info = await response.json()
        if info["num_open_requests"] == info["num_engine_requests"] == 0:
            return
        assert time.monotonic() < deadline, info
        await asyncio.sleep(0.01)


async def test_openai_client(server: ScriptedServer) -> None:
    client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    assert [model.id async for model in client.models.list()] == ["digits"]
    whole = await client.chat.completions.create(model="digits", messages=MESSAGES, max_tokens=5)
    assert whole.choices[0].message.content == "system\nYou are"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (21, 5)
    stream = await client.chat.completions.create(
        model="digits", messages=MESSAGES, max_completion_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "system\nYou are"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="other", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    await client.close()


@pytest.mark.parametrize("model", [None, "", "unknown", "digits"])
async def test_names_that_routers_write(http: aiohttp.ClientSession, model: str | None) -> None:
    status, _ = await post(http, CHAT, {"model": model, "messages": MESSAGES, "max_tokens": 1})
    assert status == 200


async def test_template_variables_cannot_replace_the_messages(http: aiohttp.ClientSession) -> None:
    variables = {"messages": 1, "self": 1, "loop": [], "add_generation_prompt": False}
    _, plain = await post(http, CHAT, {"messages": MESSAGES, "max_tokens": 1})
    status, answer = await post(http, CHAT, {"messages": MESSAGES, "max_tokens": 1, "chat_template_kwargs": variables})
    assert status == 200
    assert answer["usage"]["prompt_tokens"] < plain["usage"]["prompt_tokens"]


async def test_samples_stops_and_timings(http: aiohttp.ClientSession, server: ScriptedServer) -> None:
    body = {"messages": MESSAGES, "n": 3, "seed": 40, "stop": ["You"], "max_tokens": 9, "return_timings": True}
    before = len(server.told("GenerateRequest"))
    status, answer = await post(http, CHAT, body)
    assert status == 200
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["system\n"] * 3
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop"] * 3
    assert answer["choices"][0]["matched_stop"] == "You"
    assert answer["timings"][0]["stage"] == "tokenize"
    sent = server.told("GenerateRequest")[before:]
    assert [request["sampling"]["seed"] for request in sent] == [40, 41, 42]
    await wait_idle(http)
    async with http.post(CHAT, json={**body, "stream": True, "n": 1}) as response:
        received = await events(response)
    assert received[-1]["choices"] == []
    assert received[-1]["timings"][0]["stage"] == "tokenize"


async def test_a_stop_token_is_not_shown(http: aiohttp.ClientSession) -> None:
    params = {"stop_token_ids": [66], "max_new_tokens": 9}
    _, answer = await post(http, "/generate", {"input_ids": [64, 65, 66, 67], "sampling_params": params})
    assert (answer["text"], answer["output_ids"]) == ("ab", [64, 65, 66])
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": 66}


async def test_native_whole_stream_and_batch(http: aiohttp.ClientSession) -> None:
    body = {"text": "abcdef", "rid": "mine", "sampling_params": {"max_new_tokens": 3}, "model": None}
    status, answer = await post(http, "/generate", body)
    assert status == 200
    assert answer["meta_info"].pop("e2e_latency") > 0
    meta = {"id": "mine", "finish_reason": {"type": "length", "length": 3}, "prompt_tokens": 6, "completion_tokens": 3,
            "cached_tokens": 1}  # fmt: skip
    assert answer == {"text": "abc", "output_ids": [64, 65, 66], "meta_info": meta}
    async with http.post("/generate", json={**body, "stream": True}) as response:
        received = await events(response)
    assert received[-1]["meta_info"].pop("e2e_latency") > 0
    assert received[-1] == answer
    assert all("abc".startswith(item["text"]) for item in received)
    _, batch = await post(
        http, "/generate", {"input_ids": [[64], [65]], "sampling_params": {"max_new_tokens": 2, "n": 2}}
    )
    assert [item["text"] for item in batch] == ["aa", "aa", "bb", "bb"]


async def test_images_reach_the_engine_as_files(http: aiohttp.ClientSession, server: ScriptedServer) -> None:
    before = len(server.told("GenerateRequest"))
    status, answer = await post(http, CHAT, {"messages": with_image(picture()), "max_tokens": 2})
    assert status == 200
    request = server.told("GenerateRequest")[before]
    image = request["images"][0]
    assert image["grid"] == [1, 2, 4]
    assert image["data"] > 0
    assert request["positions"] == 3 * 4 * len(request["input_ids"])
    assert answer["usage"]["prompt_tokens"] == len(request["input_ids"])


BAD: list[dict[str, Any]] = [
    {},
    {"messages": []},
    {"messages": MESSAGES, "max_tokens": -1},
    {"messages": MESSAGES, "max_tokens": 5000},
    {"messages": MESSAGES, "temperature": -1},
    {"messages": MESSAGES, "n": 0},
    {"messages": MESSAGES, "n": 100},
    {"messages": MESSAGES, "tools": [{"type": "function"}]},
    {"messages": [{"role": "user", "content": "x " * 9000}]},
    {"messages": with_image("data:image/png;base64,AAAA")},
    {"messages": with_image("http://127.0.0.1:1/x.png")},
    {"messages": with_image("http://169.254.169.254/")},
    {"messages": with_image(picture(2100, 10))},
    {"messages": [{"role": "user", "content": "<|image_pad|>"}]},
    {"messages": MESSAGES, "top_k": REFUSE},
    {"messages": MESSAGES, "chat_template_kwargs": 1},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", BAD, ids=lambda body: json.dumps(body)[:60])
async def test_bad_requests(http: aiohttp.ClientSession, body: dict[str, Any], stream: bool) -> None:
    status, answer = await post(http, CHAT, {**body, "stream": stream})
    assert status == 400, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"]
    await wait_idle(http)


@pytest.mark.parametrize("path", [CHAT, "/generate"])
async def test_garbage_bodies(http: aiohttp.ClientSession, path: str) -> None:
    draw = random.Random(6)
    bodies = [b"", b"{", b"null", b"[[[[", b"\x00\xff", b'{"messages":[1]}', b'{"text":["a",5]}',
              b'{"input_ids":[[1],2]}',
              b'{"input_ids":[1.5]}', b'{"text":"a","image_data":{"x":1}}', b'{"text":"a","sampling_params":[]}',
              b'{"text":"a","input_ids":[1]}', b'{"text":[]}', b'{"input_ids":[]}', b"[" * 200_000]  # fmt: skip
    valid = json.dumps({"messages": with_image(picture()), "text": "abc", "max_tokens": 2, "n": 1}).encode()
    for _ in range(60):
        mutated = bytearray(valid)
        for _ in range(draw.randint(1, 6)):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        bodies.append(bytes(mutated))
    for body in bodies:
        async with http.post(path, data=body) as response:
            answer = await response.json()
            assert response.status in (200, 400, 404), (body[:200], answer)
    await wait_idle(http)


async def test_unknown_routes_and_methods(http: aiohttp.ClientSession) -> None:
    for method, path, expected in (("GET", "/nothing", 404), ("GET", CHAT, 405), ("POST", "/encode", 404)):
        async with http.request(method, path) as response:
            assert response.status == expected
            assert "error" in await response.json()


async def test_bodies_over_the_limit(server: ScriptedServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 300000000\r\n\r\n")
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


async def test_http2_prior_knowledge_probe_is_answered(server: ScriptedServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    answer = await asyncio.wait_for(reader.read(), 3)
    assert answer == b"" or b" 400 " in answer
    writer.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("top_k", [SLOW, SILENT])
async def test_a_disconnect_aborts(
    http: aiohttp.ClientSession, server: ScriptedServer, stream: bool, top_k: int
) -> None:
    asked, aborted = len(server.told("GenerateRequest")), len(server.told("AbortRequest"))
    body = {"messages": MESSAGES, "top_k": top_k, "max_tokens": 500, "n": 2, "stream": stream}
    task = asyncio.create_task(post(http, CHAT, body))
    await asyncio.to_thread(server.wait_told, "GenerateRequest", asked + 2)
    task.cancel()
    rids = {request["rid"] for request in server.told("GenerateRequest")[asked:]}
    aborts = await asyncio.to_thread(server.wait_told, "AbortRequest", aborted + 2)
    assert {abort["rid"] for abort in aborts[aborted:]} == rids
    await wait_idle(http)


async def test_a_client_leaving_in_mid_stream_aborts(http: aiohttp.ClientSession, server: ScriptedServer) -> None:
    aborted = len(server.told("AbortRequest"))
    async with http.post(
        CHAT, json={"messages": MESSAGES, "top_k": SLOW, "max_tokens": 500, "stream": True}
    ) as response:
        await response.content.readline()
        response.close()
    await asyncio.to_thread(server.wait_told, "AbortRequest", aborted + 1)
    await wait_idle(http)


async def test_full_servers_say_so(http: aiohttp.ClientSession) -> None:
    body = {"messages": MESSAGES, "top_k": SILENT}
    waiting = [asyncio.create_task(post(http, CHAT, {**body, "n": 4})) for _ in range(2)]
    deadline = time.monotonic() + 30
    async with http.get("/health") as response:
        assert response.status == 200
    while True:
        async with http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1}) as response:
            if response.status == 503:
                assert response.headers["Retry-After"] == "1"
                assert (await response.json())["error"]["type"] == "overloaded_error"
                break
        assert time.monotonic() < deadline
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await wait_idle(http)


async def test_metrics_and_information(http: aiohttp.ClientSession) -> None:
    await post(http, CHAT, {"messages": MESSAGES, "max_tokens": 3})
    async with http.get("/metrics") as response:
        text = await response.text()
    for name in (
        "time_to_first_token_seconds_count", "generation_tokens_total", "token_usage", "num_rooms", "num_rooms_done",
        "num_rooms_failed", "kv_pages_in_handoff", "handoff_bytes",
    ):  # fmt: skip
        assert f"sglang:{name}{{" in text
    for path in ("/server_info", "/get_server_info", "/model_info", "/get_model_info"):
        async with http.get(path) as response:
            info = await response.json()
            assert response.status == 200
            assert info["served_model_name"] == "digits"
    assert info["model_type"] == "qwen2_5_vl"


async def test_many_streams_at_once_stay_apart(http: aiohttp.ClientSession) -> None:
    async def one(letter: str) -> str:
        body = {"text": letter * 30, "sampling_params": {"max_new_tokens": 40, "top_k": 0}}
        status, answer = await post(http, "/generate", body)
        return str(answer["text"]) if status == 200 else "refused"

    letters = "abcdefgh"
    for letter, text in zip(letters, await asyncio.gather(*map(one, letters)), strict=True):
        assert set(text) == {letter}


def test_a_slow_client_does_not_stop_others(server: ScriptedServer) -> None:
    """A client that never reads its stream: tokens of others flow, and its own are bounded by max_tokens."""
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as idle:
        body = json.dumps({"text": "abc", "sampling_params": {"max_new_tokens": 3000}, "stream": True}).encode()
        idle.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        time.sleep(0.3)

        async def other() -> float:
            started = time.monotonic()
            async with aiohttp.ClientSession(server.url) as http:
                await post(http, "/generate", {"text": "abc", "sampling_params": {"max_new_tokens": 5}})
            return time.monotonic() - started

        assert asyncio.run(other()) < 10


def test_everything_ended(server: ScriptedServer) -> None:
    """Last of this module: nothing of all the above is still open."""

    async def check() -> None:
        async with aiohttp.ClientSession(server.url) as http:
            await wait_idle(http)

    asyncio.run(check())
    assert "Traceback" not in server.log
