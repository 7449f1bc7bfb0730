"""The router against real worker processes that fail in every way: what clients see, and that both legs always end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from epd_runtime.router import workers as workers_module
from epd_runtime.router.app import Router, make_router
from epd_runtime.router.dispatch import GRACE_SECONDS
from epd_runtime.router.health import LOST_SECONDS
from epd_runtime.router.options import PrefillUrl, RouterOptions
from epd_runtime.router.serve import upstream
from epd_runtime.router.workers import WorkerPool

STUB = Path(__file__).with_name("router_stub.py")
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass
class StubWorker:
    """A worker process."""

    process: subprocess.Popen[str]
    url: str

    async def seen(self, session: aiohttp.ClientSession) -> list[dict[str, Any]]:
        async with session.get(f"{self.url}/seen") as response:
            return list(await response.json())

    async def ends(self, session: aiohttp.ClientSession) -> list[str | None]:
        return [entry["end"] for entry in await self.seen(session)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def stubs(*roles: str, hosts: Sequence[str] = (), port: int = 0) -> Iterator[list[StubWorker]]:
    """Worker processes, started at the same time."""
    places = hosts or ["127.0.0.1"] * len(roles)
    commands = [[sys.executable, str(STUB), role, host, str(port)] for role, host in zip(roles, places, strict=True)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        ports = [int(process.stdout.readline()) for process in processes if process.stdout]
        yield [StubWorker(*pair) for pair in zip(processes, map("http://{}:{}".format, places, ports), strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@dataclass
class Service:
    """A running router, its workers, and a client to it."""

    router: Router
    url: str
    prefill: StubWorker
    decode: StubWorker
    client: aiohttp.ClientSession

    async def post(self, path: str = CHAT, **fields: Any) -> tuple[int, bytes]:
        async with self.client.post(self.url + path, json={"messages": MESSAGES, **fields}) as response:
            return response.status, await response.read()

    async def quiet(self) -> None:
        """Wait until nothing is under way at any worker."""

        async def idle() -> bool:
            stages = self.router._stages
            return (
                not any(w.in_flight or w.timers for s in stages for w in s.pool.workers) and not self.router.in_flight
            )

        await until(idle)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - the condition is asked of another process
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def routing(
    options: RouterOptions, healthy: bool = True
) -> AsyncIterator[tuple[Router, str, aiohttp.ClientSession]]:
    async with upstream(options) as up, aiohttp.ClientSession() as client:
        router = make_router(options, up)
        runner = web.AppRunner(router.application(), handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"

        async def is_healthy() -> bool:
            async with client.get(f"{url}/health") as response:
                return response.status == 200

        await until(is_healthy)
        yield router, url, client
        await runner.cleanup()


def options_for(prefill: list[StubWorker], decode: list[StubWorker], **changes: Any) -> RouterOptions:
    urls = tuple(PrefillUrl(worker.url) for worker in prefill)
    return replace(RouterOptions(prefill=urls, decode=tuple(worker.url for worker in decode)), **changes)


@contextlib.asynccontextmanager
async def serving(prefill: StubWorker, decode: StubWorker, **changes: Any) -> AsyncIterator[Service]:
    async with routing(options_for([prefill], [decode], **changes)) as (router, url, client):
        for worker in (prefill, decode):
            async with client.delete(f"{worker.url}/seen"):
                pass
        yield Service(router, url, prefill, decode, client)


@pytest.fixture(scope="module")
def shared() -> Iterator[list[StubWorker]]:
    with stubs("prefill", "decode") as workers:
        yield workers


@pytest.fixture
async def service(shared: list[StubWorker]) -> AsyncIterator[Service]:
    """For tests that leave the workers as they were."""
    async with serving(*shared) as service:
        yield service


@pytest.fixture
async def mortal() -> AsyncIterator[Service]:
    """For tests that kill workers."""
    with stubs("prefill", "decode") as workers:
        async with serving(*workers) as service:
            yield service


def events_of(body: bytes) -> list[Any]:
    """Decoded events of a stream; every one must be whole."""
    assert body.endswith(b"\n\n")
    texts = [part.removeprefix(b"data: ") for part in body.split(b"\n\n")[:-1]]
    return [text.decode() if text == b"[DONE]" else json.loads(text) for text in texts]


def error_of(body: bytes) -> dict[str, Any]:
    return dict(json.loads(body)["error"])


# What passes


async def test_answers_pass_byte_for_byte(service: Service) -> None:
    async with aiohttp.ClientSession() as direct:
        for fields in ({"stream": True}, {"stream": False}):
            async with direct.post(service.decode.url + CHAT, json=fields) as response:
                expected = await response.read()
            assert await service.post(**fields) == (200, expected)
    await service.quiet()


async def test_both_workers_get_the_same_body_at_once(service: Service) -> None:
    headers = {"Authorization": "Bearer k", "X-Request-ID": "r1", "traceparent": "00-1-2-3", "Cookie": "c=1"}
    body = {"messages": MESSAGES, "unknown": {"a": [1.50, "é"]}, "n": 3, "bootstrap_room": 1}
    async with service.client.post(service.url + CHAT, json=body, headers=headers) as response:
        assert response.status == 200
    await service.quiet()
    (prefill,), (decode,) = await service.prefill.seen(service.client), await service.decode.seen(service.client)
    assert prefill["body"] == decode["body"]
    assert prefill["body"]["unknown"] == body["unknown"]
    assert (prefill["body"]["bootstrap_host"], prefill["body"]["bootstrap_port"]) == ("127.0.0.1", None)
    assert len(set(prefill["body"]["bootstrap_room"])) == 3
    for seen in (prefill["headers"], decode["headers"]):
        assert (seen["Authorization"], seen["X-Request-ID"], seen["traceparent"]) == ("Bearer k", "r1", "00-1-2-3")
        assert "Cookie" not in seen


async def test_openai_client_streams(service: Service) -> None:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(model="stub", messages=MESSAGES, stream=True)
        texts = [chunk.choices[0].delta.content async for chunk in stream]
        assert "".join(texts) == "t0 t1 t2 t3 t4 "
        whole = await client.chat.completions.create(model="stub", messages=MESSAGES)
        assert whole.choices[0].message.content == "hello"


async def test_openai_client_sees_a_broken_stream(service: Service) -> None:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="k", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="stub", messages=MESSAGES, stream=True, extra_body={"stub": {"decode": "die_mid"}}
        )
        texts: list[str] = []

        async def read() -> None:
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content)

        with pytest.raises(openai.APIError, match="decode worker failed"):
            await read()
        assert texts == ["t0 ", "t1 "]


async def test_information_routes(service: Service) -> None:
    async def get(path: str) -> Any:
        async with service.client.get(service.url + path, headers={"Authorization": "Bearer k"}) as response:
            assert response.status == 200, path
            return await response.json() if "json" in response.content_type else await response.text()

    assert (await get("/v1/models"))["authorization"] == "Bearer k"
    assert (await get("/get_model_info"))["path"] == "/get_model_info"
    for path in ("/health", "/readiness", "/liveness", "/model_info"):
        await get(path)
    info = await get("/server_info")
    assert {(worker["stage"], worker["healthy"]) for worker in info["workers"]} == {("prefill", True), ("decode", True)}
    await service.post(stub={"prefill": "500", "decode": "hang"})
    page = await get("/metrics")
    assert f'epd_router_requests_total{{route="{CHAT}",status="502"}} 1.0' in page
    assert 'epd_router_leg_failures_total{kind="failed",stage="prefill"} 1.0' in page
    assert f'epd_router_worker_healthy{{stage="decode",worker="{service.decode.url}"}} 1.0' in page


# What fails before the answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("other", ["", "hang"])
@pytest.mark.parametrize(
    ("stage", "how", "status", "message"),
    [
        ("prefill", "400", 400, "prefill says 400"),
        ("prefill", "500", 502, "the prefill worker answered 500: prefill says 500"),
        ("prefill", "503", 503, "the prefill worker answered 503: prefill says 503"),
        ("prefill", "die", 502, "the prefill worker failed: the connection was closed"),
        ("decode", "400", 400, "decode says 400"),
        ("decode", "500", 500, "decode says 500"),
        ("decode", "503", 503, "decode says 503"),
        ("decode", "die", 502, "the decode worker failed: the connection was closed"),
    ],
)
async def test_a_failing_stage_ends_both_legs(
    service: Service, stage: str, how: str, status: int, message: str, other: str, stream: bool
) -> None:
    if stage == "prefill":
        other = "hang"  # decode without its prefill never answers
    partner = "decode" if stage == "prefill" else "prefill"
    started = time.perf_counter()
    got, body = await service.post(stub={stage: how, partner: other}, stream=stream)
    assert time.perf_counter() - started < GRACE_SECONDS
    assert got == status
    assert message in error_of(body)["message"]
    await service.quiet()
    if other == "hang":
        worker = service.decode if partner == "decode" else service.prefill

        async def cancelled() -> bool:
            return (await worker.ends(service.client)) == ["cancelled"]

        await until(cancelled)


async def test_decode_dying_in_the_middle_of_a_whole_answer_is_502(service: Service) -> None:
    status, body = await service.post(stub={"decode": "die_mid"})
    assert (status, error_of(body)["message"]) == (
        502,
        "the decode worker failed: the connection was closed in the middle of the answer",
    )


async def test_overload_tells_when_to_retry(service: Service) -> None:
    for stage, seconds in (("prefill", "1"), ("decode", "7")):
        fields = {"stub": {stage: "503", "decode": "hang"} if stage == "prefill" else {stage: "503"}}
        async with service.client.post(service.url + CHAT, json=fields) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, seconds)


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"{", 400), (b"[]", 400), (b"", 400), (b"[" * 100_000, 400), (b'{"n": 99999999}', 400), (b"\xff" * 9, 400)],
)
async def test_malformed_bodies(service: Service, data: bytes, status: int) -> None:
    async with service.client.post(service.url + CHAT, data=data) as response:
        assert response.status == status
        assert error_of(await response.read())["type"] == "invalid_request_error"
    assert await service.prefill.seen(service.client) == []


async def test_unknown_routes_and_http2_probe(service: Service) -> None:
    async with service.client.post(service.url + "/v1/nothing") as response:
        assert (response.status, error_of(await response.read())["type"]) == (404, "not_found_error")
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
    async with asyncio.timeout(30):
        assert b" 400 " in await reader.readline()
    writer.close()


async def test_body_limit(shared: list[StubWorker]) -> None:
    async with serving(*shared, max_payload_size=100_000) as service:
        for data in (b"x" * 100_001, _chunks(100_001)):  # with and without Content-Length
            async with service.client.post(service.url + CHAT, data=data) as response:
                assert (response.status, error_of(await response.read())["code"]) == (413, 413)
        assert (await service.post(x="y" * 90_000))[0] == 200


async def _chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 1000):
        yield b"x" * min(1000, size - start)


async def test_a_large_body_passes(service: Service) -> None:
    status, _ = await service.post(image="x" * (8 << 20))
    assert status == 200
    (seen,) = await service.decode.seen(service.client)
    assert len(seen["body"]["image"]) == 8 << 20


# What fails in the middle of a stream


async def test_decode_dying_ends_the_stream_with_an_error_event(service: Service) -> None:
    started = time.perf_counter()
    status, body = await service.post(stream=True, stub={"decode": "die_mid"})
    assert time.perf_counter() - started < GRACE_SECONDS
    events = events_of(body)
    assert (status, len(events)) == (200, 3)  # two whole events; the half of the third is dropped
    assert events[-1]["error"]["message"].startswith(
        "the decode worker failed: the connection was closed in the middle"
    )
    await service.quiet()


async def test_late_prefill_failure_cuts_a_decode_that_stands_still(service: Service) -> None:
    started = time.perf_counter()
    _, body = await service.post(stream=True, stub={"decode": "stall_mid", "prefill": "late_500"})
    assert GRACE_SECONDS < time.perf_counter() - started < LOST_SECONDS
    events = events_of(body)
    assert events[-1]["error"]["message"] == "the prefill worker answered 500: prefill says 500"
    assert "[DONE]" not in events
    assert await service.decode.ends(service.client) == ["cancelled"]
    await service.quiet()


async def test_late_prefill_failure_spares_a_decode_that_moves(service: Service) -> None:
    async with service.client.post(
        f"{service.url}{CHAT}", json={"stream": True, "stub": {"decode": "slow", "prefill": "late_die"}}
    ) as response:
        events = events_of(await response.read())
    assert events[-1] == "[DONE]"
    await service.quiet()


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}])
async def test_a_client_that_leaves_ends_both_legs(service: Service, fields: dict[str, Any]) -> None:
    hanging = {"decode": "stall_mid" if fields["stream"] else "hang", "prefill": "hang"}
    request = asyncio.create_task(service.post(stub=hanging, **fields))

    async def under_way() -> bool:
        return bool(await service.decode.seen(service.client) and await service.prefill.seen(service.client))

    await until(under_way)
    await asyncio.sleep(0.05)
    request.cancel()

    async def both_cancelled() -> bool:
        ends = await service.decode.ends(service.client) + await service.prefill.ends(service.client)
        return ends == ["cancelled", "cancelled"]

    await until(both_cancelled, 1.0)
    await service.quiet()


async def test_a_request_without_progress_ends_at_its_bound(shared: list[StubWorker]) -> None:
    async with serving(*shared, request_timeout_secs=0.3) as service:
        status, body = await service.post(stub={"decode": "hang"})
        assert (status, error_of(body)["code"]) == (504, 504)
        _, body = await service.post(stream=True, stub={"decode": "stall_mid"})
        assert "no progress within 0.3 s" in events_of(body)[-1]["error"]["message"]
        _, body = await service.post(stream=True, stub={"decode": "slow"})  # 0.5 s, but it moves
        assert events_of(body)[-1] == "[DONE]"
        await service.quiet()


async def test_a_lingering_prefill_is_ended(service: Service) -> None:
    status, _ = await service.post(stub={"prefill": "hang"})  # decode answered completely
    assert status == 200

    async def cancelled() -> bool:
        return (await service.prefill.ends(service.client)) == ["cancelled"]

    await until(cancelled)
    await service.quiet()


async def test_a_client_that_does_not_read_slows_decode_down(service: Service) -> None:
    """Backpressure: the router holds little of a long stream that nobody reads."""
    reader, writer = await asyncio.open_connection(*_address(service.url), limit=1 << 14)
    data = b'{"stream": true, "stub": {"events": 400000}}'  # 60 MB
    writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(data), data))
    await asyncio.sleep(1.0)
    assert await service.decode.ends(service.client) == [None]
    writer.close()
    await service.quiet()
    assert reader.exception() is None


def _address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


# Workers that come and go


async def all_ready(pool: WorkerPool, *urls: str) -> None:
    async def reached() -> bool:
        return sorted(worker.url for worker in pool.ready()) == sorted(urls)

    await until(reached)


async def test_refused_workers_are_replaced_and_their_room_is_fresh() -> None:
    with stubs("prefill", "prefill", "decode") as (first, second, decode):
        async with routing(options_for([first, second], [decode], policy="round_robin")) as (router, url, client):
            service = Service(router, url, second, decode, client)
            await all_ready(router._stages[0].pool, first.url, second.url)
            first.kill()
            for _ in range(4):
                started = time.perf_counter()
                assert (await service.post())[0] == 200
                assert time.perf_counter() - started < GRACE_SECONDS
            rooms = [entry["body"]["bootstrap_room"] for entry in await decode.seen(client)]
            assert len(set(rooms)) == len(rooms)
            await service.quiet()


@pytest.mark.parametrize("stage", ["prefill", "decode"])
async def test_a_worker_that_begins_to_drain_costs_no_request(stage: str) -> None:
    """It answers 503 before the router's next look at its health; another worker takes what it does not."""
    places = ["prefill", "prefill", "decode", "decode"]
    with stubs(*places) as (first, second, third, fourth):
        options = options_for([first, second], [third, fourth], policy="round_robin")
        async with routing(options) as (router, url, client):
            service = Service(router, url, first, third, client)
            for pool, workers in zip(router._stages, ((first, second), (third, fourth)), strict=True):
                await all_ready(pool.pool, *(worker.url for worker in workers))
            leaving = first if stage == "prefill" else third
            async with client.put(f"{leaving.url}/health", data="drains"):
                pass
            assert [(await service.post())[0] for _ in range(8)] == [200] * 8
            rooms = [entry["body"]["bootstrap_room"] for one in (third, fourth) for entry in await one.seen(client)]
            assert len(set(rooms)) == len(rooms)
            await service.quiet()


