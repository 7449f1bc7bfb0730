"""What both completions APIs of OpenAI share: sampling fields, frames of streams, usage.

Frames of a plain stream differ only in their text, so everything around it is built once per request. Streams with
logprobs, tool calls, reasoning or usage in every chunk take a longer way.
"""

from __future__ import annotations

import abc
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from epd_runtime.frontend.errors import bad_request
from epd_runtime.messages import Grammar
from epd_runtime.server.generation import Answer, Delta, Generation, Job, PromptSource
from epd_runtime.server.http import encode_json, event
from epd_runtime.server.protocol.openai import OpenAIRequest
from epd_runtime.server.sampling import SamplingPlan, SamplingRequest, plan_sampling
from epd_runtime.server.service import Service

MAX_PRIORITY = 1 << 31


def sampling_of(
    service: Service, body: OpenAIRequest, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None,
    prompt_logprobs_from: int | None = None,
) -> SamplingPlan:  # fmt: skip
    """The sampling fields of a body, checked; raises RequestError 400."""
    asked = SamplingRequest(
        max_new_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        n=body.n,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=body.logit_bias,
        min_new_tokens=body.min_tokens,
        logprobs=logprobs,
        prompt_logprobs_from=prompt_logprobs_from,
        grammar=grammar,
    )
    return plan_sampling(asked, service.model.sampling, service.next_seed(), service.model.config.text.vocab_size)


def priority_of(asked: int | None) -> int:
    """A request's priority; raises RequestError 400."""
    if asked is not None and not -MAX_PRIORITY <= asked < MAX_PRIORITY:
        raise bad_request(f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY - 1}", "priority")
    return asked or 0


def new_id(kind: str, body: OpenAIRequest) -> str:
    """Id of an answer: the client's own or a fresh one."""
    return body.rid or f"{kind}-{uuid.uuid4().hex}"


def job_of(
    service: Service, body: OpenAIRequest, answer_id: str, prompts: Sequence[PromptSource], sampling: SamplingPlan
) -> Job:
    """All samples of all prompts, under the answer's id; raises RequestError 400."""
    rooms = service.plan_rooms(body, len(prompts), sampling.n)
    return Job(
        prompts=prompts,
        plans=[sampling] * len(prompts),
        rooms=rooms,
        names=[answer_id] * len(rooms),
        priority=priority_of(body.priority),
        keeps_stops=bool(body.include_stop_str_in_output or body.no_stop_trim),  # vLLM's and SGLang's name for it
    )


class OpenAIAnswer(abc.ABC):
    """Renders one generation, whole or as a stream."""

    OBJECT: ClassVar[str]
    CHUNK_OBJECT: ClassVar[str]
    BEFORE_TEXT: ClassVar[bytes]  # between a choice's index and its text in a plain frame
    AFTER_TEXT: ClassVar[bytes]

    def __init__(self, service: Service, body: OpenAIRequest, answer_id: str, generation: Generation) -> None:
        self._generation = generation
        self._texts = service.token_texts
        self._timings = bool(body.return_timings)
        options = body.stream_options
        self._usage_at_end = options is not None and bool(options.include_usage)
        self._usage_always = options is not None and bool(options.continuous_usage_stats) and self._usage_at_end
        self._head = {"id": answer_id, "created": int(time.time()), "model": service.config.model_name}
        head = encode_json({**self._head, "object": self.CHUNK_OBJECT})[:-1]
        self._before_index = b"data: " + head + b',"choices":[{"index":'

    async def whole(self) -> dict[str, Any]:
        """The body of the answer, once every sample is finished."""
        async with aclosing(self._generation.deltas()) as batches:
            async for _ in batches:
                pass
        answers = self._generation.answers
        choices = [
            {**self._choice(index, answer), "matched_stop": answer.matched_stop} for index, answer in enumerate(answers)
        ]
        content = {**self._head, "object": self.OBJECT, "choices": choices, "usage": self._usage()}
        return {**content, "timings": timings(answers)} if self._timings else content

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        frame = self._plain_frame if self._is_plain and not self._usage_always else self._rich_frame
        first = self._first_frame()
        async with aclosing(self._generation.deltas()) as batches:
            async for batch in batches:
                if frames := first + b"".join(map(frame, batch)):
                    yield frames
                first = b""
        yield self._tail() + b"data: [DONE]\n\n"

    @property
    @abc.abstractmethod
    def _is_plain(self) -> bool:
        """Whether chunks hold nothing but text."""

    @abc.abstractmethod
    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """One choice of a whole answer."""

    @abc.abstractmethod
    def _rich_choices(self, delta: Delta) -> list[dict[str, Any]]:
        """The choices of the chunks that a delta makes, without finish_reason; not for plain answers."""

    @abc.abstractmethod
    def _last_choice(self, index: int) -> dict[str, Any]:
        """The choice of a sample's last chunk."""

    @abc.abstractmethod
    def _usage(self) -> dict[str, Any]:
        """Token counts so far."""

    def _first_frame(self) -> bytes:
        """Sent together with the first delta."""
        return b""

    def _plain_frame(self, delta: Delta) -> bytes:
        frame = b""
        if delta.text:
            index = b"%d" % delta.index
            frame = self._before_index + index + self.BEFORE_TEXT + encode_json(delta.text) + self.AFTER_TEXT
        return frame + self._last_frame(delta.index) if delta.finished else frame

    def _rich_frame(self, delta: Delta) -> bytes:
        frames = [
            self._chunk({"index": delta.index, **choice, "finish_reason": None}) for choice in self._rich_choices(delta)
        ]
        if delta.finished:
            frames.append(self._last_frame(delta.index))
        return b"".join(frames)

    def _last_frame(self, index: int) -> bytes:
        return self._chunk(
            {"index": index, **self._last_choice(index), "matched_stop": self._generation.answers[index].matched_stop}
        )

    def _chunk(self, *choices: dict[str, Any], **extra: Any) -> bytes:
        if self._usage_always:
            extra["usage"] = self._usage()
        return event({**self._head, "object": self.CHUNK_OBJECT, "choices": choices, **extra})

    def _tail(self) -> bytes:
        """The frame behind all choices, if the body asked for anything that stands in it."""
        extra: dict[str, Any] = {}
        if self._usage_at_end:
            extra["usage"] = self._usage()
        if self._timings:
            extra["timings"] = timings(self._generation.answers)
        return self._chunk(**extra) if extra else b""


def usage(answers: Sequence[Answer], n: int) -> dict[str, Any]:
    """Token counts; each n samples in a row share one prompt."""
    prompt = sum(answer.prompt_tokens for answer in answers[::n])
    completion = sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(answer.cached_tokens for answer in answers[::n])},
    }


def timings(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Stages of all samples, as `return_timings` asks for."""
    return [{"stage": span.stage, "start": span.start, "end": span.end} for answer in answers for span in answer.spans]
