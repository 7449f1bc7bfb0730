"""Logprobs: natural logarithms of softmax over the raw logits, before bias, penalties, temperature and cuts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from epd_runtime.engine.request import NO_TOKEN, Request
from epd_runtime.engine.sampling.plan import CACHED_LOGITS
from epd_runtime.messages import TokenLogprobs

LEAST = -9999.0  # of a token with probability 0; JSON has no infinity


def describe(logits: Tensor, tokens: Tensor, counts: Sequence[int]) -> list[TokenLogprobs]:
    """For every row of raw logits [rows, vocab]: its token's logprob (tokens int64 [rows]) and count of the largest."""
    size = max(1, CACHED_LOGITS // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    total = torch.cat([part.logsumexp(dim=-1, keepdim=True) for part in torch.split(logits, size)])
    chosen = (logits.gather(-1, tokens[:, None]) - total).clamp_(min=LEAST)[:, 0].tolist()
    top = logits.topk(min(max(counts), logits.shape[-1]), dim=-1)
    values, ids = (top.values - total).clamp_(min=LEAST).tolist(), top.indices.tolist()
    return [
        TokenLogprobs(logprob, list(zip(row_ids[:count], row_values[:count], strict=True)))
        for logprob, row_ids, row_values, count in zip(chosen, ids, values, counts, strict=True)
    ]


def record_sampled(logits: Tensor, tokens: Sequence[int], requests: Sequence[Request]) -> None:
    """Leave the logprobs of sampled tokens with their requests, to be reported with them; logits are the raw ones."""
    ids = torch.tensor([max(token, 0) for token in tokens], device=logits.device)
    for token, one, request in zip(
        tokens, describe(logits, ids, [request.sampling.logprobs for request in requests]), requests, strict=True
    ):
        if token != NO_TOKEN:
            request.sampled.logprobs.append(one)


def prompt_rows(request: Request, num_tokens: int) -> range:
    """Tokens of the prompt whose logprobs the next num_tokens tokens give: each row speaks of the token behind it."""
    wanted = request.sampling.prompt_logprobs_from
    if wanted < 0 or request.output_ids:
        return range(0)
    first, end = request.num_computed + 1, request.num_computed + num_tokens + 1
    return range(max(first, wanted), min(end, request.prompt_length))


def record_prompt(logits: Tensor, request: Request, first: int) -> None:
    """Keep logprobs of the prompt's tokens first, first + 1, … from raw logits with one row for each."""
    tokens = request.input_ids[first : first + len(logits)]
    ids = torch.tensor(tokens, device=logits.device)
    place = first - request.sampling.prompt_logprobs_from
    counts = [max(request.sampling.logprobs, 0)] * len(tokens)
    request.sampled.prompt_logprobs[place : place + len(tokens)] = describe(logits, ids, counts)
