"""Mixture of experts: a router sends every token to a few of many small MLPs.

Tokens are sorted by expert, so that each expert that is hit at all runs once, over all of its tokens: one grouped
product, which never waits for a device, so that a graph can capture it (on CPU it takes 0.6 to 0.9 of a loop's time).
What it does not take, see can_group, is left to a loop over the experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's customary name
from torch import Tensor, nn

from epd_runtime.kernels import ops
from epd_runtime.text_config import ExpertsConfig

ALIGNMENT = 16  # bytes: what grouped products ask of rows


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
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        counts = flat.new_zeros(self.config.num_experts).scatter_add_(0, flat, torch.ones_like(flat))
        inputs = x[order // self.config.experts_per_token]
        computed = self.grouped(inputs, counts) if self.can_group else self.one_by_one(inputs, counts)
        answers = torch.empty_like(computed)
        answers[order] = computed
        return (answers.view(*chosen.shape, -1) * weights.unsqueeze(-1)).sum(1)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the chosen experts in x's type, and which they are."""
        odds = self.gate(x).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = odds.topk(self.config.experts_per_token, dim=-1)
        if self.config.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(x.dtype), chosen

    @property
    def can_group(self) -> bool:
        """Whether grouped() takes these matrices: aligned rows and, on CUDA, bfloat16."""
        weight = self.down_proj
        is_aligned = all(size * weight.element_size() % ALIGNMENT == 0 for size in weight.shape[1:])
        return is_aligned and (not weight.is_cuda or weight.dtype is torch.bfloat16)

    def one_by_one(self, x: Tensor, counts: Tensor) -> Tensor:
        """Each expert's MLP of its rows: x [rows, hidden], sorted by expert, counts [experts] rows for each."""
        ends = counts.cumsum(0).tolist()
        parts = enumerate(x.tensor_split(ends[:-1]))
        return torch.cat([self._expert(index, part) for index, part in parts if part.shape[0]])

    def _expert(self, index: int, x: Tensor) -> Tensor:
        return F.linear(ops.silu_mul(F.linear(x, self.gate_up_proj[index])), self.down_proj[index])

    def grouped(self, x: Tensor, counts: Tensor) -> Tensor:
        """The same as one_by_one(), without knowing counts on the host."""
        ends = counts.cumsum(0, dtype=torch.int32)
        gate_up: Tensor = F.grouped_mm(x, self.gate_up_proj.transpose(1, 2), offs=ends)
        result: Tensor = F.grouped_mm(ops.silu_mul(gate_up), self.down_proj.transpose(1, 2), offs=ends)
        return result
