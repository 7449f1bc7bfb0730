"""One client call from parsed body to text: admission, prompts, engine, detokenizers; the same for every API.

    admit ─▶ build prompts ─▶ GenerateRequest per sample ─▶ [encoders, beside it] ─▶ deltas until all samples finished

Failure cases: whatever ends the call before the engine has its requests sends FailRoom for each room, so that the other
half of a disaggregated pair ends too; encoders failing send FailRequest, which comes back as RequestFailed; the reader
going away (GeneratorExit, cancellation) aborts what is unfinished in the engine and cancels the posts to encoders.
"""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from epd_runtime.config import Role
from epd_runtime.frontend.detokenizer import Detokenizer
from epd_runtime.frontend.errors import RequestError
from epd_runtime.frontend.prompt import Prompt, PromptBuilder
from epd_runtime.messages import (
    Bootstrap,
    FailRoom,
    GenerateRequest,
    Span,
    TokenLogprobs,
    TokenOutput,
)
from epd_runtime.server.engine_client import Mailbox
from epd_runtime.server.request_images import RequestImages
from epd_runtime.server.sampling import TO_END_OF_CONTEXT, SamplingPlan
from epd_runtime.server.service import Service

PromptSource = Callable[[PromptBuilder], Awaitable[Prompt]]
CLIENT_LEFT = RequestError(503, "prefill's or decode's client left before the request began")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """A parsed body. plans has one entry per prompt, all with the same n; the others one per sample, prompt by prompt.

    names are what /abort_request knows the samples by. keeps_stops: what ended an answer is part of its text.
    """

    prompts: Sequence[PromptSource]
    plans: Sequence[SamplingPlan]
    rooms: Sequence[Bootstrap | None]
    names: Sequence[str]
    priority: int = 0
    keeps_stops: bool = False

    @property
    def n(self) -> int:
        """Samples per prompt."""
        return self.plans[0].n

    def plan_of(self, index: int) -> SamplingPlan:
        """Plan of a sample."""
        return self.plans[index // self.n]


@dataclasses.dataclass
class Answer:
    """One sample as far as it has come."""

    pieces: list[str] = dataclasses.field(default_factory=list)  # text; joined on demand, as answers may be long
    token_ids: list[int] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    matched_stop: str | int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    spans: list[Span] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)  # one per token id, when asked for
    prompt_logprobs: list[TokenLogprobs | None] = dataclasses.field(default_factory=list)
    hides_stop: bool = False  # the last token id is a stop token that is not shown
    arrived: float = 0.0
    finished: float = 0.0  # seconds of time.time(), 0 before

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    @property
    def shown_ids(self) -> list[int]:
        """Token ids without a stop token that is not shown."""
        return self.token_ids[:-1] if self.hides_stop else self.token_ids


@dataclasses.dataclass(slots=True)
class Delta:
    """What one engine step added to the sample `index`. tokens: those of the text, without a stop token left out."""

    index: int
    text: str
    finished: bool
    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprobs]


