"""The API client against answers that a real API server does not give on demand."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiohttp import web

from rbg_operator.kube import transport
from rbg_operator.kube.client import Client
from rbg_operator.kube.credentials import Credentials
from rbg_operator.kube.decoding import decode_event, decode_page, error_of
from rbg_operator.kube.errors import ApiError, Cause
from rbg_operator.kube.informer import Informer
from rbg_operator.kube.resources import CONFIG_MAP, ENGINE_RUNTIME_PROFILE, POD, STATEFUL_SET

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Meta(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""


class Thing(msgspec.Struct):
    metadata: Meta
    spec: msgspec.Raw = msgspec.Raw(b"null")


@dataclass
class FakeServer:
    """Answers with the next of its answers, and with the last one for ever."""

    answers: list[Answer] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    fake = FakeServer()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    await runner.cleanup()


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[Client]:
    async with Client(Credentials(server=server.url)) as client:
        yield client


def says(body: Any, status: int = 200, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(body=raw, status=status, headers={key.replace("_", "-"): v for key, v in headers.items()})

    return answer


def streams(*pieces: bytes, hang: bool = False) -> Answer:
    """Pieces of a watch, each in a packet of its own."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.001)
        if hang:
            await asyncio.sleep(60)
        return response

    return answer


async def silent(_: web.Request) -> web.StreamResponse:
    """A peer that took the request and is never heard of again."""
    await asyncio.sleep(60)
    raise AssertionError("nobody waits this long")


def thing(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": str(version)}}


def listing(version: int, *items: Any) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version)}, "items": list(items)}


def event(kind: str, item: Any) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


async def get_error(client: Client) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await client.get(POD, "ns", "x", Thing)
    return caught.value


async def apply(client: Client) -> Thing:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
    return await client.apply(POD, "ns", body, Thing, manager="test")


async def watch(client: Client, **options: Any) -> list[tuple[str, str]]:
    events = client.watch(POD, "ns", Thing, resource_version="1", **options)
    return [(item.type, item.resource_version) async for item in events]


async def test_a_read_is_asked_again_after_a_short_retry_after(server: FakeServer, client: Client) -> None:
    busy = says({"reason": "TooManyRequests"}, 429, Retry_After="0")
    server.answers = [busy, says({}, 503, Retry_After="0"), says(thing("x", 1))]
    found = await client.get(POD, "ns", "x", Thing)
    assert found is not None
    assert found.metadata.name == "x"
    server.answers = [busy]
    assert (await get_error(client)).status == 429
    assert len(server.requests) == 3 + transport.READ_ATTEMPTS


async def test_a_long_retry_after_is_told_not_waited_for(server: FakeServer, client: Client) -> None:
    server.answers = [says({"reason": "TooManyRequests", "message": "busy"}, 429, Retry_After="60")]
    error = await get_error(client)
    assert (error.status, error.retry_after, error.retriable) == (429, 60.0, True)
    assert len(server.requests) == 1


async def test_writes_are_sent_once(server: FakeServer, client: Client) -> None:
    server.answers = [says({"message": "later"}, 503, Retry_After="0")]
    with pytest.raises(ApiError, match="later"):
        await apply(client)
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'{"metadata": []}', b"\xff\xfe", b"[" * 500_000])
async def test_an_unreadable_answer_is_an_error(server: FakeServer, client: Client, body: bytes) -> None:
    server.answers = [says(body)]
    error = await get_error(client)
    assert (error.status, error.reason, error.retriable) == (0, "InvalidAnswer", True)


@pytest.mark.parametrize(
    "body", [b"<html>Bad Gateway", b'{"reason": 5}', b'{"details": {"causes": [1]}}', b"", b"[" * 500_000]
)
async def test_an_error_of_a_proxy_keeps_its_status(server: FakeServer, client: Client, body: bytes) -> None:
    server.answers = [says(body, 502)]
    error = await get_error(client)
    assert (error.status, error.reason) == (502, "HTTP502")


def test_causes_name_the_fields() -> None:
    causes = [{"field": ".spec.replicas", "reason": "FieldManagerConflict", "message": "conflict with kubectl"}]
    error = error_of(409, json.dumps({"reason": "Conflict", "details": {"causes": causes}}).encode(), None)
    assert error.causes == (Cause(".spec.replicas", "FieldManagerConflict", "conflict with kubectl"),)


