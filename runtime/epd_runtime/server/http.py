"""HTTP plumbing below the routes: bodies in with bounds, JSON and event streams out, and noticing that the client left.

Invariants: a client that disconnects cancels the work done for it, streaming or not; a stream's status line is sent
only when its first output is there, so that early failures are real HTTP errors; a later failure is an error event.
A client that takes nothing for SEND_SECONDS is treated as gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeAlias, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from epd_runtime.frontend.errors import RequestError

MAX_BODY_BYTES = 256 * 1024 * 1024
RECEIVE_SECONDS = 60.0  # without a byte of the body
SEND_SECONDS = 60.0  # without the client taking a byte
RETRY_AFTER_SECONDS = 1
CLIENT_GONE = Response(status_code=499)  # nobody reads it

Frames: TypeAlias = AsyncGenerator[bytes, None]  # ready-made server-sent events
T = TypeVar("T")
encode_json = msgspec.json.Encoder().encode


class ClientGoneError(Exception):
    """The client disconnected; its work was cancelled."""


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON body."""
    return Response(encode_json(content), status, headers, media_type="application/json")


def error_body(error: RequestError) -> dict[str, Any]:
    """An error in the shape of the OpenAI API."""
    kinds = {
        400: "invalid_request_error",
        401: "authentication_error",
        404: "not_found_error",
        413: "invalid_request_error",
        503: "overloaded_error",
    }
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: RequestError) -> Response:
    """An error as an HTTP answer."""
    return json_response(error_body(error), error.status, retry_headers(error.status))


def retry_headers(status: int) -> dict[str, str]:
    """Headers that tell the client when to come back."""
    return {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}


async def read_body(request: Request) -> bytes:
    """The whole body; raises RequestError 413 when it is too large, 408 when it stalls, ClientGoneError."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise _body_too_large()
    body = bytearray()
    chunks = request.stream()
    try:
        while True:
            async with asyncio.timeout(RECEIVE_SECONDS):
                chunk = await anext(chunks, None)
            if chunk is None:
                return bytes(body)
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise _body_too_large()
    except TimeoutError:
        raise RequestError(408, f"no byte of the request body came for {RECEIVE_SECONDS:g} s") from None
    except ClientDisconnect:
        raise ClientGoneError from None


def _body_too_large() -> RequestError:
    return RequestError(413, f"the request body is larger than {MAX_BODY_BYTES // (1024 * 1024)} MiB; send less")


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Result of `work`, cancelled if the client disconnects first (ClientGoneError). The body was read before."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() or task.cancelled():
            raise ClientGoneError
        return await task
    finally:
        watcher.cancel()
        task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events from a generator of ready-made frames; on_error hears of a failure at any moment."""

    def __init__(self, frames: Frames, on_error: Callable[[RequestError], None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._frames = frames
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; on disconnect close the generator."""
        with suppress(ClientGoneError):
            await unless_disconnected(receive, self._send_all(scope, receive, send))

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            try:
                first = await anext(frames)
            except RequestError as error:
                self._on_error(error)
                return await error_response(error)(scope, receive, send)
            except StopAsyncIteration:
                first = b""
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with _StallGuard(send) as patient:
                await patient.send(first)
                try:
                    async for frame in frames:
                        await patient.send(frame)
                except RequestError as error:
                    self._on_error(error)
                    await patient.send(event(error_body(error)) + b"data: [DONE]\n\n")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None


class _StallGuard:
    """Sends chunks, and cancels the sending task when one is not taken within SEND_SECONDS.

    One timer looks at many sends: a timeout for each would cost a fifth of the work per token.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._since: float | None = None  # start of the send under way
        self._timer = self._loop.call_later(SEND_SECONDS / 4, self._check)

    def __enter__(self) -> _StallGuard:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    async def send(self, chunk: bytes) -> None:
        """Send one chunk of the body."""
        self._since = self._loop.time()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._since = None

    def _check(self) -> None:
        if self._since is not None and self._loop.time() - self._since > SEND_SECONDS and self._task is not None:
            self._task.cancel()
        else:
            self._timer = self._loop.call_later(SEND_SECONDS / 4, self._check)


def event(content: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encode_json(content) + b"\n\n"