@pytest.mark.parametrize("stage", ["prefill", "decode"])
async def test_no_worker_left_is_503_naming_the_stage(mortal: Service, stage: str) -> None:
    service, fields = mortal, {"stub": {"decode": "hang", "prefill": "hang"}}
    (service.prefill if stage == "prefill" else service.decode).kill()
    started = time.perf_counter()
    async with service.client.post(service.url + CHAT, json=fields) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert f"no {stage} worker is available" in error_of(await response.read())["message"]
    assert time.perf_counter() - started < GRACE_SECONDS
    async with service.client.get(f"{service.url}/health") as response:
        assert response.status == 503
        assert stage in error_of(await response.read())["message"]
    await service.quiet()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
async def test_a_worker_killed_under_a_request(mortal: Service, stage: str, stream: bool) -> None:
    service = mortal
    how = {"decode": "exit_mid"} if stage == "decode" else {"prefill": "late_exit", "decode": "hang"}
    started = time.perf_counter()
    status, body = await service.post(stub=how, stream=stream)
    assert time.perf_counter() - started < GRACE_SECONDS
    if stage == "decode" and stream:
        assert "decode worker failed" in events_of(body)[-1]["error"]["message"]
    else:
        assert status == 502
        assert f"the {stage} worker failed" in error_of(body)["message"]
    await service.quiet()