async def test_a_silent_server_meets_the_deadline(server: FakeServer) -> None:
    server.answers = [silent]
    codes: list[tuple[str, str, int]] = []
    async with Client(
        Credentials(server=server.url), request_seconds=0.2, on_request=lambda *seen: codes.append(seen[:3])
    ) as client:
        assert (await get_error(client)).reason == "Timeout"
        with pytest.raises(ApiError, match=r"no answer from .* for 0\.2 s"):
            await watch(client)
    assert codes == [("get", "pods", 0), ("watch", "pods", 0)]


async def test_nobody_listens(client: Client) -> None:
    async with Client(Credentials(server="http://127.0.0.1:9")) as nobody:
        assert (await get_error(nobody)).reason == "Unreachable"


async def test_an_endless_answer_is_cut(server: FakeServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BODY_BYTES", 1000)
    server.answers = [says(b" " * 1001)]
    assert "more than 1000 bytes" in (await get_error(client)).message


async def test_redirects_are_not_followed(server: FakeServer, client: Client) -> None:
    server.answers = [says(b"", 307, Location="/elsewhere"), says(thing("x", 1))]
    assert (await get_error(client)).status == 307


async def test_a_refused_token_is_renewed_once(server: FakeServer) -> None:
    class Renewed:
        tokens = ["old", "new"]

        async def header(self) -> str:
            return self.tokens[0]

        def refused(self, header: str | None) -> None:
            if header == self.tokens[0] and len(self.tokens) > 1:
                self.tokens.pop(0)

    server.answers = [says({}, 401), says(thing("x", 1)), says({"message": "who are you"}, 401)]
    async with Client(Credentials(server=server.url, tokens=Renewed())) as client:
        assert (await apply(client)).metadata.name == "x"
        assert [request.headers["Authorization"] for request in server.requests] == ["old", "new"]
        assert "who are you" in (await get_error(client)).message
        assert len(server.requests) == 3, "a token that is still the same is not tried again"


async def test_watch_events_in_pieces(server: FakeServer, client: Client) -> None:
    whole = event("ADDED", thing("a", 2)) + b"\n" + event("DELETED", thing("a", 3)) + event("BOOKMARK", thing("", 9))
    server.answers = [streams(*(whole[i : i + 7] for i in range(0, len(whole), 7))), streams(whole)]
    expected = [("ADDED", "2"), ("DELETED", "3"), ("BOOKMARK", "9")]
    assert await watch(client) == expected
    assert await watch(client) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"type": "ADDED", "obj', "InvalidAnswer"),
        (b"garbage\n", "InvalidAnswer"),
        (b'{"type": "NEWS", "object": {"metadata": {"resourceVersion": "3"}}}\n', "InvalidAnswer"),
        (b'{"type": "ADDED", "object": {"metadata": {}}}\n', "InvalidAnswer"),
        (event("ERROR", {"code": 410, "reason": "Expired", "message": "too old"}), "Expired"),
        (event("ERROR", []), "HTTP0"),
    ],
)
async def test_a_broken_watch_is_an_error(server: FakeServer, client: Client, line: bytes, reason: str) -> None:
    server.answers = [streams(event("ADDED", thing("a", 2)), line)]
    with pytest.raises(ApiError) as caught:
        await watch(client)
    assert caught.value.reason == reason
    assert caught.value.expired == (reason == "Expired")


@pytest.mark.parametrize("options", [{"idle_seconds": 0.2}, {"timeout_seconds": -30}])
async def test_a_silent_watch_is_an_error(server: FakeServer, client: Client, options: dict[str, Any]) -> None:
    server.answers = [streams(event("ADDED", thing("a", 2)), hang=True)]
    with pytest.raises(ApiError, match="silent"):
        await watch(client, **options)


def test_an_odd_object_does_not_hide_the_others() -> None:
    page = listing(7, thing("a", 1), {"metadata": {"name": 5}}, 17, thing("b", 2))
    items, meta = decode_page(json.dumps(page).encode(), Thing)
    assert [item.metadata.name for item in items] == ["a", "b"]
    assert meta.resource_version == "7"
    assert decode_event(event("ADDED", {"metadata": {"name": 5, "resourceVersion": "3"}}), Thing) is None


