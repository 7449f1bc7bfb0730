"""POST /v1/chat/completions: body to job, answers to the OpenAI shapes.

Frames of a stream differ only in their text, so everything around it is built once per request.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from epd_runtime.frontend.errors import bad_request
from epd_runtime.server.generation import Answer, Delta, Generation, Job
from epd_runtime.server.http import encode_json, event
from epd_runtime.server.protocol import ChatRequest, refuse_unsupported
from epd_runtime.server.rooms import plan_rooms
from epd_runtime.server.sampling import SamplingRequest, plan_sampling
from epd_runtime.server.service import Service


def chat_job(service: Service, body: ChatRequest) -> Job:
    """Check a body; raises RequestError."""
    service.check_model_name(body.model)
    refuse_unsupported(body)
    asked = SamplingRequest(
        max_new_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        n=body.n,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
    )
    sampling = plan_sampling(asked, service.model.sampling, service.next_seed(), service.model.config.text.vocab_size)
    messages, variables = body.messages, body.chat_template_kwargs or {}
    if not messages:
        raise bad_request("messages is empty; send at least one message", "messages")
    return Job(
        prompts=[lambda builder: builder.from_chat(messages, variables)],
        sampling=sampling,
        rooms=plan_rooms(body, 1, sampling.n, *service.handoff_defaults),
    )


class ChatAnswer:
    """Renders one generation, whole or as a stream."""

    def __init__(self, service: Service, body: ChatRequest, generation: Generation) -> None:
        self._generation = generation
        self._body = body
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._head = {"created": int(time.time()), "model": service.config.model_name}
        head = encode_json({"id": self._id, "object": "chat.completion.chunk", **self._head})[:-1]
        self._before_index = b"data: " + head + b',"choices":[{"index":'
        self._before_text = b',"delta":{"content":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    async def whole(self) -> dict[str, Any]:
        """The body of the answer, once every sample is finished."""
        async with aclosing(self._generation.deltas()) as batches:
            async for _ in batches:
                pass
        answers = self._generation.answers
        content = {
            "id": self._id,
            "object": "chat.completion",
            **self._head,
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage(answers),
        }
        return {**content, "timings": timings(answers)} if self._body.return_timings else content

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; the first frame carries the roles."""
        first = b"".join(
            self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self._generation.answers))
        )
        async with aclosing(self._generation.deltas()) as batches:
            async for batch in batches:
                if frame := first + b"".join(map(self._frame, batch)):
                    yield frame
                first = b""
        yield self._tail() + b"data: [DONE]\n\n"

    def _frame(self, delta: Delta) -> bytes:
        text = b""
        if delta.text:
            index = b"%d" % delta.index
            text = self._before_index + index + self._before_text + encode_json(delta.text) + self._after_text
        return text + self._last(delta.index) if delta.finished else text

    def _last(self, index: int) -> bytes:
        answer = self._generation.answers[index]
        return self._chunk(index, {}, answer.finish_reason, answer.matched_stop)

    def _chunk(
        self, index: int, delta: dict[str, str], finish_reason: str | None = None, matched: str | int | None = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        if finish_reason is not None:
            choice["matched_stop"] = matched
        return event({"id": self._id, "object": "chat.completion.chunk", **self._head, "choices": [choice]})

    def _tail(self) -> bytes:
        """The frame behind all choices, if the body asked for anything that stands in it."""
        options = self._body.stream_options
        extra: dict[str, Any] = {}
        if options is not None and options.include_usage:
            extra["usage"] = usage(self._generation.answers)
        if self._body.return_timings:
            extra["timings"] = timings(self._generation.answers)
        if not extra:
            return b""
        return event({"id": self._id, "object": "chat.completion.chunk", **self._head, "choices": [], **extra})

    @staticmethod
    def _choice(index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": None,
            "finish_reason": answer.finish_reason,
            "matched_stop": answer.matched_stop,
        }


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Token counts of a chat; its samples share one prompt."""
    prompt = answers[0].prompt_tokens
    completion = sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": answers[0].cached_tokens},
    }


def timings(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Stages of all samples, as `return_timings` asks for."""
    return [{"stage": span.stage, "start": span.start, "end": span.end} for answer in answers for span in answer.spans]
