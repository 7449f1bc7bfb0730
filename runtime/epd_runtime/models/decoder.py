"""The decoder-only language model shared by all families.

What differs between them (biases, norms of q and k, rotary form, experts, tied embeddings) is data in `TextConfig`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from epd_runtime.attention.base import AttentionBackend
from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.kernels import ops
from epd_runtime.model_config import TextConfig
from epd_runtime.models.experts import ExpertsMLP
from epd_runtime.models.layers import GatedMLP, RMSNorm
from epd_runtime.models.ranks import Ranks
from epd_runtime.models.rope import RotaryTable


class Attention(nn.Module):
    """Grouped-query attention over the paged cache."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]  # of q, k, v
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.heads) * self.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * self.head_dim, config.hidden_size, bias=config.o_bias)
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None for _ in range(2)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, backend: AttentionBackend) -> Tensor:
        """x [tokens, hidden] -> [tokens, hidden]; stores this layer's K and V."""
        q, k, v = self.qkv_proj(x).view(x.shape[0], -1, self.head_dim).split(self.heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = ops.rotate(q, k, cos, sin)
        attended = backend.forward(q, k, v, self.layer, batch)
        result: Tensor = self.o_proj(attended.flatten(-2))
        return result


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP, each with a residual; the last sum is left to the next norm, which adds it anyway."""

    def __init__(self, config: TextConfig, layer: int, ranks: Ranks | None) -> None:
        super().__init__()
        self._ranks = ranks
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = (
            ExpertsMLP(config.hidden_size, config.experts)
            if config.experts is not None and layer in config.experts.layers
            else GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        )

    def forward(
        self, x: Tensor, residual: Tensor, cos: Tensor, sin: Tensor, batch: ForwardBatch, backend: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        """The layer's input is x + residual [tokens, hidden]; so is its output."""
        normed, residual = self.input_layernorm.add(x, residual)
        attended = self._whole(self.self_attn(normed, cos, sin, batch, backend))
        normed, residual = self.post_attention_layernorm.add(attended, residual)
        return self._whole(self.mlp(normed)), residual

    def _whole(self, x: Tensor) -> Tensor:
        return x if self._ranks is None else self._ranks.sum(x)


class LanguageModel(nn.Module):
    """Tokens (and image embeddings in their places) to logits of the rows that are sampled."""

    def __init__(self, config: TextConfig, ranks: Ranks | None = None) -> None:
        """config: the sizes of this rank's part, see Shard.part_of; ranks: None when it is the whole model."""
        super().__init__()
        self.config = config
        self.ranks = ranks
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, _weight=torch.empty(config.vocab_size, config.hidden_size)
        )
        self.layers = nn.ModuleList(DecoderLayer(config, index, ranks) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = (
            None if config.tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.rope: RotaryTable | None = None  # set once the device is known

    def tie_head(self) -> None:
        """Once weights are loaded: a head that the checkpoint leaves out is the embedding's matrix."""
        if self.lm_head is None:
            size, width = self.embed_tokens.weight.shape
            self.lm_head = nn.Linear(width, size, bias=False, device="meta")
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, batch: ForwardBatch, backend: AttentionBackend) -> Tensor:
        """Logits [len(batch.logit_rows), vocab] float32; of several ranks, only rank 0's are whole."""
        return self.logits(*self.hidden(batch, backend), batch.logit_rows)

    def hidden(self, batch: ForwardBatch, backend: AttentionBackend) -> tuple[Tensor, Tensor]:
        """Two tensors [tokens, hidden] whose sum the last norm takes."""
        assert self.rope is not None
        x = self._embed(batch.input_ids)
        deepstack: tuple[Tensor, ...] = ()  # what image rows receive behind each of the first layers (DeepStack)
        if batch.image_rows is not None and batch.image_embeddings is not None:
            parts = batch.image_embeddings.to(x.dtype).view(len(batch.image_rows), -1, x.shape[1]).unbind(1)
            x[batch.image_rows], deepstack = parts[0], parts[1:]
        cos, sin = self.rope(batch.positions, x.dtype)
        residual = torch.zeros_like(x)
        for index, layer in enumerate(self.layers):
            x, residual = layer(x, residual, cos, sin, batch, backend)
            if index < len(deepstack):
                x[batch.image_rows] += deepstack[index]
        return x, residual

    def logits(self, x: Tensor, residual: Tensor, rows: Tensor) -> Tensor:
        """Logits [len(rows), vocab] float32 of some rows of hidden()'s tensors; of several ranks, as forward()."""
        x, _ = self.norm.add(x[rows], residual[rows])
        assert self.lm_head is not None
        logits: Tensor = self.lm_head(x)
        return (logits if self.ranks is None else self.ranks.gather_logits(logits)).float()

    def _embed(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.embed_tokens(ids) if self.ranks is None else self.ranks.embed(self.embed_tokens.weight, ids)
        return rows
