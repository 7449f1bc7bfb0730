"""Scheduling on a decode worker: requests whose prompt another engine computes.

A request joins its room at prefill, waits for the prompt's length (JOINING), queues for pages (QUEUED), grants
them to prefill (RECEIVING) and decodes once everything has arrived. Pages that prefill may still write into are
freed only after the handoff says that the room is over.

Prefill is not trusted: a request names its address, so it may be anybody. What it says about a prompt is checked before
it can cost memory or reach a step that other requests share.
"""

from __future__ import annotations

from epd_runtime.disaggregation.handoff.contract import DecodeHandoff, Failed, PrefillResult, Prepared, Received
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Limits, Scheduler
from epd_runtime.engine.state import State
from epd_runtime.kvcache.pool import PageAllocator
from epd_runtime.messages import Bootstrap


class DecodeScheduler(Scheduler):
    """A Scheduler that is given its prompts' KV instead of computing it."""

    def __init__(self, limits: Limits, allocator: PageAllocator, handoff: DecodeHandoff) -> None:
        super().__init__(limits, allocator)
        self._handoff = handoff
        self._rooms: dict[int, Request] = {}
        self._orphaned_pages: dict[int, list[int]] = {}  # room -> pages of a request that left while RECEIVING
        self._num_receiving = 0

    def add(self, request: Request) -> None:
        """Join the request's room at prefill."""
        self.requests[request.rid] = request
        assert request.bootstrap is not None
        if request.room in self._rooms or request.room in self._orphaned_pages:
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
        if bootstrap.room not in self._rooms and bootstrap.room not in self._orphaned_pages:
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
                self.allocator.free(self._orphaned_pages.pop(event.room, []))

    def _prepared(self, request: Request, num_tokens: int) -> None:
        request.prompt_length = num_tokens
        if self._fits(request):
            self._enqueue(request)

    def _received(self, request: Request, event: Received) -> None:
        del self._rooms[request.room]
        self._num_receiving -= 1
        result = event.result
        if (problem := self._problem(request, result)) is not None:
            self.fail(request.rid, 502, f"prefill sent a wrong result: {problem}")
            return
        request.input_ids = result.input_ids
        request.position_delta = result.position_delta
        request.num_computed = request.prompt_length
        request.spans = list(result.spans)
        prefill_end = result.spans[-1].end if result.spans else event.started
        request.stage_started = prefill_end
        request.end_stage("handoff")
        request.advance(State.DECODE)
        self.running.append(request)
        request.append_token(result.first_token, self.limits.eos_token_ids)
        self._report(request)

    def _room_failed(self, event: Failed) -> None:
        self.allocator.free(self._orphaned_pages.pop(event.room, []))
        if (request := self._rooms.pop(event.room, None)) is not None:
            if request.state is State.RECEIVING:
                self._num_receiving -= 1
            self.fail(request.rid, event.status, event.message)

    def _problem(self, request: Request, result: PrefillResult) -> str | None:
        """Why a result cannot be continued; None if it can."""
        if len(result.input_ids) != request.prompt_length:
            return f"{len(result.input_ids)} tokens, but {request.prompt_length} were announced"
        if not 0 <= result.first_token < self.limits.vocab_size:
            return f"first_token {result.first_token} is not in the vocabulary of {self.limits.vocab_size}"
        if not -request.prompt_length <= result.position_delta <= 0:
            return f"position_delta {result.position_delta} moves positions out of the context"
        return None

    def _num_active(self) -> int:
        return len(self.running) + self._num_receiving

    def _admitted(self, request: Request) -> None:
        request.advance(State.RECEIVING)
        self._num_receiving += 1
        prompt_pages = -(-request.prompt_length // self.limits.page_size)
        self._handoff.accept(request.room, request.pages[:prompt_pages])

    def _leave_room(self, request: Request, status: int, message: str) -> None:
        """Keep the pages that prefill may still write into until the room is over."""
        if self._rooms.get(request.room) is request:
            del self._rooms[request.room]
            if request.state is State.RECEIVING:
                self._num_receiving -= 1
                self._orphaned_pages[request.room] = request.disown_pages()
            self._handoff.abort(request.room, status, message)
