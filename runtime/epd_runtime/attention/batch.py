"""One forward pass of the language model: which tokens, where their KV goes, what they may see.

All sequences lie behind one another in one flat token dimension, prefill chunks and decode steps alike.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Sequence:
    """A prefill chunk inside the flat batch."""

    start: int  # first row of the batch
    q_len: int  # tokens computed now
    kv_len: int  # tokens cached after this pass
    pages: Tensor  # int64 [ceil(kv_len / page_size)]


@dataclasses.dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Inputs of LanguageModel.forward; tensors on the model's device."""

    input_ids: Tensor  # int64 [tokens]
    positions: Tensor  # int64 [tokens], or [3, tokens] with M-RoPE
    write_pages: Tensor  # int64 [tokens] page that receives the token's KV
    write_slots: Tensor  # int64 [tokens] place inside that page
    begun_pages: Tensor  # int64 [n] pages whose unwritten slots attention will read, masked: they must hold zeros
    logit_rows: Tensor  # int64 [sampled sequences] rows whose next token is wanted
    prefills: tuple[Sequence, ...]
    decode_rows: Tensor | None  # int64 [decodes] rows of one-token sequences; None when there are none
    decode_pages: Tensor | None  # int64 [decodes, max_pages], padded with a page of the same sequence
    decode_lengths: Tensor | None  # int64 [decodes] tokens cached after this pass; 0: attends to nothing
    image_rows: Tensor | None = None  # int64 [n] rows that take an image embedding instead of a token's
    image_embeddings: Tensor | None = None  # [n, VisionConfig.embedding_width]