async def test_unhealthy_workers_are_avoided_until_they_are_well(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "PROBE_INTERVAL_SECONDS", 0.05)
    running = asyncio.create_task(service.post(stream=True, stub={"decode": "slow"}))

    async def router_health(wanted: int) -> None:
        async def reached() -> bool:
            async with service.client.get(f"{service.url}/health") as response:
                return response.status == wanted

        await until(reached)

    async with service.client.put(f"{service.decode.url}/health", data="503"):
        pass
    await router_health(503)
    assert (await service.post())[0] == 503
    assert events_of((await running)[1])[-1] == "[DONE]"  # what runs goes on
    async with service.client.put(f"{service.decode.url}/health", data="200"):
        pass
    await router_health(200)
    assert (await service.post())[0] == 200


async def test_requests_of_a_lost_worker_are_cut(mortal: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is stopped (as by a frozen machine) keeps its connections open and says nothing."""
    for name, value in (("PROBE_INTERVAL_SECONDS", 0.05), ("PROBE_TIMEOUT_SECONDS", 0.1), ("LOST_GRACE_SECONDS", 0.1)):
        monkeypatch.setattr(workers_module, name, value)
    monkeypatch.setattr("epd_runtime.router.health.LOST_SECONDS", 0.5)
    request = asyncio.create_task(mortal.post(stub={"decode": "hang", "prefill": "hang"}))
    await asyncio.sleep(0.2)
    mortal.decode.process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(30):
        status, body = await request
    assert (status, "decode worker does not answer any more" in error_of(body)["message"]) == (502, True)


async def test_scaling_behind_a_name_needs_no_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "hosts"
    monkeypatch.setenv("EPD_HOSTS_FILE", str(hosts))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = ("127.9.0.9", "127.9.0.1", "127.9.0.2")
    with stubs("prefill", "decode", "decode", hosts=places, port=port) as (prefill, one, two):
        hosts.write_text("127.9.0.1 dec\n")
        decode = f"http://dec:{port}"
        options = RouterOptions(prefill=(PrefillUrl(prefill.url, 8998),), decode=(decode,), policy="round_robin")
        async with routing(options) as (router, url, client):
            service, pool = Service(router, url, prefill, one, client), router._stages[1].pool
            running = asyncio.create_task(service.post(stream=True, stub={"decode": "slow", "events": 30}))
            await asyncio.sleep(0.1)
            hosts.write_text("127.9.0.1 dec\n127.9.0.2 dec\n")
            await all_ready(pool, one.url, two.url)
            hosts.write_text("127.9.0.2 dec\n")
            await all_ready(pool, two.url)
            assert not running.done()
            assert events_of((await running)[1])[-1] == "[DONE]"
            assert (await service.post())[0] == 200
            (seen,) = await two.seen(client)
            assert (seen["body"]["bootstrap_host"], seen["body"]["bootstrap_port"]) == ("127.9.0.9", 8998)


async def test_plain_load_balancing() -> None:
    with stubs("worker", "worker") as (one, two):
        options = RouterOptions(worker_urls=(one.url, two.url), policy="round_robin")
        async with routing(options) as (router, url, client):
            await all_ready(router._stages[0].pool, one.url, two.url)
            for _ in range(4):
                async with client.post(url + CHAT, data=b'{"stream":true, "a": 1}') as response:
                    assert events_of(await response.read())[-1] == "[DONE]"
            async with client.post(url + CHAT, json={"stub": {"worker": "die"}}) as response:
                assert response.status == 502
            entries = [await worker.seen(client) for worker in (one, two)]
            assert sorted(map(len, entries)) == [2, 3]
            assert entries[0][0]["body"] == {"stream": True, "a": 1}
