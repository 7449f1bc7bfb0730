"""Chooses the next token of every sampled row.

    raw logits ─▶ logprobs
        └─▶ logit_bias ─▶ penalties ─▶ min_new_tokens ─▶ grammar ─▶ temperature ─▶ top_k ─▶ top_p ─▶ min_p ─▶ draw

A feature costs nothing while no row asks for it: a batch of greedy rows is one argmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from epd_runtime.engine.request import NO_TOKEN, Request
from epd_runtime.engine.sampling.cuts import candidate_threshold, exact_threshold
from epd_runtime.engine.sampling.draw import largest, pick, uniforms
from epd_runtime.engine.sampling.logprobs import record_sampled
from epd_runtime.engine.sampling.matcher import constrain
from epd_runtime.engine.sampling.plan import BatchPlan, RandomRows, plan_batch
from epd_runtime.engine.sampling.processors import add_bias, forbid_end, penalise


class Sampler:
    """Samples batch after batch; what it remembers of a request is in the request."""

    def __init__(self, eos_token_ids: frozenset[int] = frozenset()) -> None:
        self._eos = eos_token_ids
        self._plan: BatchPlan | None = None

    def sample(self, logits: Tensor, requests: Sequence[Request]) -> list[int]:
        """The tokens that choose() chooses, on the host."""
        result: list[int] = self.choose(logits, requests).tolist()
        return result

    def choose(self, logits: Tensor, requests: Sequence[Request]) -> Tensor:
        """Next tokens int64 [rows] for logits float32 [rows, vocab], contiguous, which are changed.

        NO_TOKEN for a row with NaN or infinity as its largest logit: a broken request must not end others of its batch.
        """
        if not requests:
            return torch.empty(0, dtype=torch.int64, device=logits.device)
        plan = self._plan_for(requests, logits)
        raw = plan.keep_raw(logits)
        was_valid = largest(logits)[0].isfinite() if plan.forbids else None  # what is forbidden may be NaN
        self._process(logits, plan)
        top, tokens = largest(logits)
        valid = top.isfinite() if was_valid is None else top.isfinite() & was_valid
        for rows in plan.random:
            drawn = _draw(logits, top, rows)
            if rows.rows is None:
                tokens = drawn
            else:
                tokens[rows.rows] = drawn
        tokens = tokens.masked_fill(~valid, NO_TOKEN)
        if plan.with_logprobs:
            known = tokens.tolist()
            record_sampled(raw, [known[row] for row in plan.with_logprobs], plan.pick(plan.with_logprobs))
        return tokens

    def _plan_for(self, requests: Sequence[Request], logits: Tensor) -> BatchPlan:
        if self._plan is None or self._plan.requests != tuple(requests):
            self._plan = plan_batch(requests, logits.shape[-1], logits.device)
        return self._plan

    def _process(self, logits: Tensor, plan: BatchPlan) -> None:
        """Apply what rows ask for."""
        if plan.biased:
            add_bias(logits, plan.biased, plan.pick(plan.biased))
        if plan.penalised:
            penalise(logits, plan.penalised, plan.pick(plan.penalised))
        held = [r for r in plan.held if plan.requests[r].num_sampled < plan.requests[r].sampling.min_new_tokens]
        if held:
            forbid_end(logits, held, plan.pick(held), self._eos)
        if plan.with_grammar:
            constrain(logits, plan.with_grammar, plan.pick(plan.with_grammar), self._eos)


def _draw(logits: Tensor, top: Tensor, rows: RandomRows) -> Tensor:
    """Tokens of these rows, int64 [rows]; top [batch] is the largest logit of every row of the batch."""
    if rows.rows is not None:
        logits, top = logits[rows.rows], top[rows.rows]
    top = top[:, None]
    draws = uniforms(
        [request.sampling.seed for request in rows.requests],
        [request.num_sampled for request in rows.requests],
        logits.device,
    )
    if not rows.num_candidates:
        return _draw_above(_scale(logits, top, rows.temperature), rows.floor, draws)
    values, ids = logits.topk(rows.num_candidates, dim=-1)
    values = _scale(values, top, rows.temperature)
    total = _scale(logits, top, rows.temperature).exp_().sum(dim=-1, keepdim=True) if rows.needs_total else values
    threshold, decided = candidate_threshold(values, total[:, :1], rows.top_k, rows.top_p, logits.shape[-1])
    order = ids.argsort(dim=-1)  # by token id, as the draw over the whole vocabulary
    place = _draw_above(values.gather(-1, order), _above(threshold, rows.floor), draws)
    tokens = ids.gather(-1, order.gather(-1, place[:, None])).squeeze(-1)
    if not bool(decided.all()):
        undecided = (~decided).flatten().nonzero().flatten()
        tokens[undecided] = _draw_exactly(logits, top, rows, draws, undecided)
    return tokens


def _draw_exactly(logits: Tensor, top: Tensor, rows: RandomRows, draws: Tensor, some: Tensor) -> Tensor:
    """Tokens of some rows whose cut no candidates decide."""
    scaled = _scale(logits[some], top[some], rows.temperature[some])
    threshold = exact_threshold(scaled, rows.top_k[some], rows.top_p[some])
    floor = None if rows.floor is None else rows.floor[some]
    return _draw_above(scaled, _above(threshold, floor), draws[some])


def _scale(logits: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """With 0 as the largest of a row no temperature makes it overflow upwards."""
    return logits.sub(top).div_(temperature)


def _above(threshold: Tensor, floor: Tensor | None) -> Tensor:
    return threshold if floor is None else torch.maximum(threshold, floor)


def _draw_above(scaled: Tensor, threshold: Tensor | None, draws: Tensor) -> Tensor:
    weights = scaled.exp()
    if threshold is not None:
        weights *= scaled >= threshold
    return pick(weights, draws)
