"""Decides what the next step computes. Owns every request; a request's state says which collection holds it.

One step mixes decode (one token each, never starved) with chunks of prompts up to a token budget. Pages for
prompt and answer are reserved on admission, in order of arrival, so a running request never runs out. No torch
and no I/O here: what happened is in `outbox`, to be sent by the engine's loop.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Sequence

from epd_runtime.engine.request import NO_TOKEN, Request
from epd_runtime.engine.state import State
from epd_runtime.kvcache.pool import PageAllocator
from epd_runtime.messages import RequestFailed, TokenOutput


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the scheduler; tokens unless the name says otherwise."""

    context_length: int
    page_size: int
    max_running_requests: int
    chunked_prefill_size: int
    eos_token_ids: frozenset[int]
    vocab_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A request's share of the next step: its next num_tokens tokens."""

    request: Request
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the request's last known token, so that the next one is sampled."""
        return self.request.num_computed + self.num_tokens == self.request.total_length


class Scheduler:
    """Colocated serving, and the base of both halves of disaggregated serving."""

    def __init__(self, limits: Limits, allocator: PageAllocator) -> None:
        self.limits = limits
        self.allocator = allocator
        self.requests: dict[str, Request] = {}
        self.queued: deque[Request] = deque()
        self.running: list[Request] = []  # PREFILL or DECODE
        self.outbox: list[TokenOutput | RequestFailed] = []

    # --- what arrives -------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take a new request; refuses by a RequestFailed what can never run."""
        self.requests[request.rid] = request
        if not self._fits(request):
            return
        if request.has_all_images:
            self._enqueue(request)
        else:
            request.advance(State.AWAIT_IMAGES)

    def image_arrived(self, request: Request) -> None:
        """An embedding was attached; queue the request if it was the last."""
        if request.state is State.AWAIT_IMAGES and request.has_all_images:
            request.stage_started = time.time()
            self._enqueue(request)

    def abort(self, rid: str) -> None:
        """The client left: free everything, report nothing."""
        if (request := self.requests.get(rid)) is not None:
            self._leave(request)

    def fail(self, rid: str, status: int, message: str) -> None:
        """End a request with an error for its client."""
        if (request := self.requests.get(rid)) is not None:
            self.outbox.append(RequestFailed(rid, status, message))
            self._leave(request)

    def _fits(self, request: Request) -> bool:
        """Whether the request could run alone; else it is refused here, with the reason."""
        limit = self.limits.context_length
        if not 0 < request.prompt_length < limit:
            self.fail(
                request.rid,
                400,
                f"the prompt has {request.prompt_length} tokens; at least 1 and at most {limit - 1} fit",
            )
            return False
        request.resolve_max_new_tokens(limit)
        needed, available = self._pages_needed(request), self.allocator.num_pages
        if needed > available:
            self.fail(
                request.rid,
                400,
                f"the request needs {needed * self.limits.page_size} tokens of KV cache, the server has "
                f"{available * self.limits.page_size}; ask for fewer max_tokens or raise --max-total-tokens",
            )
            return False
        return True

    def _enqueue(self, request: Request) -> None:
        request.advance(State.QUEUED)
        self.queued.append(request)

    # --- one step -----------------------------------------------------------------------------------------------

    def schedule(self) -> list[Work]:
        """The work of the next step; empty when there is none."""
        self._admit()
        decodes = [Work(request, 1) for request in self.running if request.state is State.DECODE]
        budget = max(self.limits.chunked_prefill_size - len(decodes), 1)
        chunks = []
        for request in self.running:
            if request.state is State.PREFILL and budget > 0:
                chunks.append(Work(request, min(budget, request.prompt_length - request.num_computed)))
                budget -= chunks[-1].num_tokens
        return decodes + chunks

    def commit(self, work: Sequence[Work], tokens: Sequence[int]) -> None:
        """Account for a finished step; tokens are those of the works that sample, in order (NO_TOKEN: none valid)."""
        sampled = iter(tokens)
        for item in work:
            request, samples = item.request, item.samples
            request.num_computed += item.num_tokens
            if request.state is State.PREFILL:
                self._chunk_done(request)
            if samples:
                self._take_token(request, next(sampled))

    def _take_token(self, request: Request, token: int) -> None:
        if token == NO_TOKEN:
            self.fail(
                request.rid, 500, "the model computed no valid probabilities for the next token (NaN or infinity)"
            )
            return
        request.append_token(token, self.limits.eos_token_ids)
        self._token_sampled(request)

    def has_work(self) -> bool:
        """Whether another step can compute something now."""
        return bool(self.running) or bool(self.queued and self._can_admit(self.queued[0]))

    def _admit(self) -> None:
        """Give pages to queued requests in order of arrival."""
        while self.queued and self._can_admit(self.queued[0]):
            request = self.queued.popleft()
            pages = self.allocator.allocate(self._pages_needed(request))
            assert pages is not None
            request.own_pages(pages)
            self._admitted(request)

    def _can_admit(self, request: Request) -> bool:
        return self._num_active() < self.limits.max_running_requests and (
            self._pages_needed(request) <= self.allocator.num_free
        )

    # --- what the halves of disaggregated serving change --------------------------------------------------------------

    def _num_active(self) -> int:
        """Requests that own pages and will take part in steps."""
        return len(self.running)

    def _pages_needed(self, request: Request) -> int:
        """The last token of an answer is never attended to, so it needs no place."""
        return -(-(request.prompt_length + max(request.max_new_tokens - 1, 0)) // self.limits.page_size)

    def _admitted(self, request: Request) -> None:
        request.end_stage("queue")
        request.advance(State.PREFILL)
        self.running.append(request)

    def _chunk_done(self, request: Request) -> None:
        """A chunk of a prompt is in the pages."""

    def _token_sampled(self, request: Request) -> None:
        """Report a new token; free the request if it was the last."""
        if request.state is State.PREFILL:
            request.end_stage("prefill")
            request.advance(State.DECODE)
            request.forget_prompt_inputs()
        self._report(request)

    def _report(self, request: Request) -> None:
        finished = request.finish_reason is not None
        if finished:
            request.end_stage("decode")
        self.outbox.append(
            TokenOutput(
                rid=request.rid,
                token_ids=request.output_ids[-1:],
                finish_reason=request.finish_reason,
                matched_stop=request.matched_stop,
                prompt_tokens=request.prompt_length,
                completion_tokens=len(request.output_ids),
                spans=request.spans if finished else [],
            )
        )
        if finished:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        """Remove a request from every collection and free what it owns."""
        if request.state is State.QUEUED:
            self.queued.remove(request)
        elif request.state in (State.PREFILL, State.DECODE):
            self.running.remove(request)
        self._release(request)

    def _release(self, request: Request) -> None:
        request.advance(State.FINISHED)
        self.allocator.free(request.disown_pages())
        request.forget_prompt_inputs()
        del self.requests[request.rid]
