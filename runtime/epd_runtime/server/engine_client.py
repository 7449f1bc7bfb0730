"""The API process's end of the socket to its engine.

One reader takes every message off the socket and puts it into the mailbox of the request it belongs to. A mailbox
never blocks the reader and never loses tokens; it is bounded by the request's own max_new_tokens.

    open() ──▶ [message, message, …] ──▶ every rid finished
      │            └──▶ RequestFailed: RequestError to the reader of the mailbox, the other rids are aborted
      └── leaving the `with` block early (client gone, stop string, error) sends AbortRequest for what is unfinished
    fail_all(): the engine died; every open mailbox raises RequestError 503

Leak-free by construction: a mailbox exists only inside its `with` block.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import msgspec

from epd_runtime import messages
from epd_runtime.frontend.errors import RequestError
from epd_runtime.message_socket import MessageSocket
from epd_runtime.messages import (
    AbortRequest,
    CacheFlushed,
    EncodeDone,
    EncodeRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    FlushCache,
    GenerateRequest,
    ImagesWanted,
    RequestFailed,
    StepOutputs,
    TokenOutput,
)

Output: TypeAlias = TokenOutput | EncodeDone | CacheFlushed
Task: TypeAlias = GenerateRequest | EncodeRequest | FlushCache  # what has an end

logger = logging.getLogger(__name__)


class Mailbox:
    """Outputs of the requests of one client call. Iterate until all are finished."""

    def __init__(self, rids: Sequence[str], give_images: Callable[[ImagesWanted], None] | None = None) -> None:
        """give_images: called when the engine asks for images of a request."""
        self.open = set(rids)
        self.give_images = give_images
        self._items: list[Output] = []
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, output: Output) -> None:
        """Called by the reader."""
        if not isinstance(output, TokenOutput) or output.finish_reason is not None:
            self.open.discard(output.rid)
        self._items.append(output)
        self._wake()

    def fail(self, error: RequestError, rid: str | None = None) -> None:
        """One request, or with rid None all of them, ended with an error."""
        if rid is None:
            self.open.clear()
        else:
            self.open.discard(rid)
        self._error = self._error or error
        self._wake()

    async def take(self) -> list[Output]:
        """All outputs that wait, at least one; [] when every request is finished. Raises RequestError."""
        while not self._items and self._error is None and self.open:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._items:
            items, self._items = self._items, []
            return items
        if self._error is not None:
            raise self._error
        return []

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineClient:
    """Sends requests to the engine and routes what it answers. Belongs to one event loop."""

    def __init__(self, sock: MessageSocket) -> None:
        self.stats = EngineStats()
        self.num_steps = 0  # steps that gave tokens
        self.dead: RequestError | None = None
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[EngineReady | EngineFailed] = self._loop.create_future()
        self.failed: asyncio.Future[str] = self._loop.create_future()  # why the engine says it ends
        self._mailboxes: dict[str, Mailbox] = {}
        self._closed = False
        self._socket = sock
        self._loop.add_reader(sock.fileno(), self._read)

    @contextmanager
    def open(
        self, requests: Sequence[Task], give_images: Callable[[ImagesWanted], None] | None = None
    ) -> Iterator[Mailbox]:
        """Submit requests; on leaving, what is unfinished is aborted. Raises RequestError 503 if the engine died."""
        if self.dead is not None:
            raise self.dead
        mailbox = Mailbox([request.rid for request in requests], give_images)
        self._mailboxes.update((request.rid, mailbox) for request in requests)
        try:
            for request in requests:
                self.send(request)
            yield mailbox
        finally:
            for request in requests:
                del self._mailboxes[request.rid]
            for rid in mailbox.open:
                self.send(AbortRequest(rid))

    def finish(self, mailbox: Mailbox, last: TokenOutput) -> None:
        """End one request of a mailbox for its reader and in the engine, as an administrator wants it."""
        if last.rid in mailbox.open:
            mailbox.put(last)
            self.send(AbortRequest(last.rid))

    def abort(self, mailbox: Mailbox, rid: str) -> None:
        """End one request of a mailbox early, as finished: its stop string matched."""
        if rid in mailbox.open:
            mailbox.open.discard(rid)
            self.send(AbortRequest(rid))

    def send(self, message: messages.ToEngine) -> None:
        """Queue one message for the engine; nothing happens when it is dead or this process is leaving."""
        if self.dead is None and not self._closed:
            self._socket.send(messages.encode(message))
            if self._socket.has_backlog:
                self._loop.add_writer(self._socket.fileno(), self._flush)

    def fail_all(self, error: RequestError) -> None:
        """The engine is gone: end every open request, now and from now on."""
        self.dead = error
        for mailbox in set(self._mailboxes.values()):
            mailbox.fail(error)

    @property
    def num_open(self) -> int:
        """Requests in the engine as far as this process knows."""
        return len(self._mailboxes)

    def close(self) -> None:
        """Stop reading and sending; the socket belongs to the engine process."""
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._closed = True

    def _read(self) -> None:
        for message in self._socket.receive():
            try:
                self._dispatch(messages.decode_from_engine(message))
            except msgspec.MsgspecError as error:
                logger.error("message from the engine cannot be decoded: %s", error)
        if not self._socket.is_open:  # its process is watched elsewhere
            self._loop.remove_reader(self._socket.fileno())

    def _flush(self) -> None:
        self._socket.flush()
        if not self._socket.has_backlog:
            self._loop.remove_writer(self._socket.fileno())

    def _dispatch(self, message: messages.FromEngine) -> None:
        match message:
            case StepOutputs():
                self.stats = message.stats
                self.num_steps += bool(message.outputs)
                for output in message.outputs:
                    self._deliver(output)
            case EncodeDone() | CacheFlushed():
                self.stats = message.stats
                self._deliver(message)
            case RequestFailed():
                mailbox = self._mailboxes.get(message.rid)
                if mailbox is not None:
                    mailbox.fail(RequestError(message.status, message.message), message.rid)
            case ImagesWanted():
                mailbox = self._mailboxes.get(message.rid)
                if mailbox is not None and mailbox.give_images is not None and message.rid in mailbox.open:
                    mailbox.give_images(message)
            case EngineReady() | EngineFailed():
                if isinstance(message, EngineReady):
                    self.stats = message.stats
                elif not self.failed.done():
                    self.failed.set_result(message.message)
                if not self.ready.done():
                    self.ready.set_result(message)

    def _deliver(self, output: Output) -> None:
        mailbox = self._mailboxes.get(output.rid)
        if mailbox is not None and output.rid in mailbox.open:
            mailbox.put(output)
