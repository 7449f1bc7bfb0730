"""Life and death of a server process: how it starts, drains, dies with its engine, and what the roles of a pair say."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from server_harness import HANDWRITING, SILENT, SLOW, ScriptedServer, scripted, start_scripted

from servers import free_port, start

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]


async def post(server: ScriptedServer, body: Any, path: str = CHAT) -> tuple[int, Any]:
    timeout = aiohttp.ClientTimeout(20)
    async with aiohttp.ClientSession(timeout=timeout) as http, http.post(server.url + path, json=body) as response:
        return response.status, await response.json()


def launch_result(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "epd_runtime.launch_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        result = launch_result("--model-path", str(folder))
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert str(folder) in result.stderr


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "qwen2"}'])
def test_a_broken_model_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    result = launch_result("--model-path", str(tmp_path), "--port", str(free_port()))
    assert result.returncode == 2
    assert "config.json" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_malformed_encoder_urls_are_one_line() -> None:
    result = launch_result("--model-path", str(HANDWRITING), "--language-only", "--encoder-urls", "encoder:30000")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "--encoder-urls" in result.stderr


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = launch_result("--model-path", str(HANDWRITING), "--port", str(port))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in result.stderr


def test_health_says_503_until_the_engine_is_ready() -> None:
    server = start_scripted(start="held")
    try:

        async def first_answers() -> tuple[int, int]:
            async with aiohttp.ClientSession() as http:
                while True:
                    try:
                        async with http.get(server.url + "/health") as response:
                            status = response.status
                        async with http.post(server.url + CHAT, json={"messages": MESSAGES}) as refused:
                            return status, refused.status
                    except aiohttp.ClientConnectorError:
                        await asyncio.sleep(0.02)

        assert asyncio.run(first_answers()) == (503, 503)
        server.engine_log.with_name("go").touch()
        server.wait_healthy()
    finally:
        server.stop()


@pytest.mark.parametrize(("start", "reason"), [("fail", "the script has no weights"), ("exit", "ended with status 3")])
def test_an_engine_that_cannot_start_ends_the_server(start: str, reason: str) -> None:
    server = start_scripted(start=start)
    assert server.process.wait(90) == 1
    assert reason in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("stream", [False, True])
async def test_the_engines_death_ends_requests_and_server(stream: bool) -> None:
    with scripted() as server:
        body = {"messages": MESSAGES, "top_k": SLOW, "max_tokens": 500, "stream": stream}
        async with aiohttp.ClientSession() as http:
            task = asyncio.create_task(http.post(server.url + CHAT, json=body))
            await asyncio.to_thread(server.wait_told, "GenerateRequest")
            if stream:
                await (await asyncio.shield(task)).content.readline()
            psutil.Process(server.engine_pid).kill()
            killed = time.monotonic()
            response = await task
            text = await response.text()
            assert time.monotonic() - killed < 10
        if stream:
            lines = [line for line in text.splitlines() if line]
            assert lines[-1] == "data: [DONE]"
            error = json.loads(lines[-2].removeprefix("data: "))["error"]
        else:
            assert response.status == 503
            error = json.loads(text)["error"]
        assert "SIGKILL" in error["message"]
        assert await asyncio.to_thread(server.process.wait, 30) == 1
        assert "Traceback" not in server.log


def test_the_servers_death_ends_the_engine() -> None:
    with scripted() as server:
        engine = psutil.Process(server.engine_pid)
        server.process.kill()
        engine.wait(30)


async def drains(http: aiohttp.ClientSession, url: str) -> None:
    """Until a server refuses new requests."""
    async with asyncio.timeout(30):
        while (await http.get(url + "/health")).status != 503:  # noqa: ASYNC110 - asked of another process
            await asyncio.sleep(0.01)


async def test_sigterm_drains() -> None:
    with scripted() as server:
        body = {"messages": MESSAGES, "top_k": SLOW, "max_tokens": 40}
        task = asyncio.create_task(post(server, body))
        await asyncio.to_thread(server.wait_told, "GenerateRequest")
        async with aiohttp.ClientSession() as http:
            server.process.send_signal(signal.SIGTERM)
            await drains(http, server.url)
            async with http.post(server.url + CHAT, json={"messages": MESSAGES}) as response:
                assert response.status == 503
                assert "shutting down" in (await response.json())["error"]["message"]
            assert server.process.poll() is None
        status, answer = await task
        assert status == 200
        assert answer["usage"]["completion_tokens"] == 40
        assert await asyncio.to_thread(server.process.wait, 30) == 0
        assert "Traceback" not in server.log


async def test_a_second_signal_stops_at_once() -> None:
    with scripted() as server:
        task = asyncio.create_task(post(server, {"messages": MESSAGES, "top_k": SILENT}))
        await asyncio.to_thread(server.wait_told, "GenerateRequest")
        server.process.send_signal(signal.SIGINT)
        async with aiohttp.ClientSession() as http:
            await drains(http, server.url)
        server.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(server.process.wait, 15) == 0
        with pytest.raises(aiohttp.ClientError):
            await task


ROOM = {"bootstrap_host": "127.0.0.9", "bootstrap_port": None, "bootstrap_room": 77}


async def test_decode_does_no_prompt_work() -> None:
    with scripted("--disaggregation-mode", "decode") as server:
        status, answer = await post(server, {"messages": MESSAGES})
        assert status == 400
        assert "router" in answer["error"]["message"]
        image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/never-fetched.png"}}
        messages = [{"role": "user", "content": [image]}]
        status, answer = await post(server, {"messages": messages, "n": 2, "max_tokens": 3, **ROOM})
        assert status == 200
        assert answer["usage"]["prompt_tokens"] == 11
        requests = server.told("GenerateRequest")
        assert [request["input_ids"] for request in requests] == [[], []]
        assert requests[0]["bootstrap"] == {"host": "127.0.0.9", "port": 8998, "room": 77}
        assert requests[1]["bootstrap"]["room"] not in (77, requests[0]["bootstrap"]["room"])
        status, answer = await post(
            server, {"text": ["a", "b"], "sampling_params": {"max_new_tokens": 2}, **ROOM}, "/generate"
        )
        assert [len(item["output_ids"]) for item in answer] == [2, 2]


async def test_prefill_tells_the_room_of_its_refusals() -> None:
    with scripted("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", "9123") as server:
        status, _ = await post(server, {"messages": MESSAGES, "max_tokens": 4, "stop": ["system"], **ROOM})
        assert status == 200
        request = server.told("GenerateRequest")[0]
        assert request["bootstrap"] == {"host": "127.0.0.9", "port": 9123, "room": 77}
        assert request["sampling"]["max_new_tokens"] == 4
        assert server.told("AbortRequest") == []  # a stop string on prefill must not end the room

        long = [{"role": "user", "content": "x " * 9000}]
        status, answer = await post(server, {"messages": long, "n": 2, **ROOM})
        assert status == 400
        failed = server.wait_told("FailRoom", 2)
        assert failed[0]["bootstrap"]["room"] == 77
        assert {room["status"] for room in failed} == {400}
        assert failed[0]["message"] == answer["error"]["message"]


async def test_a_client_that_leaves_during_prompt_work_fails_its_room() -> None:
    asked = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    image_server = await asyncio.start_server(never, "127.0.0.1", 0)
    port = image_server.sockets[0].getsockname()[1]
    flags = ("--disaggregation-mode", "prefill", "--allowed-media-domains", "127.0.0.1")
    with scripted(*flags) as server:
        image = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{port}/slow.png"}}
        task = asyncio.create_task(post(server, {"messages": [{"role": "user", "content": [image]}], **ROOM}))
        async with asyncio.timeout(30):
            await asked.wait()
        task.cancel()
        await asyncio.to_thread(server.wait_told, "FailRoom")
        assert server.told("GenerateRequest") == []
    image_server.close()


async def test_one_key_opens_the_router_and_its_workers() -> None:
    """The router asks nobody for a key: it hands on the client's, and either worker's refusal reaches the client."""
    key = ("--api-key", "group-key")
    prefill_flags = ("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", "9124")
    with scripted(*prefill_flags, *key) as prefill, scripted("--disaggregation-mode", "decode", *key) as decode:
        flags = ("--pd-disaggregation", "--prefill", prefill.url, "9124", "--decode", decode.url)
        router = start("epd_runtime.router", *flags)
        try:
            router.wait_healthy()

            async def ask(url: str, given: str | None, **fields: Any) -> tuple[int, Any]:
                headers = {} if given is None else {"Authorization": f"Bearer {given}"}
                body = {"messages": MESSAGES, "max_tokens": 2, "priority": 3, **fields}
                async with (
                    aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60), headers=headers) as http,
                    http.post(url + CHAT, json=body) as response,
                ):
                    return response.status, await response.json()

            for url, room in ((router.url, {}), (prefill.url, ROOM), (decode.url, ROOM)):
                for wrong in (None, "other-key"):
                    status, answer = await ask(url, wrong, **room)
                    assert (status, answer["error"]["code"]) == (401, "invalid_api_key"), url
                status, answer = await ask(url, "group-key", **room)
                assert status == 200, answer
            assert {request["priority"] for request in prefill.told("GenerateRequest")} == {3}
        finally:
            router.stop()
