"""One HTTP exchange with the API server: its deadline, its size, its errors, its place in the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from rbg_operator.kube.credentials import Credentials
from rbg_operator.kube.decoding import error_of
from rbg_operator.kube.errors import UNREACHABLE, ApiError

READ_ATTEMPTS = 3
MAX_RETRY_AFTER = 5.0
MAX_BODY_BYTES = 256 * 1024 * 1024
MAX_ERROR_BYTES = 1024 * 1024
CONNECTIONS = 32
WATCH_CONNECTIONS = 1024  # one for each kind and namespace

OnRequest = Callable[[str, str, int, float], None]
"""(verb, plural of the resource, HTTP status or 0, seconds): one call per request, for watches when they begin."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to send. verb: for the metrics, the API's word. plural: the resource, for the metrics. path: quoted."""

    verb: str
    plural: str
    path: str
    method: str = "GET"
    query: Mapping[str, str] | None = None
    headers: Mapping[str, str] | None = None
    data: bytes | None = None


class Transport:
    """Two pools of connections: long watches never use up what short requests need."""

    def __init__(self, credentials: Credentials, on_request: OnRequest | None, seconds: float) -> None:
        self._server = credentials.server.rstrip("/")
        self._on_request = on_request
        self._seconds = seconds
        self._requests = credentials.session(CONNECTIONS)
        self._watches = credentials.session(WATCH_CONNECTIONS)

    async def close(self) -> None:
        """Close all connections; requests in flight fail."""
        await self._requests.close()
        await self._watches.close()

    async def read(self, request: Request) -> bytes:
        """Send; again if the server wants it soon (429 or 503 with a short Retry-After)."""
        for _ in range(READ_ATTEMPTS - 1):
            try:
                return await self.send(request)
            except ApiError as error:
                if error.status not in (429, 503) or error.retry_after is None or error.retry_after > MAX_RETRY_AFTER:
                    raise
                await asyncio.sleep(error.retry_after)
        return await self.send(request)

    async def send(self, request: Request) -> bytes:
        """The body of the answer."""
        async with self._exchange(request) as codes:
            response = await self._start(self._requests, request, codes)
            async with response:
                await _raise_for_status(response)
                return await _bounded_body(response, MAX_BODY_BYTES)

    async def open(self, request: Request) -> aiohttp.ClientResponse:
        """An answer whose body is still to come, over the connections for watches; the caller closes it."""
        async with self._exchange(request) as codes:
            response = await self._start(self._watches, request, codes)
            try:
                await _raise_for_status(response)
            except BaseException:
                response.close()
                raise
            return response

    async def _start(
        self, session: aiohttp.ClientSession, request: Request, codes: list[int]
    ) -> aiohttp.ClientResponse:
        url = URL(self._server + request.path, encoded=True)  # quoted already; not to be normalised
        response = await session.request(
            request.method,
            url.with_query(request.query) if request.query else url,
            headers=request.headers,
            data=request.data,
            allow_redirects=False,  # a redirect would carry our token to somewhere else
        )
        codes.append(response.status)
        return response

    @contextlib.asynccontextmanager
    async def _exchange(self, request: Request) -> AsyncIterator[list[int]]:
        """The deadline of one exchange; whatever goes wrong becomes an ApiError; the body appends the status it got."""
        began, codes = time.monotonic(), [UNREACHABLE]
        what = f"{request.method} {request.path}"
        try:
            async with asyncio.timeout(self._seconds):
                yield codes
        except TimeoutError as error:
            message = f"{what}: no answer from {self._server} for {time.monotonic() - began:.1f} s"
            raise ApiError(UNREACHABLE, "Timeout", message) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            message = f"{what}: {self._server}: {error or type(error).__name__}"
            raise ApiError(UNREACHABLE, "Unreachable", message) from error
        finally:
            if self._on_request is not None:
                self._on_request(request.verb, request.plural, codes[-1], time.monotonic() - began)


def json_body(body: Any) -> bytes:
    """A body to send."""
    return msgspec.json.encode(body)


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if not 200 <= response.status < 300:
        body = await _bounded_body(response, MAX_ERROR_BYTES)
        raise error_of(response.status, body, response.headers.get("Retry-After"))


async def _bounded_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts, size = [], 0
    while part := await response.content.readany():
        size += len(part)
        if size > limit:
            raise ApiError(UNREACHABLE, "InvalidAnswer", f"{response.url.path}: an answer of more than {limit} bytes")
        parts.append(part)
    return b"".join(parts)
