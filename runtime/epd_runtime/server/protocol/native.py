"""Body of the native API, POST /generate."""

from __future__ import annotations

from typing import Any

import msgspec

from epd_runtime.server.protocol.base import RoomFields


class NativeSampling(msgspec.Struct):
    """sampling_params of POST /generate."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    sampling_seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    no_stop_trim: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None

    stop_regex: str | list[str] | None = None
    structural_tag: Any = None
    custom_params: Any = None
    spaces_between_special_tokens: bool | None = None


class NativeRequest(RoomFields):
    """Body of POST /generate. image_data: a source, a list of them, or for a batch a list per prompt.

    video_data likewise; an entry may be a list of frames, or an object with `url` or `video` and fps, nframes, ….

    sampling_params may be a list, one for each prompt. logprob_start_len: first prompt token whose logprob is wanted.
    """

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    image_data: Any = None
    video_data: Any = None
    sampling_params: NativeSampling | list[NativeSampling] | None = None
    rid: str | list[str] | None = None
    stream: bool | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None
    priority: int | None = None
    return_timings: bool | None = None

    token_ids_logprob: list[Any] | None = None
    input_embeds: Any = None
    audio_data: Any = None
    lora_path: Any = None
    custom_logit_processor: Any = None
    session_params: Any = None
    return_hidden_states: bool | None = None
