"""One request from its body to the last byte of its answer: choose workers, run both legs, do what pair.decide says.

The handler's task owns everything of its request. Client disconnect cancels the task, the stall timer interrupts it
with TimeoutError; in every case its `finally` closes both legs. Only a prefill leg that outlives a complete answer
lingers for two seconds, so that its worker can end in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from epd_runtime.router.body import Fields, parse_body, rooms_for, with_bootstrap
from epd_runtime.router.errors import Answer, RouterError, error_event, no_worker, stage_error
from epd_runtime.router.events import whole_events
from epd_runtime.router.leg import Leg
from epd_runtime.router.metrics import Metrics
from epd_runtime.router.pair import FAILURES, Action, LegState, decide
from epd_runtime.router.policy import Policy
from epd_runtime.router.stall import StallTimer
from epd_runtime.router.workers import Worker, WorkerPool

MAX_ATTEMPTS = 3
GRACE_SECONDS = 2.0
LINGER_SECONDS = 2.0
LAST_WORDS_SECONDS = 1.0  # to write the error event to a client that may not read

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """The workers of a stage and how to choose among them."""

    pool: WorkerPool
    policy: Policy

    def choose(self, refused: Collection[Worker]) -> Worker:
        """A ready worker that has not refused this request; RouterError 503 when there is none."""
        ready = self.pool.ready(refused)
        if not ready:
            raise no_worker(self.pool.stage)
        return self.policy.choose(ready)


@dataclass(frozen=True)
class Upstream:
    """What every request shares. prefill None: plain load balancing over `answering`."""

    session: aiohttp.ClientSession
    prefill: Stage | None
    answering: Stage  # decode, or the whole servers
    request_timeout: float
    metrics: Metrics


class Exchange:
    """One request under way."""

    def __init__(self, upstream: Upstream, request: web.Request, raw: bytes, headers: Mapping[str, str]) -> None:
        self._upstream = upstream
        self._request = request
        self._raw = raw
        self._fields: Fields = parse_body(raw)
        self._headers = dict(headers)
        self._stream: web.StreamResponse | None = None  # once the client got its headers
        self._timer: StallTimer
        self._legs: list[Leg] = []
        self._counted: list[Leg] = []  # failures that are in the metrics

    async def run(self) -> web.StreamResponse:
        """The response, complete. Raises RouterError while the client has got nothing."""
        seconds = self._upstream.request_timeout
        error = RouterError(504, f"the request made no progress within {seconds:g} s (--request-timeout-secs)")
        try:
            async with asyncio.timeout(None) as scope:
                self._timer = StallTimer(seconds, error, lambda: scope.reschedule(0))
                return await self._attempts()
        except TimeoutError:
            error = self._timer.reason
            log.warning("%s was cut: %s", self._request.path, error)
            if self._stream is None:
                raise error from None
            return await self._last_words(self._stream, error)
        finally:
            self._timer.stop()
            for leg in self._legs:
                leg.close()

    async def _attempts(self) -> web.StreamResponse:
        refused: dict[Worker, Leg] = {}
        for _ in range(MAX_ATTEMPTS):
            try:
                prefill, answering = self._start_legs(refused)
            except RouterError:
                if not refused:
                    raise
                break
            action = await self._wait(prefill, answering)
            self._count_failures(prefill, answering)
            if action is not Action.RETRY:
                return await self._conclude(action, prefill, answering)
            self._upstream.metrics.retries.inc()
            for leg in self._legs:
                leg.close()
            legs, self._legs = self._legs, []
            first = min((leg for leg in legs if leg.state is LegState.REFUSED), key=lambda leg: leg.ended_at)
            refused[first.worker] = first
        return _refusal(list(refused.values())[-1])

    def _start_legs(self, refused: Collection[Worker]) -> tuple[Leg | None, Leg]:
        """Choose workers, then begin both legs at once with the same body."""
        up, path, body = self._upstream, self._request.path, self._raw
        prefill_worker = up.prefill.choose(refused) if up.prefill else None
        answering = Leg(up.answering.choose(refused), self._timer, keeps_answer=True)
        self._legs.append(answering)
        prefill = None
        if prefill_worker is not None:
            rooms = rooms_for(path, self._fields)
            body = with_bootstrap(self._fields, prefill_worker.host, prefill_worker.bootstrap_port, rooms)
            prefill = Leg(prefill_worker, self._timer, keeps_answer=False)
            self._legs.append(prefill)
        for leg in reversed(self._legs):  # prefill first: its work is on the critical path
            leg.start(up.session, path, body, self._headers)
        return prefill, answering

    async def _wait(self, prefill: Leg | None, answering: Leg) -> Action:
        """Wait for a decision."""
        while True:
            action = decide(_state(prefill), answering.state)
            if action is not Action.WAIT:
                return action
            running = [leg.task for leg in self._legs if leg.task and not leg.task.done()]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    async def _conclude(self, action: Action, prefill: Leg | None, answering: Leg) -> web.StreamResponse:
        if action is Action.ANSWER_PREFILL and prefill is not None:
            return _failure(prefill)
        if action is Action.ANSWER_DECODE:
            if answering.answer is not None:
                return _whole(answering.answer)
            raise stage_error(answering.worker.stage, None, answering.cause)
        if action is Action.FINISH and answering.answer is not None:
            self._linger(prefill)
            return _whole(answering.answer)
        return await self._relay(prefill, answering)

    async def _relay(self, prefill: Leg | None, answering: Leg) -> web.StreamResponse:
        """Pass decode's stream on, whole events at a time, until its end or break."""
        if prefill is not None and prefill.task is not None:
            prefill.task.add_done_callback(lambda _: self._prefill_ended(prefill, answering))
        stream = web.StreamResponse(status=answering.status, headers=answering.headers)
        await stream.prepare(self._request)
        self._stream = stream
        chunk, held = answering.first, b""
        while chunk:
            whole, held = whole_events(held + chunk if held else chunk)
            if whole:
                await stream.write(whole)
            self._timer.touch()
            chunk = await answering.next_chunk()
        if decide(_state(prefill), answering.state) is Action.CUT:
            self._count_failures(answering)
            failed = prefill if prefill is not None and prefill.state in FAILURES else answering  # the earlier one
            return await self._last_words(stream, stage_error(failed.worker.stage, failed.answer, failed.cause))
        if held:
            await stream.write(held)
        self._linger(prefill)
        await stream.write_eof()
        return stream

    def _prefill_ended(self, prefill: Leg, answering: Leg) -> None:
        """Prefill's leg ended while decode streams: if it failed, decode goes on only while it moves."""
        self._count_failures(prefill)
        if decide(prefill.state, answering.state) is Action.GRACE:
            self._timer.tighten(GRACE_SECONDS, stage_error("prefill", prefill.answer, prefill.cause))

    async def _last_words(self, stream: web.StreamResponse, error: RouterError) -> web.StreamResponse:
        """End a stream that has begun with an error event; drop a client that does not take it."""
        try:
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await stream.write(error_event(error))
                await stream.write_eof()
        except (TimeoutError, ConnectionError):
            if self._request.transport is not None:
                self._request.transport.abort()
        return stream

    def _linger(self, prefill: Leg | None) -> None:
        """Let the prefill leg of an answered request end in order, for a bounded time."""
        if prefill is not None and prefill.state is LegState.PENDING:
            self._legs.remove(prefill)
            asyncio.get_running_loop().call_later(LINGER_SECONDS, prefill.close)

    def _count_failures(self, *legs: Leg | None) -> None:
        for leg in legs:
            if leg is not None and leg.state in FAILURES and leg not in self._counted:
                self._counted.append(leg)
                self._upstream.metrics.leg_failures.labels(leg.worker.stage, leg.state.name.lower()).inc()
                log.warning("%s leg at %s: %s", leg.worker.stage, leg.worker.url, leg.cause)


def _state(prefill: Leg | None) -> LegState:
    return LegState.DONE if prefill is None else prefill.state


def _whole(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


def _refusal(leg: Leg) -> web.Response:
    """No worker took the request: the last one's own 503 if it gave one."""
    if leg.answer is None:
        raise no_worker(leg.worker.stage)
    if leg.keeps_answer:
        return _whole(leg.answer)
    raise stage_error(leg.worker.stage, leg.answer, leg.cause)


def _failure(prefill: Leg) -> web.Response:
    """Prefill's 4xx as it is; everything else as the router's own error."""
    if prefill.state is LegState.REJECTED and prefill.answer is not None:
        return _whole(prefill.answer)
    raise stage_error(prefill.worker.stage, prefill.answer, prefill.cause)
