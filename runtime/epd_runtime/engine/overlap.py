"""Runs steps one after the other, on CUDA one ahead of what the host knows.

    host     schedule n+1 │ launch n+1 │ settle n │ send, receive │ schedule n+2 │ launch n+2 │ settle n+1 │ …
    device   ─── step n ───────────────┼──────────── step n+1 ─────────────────┼── step n+2 …

While step n runs, the host prepares step n+1. The tokens that n samples are not known then: requests count them as
pending, and step n+1 reads them where n leaves them, on the device (FutureTokens). What follows from that:

- An answer that ends by its length ends without a step too many. One that ends by its token is seen to end when the
  next step has begun: that step computes one row for nothing. Its token is dropped, and what it writes lies behind all
  that the prefix cache may keep of the request.
- An abort or a failure frees pages that a step under way still writes. All work of the device is one queue, so whoever
  gets such a page clears and writes it later.
- A token that does not exist (the logits were not finite) goes into the next step as token 0; its request has failed
  when that result is read.
- Requests whose next token is chosen with the last one on the host (grammars, penalties), or whose logprobs are
  reported, let no step begin before their own is settled. Rows with top_p or top_k wait for the device once, too:
  whether their candidates suffice is read back.
- Nobody is retracted with a token pending: where the next step may have to, the last one is settled first.
- A prefill worker hands pages on when their step is settled, so nobody reads pages that are being written.

A step that raises fails its own requests; an error that the device does not recover from ends the engine.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from epd_runtime.accelerator import raise_if_lost
from epd_runtime.engine.sampling.processors import has_penalty
from epd_runtime.engine.scheduler import Scheduler, Work
from epd_runtime.messages import SamplingParams

log = logging.getLogger(__name__)


class Launched(Protocol):
    """A step under way."""

    def tokens(self) -> list[int]:
        """Wait for the tokens that Scheduler.settle() takes; raises what the step raised on the device."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Flight:
    work: Sequence[Work]
    launched: Launched


class StepPipeline:
    """Takes work from a scheduler, and gives it back with its tokens."""

    def __init__(self, scheduler: Scheduler, launch: Callable[[Sequence[Work]], Launched], overlaps: bool) -> None:
        """launch: begin a step, as ModelRunner.launch. overlaps: begin steps before the last one is settled."""
        self._scheduler = scheduler
        self._launch = launch
        self._overlaps = overlaps
        self._flight: _Flight | None = None

    @property
    def is_busy(self) -> bool:
        """Whether step() has something to do, even if the scheduler has not."""
        return self._flight is not None

    def step(self) -> bool:
        """Begin the next step if there is one, and settle the last; whether there was anything to do."""
        if self._flight is not None and not self._scheduler.can_run_ahead():
            self._settle()
        work = self._scheduler.schedule()
        launched = self._try_launch(work) if work else None
        did_work = bool(work) or self.is_busy
        self._settle()
        if launched is not None:
            self._flight = _Flight(work, launched)
            if not self._overlaps or any(needs_host(item.request.sampling) for item in work if item.samples):
                self._settle()
        return did_work

    def _try_launch(self, work: Sequence[Work]) -> Launched | None:
        try:
            launched = self._launch(work)
        except Exception as error:
            self._settle()  # its tokens are good, and requests may end with them
            self._fail(work, error)
            return None
        self._scheduler.advance(work)
        return launched

    def _settle(self) -> None:
        """Take the result of the step under way, if there is one."""
        if (flight := self._flight) is None:
            return
        self._flight = None
        try:
            tokens = flight.launched.tokens()
        except Exception as error:
            self._fail(flight.work, error)
            return
        self._scheduler.settle(flight.work, tokens)

    def _fail(self, work: Sequence[Work], error: Exception) -> None:
        """End the requests of a step with its error; raises DeviceLostError if no other step can run."""
        raise_if_lost(error)
        log.error("a step of %d requests failed", len(work), exc_info=error)
        reason = f"the engine failed on this batch: {type(error).__name__}"
        if isinstance(error, torch.OutOfMemoryError):
            count = sum(item.num_tokens for item in work)
            reason = (
                f"the device ran out of memory on a batch of {len(work)} requests and {count} tokens; "
                "lower --mem-fraction-static, --chunked-prefill-size or --max-running-requests"
            )
        for item in work:
            if self._scheduler.requests.get(item.request.rid) is item.request:
                self._scheduler.fail(item.request.rid, 500, reason)


def needs_host(params: SamplingParams) -> bool:
    """Whether a request's tokens must reach the host before its next step begins."""
    return params.grammar is not None or params.logprobs >= 0 or has_penalty(params)
