"""Bodies of the OpenAI API, with the fields that vLLM's and SGLang's clients add."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from epd_runtime.server.protocol.base import RoomFields

# What the code behind the bodies checks by itself, told to readers of /openapi.json.
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {"role": {"type": "string"}, "content": {"anyOf": [{"type": "string"}, {"type": "array"}]}},
}
_TOOL = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"},
                "description": {"type": "string"},
                "parameters": {"type": "object"},
            },
        },
    },
}
Messages = Annotated[list[Any], msgspec.Meta(extra_json_schema={"items": _MESSAGE})]
Tools = Annotated[list[Any], msgspec.Meta(extra_json_schema={"items": _TOOL})]


class StreamOptions(msgspec.Struct):
    """stream_options: the usage in a last chunk, or in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(msgspec.Struct):
    """response_format.json_schema."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """response_format: what the answer must look like."""

    type: str
    json_schema: JsonSchemaFormat | None = None


class OpenAIRequest(RoomFields):
    """Fields of both completions APIs."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    regex: str | None = None
    ebnf: str | None = None
    priority: int | None = None
    rid: str | None = None
    user: str | None = None
    return_timings: bool | None = None

    prompt_logprobs: int | None = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: Any = None
    guided_grammar: str | None = None
    lora_path: Any = None
    custom_logit_processor: Any = None
    return_hidden_states: bool | None = None


class ChatRequest(OpenAIRequest):
    """Body of POST /v1/chat/completions."""

    messages: Messages = []
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    separate_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    functions: list[Any] | None = None
    function_call: Any = None
    chat_template: str | None = None


class CompletionRequest(OpenAIRequest):
    """Body of POST /v1/completions. prompt: a text, texts, token ids, or several lists of token ids."""

    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None

    suffix: str | None = None
    use_beam_search: bool | None = None
