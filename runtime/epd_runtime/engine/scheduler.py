"""Decides what the next step computes. Owns every request; a request's state says which collection holds it.

One step mixes decode (one token each, never starved) with chunks of prompts up to a token budget (policy.py). Requests
take pages as they grow (memory.py). When a decode step needs a page and none is left, not even an idle one of the
prefix cache, the running request that goes last is retracted: its pages are freed, its tokens kept, and it queues
before everything that never ran.

Why everybody finishes: `order` ranks requests for their whole life. The first of the running ones is retracted only
when it runs alone, and alone it fits (else it was refused on arrival), so it finishes; then the next one is first.

schedule() only decides; advance() accounts for a step that has begun, settle() for its result. Between the two the next
step may be scheduled and begun (overlap.py). No torch and no I/O here: what happened is in `outbox`, and whose images
are wanted in `images_wanted`, for the engine's loop.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from bisect import insort
from collections.abc import Sequence

from epd_runtime.engine.admission import Admission
from epd_runtime.engine.limits import Limits, prompt_problem, size_problem
from epd_runtime.engine.memory import RequestMemory
from epd_runtime.engine.policy import order, share_budget
from epd_runtime.engine.request import NO_TOKEN, UNRANKED, Request
from epd_runtime.engine.state import State
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.prefix_cache import Node
from epd_runtime.messages import RequestFailed, TokenOutput


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A request's share of the next step: its next num_tokens tokens."""

    request: Request
    num_tokens: int
    end: int  # num_computed after the step
    samples: bool  # the step reaches the request's last token, so that the next one is sampled

    @classmethod
    def of(cls, request: Request, num_tokens: int) -> Work:
        """The next num_tokens tokens of a request as it is now."""
        end = request.num_computed + num_tokens
        return cls(request, num_tokens, end, end == request.total_length)


@dataclasses.dataclass
class Counters:
    """Only grow; for metrics."""

    prefix_tokens: int = 0
    prefix_hit_tokens: int = 0
    retractions: int = 0
    handed_pages: int = 0  # whose KV was handed over to or by another engine


