"""Encoder client and encoder server: assignment, failover, and both ends of POST /encode with scripted engines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from epd_runtime.disaggregation.embeddings import encoder_client
from epd_runtime.disaggregation.embeddings.encoder_client import EncoderClient, assign, num_patches
from epd_runtime.frontend.errors import RequestError
from epd_runtime.messages import ImageInput

sys.path.insert(0, str(Path(__file__).parent))
from server_harness import ScriptedServer, scripted

from servers import free_port

CHAT = "/v1/chat/completions"


def image(name: str, height: int = 2, width: int = 2) -> ImageInput:
    return ImageInput(name, (1, height, width), 0, height * width // 4, name.encode())


def picture_url(shade: int = 0) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (shade, 0, 0)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


URLS = ["http://a:1", "http://b:1", "http://c:1"]


def test_idle_encoders_share_by_patches() -> None:
    images = [image("large", 20, 20), *[image(f"small {i}", 10, 10) for i in range(8)]]
    chosen = assign(images, dict.fromkeys(URLS, 0))
    loads = {url: sum(num_patches(i) for i, u in zip(images, chosen, strict=True) if u == url) for url in URLS}
    assert set(loads.values()) == {400}


def test_outstanding_work_counts() -> None:
    assert assign([image("x")], {"http://a:1": 10, "http://b:1": 9}) == ["http://b:1"]


def test_content_decides_between_equals() -> None:
    names = [f"image {i}" for i in range(300)]
    before = {name: assign([image(name)], dict.fromkeys(URLS, 0))[0] for name in names}
    assert {name: assign([image(name)], dict.fromkeys(reversed(URLS), 0))[0] for name in names} == before
    assert min(list(before.values()).count(url) for url in URLS) > 60
    after = {name: assign([image(name)], dict.fromkeys(URLS[:2], 0))[0] for name in names}
    assert all(after[name] == before[name] for name in names if before[name] != URLS[2])


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), min_size=1, max_size=20), st.integers(1, 4))
def test_every_image_is_assigned_and_copies_go_together(items: list[tuple[str, int]], num_urls: int) -> None:
    images = [image(name, 2 * ord(name), 2) for name, _ in items]
    chosen = assign(images, dict.fromkeys([f"http://{i}" for i in range(num_urls)], 0))
    assert len(chosen) == len(images)
    assert len({(i.content_hash, url) for i, url in zip(images, chosen, strict=True)}) == len({n for n, _ in items})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the condition lives in another task's plain data
            await asyncio.sleep(0.01)


Handler = Callable[[web.Request], Any]


class StubEncoder:
    """An encoder server that answers as told and remembers what it was asked."""

    def __init__(self, answer: Handler) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.cancelled = 0
        self.health_answers = True

    async def start(self) -> str:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/encode", self._encode)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        if not self.health_answers:
            await asyncio.sleep(60)
        return web.Response(status=503)  # any answer is a sign of life

    async def _encode(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        try:
            result = await self.answer(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        assert isinstance(result, web.StreamResponse)
        return result


async def works(request: web.Request) -> web.Response:
    return web.json_response({"req_id": "r", "num_rows": 1})


async def hangs(request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


def answers(status: int, message: str = "because") -> Handler:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"status": "error", "message": message}, status=status)

    return answer


async def resets(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class Workers:
    """A set of URLs that the test changes."""

    def __init__(self, *urls: str) -> None:
        self.urls = urls


@contextlib.asynccontextmanager
async def encoders(*handlers: Handler) -> AsyncIterator[tuple[EncoderClient, Workers, list[StubEncoder]]]:
    stubs = [StubEncoder(handler) for handler in handlers]
    workers = Workers(*[await stub.start() for stub in stubs])
    client = EncoderClient(workers, "10.0.0.7", 4567)
    try:
        yield client, workers, stubs
    finally:
        await client.close()
        for stub in stubs:
            await stub.stop()


IMAGES = [image(f"image {i}", 2 * i + 2, 4) for i in range(6)]
ALL = range(6)


async def test_every_part_is_delivered_once() -> None:
    async with encoders(works, works) as (client, _, stubs):
        await client.encode("request", IMAGES, ALL)
        bodies = [body for stub in stubs for body in stub.bodies]
        assert sorted(body["part_idx"] for body in bodies) == list(range(6))
        assert all(stub.bodies for stub in stubs)
        for body in bodies:
            assert (body["req_id"], body["num_parts"], body["prefill_host"]) == ("request", 6, "10.0.0.7")
            assert body["embedding_port"] == 4567
            data = base64.b64decode(body["mm_items"][0].partition(",")[2])
            assert data == IMAGES[body["part_idx"]].data
        assert client.outstanding == {}


@pytest.mark.parametrize("broken", [resets, answers(500), answers(503), answers(504), answers(404)])
async def test_a_failing_encoder_is_replaced(broken: Handler) -> None:
    async with encoders(broken, works) as (client, _, stubs):
        await client.encode("request", IMAGES, ALL)
        assert sorted(body["part_idx"] for body in stubs[1].bodies) == list(range(6))
        assert len(stubs[0].bodies) == len({body["part_idx"] for body in stubs[0].bodies})  # none was retried there


async def test_an_unreachable_encoder_is_replaced_at_once() -> None:
    async with encoders(works) as (client, workers, _):
        workers.urls += (f"http://127.0.0.1:{free_port()}",)
        started = time.monotonic()
        await client.encode("request", IMAGES, ALL)
        assert time.monotonic() - started < 10


async def test_a_refused_image_is_final() -> None:
    async with encoders(answers(400, "mm_items[0] is not a readable image"), answers(400)) as (client, _, stubs):
        with pytest.raises(RequestError, match="image 0: ") as caught:
            await client.encode("request", IMAGES, [0])
        assert caught.value.status == 400
        assert sum(len(stub.bodies) for stub in stubs) == 1


async def test_no_encoder_left() -> None:
    async with encoders(resets, answers(503)) as (client, workers, _):
        with pytest.raises(RequestError, match="no encoder is left") as caught:
            await client.encode("request", IMAGES, ALL)
        assert caught.value.status == 503
        workers.urls = ()
        with pytest.raises(RequestError, match="no encoder is left"):
            await client.encode("request", IMAGES, ALL)
        assert client.outstanding == {}


async def test_an_encoder_that_joins_late_is_used() -> None:
    async with encoders(works) as (client, workers, stubs):
        late = workers.urls
        workers.urls = ()

        async def join_then_fail(request: web.Request) -> web.Response:
            workers.urls += late
            return web.Response(status=503)

        failing = StubEncoder(join_then_fail)
        workers.urls = (await failing.start(),)
        await client.encode("request", IMAGES, [0])
        assert len(stubs[0].bodies) == 1
        await failing.stop()


async def test_a_frozen_encoder_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_client, "PROBE_SECONDS", 0.1)
    async with encoders(hangs, works) as (client, _, stubs):
        stubs[0].health_answers = False
        await client.encode("request", IMAGES, ALL)
        assert sorted(body["part_idx"] for body in stubs[1].bodies) == list(range(6))


async def test_a_busy_encoder_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_client, "PROBE_SECONDS", 0.05)

    async def late(request: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.Response()

    async with encoders(late, works) as (client, _, stubs):
        await client.encode("request", IMAGES, ALL)
        assert stubs[0].bodies
        assert len(stubs[0].bodies) + len(stubs[1].bodies) == 6


async def test_the_whole_request_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_ENCODER_REQ_TIMEOUT", "0.2")
    async with encoders(hangs) as (client, _, _):
        with pytest.raises(RequestError) as caught:
            await client.encode("request", IMAGES, ALL)
        assert caught.value.status == 504


async def test_cancelling_cancels_the_posts() -> None:
    async with encoders(hangs) as (client, _, stubs):
        task = asyncio.create_task(client.encode("request", IMAGES, ALL))
        await until(lambda: len(stubs[0].bodies) == 6)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: stubs[0].cancelled == 6)
        assert client.outstanding == {}


async def post(server: ScriptedServer, path: str, body: Any) -> tuple[int, Any]:
    timeout = aiohttp.ClientTimeout(20)
    async with aiohttp.ClientSession(timeout=timeout) as http, http.post(server.url + path, json=body) as response:
        return response.status, await response.json()


def encode_body(**fields: Any) -> dict[str, Any]:
    return {"mm_items": [picture_url()], "req_id": "r", "prefill_host": "127.0.0.1", "embedding_port": 5, **fields}


async def test_encoder_server() -> None:
    with scripted("--encoder-only") as server:
        status, answer = await post(server, "/encode", encode_body(num_parts=3, part_idx=2, modality="IMAGE"))
        assert (status, answer["req_id"], answer["part_idx"], answer["num_rows"]) == (200, "r", 2, 2)
        assert answer["timings"][0]["stage"] == "encode"
        sent = server.told("EncodeRequest")[0]
        assert (sent["receive_url"], sent["part_idx"], sent["num_parts"]) == ("tcp://127.0.0.1:5", 2, 3)
        assert sent["image"]["data"] > 0
        status, answer = await post(server, "/encode", encode_body(mm_items=[{"url": picture_url(s)} for s in (1, 2)]))
        assert (status, answer["num_rows"]) == (200, 4)
        bad: list[dict[str, Any]] = [
            {"mm_items": []}, {"mm_items": [5]}, {"mm_items": ["AAAA"]},
            {"mm_items": [picture_url()] * 2, "num_parts": 2},
            {"modality": "AUDIO"}, {"part_idx": 1}, {"part_idx": -1}, {"embedding_port": 0}, {"embedding_port": [1, 2]},
            {"embedding_port": None}, {"prefill_host": "x/y"}, {"prefill_host": ""}, {"num_parts": 10**9},
            {"mm_items": ["http://127.0.0.1:9/x.png"]},
        ]  # fmt: skip
        for fields in bad:
            status, answer = await post(server, "/encode", encode_body(**fields))
            assert (status, answer["status"]) == (400, "error"), fields
        status, answer = await post(server, "/encode", encode_body(req_id="broken"))
        assert (status, answer["message"], answer["req_id"]) == (500, "the script cannot encode", "broken")
        assert (await post(server, CHAT, {"messages": []}))[0] == 404

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await post(server, "/encode", encode_body(req_id="silent"))
        await asyncio.to_thread(server.wait_told, "AbortRequest")
        assert "Traceback" not in server.log


async def test_images_go_to_encoders_and_failures_come_back() -> None:
    part = [{"type": "image_url", "image_url": {"url": picture_url(shade)}} for shade in (1, 2)]
    body = {"messages": [{"role": "user", "content": part}], "max_tokens": 2}
    with (
        scripted("--encoder-only") as encoder,
        scripted("--language-only", "--encoder-urls", encoder.url) as server,
    ):
        task = asyncio.create_task(post(server, CHAT, body))
        parts = await asyncio.to_thread(encoder.wait_told, "EncodeRequest", 2)
        request = server.wait_told("GenerateRequest")[0]
        assert {item["request_id"] for item in parts} == {request["rid"]}
        assert {item["part_idx"] for item in parts} == {0, 1}
        assert {item["receive_url"] for item in parts} == {"tcp://127.0.0.1:4321"}
        assert [item["data"] for item in request["images"]] == [0, 0]
        by_part = {item["part_idx"]: item["image"]["content_hash"] for item in parts}
        assert [by_part[i] for i in (0, 1)] == [item["content_hash"] for item in request["images"]]
        task.cancel()
        await asyncio.to_thread(server.wait_told, "AbortRequest")

        body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": picture_url(3)}})  # type: ignore[attr-defined]
        task = asyncio.create_task(post(server, CHAT, body))
        await asyncio.to_thread(encoder.wait_told, "EncodeRequest", 5)
        assert server.told("GenerateRequest")[1]["images_coming"] == [2], "the engine may have the others: it asks"
        task.cancel()
        await asyncio.to_thread(server.wait_told, "AbortRequest", 2)

        status, _ = await post(server, CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2})
        assert status == 200
        assert len(encoder.told("EncodeRequest")) == 5

        os.kill(encoder.process.pid, signal.SIGKILL)
        started = time.monotonic()
        status, answer = await post(server, CHAT, body)
        assert status == 503
        assert "no encoder is left" in answer["error"]["message"]
        assert time.monotonic() - started < 10
        assert server.wait_told("FailRequest")[0]["status"] == 503