def test_raw_parts_do_not_keep_the_whole_page() -> None:
    page = json.dumps(listing(7, thing("a", 1) | {"spec": {"replicas": 1}}, thing("b", 2))).encode()
    line = event("ADDED", thing("a", 1) | {"spec": {"replicas": 2}})
    references = sys.getrefcount(page), sys.getrefcount(line)
    items, _ = decode_page(page, Thing)
    told = decode_event(line, Thing)
    gc.collect()
    assert (sys.getrefcount(page), sys.getrefcount(line)) == references
    assert bytes(items[0].spec) == b'{"replicas": 1}'
    assert told is not None
    assert bytes(told.object.spec) == b'{"replicas": 2}'


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a%2fb"])
async def test_names_that_lead_elsewhere_are_refused(client: Client, name: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a path"):
        await client.get(POD, "ns", name, Thing)
    with pytest.raises(ValueError, match="cannot stand in a path"):
        await client.get(POD, name, "x", Thing)


def test_paths() -> None:
    assert POD.path() == "/api/v1/pods"
    assert CONFIG_MAP.path("ns", "a b?c#d") == "/api/v1/namespaces/ns/configmaps/a%20b%3Fc%23d"
    assert STATEFUL_SET.path("ns", "x", "status") == "/apis/apps/v1/namespaces/ns/statefulsets/x/status"
    with pytest.raises(ValueError, match="namespace is missing"):
        POD.path(None, "x")
    with pytest.raises(ValueError, match="belongs to no namespace"):
        ENGINE_RUNTIME_PROFILE.path("ns", "x")


class Watcher:
    """An informer of things and what it tells."""

    def __init__(self, client: Client) -> None:
        self.told: asyncio.Queue[tuple[str | None, str | None]] = asyncio.Queue()
        self.informer = Informer(client, POD, Thing, on_change=self.on_change, namespaces=["ns"])

    def on_change(self, old: Thing | None, new: Thing | None) -> None:
        self.told.put_nowait((old and old.metadata.resource_version, new and new.metadata.resource_version))

    async def next(self, count: int) -> list[tuple[str | None, str | None]]:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            running = group.create_task(self.informer.run())
            told = [await self.told.get() for _ in range(count)]
            running.cancel()
        return told


async def test_a_cut_watch_resumes_where_it_stood(server: FakeServer, client: Client) -> None:
    server.answers = [
        says(listing(5, thing("a", 4))),
        streams(event("MODIFIED", thing("a", 6)), b'{"type": "MODIF'),
        says({"message": "starting"}, 503),
        streams(event("MODIFIED", thing("a", 6)), event("MODIFIED", thing("a", 8)), hang=True),
    ]
    assert await Watcher(client).next(3) == [(None, "4"), ("4", "6"), ("6", "8")]
    assert [request.query.get("resourceVersion") for request in server.requests] == [None, "5", "6", "6"]


async def test_after_410_what_vanished_is_told(server: FakeServer, client: Client) -> None:
    expired = {"code": 410, "reason": "Expired", "message": "too old resource version"}
    server.answers = [
        says(listing(5, thing("a", 3), thing("b", 4))),
        streams(event("ERROR", expired)),
        says(expired, 410),
        says(listing(9, thing("b", 8))),
        streams(hang=True),
    ]
    watcher = Watcher(client)
    assert await watcher.next(4) == [(None, "3"), (None, "4"), ("4", "8"), ("3", None)]
    assert watcher.informer.synced.is_set()


async def test_our_own_write_is_known_before_the_watch_tells_it(server: FakeServer, client: Client) -> None:
    server.answers = [says(listing(5, thing("a", 4))), streams(hang=True)]
    watcher = Watcher(client)
    running = asyncio.create_task(watcher.informer.run())
    assert await watcher.told.get() == (None, "4")
    watcher.informer.put_written(msgspec.convert(thing("a", 7), Thing))
    watcher.informer.put_written(msgspec.convert(thing("old", 5), Thing))
    running.cancel()
    assert watcher.told.get_nowait() == ("4", "7")
    assert watcher.told.empty()


@pytest.mark.parametrize("answers", [[says({}, 500)], [says({}, 410)], [says(listing(5)), streams()]])
async def test_an_informer_that_gets_nowhere_does_not_spin(
    server: FakeServer, client: Client, answers: list[Answer]
) -> None:
    server.answers = list(answers)
    running = asyncio.create_task(Watcher(client).informer.run())
    await asyncio.sleep(1.5)
    running.cancel()
    assert 2 <= len(server.requests) <= 8
