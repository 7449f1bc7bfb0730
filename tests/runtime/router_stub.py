"""A worker for the router's tests, run as a process of its own: `python router_stub.py ROLE [HOST] [PORT]`.

It prints its port, then answers like a model server. A request's field "stub" tells each role how to fail, e.g.
{"prefill": "400", "decode": "die_mid"}; the router must pass that field on like any other it does not know:

    400, 500, 503     that status with an OpenAI error body     hang          no answer
    die               the connection is reset before an answer  die_mid       … in the middle of the third event
    exit, exit_mid    the same, and the whole process dies      stall_mid     two events, then nothing
    slow              an event every 0.1 s                      late_X        X after 0.4 s
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from aiohttp import web

NUM_EVENTS = 5


def event(index: int) -> bytes:
    """One chunk of a chat completion."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": f"t{index} "}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "stub", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def completion() -> bytes:
    """A whole chat completion, with spacing that re-encoding would lose."""
    message = {"role": "assistant", "content": "hello"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "stub", "choices": [choice]}
    return json.dumps(whole, indent=3).encode()


class Stub:
    """State of the worker: what it saw, and how healthy it says it is."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.health = 200
        self.drains = False  # takes no new request, as a server that shuts down
        self.seen: list[dict[str, Any]] = []

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer or fail as the request says; note how it ended."""
        body = await request.json()
        entry = {"body": body, "headers": dict(request.headers), "path": request.path, "end": None}
        self.seen.append(entry)
        how = "503" if self.drains else body.get("stub", {}).get(self.role, "")
        try:
            response = await self.behave(request, how, bool(body.get("stream")))
            entry["end"] = "answered"
            return response
        except (asyncio.CancelledError, ConnectionError):
            entry["end"] = "cancelled"
            raise

    async def behave(self, request: web.Request, how: str, streams: bool) -> web.StreamResponse:
        assert request.transport is not None
        if how.startswith("late_"):
            await asyncio.sleep(0.4)
            how = how.removeprefix("late_")
        if how.isdigit():
            headers = {"Retry-After": "7"} if how == "503" else {}
            error = {"message": f"{self.role} says {how}", "type": "stub", "code": int(how)}
            return web.json_response({"error": error}, status=int(how), headers=headers)
        if how == "hang":
            await asyncio.sleep(3600)
        if how == "exit":
            os._exit(9)
        if how == "die":
            request.transport.abort()
            return web.Response()
        if streams:
            return await self.stream(request, how)
        if how == "slow":
            await asyncio.sleep(0.5)
        return await self.whole(request, how)

    async def stream(self, request: web.Request, how: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Stub": self.role})
        await response.prepare(request)
        for index in range((await request.json()).get("stub", {}).get("events", NUM_EVENTS)):
            await response.write(event(index))
            if how == "slow":
                await asyncio.sleep(0.1)
            if index == 1:
                await self.fail_mid(request, response, how)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def whole(self, request: web.Request, how: str) -> web.StreamResponse:
        body = completion()
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[:50])
        await self.fail_mid(request, response, how)
        await response.write(body[50:])
        await response.write_eof()
        return response

    async def fail_mid(self, request: web.Request, response: web.StreamResponse, how: str) -> None:
        assert request.transport is not None
        if how == "stall_mid":
            await asyncio.sleep(3600)
        if how in ("die_mid", "exit_mid"):
            await response.write(event(2)[:20])
            await asyncio.sleep(0.05)
            if how == "exit_mid":
                os._exit(9)
            request.transport.abort()
            raise ConnectionResetError

    async def get_health(self, request: web.Request) -> web.Response:
        if self.health == 0:
            await asyncio.sleep(3600)
        return web.Response(status=self.health)

    async def put_health(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.drains = text == "drains"
        self.health = 503 if self.drains else int(text)
        return web.Response()

    async def forget(self, request: web.Request) -> web.Response:
        self.seen = []
        return web.Response()

    async def get_seen(self, request: web.Request) -> web.Response:
        return web.json_response(self.seen)

    async def info(self, request: web.Request) -> web.Response:
        authorization = request.headers.get("Authorization")
        return web.json_response({"role": self.role, "path": request.path, "authorization": authorization})


async def main() -> None:
    """Serve for ever."""
    role, host, port = sys.argv[1], *(sys.argv[2:3] or ["127.0.0.1"]), int((sys.argv[3:4] or ["0"])[0])
    stub = Stub(role)
    app = web.Application(client_max_size=1 << 30)
    app.router.add_routes(
        [web.post(path, stub.generate) for path in ("/v1/chat/completions", "/v1/completions", "/generate")]
        + [web.get(path, stub.info) for path in ("/v1/models", "/model_info", "/get_model_info")]
        + [web.get("/health", stub.get_health), web.put("/health", stub.put_health), web.get("/seen", stub.get_seen)]
        + [web.delete("/seen", stub.forget)]
    )
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
