"""Changes of logits before the draw: logit_bias, penalties, no end before min_new_tokens. In place, in that order.

Penalties follow their sources: repetition_penalty (CTRL, arXiv:1909.05858) divides the positive and multiplies the
negative logits of every token of prompt and answer; frequency_penalty and presence_penalty are subtracted for tokens of
the answer, the one per occurrence, the other once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from epd_runtime.accelerator import to_device
from epd_runtime.engine.request import Request
from epd_runtime.engine.sampling.state import TokenCounts
from epd_runtime.messages import SamplingParams


def has_penalty(params: SamplingParams) -> bool:
    """Whether tokens seen before change their logits."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def add_bias(logits: Tensor, rows: Sequence[int], requests: Sequence[Request]) -> None:
    """logit_bias of these rows, to logits [n, vocab]."""
    vocab = logits.shape[-1]
    pairs = [
        (row * vocab + token, bias)
        for row, request in zip(rows, requests, strict=True)
        for token, bias in request.sampling.logit_bias
    ]
    where, values = zip(*pairs, strict=True)
    flat = to_device(torch.tensor(where), logits.device)
    logits.view(-1).index_add_(0, flat, to_device(torch.tensor(values, dtype=logits.dtype), logits.device))


def penalise(logits: Tensor, rows: Sequence[int], requests: Sequence[Request]) -> None:
    """Penalties of these rows, to logits [n, vocab]."""
    counts = [_counts(request) for request in requests]
    vocab = logits.shape[-1]
    lengths = [len(one.ids) for one in counts]
    flat = np.concatenate([one.ids + row * vocab for row, one in zip(rows, counts, strict=True)])
    params = np.array(
        [
            (one.sampling.repetition_penalty, one.sampling.frequency_penalty, one.sampling.presence_penalty)
            for one in requests
        ],
        dtype=np.float32,
    )
    columns = np.vstack([np.repeat(params, lengths, axis=0).T, np.concatenate([one.counts for one in counts])])
    where = torch.from_numpy(flat).to(logits.device)
    repetition, frequency, presence, count = torch.from_numpy(columns).to(logits.device)
    values = logits.view(-1).take(where)
    values = torch.where(values < 0, values * repetition, values / repetition)
    logits.view(-1).put_(where, values - frequency * count - presence * (count > 0))


def _counts(request: Request) -> TokenCounts:
    state, params = request.sampled, request.sampling
    if state.counts is None:
        state.counts = TokenCounts(request.input_ids if params.repetition_penalty != 1 else ())
    state.counts.update(request.output_ids)
    return state.counts


def forbid_end(logits: Tensor, rows: Sequence[int], requests: Sequence[Request], eos: frozenset[int]) -> None:
    """End tokens of these rows get probability 0 in logits [n, vocab]."""
    vocab = logits.shape[-1]
    flat = [
        row * vocab + token
        for row, request in zip(rows, requests, strict=True)
        for token in eos.union(request.sampling.stop_token_ids)
        if token < vocab
    ]
    logits.view(-1)[to_device(torch.tensor(flat, dtype=torch.int64), logits.device)] = -torch.inf
