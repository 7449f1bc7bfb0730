"""What reaches requests from outside of steps: messages, images, grammars and events of the handoff.

    GenerateRequest ──▶ [its grammar is compiled] ──▶ scheduler ──▶ [its images are fetched] ──▶ scheduler

A request that waits for its grammar is unknown to the scheduler; whatever ends it meanwhile also ends the other leg's
room, if it has one.
"""

from __future__ import annotations

from collections.abc import Callable

from epd_runtime.disaggregation.decode_scheduler import DecodeScheduler
from epd_runtime.disaggregation.prefill_scheduler import PrefillScheduler
from epd_runtime.engine.image_source import ImageSource
from epd_runtime.engine.request import Request
from epd_runtime.engine.sampling.grammar import GrammarCompiler
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.engine.state import State
from epd_runtime.messages import (
    AbortRequest,
    CacheFlushed,
    EngineStats,
    FailRequest,
    FailRoom,
    FlushCache,
    FromEngine,
    GenerateRequest,
    RequestFailed,
    ToEngine,
)


class Intake:
    """The scheduler's door; called by the loop between steps."""

    def __init__(
        self,
        scheduler: Scheduler,
        images: ImageSource | None,
        grammars: GrammarCompiler,
        send: Callable[[FromEngine], None],
        stats: Callable[[], EngineStats],
    ) -> None:
        """images None: this engine takes none."""
        self._scheduler = scheduler
        self._images = images
        self._grammars = grammars
        self._send = send
        self._stats = stats

    def has_work(self) -> bool:
        """Whether an image or a grammar can be given to its request now."""
        return self._grammars.has_work() or (self._images is not None and self._images.has_work())

    def handle(self, message: ToEngine) -> None:
        """One message of the API process."""
        if isinstance(message, GenerateRequest):
            self._add(Request(message))
        elif isinstance(message, AbortRequest):
            self._leave(message.rid)
        elif isinstance(message, FailRequest):
            self._fail(message.rid, message.status, message.message)
        elif isinstance(message, FailRoom):
            self._refuse_room(message)
        elif isinstance(message, FlushCache):
            self._flush_cache(message)

    def poll(self) -> None:
        """Take what peers, towers and compilers have done."""
        if isinstance(self._scheduler, PrefillScheduler | DecodeScheduler):
            self._scheduler.poll_handoff()
        if self._images is not None:
            for request, error in self._images.step():
                self._image_done(request, error)
        for request, error in self._grammars.step():
            if error is None:
                self._submit(request)
            else:
                self._refuse(request, *error)

    def fetch_images(self) -> None:
        """Start getting the images that requests wait for."""
        wanted = self._scheduler.images_wanted
        while wanted:
            request = wanted.pop()
            if self._images is not None and request.state is State.AWAIT_IMAGES:
                self._images.fetch(request)

    def _add(self, request: Request) -> None:
        if request.rid in self._scheduler.requests or self._grammars.holds(request.rid):
            self._send(RequestFailed(request.rid, 400, f"request id {request.rid!r} is in use"))
        elif request.images and self._images is None:
            self._refuse(request, 400, "this server takes no images")
        else:
            if request.images and self._images is not None:
                self._images.expect(request)
            if request.sampling.grammar is not None:
                self._grammars.hold(request)
            else:
                self._submit(request)

    def _submit(self, request: Request) -> None:
        self._scheduler.add(request)
        self.fetch_images()

    def _image_done(self, request: Request, error: tuple[int, str] | None) -> None:
        """An embedding was attached to a request, or will never come."""
        if request.state is State.FINISHED:
            return
        if error is not None:
            self._fail(request.rid, *error)
        else:
            self._scheduler.image_arrived(request)

    def _leave(self, rid: str) -> None:
        """The client is gone."""
        if (held := self._grammars.drop(rid)) is None:
            self._scheduler.abort(rid)
        else:
            self._forget(held, 499, "the client closed the request")

    def _fail(self, rid: str, status: int, message: str) -> None:
        if (held := self._grammars.drop(rid)) is None:
            self._scheduler.fail(rid, status, message)
        else:
            self._refuse(held, status, message)

    def _refuse(self, request: Request, status: int, message: str) -> None:
        """End a request that the scheduler does not know, on both legs."""
        self._send(RequestFailed(request.rid, status, message))
        self._forget(request, status, message)

    def _forget(self, request: Request, status: int, message: str) -> None:
        """The same for one whose client needs no answer."""
        request.advance(State.FINISHED)
        if request.bootstrap is not None:
            self._refuse_room(FailRoom(request.bootstrap, status, message))

    def _refuse_room(self, message: FailRoom) -> None:
        """The other leg must hear that this one will not come; without a handoff there is no other leg."""
        if isinstance(self._scheduler, PrefillScheduler | DecodeScheduler):
            self._scheduler.refuse_room(message.bootstrap, message.status, message.message)

    def _flush_cache(self, message: FlushCache) -> None:
        if self._scheduler.requests:
            reason = f"{len(self._scheduler.requests)} requests are under way; flush when the server is idle"
            self._send(RequestFailed(message.rid, 400, reason))
            return
        self._scheduler.flush()
        if self._images is not None:
            self._images.clear_cache()
        self._send(CacheFlushed(message.rid, self._stats()))