class Scheduler:
    """Colocated serving, and the base of both halves of disaggregated serving."""

    def __init__(self, limits: Limits, allocator: PageAllocator) -> None:
        self.limits = limits
        self.allocator = allocator
        self.memory = RequestMemory(allocator, limits.page_size, limits.reserve, limits.keeps_prefixes)
        self._admission = Admission(self.memory, limits)
        self.requests: dict[str, Request] = {}
        self.queued: list[Request] = []  # in the order in which they are admitted
        self.running: list[Request] = []  # PREFILL or DECODE
        self.outbox: list[TokenOutput | RequestFailed] = []
        self.images_wanted: list[Request] = []  # their `awaited` images must be fetched
        self.counters = Counters()
        self._numbers = itertools.count(1)

    # --- what arrives -------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Take a new request; refuses by a RequestFailed what can never run."""
        self.requests[request.rid] = request
        if self._fits(request) and not self._awaits_images(request, self.memory.match(request)):
            self._enqueue(request)

    def image_arrived(self, request: Request) -> None:
        """An embedding was attached; queue the request if it was the last that it waits for."""
        if request.state is State.AWAIT_IMAGES and request.has_awaited_images:
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
        limits, num_pages = self.limits, self.allocator.num_pages
        problem = prompt_problem(request, limits)
        if problem is None:
            request.resolve_max_new_tokens(limits.context_length, num_pages * limits.page_size)
            request.num_slots = self._slots(request)
            problem = size_problem(request, limits, num_pages)
        if problem is not None:
            self.fail(request.rid, 400, problem)
        return problem is None

    def _enqueue(self, request: Request) -> None:
        if request.order == UNRANKED:
            request.order = order(self.limits.policy, request.priority, request.arrived, next(self._numbers))
        request.advance(State.QUEUED)
        insort(self.queued, request, key=_queue_order)

    def _awaits_images(self, request: Request, path: list[Node]) -> bool:
        """Whether images are missing whose KV is not in that cached path; then the request waits for them."""
        request.awaited = request.images_missing(self.memory.num_cached(path))
        if request.awaited:
            request.advance(State.AWAIT_IMAGES)
            self.images_wanted.append(request)
        return bool(request.awaited)

    # --- one step -----------------------------------------------------------------------------------------------

    def schedule(self) -> list[Work]:
        """The work of the next step; empty when there is none."""
        self._grow()
        self._admit()
        decodes = [Work.of(request, 1) for request in self.running if self._continues(request)]
        prompts = [one for one in self.running if one.state is State.PREFILL and not one.num_pending]
        if not prompts:
            return decodes
        budget = max(self.limits.chunked_prefill_size - len(decodes), 1)
        shares = share_budget(budget, [request.total_length - request.num_computed for request in prompts])
        return decodes + [Work.of(request, share) for request, share in zip(prompts, shares, strict=True) if share]

    def can_run_ahead(self) -> bool:
        """Whether schedule() can run before the last step is settled: it will retract nobody with a token under way."""
        return len(self._full()) <= self.memory.cache.num_available

    def commit(self, work: Sequence[Work], tokens: Sequence[int]) -> None:
        """Account for a step that began and finished; tokens as settle() takes them."""
        self.advance(work)
        self.settle(work, tokens)

    def advance(self, work: Sequence[Work]) -> None:
        """Account for a step that has begun."""
        for item in work:
            item.request.num_computed = item.end
            item.request.num_pending += item.samples

    def settle(self, work: Sequence[Work], tokens: Sequence[int]) -> None:
        """Account for a finished step; tokens are those of the works that sample, in order (NO_TOKEN: none valid).

        Requests that ended since the step began, by themselves or by others, take nothing from it.
        """
        sampled = iter(tokens)
        for item in work:
            request, token = item.request, next(sampled) if item.samples else NO_TOKEN
            if request.state is State.FINISHED:
                continue
            if request.state is State.PREFILL:
                self._chunk_done(request, item.end)
            if item.samples:
                request.num_pending -= 1
                self._take_token(request, token, item.end)

    def _take_token(self, request: Request, token: int, num_computed: int) -> None:
        if token == NO_TOKEN:
            self.memory.discredit(request)
            self.fail(
                request.rid, 500, "the model computed no valid probabilities for the next token (NaN or infinity)"
            )
            return
        request.num_valid = num_computed
        request.append_token(token, self.limits.eos_token_ids)
        self._token_sampled(request)

    def has_work(self) -> bool:
        """Whether another step can compute something now."""
        return bool(self.running) or self._admission.pick(self.queued, self._active()) is not None

    def flush(self) -> None:
        """Forget every cached prefix that no request uses."""
        self.memory.cache.flush()

    def _grow(self) -> None:
        """Make room for every next token of an answer; where there is none, those that go last give up theirs."""
        for request in self._full():
            while self._continues(request) and not self.memory.grow(request):
                self._retract(max(self.running, key=lambda one: one.order))

    def _full(self) -> list[Request]:
        """Requests whose next token of an answer needs another page."""
        page_size = self.limits.page_size
        full = [one for one in self.running if one.num_computed == len(one.holding.pages) * page_size]
        return [one for one in full if self._continues(one)]

    def _retract(self, request: Request) -> None:
        request.end_stage("decode" if request.state is State.DECODE else "prefill")
        self.counters.retractions += 1
        self.running.remove(request)
        request.is_retracted = True
        self._suspend(request)
        self._enqueue(request)

    def _admit(self) -> None:
        """Give pages to queued requests."""
        while (picked := self._admission.pick(self.queued, self._active())) is not None:
            request, path = picked
            self.queued.remove(request)
            if self._awaits_images(request, path):
                continue
            self.memory.admit(request, path)
            if not request.is_retracted:
                self._count_hit(request)
            request.is_retracted = False
            self._admitted(request)

    def _count_hit(self, request: Request) -> None:
        if not self.memory.cache.is_enabled:
            return
        request.cached_tokens = request.num_computed
        self.counters.prefix_tokens += request.prompt_length
        self.counters.prefix_hit_tokens += request.cached_tokens

    @property
    def num_handoff_pages(self) -> int:
        """Pages held for a handoff under way."""
        return 0

    # --- what the halves of disaggregated serving change --------------------------------------------------------------

    def _active(self) -> Sequence[Request]:
        """Requests that hold pages and will take part in steps."""
        return self.running

    def _slots(self, request: Request) -> int:
        """Most tokens whose KV the request will hold: the last token of an answer is never attended to."""
        return request.prompt_length + max(request.max_new_tokens - 1, 0)

    def _suspend(self, request: Request) -> None:
        """Free a retracted request's pages; what it computed may still be in the prefix cache when it comes back."""
        self.memory.release(request)

    def _admitted(self, request: Request) -> None:
        request.end_stage("queue")
        request.advance(State.PREFILL)
        self.running.append(request)

    def _continues(self, request: Request) -> bool:
        """Whether the next step computes the request's last token, be its value known or not."""
        is_generating = request.state is State.DECODE or request.num_pending > 0
        return is_generating and request.num_sampled < request.max_new_tokens

    def _chunk_done(self, request: Request, num_computed: int) -> None:
        """The KV of so many tokens of a prompt is in the pages."""
        if num_computed < request.prompt_length + len(request.output_ids):
            self.memory.publish(request, num_computed)

    def _token_sampled(self, request: Request) -> None:
        """Report a new token; free the request if it was the last."""
        if request.state is State.PREFILL:
            request.end_stage("prefill")
            request.advance(State.DECODE)
            self.memory.share(request)
        self._report(request)

    def _report(self, request: Request) -> None:
        finished = request.finish_reason is not None
        if finished:
            request.end_stage("decode")
        logprobs, prompt_logprobs = request.sampled.take_logprobs()
        self.outbox.append(
            TokenOutput(
                rid=request.rid,
                token_ids=request.output_ids[-1:],
                finish_reason=request.finish_reason,
                matched_stop=request.matched_stop,
                prompt_tokens=request.prompt_length,
                completion_tokens=len(request.output_ids),
                cached_tokens=request.cached_tokens,
                spans=request.spans if finished else [],
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
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
        self.memory.release(request)
        request.forget_prompt_inputs()
        request.saved_kv = None
        del self.requests[request.rid]


def _queue_order(request: Request) -> tuple[bool, tuple[float, int]]:
    return (not request.is_retracted, request.order)
