"""One leg of a request: the exchange with one worker, as a state of pair.LegState.

`run` posts the request and ends in a state other than PENDING; it raises nothing but cancellation. After ANSWERING the
reader takes chunks with `next_chunk` until b"". The worker counts the leg as its own from the constructor until it ends
or is closed, whichever is first.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging

import aiohttp

from epd_runtime.router.errors import Answer
from epd_runtime.router.health import Probe
from epd_runtime.router.pair import LegState
from epd_runtime.router.stall import StallTimer
from epd_runtime.router.workers import Worker

MAX_ANSWER_BYTES = 256 << 20  # of an answer that is not streamed
MAX_ERROR_BYTES = 64 << 10
ERROR_BODY_SECONDS = 2.0
_CONNECT_SECONDS = 3.0
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)  # progress is watched by stall.py
_LARGE_BODY = 1 << 20
_HOP_BY_HOP = ("connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade")
_DROPPED_HEADERS = frozenset((*_HOP_BY_HOP, "content-length", "date", "server"))  # the latter three are written anew
_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS)

log = logging.getLogger(__name__)


class Leg:
    """The exchange with one worker. A prefill leg (keeps_answer False) reads its answer only to see it end."""

    def __init__(self, worker: Worker, timer: StallTimer, *, keeps_answer: bool) -> None:
        self.worker = worker
        self.state = LegState.PENDING
        self.answer: Answer | None = None  # with REJECTED, DONE, and REFUSED and FAILED when the worker answered
        self.cause = ""  # with REFUSED, FAILED and BROKEN
        self.headers: dict[str, str] = {}
        self.ended_at = 0.0  # loop time
        self.status = 0
        self.first = b""  # first chunk, with ANSWERING
        self.task: asyncio.Task[None] | None = None
        self._timer = timer
        self.keeps_answer = keeps_answer
        self._response: aiohttp.ClientResponse | None = None
        self._counted = True
        worker.begin(timer)

    def start(
        self, session: aiohttp.ClientSession, path: str, body: bytes, headers: dict[str, str]
    ) -> asyncio.Task[None]:
        """Begin the exchange."""
        self.task = asyncio.create_task(self._run(session, path, body, headers))
        return self.task

    async def next_chunk(self) -> bytes:
        """Next bytes of a stream; b"" at its end, after which the state is DONE or BROKEN."""
        assert self._response is not None
        try:
            chunk = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            self._end(LegState.BROKEN, _describe(error))
            return b""
        if not chunk:
            self._end(LegState.DONE)
        return chunk

    def close(self) -> None:
        """End the exchange now; the worker sees the connection close."""
        if self.task is not None:
            self.task.cancel()
        if self._response is not None:
            self._response.close()
        self._release()

    async def _run(self, session: aiohttp.ClientSession, path: str, body: bytes, headers: dict[str, str]) -> None:
        data = body if len(body) < _LARGE_BODY else io.BytesIO(body)  # the latter is written piece by piece
        try:
            self._response = await session.post(
                self.worker.url + path, data=data, headers=headers, timeout=_TIMEOUT, allow_redirects=False
            )
            await self._receive(self._response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if getattr(error, "errno", None) not in _OWN_LIMITS:
                self.worker.observe(Probe.REFUSED, _describe(error))
            self._end(LegState.REFUSED, _describe(error))
        except (aiohttp.ClientError, OSError) as error:
            self._end(LegState.FAILED, _describe(error))
        except Exception as error:  # one odd answer must not hang the request
            log.exception("the exchange with %s failed unexpectedly", self.worker.url)
            self._end(LegState.FAILED, _describe(error))

    async def _receive(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = {name: value for name, value in response.headers.items() if name.lower() not in _DROPPED_HEADERS}
        if response.status >= 400:
            await self._receive_error(response)
        elif not self.keeps_answer:
            while await response.content.readany():
                pass
            self._end(LegState.DONE)
        elif response.content_type == "text/event-stream":
            self.first = await response.content.readany()
            self.state = LegState.ANSWERING
            if not self.first:
                self.answer = Answer(self.status, b"", self.headers)
                self._end(LegState.DONE)
        else:
            self.answer = Answer(self.status, await _read(response, MAX_ANSWER_BYTES), self.headers)
            self._end(LegState.DONE)

    async def _receive_error(self, response: aiohttp.ClientResponse) -> None:
        """The status decides; a body that breaks off is quoted as far as it came."""
        body = bytearray()
        try:
            async with asyncio.timeout(ERROR_BODY_SECONDS):
                while len(body) < MAX_ERROR_BYTES and (chunk := await response.content.readany()):
                    body += chunk
        except (aiohttp.ClientError, OSError) as error:
            log.info("the error body of %s broke off: %s", self.worker.url, _describe(error))
        self.answer = Answer(self.status, bytes(body), self.headers)
        response.close()
        self._end(_of_status(self.status), f"it answered {self.status}")

    def _end(self, state: LegState, cause: str = "") -> None:
        self.state, self.cause = state, cause
        self.ended_at = asyncio.get_running_loop().time()
        self._release()

    def _release(self) -> None:
        if self._counted:
            self._counted = False
            self.worker.end(self._timer)


def _of_status(status: int) -> LegState:
    """A worker that is full, starting or draining answers 503 before it begins with a request."""
    if status == 503:
        return LegState.REFUSED
    return LegState.REJECTED if status < 500 else LegState.FAILED


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await response.content.readany():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            response.close()
            raise aiohttp.ClientError(f"its answer is longer than {limit >> 20} MiB")
    return b"".join(chunks)


def _describe(error: BaseException) -> str:
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError):
        return "the connection was closed before the answer was complete"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect ({error.os_error.strerror or error.os_error})"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection was closed in the middle of the answer"
    return str(error) or type(error).__name__
