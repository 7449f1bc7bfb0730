"""Bodies of the routes around generation: tokenizing and administration."""

from __future__ import annotations

from typing import Any

import msgspec

from epd_runtime.server.protocol.openai import Messages, Tools


class TokenizeBody(msgspec.Struct):
    """Body of POST /tokenize: either prompt or messages."""

    model: str | None = None
    prompt: str | list[str] | None = None
    add_special_tokens: bool | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct):
    """Body of POST /detokenize: token ids of one text or of several."""

    tokens: list[int | list[int]]
    model: str | None = None
    skip_special_tokens: bool | None = None


class AbortBody(msgspec.Struct):
    """Body of POST /abort_request: one request by its id, or all."""

    rid: str | None = None
    abort_all: bool | None = None
