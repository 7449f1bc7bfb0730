"""The KV handoff as the schedulers of prefill and decode see it: calls that never block, and events to poll.

Both sides own a background thread with the sockets. The scheduler calls methods (they only enqueue) and polls events; a
file descriptor becomes readable when events wait, so an idle scheduler can sleep on it.

    prefill scheduler                     decode scheduler
    announce(room, num_tokens, False)     join(room, host, port)
    admit(room)              ──────────▶  event Prepared(room, num_tokens)
                                          accept(room, pages)
    send(room, pages, first)  ─── KV pages, any number of times ───▶
    finish(room, result)      ─────────▶  event Received(room, result)      pages are complete
    event Sent(room)
    fail(room, status, message) ───────▶  event Failed(room, …)
    event Failed(room, …)     ◀─────────  abort(room, status, message)

Every room ends with exactly one event on each side: Sent or Failed for prefill, Received or Failed for decode.
When decode sees that event, nobody writes into the room's pages any more: they may be freed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec

from epd_runtime.messages import Span, TokenLogprobs


class PrefillResult(msgspec.Struct, frozen=True):
    """All that decode must know of a prompt; it does no image or tokenizer work itself."""

    input_ids: list[int]
    first_token: int
    position_delta: int
    cached_tokens: int
    spans: list[Span]
    logprobs: list[TokenLogprobs] = []  # of first_token, when asked for
    prompt_logprobs: list[TokenLogprobs | None] = []


class Prepared(msgspec.Struct, frozen=True):
    """Decode side: prefill knows the prompt; allocate pages for num_tokens and call accept()."""

    room: int
    num_tokens: int


class Received(msgspec.Struct, frozen=True):
    """Decode side: every page has been written. started is the time.time() at which the first page arrived."""

    room: int
    result: PrefillResult
    started: float


class Sent(msgspec.Struct, frozen=True):
    """Prefill side: decode has everything; the local pages may be freed."""

    room: int


class Failed(msgspec.Struct, frozen=True):
    """Either side: the room is over. status is an HTTP status, message is for the client."""

    room: int
    status: int
    message: str


DecodeEvent: TypeAlias = Prepared | Received | Failed
PrefillEvent: TypeAlias = Sent | Failed


class PrefillHandoff(Protocol):
    """Prefill's half. Rooms may be unknown to either side yet: requests and joins arrive in any order."""

    bootstrap_port: int

    def announce(self, room: int, num_tokens: int, admitted: bool = True) -> None:
        """The request is here; decode's deadline for it ends. admitted: so are its pages, as after admit()."""

    def admit(self, room: int) -> None:
        """The request has pages: decode may allocate its own.

        Always in this order. Were decode to grant pages to a prompt that queues here, while prompts that hold all
        pages here queue there, both would wait for ever.
        """

    def send(self, room: int, pages: Sequence[int], first: int) -> None:
        """Local pages that are complete; they become the room's pages first, first + 1, … at decode."""

    def finish(self, room: int, result: PrefillResult) -> None:
        """After the last send()."""

    def fail(self, room: int, status: int, message: str) -> None:
        """End the room with an error; also for a room never announced (a tombstone waits for decode's join)."""

    def poll(self) -> list[PrefillEvent]: ...
    def fileno(self) -> int: ...
    def num_rooms(self) -> int: ...
    def close(self) -> None: ...


class DecodeHandoff(Protocol):
    """Decode's half."""

    def join(self, room: int, host: str, port: int) -> None: ...
    def accept(self, room: int, pages: Sequence[int]) -> None: ...
    def abort(self, room: int, status: int = 499, message: str = "decode left the room") -> None:
        """Leave, and tell prefill's client why; one Failed event follows once no write can reach the pages any more."""

    def poll(self) -> list[DecodeEvent]: ...
    def fileno(self) -> int: ...
    def num_rooms(self) -> int: ...
    def close(self) -> None: ...
