"""One client call from parsed body to text: admission, prompts, engine, detokenizers; the same for every API.

    admit ─▶ build prompts ─▶ GenerateRequest per sample ─▶ [encoders, beside it] ─▶ deltas until all samples finished

Failure cases: whatever ends the call before the engine has its requests sends FailRoom for each room, so that the other
half of a disaggregated pair ends too; encoders failing send FailRequest, which comes back as RequestFailed; the reader
going away (GeneratorExit, cancellation) aborts what is unfinished in the engine and cancels the posts to encoders.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from epd_runtime.config import Role
from epd_runtime.disaggregation.embeddings.encoder_client import EncoderClient
from epd_runtime.frontend.detokenizer import Detokenizer
from epd_runtime.frontend.errors import RequestError
from epd_runtime.frontend.prompt import Prompt, PromptBuilder
from epd_runtime.messages import Bootstrap, FailRequest, FailRoom, GenerateRequest, Span, TokenOutput
from epd_runtime.server.engine_client import Mailbox
from epd_runtime.server.sampling import TO_END_OF_CONTEXT, SamplingPlan
from epd_runtime.server.service import Service

CLIENT_LEFT = RequestError(503, "prefill's or decode's client left before the request began")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """A parsed body. rooms has one entry per sample, prompt by prompt."""

    prompts: Sequence[Callable[[PromptBuilder], Awaitable[Prompt]]]
    sampling: SamplingPlan
    rooms: Sequence[Bootstrap | None]


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

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)


@dataclasses.dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step added to the sample `index`."""

    index: int
    text: str
    finished: bool


class Generation:
    """Runs one job. answers is current after every batch of deltas."""

    def __init__(self, service: Service, job: Job) -> None:
        self.answers = [Answer() for _ in job.rooms]
        self._service = service
        self._job = job
        self._arrived = time.time()
        self._last_output = [0.0] * len(job.rooms)
        self._index_of: dict[str, int] = {}
        self._tokenized: Span | None = None
        # Prefill answers one token for the router to drain; stopping there would end the room under decode's feet.
        stops = () if service.config.role is Role.PREFILL else job.sampling.stop
        self._detokenizers = [
            Detokenizer(service.model.tokenizer, stops, job.sampling.skip_special_tokens) for _ in job.rooms
        ]

    async def deltas(self) -> AsyncGenerator[list[Delta], None]:
        """Batches of deltas until every sample is finished; raises RequestError. Close it to abort."""
        in_engine = False
        refusal = CLIENT_LEFT
        try:
            with self._service.admit(len(self.answers)):
                requests = self._requests(await self._build_prompts())
                with self._service.engine.open([_for_engine(r, self._service.encoders) for r in requests]) as mailbox:
                    in_engine = True
                    with self._encoding(requests):
                        while batch := await self._next(mailbox):
                            yield batch
        except RequestError as error:
            refusal = error
            raise
        finally:
            if not in_engine:
                self._fail_rooms(refusal)

    def _requests(self, prompts: Sequence[Prompt]) -> list[GenerateRequest]:
        """One request per sample; images carry their data."""
        plan, requests = self._job.sampling, []
        for index, room in enumerate(self._job.rooms):
            prompt = prompts[index // plan.n]
            requests.append(
                GenerateRequest(
                    rid=uuid.uuid4().hex,
                    input_ids=prompt.input_ids,
                    sampling=plan.sample(index % plan.n),
                    images=prompt.images,
                    positions=prompt.positions,
                    position_delta=prompt.position_delta,
                    bootstrap=room,
                )
            )
        self._index_of = {request.rid: index for index, request in enumerate(requests)}
        return requests

    async def _build_prompts(self) -> list[Prompt]:
        service = self._service
        if service.config.role is Role.DECODE:  # prefill sends them
            return [Prompt([], []) for _ in self._job.prompts]
        prompts = [await build(service.prompts) for build in self._job.prompts]
        asked, context = self._job.sampling.params.max_new_tokens, service.prompts.context_length
        for prompt in prompts:
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

    @contextmanager
    def _encoding(self, requests: Sequence[GenerateRequest]) -> Iterator[None]:
        """Has images encoded by encoder servers while the block runs."""
        encoders = self._service.encoders
        tasks = [asyncio.create_task(self._encode(encoders, r)) for r in requests if r.images and encoders is not None]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def _encode(self, encoders: EncoderClient, request: GenerateRequest) -> None:
        try:
            await encoders.encode(request.rid, request.images)
        except RequestError as error:
            self._service.engine.send(FailRequest(request.rid, error.status, error.message))
        except Exception as error:  # the engine would wait for the embedding
            logger.exception("encoding the images of %s failed", request.rid)
            self._service.engine.send(FailRequest(request.rid, 500, f"the images cannot be encoded: {error}"))

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
        shown = output.token_ids
        if output.matched_stop is not None and shown[-1:] == [output.matched_stop]:
            shown = shown[:-1]
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
        return Delta(index, text, answer.finish_reason is not None)

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


def _for_engine(request: GenerateRequest, encoders: EncoderClient | None) -> GenerateRequest:
    """The request without image data when encoder servers deliver the embeddings."""
    if encoders is None or not request.images:
        return request
    return msgspec.structs.replace(
        request, images=[msgspec.structs.replace(image, data=b"") for image in request.images]
    )
