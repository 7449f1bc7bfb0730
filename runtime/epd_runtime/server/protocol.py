"""Bodies of the HTTP requests: their fields and types, decoded in one pass; unknown fields are ignored.

Routers re-serialise bodies through structs of their own, so every field may be null, and none beyond the public APIs is
required. Fields of the public APIs that this server does not have are refused when they would change the answer.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from epd_runtime.frontend.errors import RequestError, bad_request


class RoomFields(msgspec.Struct):
    """Where the two halves of a disaggregated request meet; written by the router."""

    bootstrap_host: str | list[str | None] | None = None
    bootstrap_port: int | list[int | None] | None = None
    bootstrap_room: int | list[int] | None = None


class StreamOptions(msgspec.Struct):
    """stream_options of the OpenAI API."""

    include_usage: bool | None = None


class ChatRequest(RoomFields):
    """Body of POST /v1/chat/completions."""

    messages: list[Any] = []
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_timings: bool | None = None

    tools: list[Any] | None = None
    functions: list[Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None


class NativeSampling(msgspec.Struct):
    """sampling_params of POST /generate."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    sampling_seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    min_new_tokens: int | None = None
    json_schema: str | None = None
    regex: str | None = None


class NativeRequest(RoomFields):
    """Body of POST /generate. image_data: a source, a list of them, or for a batch a list per prompt."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    image_data: Any = None
    sampling_params: NativeSampling | None = None
    rid: str | list[str] | None = None
    stream: bool | None = None
    return_logprob: bool | None = None
    return_timings: bool | None = None


class EncodeBody(msgspec.Struct):
    """Body of POST /encode."""

    mm_items: list[Any]
    req_id: str
    prefill_host: str
    embedding_port: int | list[int]
    modality: str = "IMAGE"
    num_parts: int = 1
    part_idx: int = 0


Body = TypeVar("Body", bound=msgspec.Struct)

# Values that leave the answer as it is; anything else is refused rather than ignored.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "functions": ([],), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},),
    "response_format": ({"type": "text"},), "frequency_penalty": (0.0,), "presence_penalty": (0.0,),
    "repetition_penalty": (1.0,), "min_p": (0.0,), "min_new_tokens": (0,), "json_schema": (), "regex": (),
    "return_logprob": (False,),
}  # fmt: skip


def parse_body(data: bytes, kind: type[Body]) -> Body:
    """Decode a body; raises RequestError 400 naming the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        where = re.search(r"at `\$\.?(.*?)`", str(error))
        raise bad_request(f"the request body is invalid: {error}", where[1] if where else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the request body is not valid JSON: {error}") from None


def refuse_unsupported(body: msgspec.Struct) -> None:
    """Raise RequestError 400 for a field that would change the answer and is not implemented."""
    for name, neutral in NEUTRAL.items():
        value = getattr(body, name, None)
        if value is not None and value not in neutral:
            raise RequestError(
                400, f"{name} is not supported by this server; leave it out", name, "unsupported_parameter"
            )
