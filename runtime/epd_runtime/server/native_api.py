"""POST /generate: the native API. One prompt answers an object, a list of prompts or n > 1 a list of objects.

Streams carry the text so far in every event, as clients of the reference system expect.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.frontend.prompt import Prompt, PromptBuilder
from epd_runtime.frontend.sources import MediaSource, image_source, native_video
from epd_runtime.server.generation import Answer, Generation, Job
from epd_runtime.server.http import event
from epd_runtime.server.logprobs import native_logprobs
from epd_runtime.server.openai_api import priority_of, timings
from epd_runtime.server.protocol.base import refuse_unsupported
from epd_runtime.server.protocol.native import NativeRequest, NativeSampling
from epd_runtime.server.rooms import DISAGGREGATED
from epd_runtime.server.sampling import SamplingPlan, SamplingRequest, plan_sampling
from epd_runtime.server.service import Service
from epd_runtime.server.structured_output import plan_grammar

DEFAULT_MAX_NEW_TOKENS = 128

PromptInput = str | list[int]


def native_job(service: Service, body: NativeRequest) -> Job:
    """Check a body; raises RequestError."""
    refuse_unsupported(body)
    prompts = prompt_inputs(body)
    plans = _plans(service, body, len(prompts))
    sources = media_sources(body, len(prompts))
    rooms = service.plan_rooms(body, len(prompts), plans[0].n)
    return Job(
        prompts=[_build(prompt, media) for prompt, media in zip(prompts, sources, strict=True)],
        plans=plans,
        rooms=rooms,
        names=request_ids(body.rid, len(rooms)),
        priority=priority_of(body.priority),
        keeps_stops=_keeps_stops(body.sampling_params),
    )


def _plans(service: Service, body: NativeRequest, num_prompts: int) -> list[SamplingPlan]:
    """One plan per prompt from one or as many sampling_params; raises RequestError 400."""
    given = body.sampling_params
    each = given if isinstance(given, list) else [given or NativeSampling()]
    if len(each) not in (1, num_prompts):
        raise bad_request(
            f"sampling_params has {len(each)} entries for {num_prompts} prompts; send one, or one per prompt",
            "sampling_params",
        )
    plans = [_plan(service, body, asked) for asked in each]
    if len({plan.n for plan in plans}) > 1:
        raise bad_request("sampling_params must have the same n for all prompts", "n")
    return plans if len(plans) == num_prompts else plans * num_prompts


def _plan(service: Service, body: NativeRequest, asked: NativeSampling) -> SamplingPlan:
    refuse_unsupported(asked)
    prompt_from = body.logprob_start_len if body.return_logprob else None
    if prompt_from not in (None, -1) and service.config.role in DISAGGREGATED:
        raise RequestError(
            400, "logprob_start_len needs a server that does prefill and decode", "logprob_start_len",
            "unsupported_parameter",
        )  # fmt: skip
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
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias=asked.logit_bias,
        min_new_tokens=asked.min_new_tokens,
        logprobs=(body.top_logprobs_num or 0) if body.return_logprob else None,
        prompt_logprobs_from=prompt_from,
        grammar=plan_grammar(None, asked.regex, asked.ebnf, asked.json_schema),
    )
    return plan_sampling(fields, service.model.sampling, service.next_seed(), service.model.config.text.vocab_size)


def _keeps_stops(given: NativeSampling | list[NativeSampling] | None) -> bool:
    """Whether stops are part of the text; the same for all prompts, raises RequestError 400 otherwise."""
    each = given if isinstance(given, list) else [given or NativeSampling()]
    wanted = {bool(asked.no_stop_trim) for asked in each}
    if len(wanted) > 1:
        raise bad_request("sampling_params must have the same no_stop_trim for all prompts", "no_stop_trim")
    return wanted == {True}


def request_ids(rid: str | list[str] | None, total: int) -> list[str]:
    """One id per sample: the client's, made different by a number, or fresh ones."""
    if isinstance(rid, list) and len(rid) == total:
        return rid
    if isinstance(rid, str):
        return [rid] if total == 1 else [f"{rid}_{index}" for index in range(total)]
    return [uuid.uuid4().hex for _ in range(total)]


def _build(prompt: PromptInput, media: list[MediaSource]) -> Callable[[PromptBuilder], Awaitable[Prompt]]:
    param = "text" if isinstance(prompt, str) else "input_ids"
    return lambda builder: builder.from_native(prompt, media, param)


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


def media_sources(body: NativeRequest, num_prompts: int) -> list[list[MediaSource]]:
    """Images, then videos, of every prompt; raises RequestError 400."""
    batch = is_batch(body)
    images = _items(body.image_data, num_prompts, batch, "image_data")
    videos = _items(body.video_data, num_prompts, batch, "video_data")
    return [
        [image_source(item, "image_data") for item in pictures] + [native_video(item, "video_data") for item in clips]
        for pictures, clips in zip(images, videos, strict=True)
    ]


def _items(data: Any, num_prompts: int, batch: bool, field: str) -> list[list[Any]]:
    """The field's entries for every prompt; raises RequestError 400."""
    if data is None:
        return [[] for _ in range(num_prompts)]
    if not batch:
        return [data if isinstance(data, list) else [data]]
    if not isinstance(data, list) or len(data) != num_prompts:
        raise bad_request(f"for a batch, {field} must be a list with one entry per prompt", field)
    return [[] if entry is None else entry if isinstance(entry, list) else [entry] for entry in data]


class NativeAnswer:
    """Renders one generation, whole or as a stream."""

    def __init__(self, service: Service, body: NativeRequest, job: Job, generation: Generation) -> None:
        self._generation = generation
        self._texts = service.token_texts
        self._body = body
        self._as_list = is_batch(body) or len(generation.answers) > 1
        self._ids = job.names
        self._n = job.n

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
        meta: dict[str, Any] = {
            "id": self._ids[index],
            "finish_reason": finish_reason(answer),
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "cached_tokens": answer.cached_tokens,
        }
        if answer.finish_reason is not None:
            meta["e2e_latency"] = answer.finished - answer.arrived
        if self._body.return_logprob:
            meta.update(self._logprobs(index, answer))
        result: dict[str, Any] = {"text": answer.text, "output_ids": answer.token_ids, "meta_info": meta}
        if self._body.return_timings and answer.finish_reason is not None:
            result["timings"] = timings([answer])
        return result

    def _logprobs(self, index: int, answer: Answer) -> dict[str, Any]:
        """Prompt tokens from logprob_start_len on and the answer's tokens, each [logprob, id, text or null]."""
        start, with_text = self._body.logprob_start_len, bool(self._body.return_text_in_logprobs)
        prompt = self._generation.prompts[index // self._n].input_ids
        inputs = prompt[start:] if start is not None and start >= 0 else []
        meta: dict[str, Any] = {}
        for name, tokens, logprobs in (
            ("input", inputs, answer.prompt_logprobs),
            ("output", answer.token_ids, answer.logprobs),
        ):
            chosen, tops = native_logprobs(self._texts, tokens, logprobs, with_text)
            meta[f"{name}_token_logprobs"] = chosen
            if self._body.top_logprobs_num:
                meta[f"{name}_top_logprobs"] = tops
        return meta


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
