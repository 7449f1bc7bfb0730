"""Mixture of experts: a router sends every token to a few of many small MLPs.

Tokens are sorted by expert, so that each expert that is hit at all runs once, over all of its tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's customary name
from torch import Tensor, nn

from epd_runtime.kernels import ops
from epd_runtime.text_config import ExpertsConfig


class ExpertsMLP(nn.Module):
    """Weighted sum of the chosen experts' gated MLPs; weights are the router's softmax over all experts."""

    def __init__(self, hidden: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(hidden, config.num_experts, bias=False)
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * config.intermediate_size, hidden))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, hidden, config.intermediate_size))

    def forward(self, x: Tensor) -> Tensor:
        """x [tokens, hidden] -> [tokens, hidden]."""
        weights, chosen = self._route(x)  # [tokens, experts_per_token] each
        order = chosen.flatten().argsort(stable=True)
        ends = chosen.flatten().bincount(minlength=self.config.num_experts).cumsum(0).tolist()
        inputs = x[order // self.config.experts_per_token].tensor_split(ends[:-1])
        parts = [self._expert(index, part) for index, part in enumerate(inputs) if part.shape[0]]
        answers = x.new_empty(order.shape[0], x.shape[1])
        answers[order] = torch.cat(parts)
        return (answers.view(*chosen.shape, -1) * weights.unsqueeze(-1)).sum(1)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the chosen experts in x's type, and which they are."""
        odds = self.gate(x).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = odds.topk(self.config.experts_per_token, dim=-1)
        if self.config.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(x.dtype), chosen

    def _expert(self, index: int, x: Tensor) -> Tensor:
        return F.linear(ops.silu_mul(F.linear(x, self.gate_up_proj[index])), self.down_proj[index])
