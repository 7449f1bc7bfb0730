"""Logprobs in the shapes of the APIs. All are natural logarithms, of the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from epd_runtime.messages import TokenLogprobs
from epd_runtime.server.token_texts import TokenTexts

LEAST = -9999.0  # stands for impossible: JSON has no infinity

Logprobs = Sequence[TokenLogprobs | None]  # None: of a first prompt token, which nothing predicts


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)


def chat_logprobs(texts: TokenTexts, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """choices[].logprobs of chat completions."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text, data = texts.of(token)
        return {"token": text, "logprob": _finite(logprob), "bytes": list(data)}

    content = [
        {**entry(token, one.logprob), "top_logprobs": [entry(*top) for top in one.top]}
        for token, one in zip(tokens, logprobs, strict=False)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(texts: TokenTexts, tokens: Sequence[int], logprobs: Logprobs, offset: int) -> dict[str, Any]:
    """choices[].logprobs of completions; offset: characters of the choice's text before these tokens."""
    shape: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token, one in zip(tokens, logprobs, strict=False):
        text = texts.of(token)[0]
        shape["tokens"].append(text)
        shape["text_offset"].append(offset)
        shape["token_logprobs"].append(None if one is None else _finite(one.logprob))
        top = None if one is None else {texts.of(other)[0]: _finite(value) for other, value in one.top}
        shape["top_logprobs"].append(None if one is None or top is None else {**top, text: _finite(one.logprob)})
        offset += len(text)
    return shape


def native_logprobs(
    texts: TokenTexts, tokens: Sequence[int], logprobs: Logprobs, with_text: bool
) -> tuple[list[Any], list[Any]]:
    """([logprob, id, text] per token, the likeliest tokens in the same form per token)."""

    def entry(token: int, logprob: float | None) -> list[Any]:
        value = None if logprob is None else _finite(logprob)
        return [value, token, texts.of(token)[0] if with_text else None]

    pairs = list(zip(tokens, logprobs, strict=False))
    chosen = [entry(token, None if one is None else one.logprob) for token, one in pairs]
    tops = [None if one is None else [entry(*top) for top in one.top] for _, one in pairs]
    return chosen, tops
