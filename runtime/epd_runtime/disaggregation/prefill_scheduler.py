"""Scheduling on a prefill worker: prompts only, and the handoff of their KV to decode.

A request is announced on arrival; once it has pages here, decode allocates its own (never the other way round, or both
could wait for each other), and every full page is sent as soon as it is computed, so that the copy overlaps with
compute; pages found in the prefix cache are sent at once. Pages stay held until decode has everything (state SENDING).
A prompt has all its pages from the start, so nothing is retracted here.
"""

from __future__ import annotations

from epd_runtime.disaggregation.handoff.contract import Failed, PrefillHandoff, PrefillResult
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.engine.state import State
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.messages import Bootstrap, TokenOutput


class PrefillScheduler(Scheduler):
    """A Scheduler whose requests end when decode has received them."""

    def __init__(self, limits: Limits, allocator: PageAllocator, handoff: PrefillHandoff) -> None:
        super().__init__(limits, allocator)
        self._handoff = handoff
        self._rooms: dict[int, Request] = {}
        self._pages_sent: dict[str, int] = {}  # request -> pages handed to the transfer

    def add(self, request: Request) -> None:
        """Take a request and tell decode how long its prompt is."""
        if request.room in self._rooms:
            self.requests[request.rid] = request
            self.fail(request.rid, 400, f"room {request.room} is in use by another request")
            return
        self._rooms[request.room] = request
        super().add(request)
        if request.state is not State.FINISHED:
            self._pages_sent[request.rid] = 0
            self._handoff.announce(request.room, request.prompt_length, admitted=False)

    def _admitted(self, request: Request) -> None:
        super()._admitted(request)
        self._handoff.admit(request.room)
        self._send_pages(request, request.num_computed)

    def abort(self, rid: str) -> None:
        """The client left: decode's half must end too."""
        if (request := self.requests.get(rid)) is not None:
            self._fail_room(request, 499, "the client closed the request")
        super().abort(rid)

    def fail(self, rid: str, status: int, message: str) -> None:
        """End a request on both sides."""
        if (request := self.requests.get(rid)) is not None:
            self._fail_room(request, status, message)
        super().fail(rid, status, message)

    def refuse_room(self, bootstrap: Bootstrap, status: int, message: str) -> None:
        """A request was refused before it reached the engine; decode hears of it when it joins."""
        if bootstrap.room not in self._rooms:
            self._handoff.fail(bootstrap.room, status, message)

    def poll_handoff(self) -> None:
        """Take what happened to the rooms since the last call."""
        for event in self._handoff.poll():
            request = self._rooms.pop(event.room, None)
            if request is None:
                continue
            if isinstance(event, Failed):
                super().fail(request.rid, event.status, event.message)
            else:
                self._sent(request)

    @property
    def num_handoff_pages(self) -> int:
        """Pages of prompts that decode has not taken yet."""
        return sum(len(one.pages) for one in self._rooms.values() if one.state is State.SENDING)

    def _fail_room(self, request: Request, status: int, message: str) -> None:
        if self._rooms.get(request.room) is request:
            del self._rooms[request.room]
            self._handoff.fail(request.room, status, message)

    def _slots(self, request: Request) -> int:
        return request.prompt_length

    def _continues(self, request: Request) -> bool:
        return False  # decode does

    def _chunk_done(self, request: Request, num_computed: int) -> None:
        super()._chunk_done(request, num_computed)
        self._send_pages(request, num_computed)

    def _send_pages(self, request: Request, num_computed: int) -> None:
        """Hand over the pages that are complete and were not sent yet."""
        complete = num_computed == request.prompt_length
        ready = len(request.pages) if complete else num_computed // self.limits.page_size
        first = self._pages_sent[request.rid]
        if ready > first:
            self._handoff.send(request.room, request.pages[first:ready], first)
            self._pages_sent[request.rid] = ready

    def _token_sampled(self, request: Request) -> None:
        request.end_stage("prefill")
        self.running.remove(request)
        request.advance(State.SENDING)
        self.memory.share(request)
        request.forget_prompt_inputs()
        logprobs, prompt_logprobs = request.sampled.take_logprobs()
        self._handoff.finish(
            request.room,
            PrefillResult(
                input_ids=request.input_ids,
                first_token=request.output_ids[0],
                position_delta=request.position_delta,
                cached_tokens=request.cached_tokens,
                spans=request.spans,
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
            ),
        )

    def _sent(self, request: Request) -> None:
        request.end_stage("handoff")
        self.counters.handed_pages += len(request.pages)
        self.outbox.append(
            TokenOutput(
                rid=request.rid,
                token_ids=request.output_ids,
                finish_reason=request.finish_reason or "length",
                matched_stop=request.matched_stop,
                prompt_tokens=request.prompt_length,
                completion_tokens=1,
                cached_tokens=request.cached_tokens,
                spans=request.spans,
            )
        )
        self._release(request)

    def _release(self, request: Request) -> None:
        self._pages_sent.pop(request.rid, None)
        super()._release(request)
