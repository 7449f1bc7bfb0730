"""POST /generate: the native API. One prompt answers an object, a list of prompts or n > 1 a list of objects.

Streams carry the text so far in every event, as clients of the reference system expect.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from epd_runtime.frontend.errors import bad_request
from epd_runtime.frontend.prompt import Prompt, PromptBuilder
from epd_runtime.server.generation import Answer, Generation, Job
from epd_runtime.server.http import event
from epd_runtime.server.openai_api import timings
from epd_runtime.server.protocol import NativeRequest, NativeSampling, refuse_unsupported
from epd_runtime.server.rooms import plan_rooms
from epd_runtime.server.sampling import SamplingRequest, plan_sampling
from epd_runtime.server.service import Service

DEFAULT_MAX_NEW_TOKENS = 128

PromptInput = str | list[int]


def native_job(service: Service, body: NativeRequest) -> Job:
    """Check a body; raises RequestError."""
    asked = body.sampling_params or NativeSampling()
    refuse_unsupported(body)
    refuse_unsupported(asked)
    fields = SamplingRequest(
        max_new_tokens=DEFAULT_MAX_NEW_TOKENS if asked.max_new_tokens is None else asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        seed=asked.sampling_seed,
        n=asked.n,
        stop=asked.stop,
        stop_token_ids=asked.stop_token_ids,
        ignore_eos=asked.ignore_eos,
        skip_special_tokens=asked.skip_special_tokens,
    )
    sampling = plan_sampling(fields, service.model.sampling, service.next_seed(), service.model.config.text.vocab_size)
    prompts = prompt_inputs(body)
    sources = image_sources(body.image_data, len(prompts), is_batch(body))
    return Job(
        prompts=[_build(prompt, images) for prompt, images in zip(prompts, sources, strict=True)],
        sampling=sampling,
        rooms=plan_rooms(body, len(prompts), sampling.n, *service.handoff_defaults),
    )


def _build(prompt: PromptInput, images: list[str]) -> Callable[[PromptBuilder], Awaitable[Prompt]]:
    return lambda builder: builder.from_native(prompt, images)


def is_batch(body: NativeRequest) -> bool:
    """Whether the body holds a list of prompts."""
    if body.input_ids is not None:
        return bool(body.input_ids) and isinstance(body.input_ids[0], list)
    return isinstance(body.text, list)


def prompt_inputs(body: NativeRequest) -> list[PromptInput]:
    """The prompts of a body; raises RequestError 400."""
    if (body.text is None) == (body.input_ids is None):
        raise bad_request("send either text or input_ids", "text")
    if isinstance(body.text, str):
        return [body.text]
    given: list[Any] = body.text if body.text is not None else body.input_ids or []
    if not given:
        raise bad_request("the list of prompts is empty; send at least one", "text" if body.text == [] else "input_ids")
    if body.text is not None:
        return given
    batch = given if is_batch(body) else [given]
    if any(not isinstance(ids, list) or any(not isinstance(token, int) for token in ids) for ids in batch):
        raise bad_request("input_ids must be a list of token ids, or a list of such lists", "input_ids")
    return batch


def image_sources(image_data: Any, num_prompts: int, batch: bool) -> list[list[str]]:
    """Image sources per prompt; raises RequestError 400."""
    if image_data is None:
        return [[] for _ in range(num_prompts)]
    if not batch:
        return [[_source(item) for item in (image_data if isinstance(image_data, list) else [image_data])]]
    if not isinstance(image_data, list) or len(image_data) != num_prompts:
        raise bad_request("for a batch, image_data must be a list with one entry per prompt", "image_data")
    return [
        [] if entry is None else [_source(item) for item in (entry if isinstance(entry, list) else [entry])]
        for entry in image_data
    ]


def _source(item: Any) -> str:
    url = item.get("url") if isinstance(item, dict) else item
    if not isinstance(url, str) or not url:
        raise bad_request("image_data must hold http(s) URLs, data URLs or base64 strings", "image_data")
    return url


class NativeAnswer:
    """Renders one generation, whole or as a stream."""

    def __init__(self, body: NativeRequest, generation: Generation) -> None:
        self._generation = generation
        self._timings = bool(body.return_timings)
        total = len(generation.answers)
        self._as_list = is_batch(body) or total > 1
        self._ids = self._request_ids(body.rid, total)

    async def whole(self) -> Any:
        """The body of the answer, once every sample is finished."""
        async with aclosing(self._generation.deltas()) as batches:
            async for _ in batches:
                pass
        results = [self._result(index) for index in range(len(self._generation.answers))]
        return results if self._as_list else results[0]

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events, each with everything so far."""
        async with aclosing(self._generation.deltas()) as batches:
            async for batch in batches:
                changed = dict.fromkeys(delta.index for delta in batch)
                yield b"".join(event(self._stream_result(index)) for index in changed)
        yield b"data: [DONE]\n\n"

    def _stream_result(self, index: int) -> dict[str, Any]:
        result = self._result(index)
        return {**result, "index": index} if self._as_list else result

    def _result(self, index: int) -> dict[str, Any]:
        answer = self._generation.answers[index]
        meta = {
            "id": self._ids[index],
            "finish_reason": finish_reason(answer),
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "cached_tokens": answer.cached_tokens,
        }
        result: dict[str, Any] = {"text": answer.text, "output_ids": answer.token_ids, "meta_info": meta}
        if self._timings and answer.finish_reason is not None:
            result["timings"] = timings([answer])
        return result

    @staticmethod
    def _request_ids(rid: str | list[str] | None, total: int) -> list[str]:
        if isinstance(rid, list) and len(rid) == total:
            return rid
        if isinstance(rid, str):
            return [rid] if total == 1 else [f"{rid}_{index}" for index in range(total)]
        return [uuid.uuid4().hex for _ in range(total)]


def finish_reason(answer: Answer) -> dict[str, Any] | None:
    """finish_reason of meta_info."""
    match answer.finish_reason:
        case None:
            return None
        case "length":
            return {"type": "length", "length": answer.completion_tokens}
        case "stop":
            return {"type": "stop", "matched": answer.matched_stop}
        case other:
            return {"type": other, "message": "the request was aborted"}
