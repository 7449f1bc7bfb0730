"""A forward pass as a message, and back: what rank 0 computes, every rank computes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epd_runtime.attention.batch import ForwardBatch, Sequence
from epd_runtime.engine.ranks.wire import Chunk, Ints, Step

OTHERWISE = ("prefills", "image_embeddings")  # fields that are not tensors of integers
TENSORS = tuple(field.name for field in dataclasses.fields(ForwardBatch) if field.name not in OTHERWISE)


def pack(batch: ForwardBatch, scored: SequenceOf[tuple[int, int]]) -> Step:
    """The message for a batch whose tensors, but for the embeddings, are on the host."""
    values = {name: getattr(batch, name) for name in TENSORS}
    return Step(
        tensors={name: _ints(value) for name, value in values.items() if value is not None},
        prefills=[Chunk(one.start, one.q_len, one.kv_len, _ints(one.pages)) for one in batch.prefills],
        embedding_width=0 if batch.image_embeddings is None else batch.image_embeddings.shape[1],
        scored=list(scored),
    )


def unpack(step: Step, device: torch.device) -> ForwardBatch:
    """The batch of a message, but for its embeddings."""
    prefills = (Sequence(one.start, one.q_len, one.kv_len, _tensor(one.pages, device)) for one in step.prefills)
    values: dict[str, Any] = {
        name: _tensor(step.tensors[name], device) if name in step.tensors else None for name in TENSORS
    }
    return ForwardBatch(prefills=tuple(prefills), **values)


def place(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """The same batch with its tensors on a device."""
    if device.type == "cpu":
        return batch
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "prefills"}
    moved: dict[str, Any] = {
        name: value.to(device, non_blocking=True) if value is not None else None for name, value in values.items()
    }
    prefills = (dataclasses.replace(one, pages=one.pages.to(device, non_blocking=True)) for one in batch.prefills)
    return ForwardBatch(prefills=tuple(prefills), **moved)


def _ints(tensor: Tensor) -> Ints:
    return Ints(tuple(tensor.shape), tensor.numpy().astype(np.int32).tobytes())


def _tensor(ints: Ints, device: torch.device) -> Tensor:
    values = np.frombuffer(ints.data, dtype=np.int32, count=math.prod(ints.shape)).astype(np.int64)
    return torch.from_numpy(values.reshape(ints.shape)).to(device, non_blocking=True)