class Generation:
    """Runs one job. answers is current after every batch of deltas."""

    def __init__(self, service: Service, job: Job) -> None:
        self._arrived = time.time()
        self.answers = [Answer(arrived=self._arrived) for _ in job.rooms]
        self.prompts: list[Prompt] = []  # once they are built; empty ones on a decode worker
        self._service = service
        self._job = job
        self._last_output = [0.0] * len(job.rooms)
        self._index_of: dict[str, int] = {}
        self._tokenized: Span | None = None
        self._mailbox: Mailbox | None = None  # while the engine has the requests
        self._aborted: set[int] = set()
        self._detokenizers = [self._detokenizer(index) for index in range(len(job.rooms))]

    def _detokenizer(self, index: int) -> Detokenizer:
        plan = self._job.plan_of(index)
        # Prefill answers one token for the router to drain; stopping there would end the room under decode's feet.
        stops = () if self._service.config.role is Role.PREFILL else plan.stop
        return Detokenizer(self._service.model.tokenizer, stops, plan.skip_special_tokens, self._job.keeps_stops)

    def abort(self, index: int) -> None:
        """End one sample with the finish reason "abort", as soon as it is in the engine."""
        self._aborted.add(index)
        if self._mailbox is None:
            return
        for rid in [rid for rid, sample in self._index_of.items() if sample == index]:
            answer = self.answers[index]
            last = TokenOutput(
                rid, [], "abort", None, answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens
            )
            self._service.engine.finish(self._mailbox, last)

    async def deltas(self) -> AsyncGenerator[list[Delta], None]:
        """Batches of deltas until every sample is finished; raises RequestError. Close it to abort."""
        in_engine = False
        refusal = CLIENT_LEFT
        try:
            with self._service.admit(len(self.answers)), self._service.calls.named(self._job.names, self):
                self.prompts = await self._build_prompts()
                requests = self._requests()
                images = RequestImages(self._service.encoders, self._service.engine, requests)
                with images, self._service.engine.open(images.for_engine(), images.give) as mailbox:
                    in_engine = True
                    self._mailbox = mailbox
                    for index in self._aborted:
                        self.abort(index)
                    while batch := await self._next(mailbox):
                        yield batch
        except RequestError as error:
            refusal = error
            raise
        finally:
            if not in_engine:
                self._fail_rooms(refusal)

    def _requests(self) -> list[GenerateRequest]:
        """One request per sample; images carry their data."""
        n, requests = self._job.n, []
        for index, room in enumerate(self._job.rooms):
            prompt = self.prompts[index // n]
            requests.append(
                GenerateRequest(
                    rid=uuid.uuid4().hex,
                    input_ids=prompt.input_ids,
                    sampling=self._job.plan_of(index).sample(index % n),
                    images=prompt.images,
                    positions=prompt.positions,
                    position_delta=prompt.position_delta,
                    bootstrap=room,
                    priority=self._job.priority,
                )
            )
        self._index_of = {request.rid: index for index, request in enumerate(requests)}
        return requests

    async def _build_prompts(self) -> list[Prompt]:
        service = self._service
        if service.config.role is Role.DECODE:  # prefill sends them
            return [Prompt([], []) for _ in self._job.prompts]
        prompts = [await build(service.prompts) for build in self._job.prompts]
        context = service.prompts.context_length
        for prompt, plan in zip(prompts, self._job.plans, strict=True):
            asked = plan.params.max_new_tokens
            if asked != TO_END_OF_CONTEXT and len(prompt.input_ids) + asked > context:
                raise RequestError(
                    400,
                    f"the prompt has {len(prompt.input_ids)} tokens and {asked} more are asked for, but the context "
                    f"holds {context}; shorten the prompt or lower max_tokens",
                    "max_tokens",
                    "context_length_exceeded",
                )
        self._tokenized = Span("tokenize", self._arrived, time.time())
        return prompts

    def _fail_rooms(self, error: RequestError) -> None:
        for room in self._job.rooms:
            if room is not None:
                self._service.engine.send(FailRoom(room, error.status, error.message))

    async def _next(self, mailbox: Mailbox) -> list[Delta]:
        """Deltas of the next outputs; [] at the end."""
        while outputs := await mailbox.take():
            now, batch = time.time(), []
            for output in outputs:
                assert isinstance(output, TokenOutput)
                index = self._index_of[output.rid]
                if self.answers[index].finish_reason is not None:
                    continue  # the engine was a step ahead of a stop string
                batch.append(self._apply(index, output, now))
                if batch[-1].finished:
                    self._service.engine.abort(mailbox, output.rid)
                    self._record_end(self.answers[index], now)
            if batch:
                return batch
        return []

    def _apply(self, index: int, output: TokenOutput, now: float) -> Delta:
        """Add one output to its answer."""
        answer, detokenizer = self.answers[index], self._detokenizers[index]
        self._observe(index, len(output.token_ids), now)
        answer.token_ids += output.token_ids
        answer.prompt_tokens = output.prompt_tokens
        answer.completion_tokens = output.completion_tokens
        answer.cached_tokens = output.cached_tokens
        if output.logprobs:
            answer.logprobs += output.logprobs
        if output.prompt_logprobs:
            answer.prompt_logprobs += output.prompt_logprobs
        shown = output.token_ids
        if output.matched_stop is not None and not self._job.keeps_stops and shown[-1:] == [output.matched_stop]:
            shown, answer.hides_stop = shown[:-1], True
        text, stop = detokenizer.feed(shown)
        if stop is None and output.finish_reason is not None:
            rest, stop = detokenizer.finish()
            text += rest
        answer.pieces.append(text)
        if stop is not None:
            answer.finish_reason, answer.matched_stop = "stop", stop
        elif output.finish_reason is not None:
            answer.finish_reason, answer.matched_stop = output.finish_reason, output.matched_stop
        if answer.finish_reason is not None:
            answer.spans = [*([self._tokenized] if self._tokenized else []), *output.spans]
            answer.finished = now
        return Delta(index, text, answer.finish_reason is not None, shown, output.logprobs)

    def _observe(self, index: int, num_tokens: int, now: float) -> None:
        metrics, last = self._service.metrics, self._last_output[index]
        if not num_tokens:
            return
        if not last:
            metrics.time_to_first_token.observe(now - self._arrived)
        else:
            metrics.inter_token_latency.observe((now - last) / num_tokens)
        self._last_output[index] = now

    def _record_end(self, answer: Answer, now: float) -> None:
        metrics = self._service.metrics
        metrics.num_requests.inc()
        metrics.e2e_latency.observe(now - self._arrived)
        metrics.prompt_tokens.inc(answer.prompt_tokens)
        metrics.generation_tokens.inc(answer.completion_tokens)
        metrics.cached_tokens.inc(answer.cached_tokens)
