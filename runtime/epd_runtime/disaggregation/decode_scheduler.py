"""Scheduling on a decode worker: requests whose prompt another engine computes.

A request joins its room at prefill, waits for the prompt's length (JOINING), queues for pages (QUEUED), grants
them to prefill (RECEIVING) and decodes once everything has arrived. Pages that prefill may still write into are
freed only after the handoff says that the room is over.

It cannot compute a prompt again: images never come here. So the KV of a retracted request is copied to host memory and
back. Nothing new is admitted while a copy waits, so copies and running requests together are never more than
max_running_requests, and a copy is at most what its request may hold; requests of equal length, retracted one after the
other as the rest grows, need about the pool's size times the logarithm of their number. Requests that are RECEIVING
cannot be retracted; when they hold the last page even the first request waits for them, and as no new ones are admitted
they become few.

Prefill is not trusted: a request names its address, so it may be anybody. What it says about a prompt is checked before
it can cost memory or reach a step that other requests share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from epd_runtime.disaggregation.handoff.contract import DecodeHandoff, Failed, PrefillResult, Prepared, Received
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.engine.state import State
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.prefix_cache import Holding
from epd_runtime.messages import Bootstrap


class PageStore(Protocol):
    """The memory of the pages (KVPool)."""

    def save(self, pages: Sequence[int]) -> Any:
        """A copy of pages in host memory."""

    def load(self, saved: Any, pages: Sequence[int]) -> None:
        """Put a copy back, into any pages of the same number."""


class DecodeScheduler(Scheduler):
    """A Scheduler that is given its prompts' KV instead of computing it."""

    def __init__(self, limits: Limits, allocator: PageAllocator, handoff: DecodeHandoff, store: PageStore) -> None:
        super().__init__(dataclasses.replace(limits, keeps_prefixes=False), allocator)
        self._handoff = handoff
        self._store = store
        self._rooms: dict[int, Request] = {}
        self._orphaned: dict[int, Holding] = {}  # room -> pages of a request that left while RECEIVING
        self._receiving: dict[int, Request] = {}  # those of _rooms that are RECEIVING

    def add(self, request: Request) -> None:
        """Join the request's room at prefill."""
        self.requests[request.rid] = request
        assert request.bootstrap is not None
        if request.room in self._rooms or request.room in self._orphaned:
            self.fail(request.rid, 400, f"room {request.room} is in use by another request")
            return
        request.advance(State.JOINING)
        self._rooms[request.room] = request
        self._handoff.join(request.room, request.bootstrap.host, request.bootstrap.port)

    def abort(self, rid: str) -> None:
        """The client left: prefill's half must end too."""
        if (request := self.requests.get(rid)) is not None:
            self._leave_room(request, 499, "the client closed the request")
        super().abort(rid)

    def fail(self, rid: str, status: int, message: str) -> None:
        """End a request on both sides."""
        if (request := self.requests.get(rid)) is not None:
            self._leave_room(request, status, message)
        super().fail(rid, status, message)

    def refuse_room(self, bootstrap: Bootstrap, status: int, message: str) -> None:
        """A request was refused before it reached the engine: prefill's half must not wait for us."""
        if bootstrap.room not in self._rooms and bootstrap.room not in self._orphaned:
            self._handoff.join(bootstrap.room, bootstrap.host, bootstrap.port)
            self._handoff.abort(bootstrap.room, status, message)

    def poll_handoff(self) -> None:
        """Take what happened to the rooms since the last call."""
        for event in self._handoff.poll():
            if isinstance(event, Failed):
                self._room_failed(event)
            elif (request := self._rooms.get(event.room)) is not None:
                if isinstance(event, Prepared):
                    self._prepared(request, event.num_tokens)
                else:
                    self._received(request, event)
            elif isinstance(event, Received):  # the request left while its last bytes were on their way
                self._room_is_over(event.room)

    @property
    def num_handoff_pages(self) -> int:
        """Pages that prefill may write into."""
        holdings = [one.holding for one in self._receiving.values()]
        return sum(len(one.pages) for one in (*holdings, *self._orphaned.values()))

    def _prepared(self, request: Request, num_tokens: int) -> None:
        request.prompt_length = num_tokens
        if self._fits(request):
            self._enqueue(request)

    def _received(self, request: Request, event: Received) -> None:
        del self._rooms[request.room]
        del self._receiving[request.room]
        self.counters.handed_pages += self.memory.pages_for(request.prompt_length)
        result = event.result
        if (problem := self._problem(request, result)) is not None:
            self.fail(request.rid, 502, f"prefill sent a wrong result: {problem}")
            return
        request.input_ids = result.input_ids
        request.position_delta = result.position_delta
        request.sampled.logprobs, request.sampled.prompt_logprobs = result.logprobs, result.prompt_logprobs
        request.num_computed = request.prompt_length
        request.cached_tokens = result.cached_tokens
        request.spans = list(result.spans)
        prefill_end = result.spans[-1].end if result.spans else event.started
        request.stage_started = prefill_end
        request.end_stage("handoff")
        request.advance(State.DECODE)
        self.running.append(request)
        request.append_token(result.first_token, self.limits.eos_token_ids)
        self._report(request)

    def _room_failed(self, event: Failed) -> None:
        self._room_is_over(event.room)
        if (request := self._rooms.pop(event.room, None)) is not None:
            self._receiving.pop(event.room, None)
            self.fail(request.rid, event.status, event.message)

    def _room_is_over(self, room: int) -> None:
        """Nobody writes into its pages any more."""
        if (holding := self._orphaned.pop(room, None)) is not None:
            self.memory.close(holding)

    def _problem(self, request: Request, result: PrefillResult) -> str | None:
        """Why a result cannot be continued; None if it can."""
        if len(result.input_ids) != request.prompt_length:
            return f"{len(result.input_ids)} tokens, but {request.prompt_length} were announced"
        if not all(0 <= token < self.limits.vocab_size for token in result.input_ids):
            return f"input_ids are not in the vocabulary of {self.limits.vocab_size}"
        if not 0 <= result.first_token < self.limits.vocab_size:
            return f"first_token {result.first_token} is not in the vocabulary of {self.limits.vocab_size}"
        if not -request.prompt_length <= result.position_delta <= 0:
            return f"position_delta {result.position_delta} moves positions out of the context"
        if not 0 <= result.cached_tokens <= request.prompt_length:
            return f"cached_tokens {result.cached_tokens} is not within the prompt's {request.prompt_length}"
        return self._logprobs_problem(request, result)

    def _logprobs_problem(self, request: Request, result: PrefillResult) -> str | None:
        asked = request.sampling.logprobs
        if len(result.logprobs) != (asked >= 0):
            return f"{len(result.logprobs)} logprobs of one token"
        if len(result.prompt_logprobs) != request.num_prompt_logprobs:
            return f"{len(result.prompt_logprobs)} logprobs of {request.num_prompt_logprobs} prompt tokens"
        for one in (*result.logprobs, *filter(None, result.prompt_logprobs)):
            if len(one.top) > max(asked, 0) or not all(0 <= token < self.limits.vocab_size for token, _ in one.top):
                return f"top logprobs of unknown tokens, or of more than the {asked} asked for"
        return None

    def _active(self) -> Sequence[Request]:
        return [*self.running, *self._receiving.values()]

    def _admitted(self, request: Request) -> None:
        if request.saved_kv is not None:
            self._resume(request)
            return
        request.advance(State.RECEIVING)
        self._receiving[request.room] = request
        self._handoff.accept(request.room, request.pages)

    def _suspend(self, request: Request) -> None:
        request.saved_kv = self._store.save(request.pages[: self.memory.pages_for(request.num_computed)])
        self.memory.release(request)

    def _resume(self, request: Request) -> None:
        request.num_computed = request.total_length - 1
        self._store.load(request.saved_kv, request.pages[: self.memory.pages_for(request.num_computed)])
        request.saved_kv = None
        request.end_stage("queue")
        request.advance(State.DECODE)
        self.running.append(request)

    def _leave_room(self, request: Request, status: int, message: str) -> None:
        """Keep the pages that prefill may still write into until the room is over."""
        if self._rooms.get(request.room) is request:
            del self._rooms[request.room]
            if request.state is State.RECEIVING:
                del self._receiving[request.room]
                self._orphaned[request.room] = request.surrender()
            self._handoff.abort(request.room, status, message)
