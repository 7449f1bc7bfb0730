"""What the ranks of one language model do together (tensor parallelism, Shoeybi et al. 2019).

Every rank computes its part of each attention and MLP for all tokens; one sum over ranks behind each of them makes the
hidden states whole, and equal, on every rank. The vocabulary is divided too: a rank embeds the tokens that it has, and
rank 0 gathers the logits of all. A model of one rank has no Ranks and calls nothing of this.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from epd_runtime.models.shard import Shard


class Group(Protocol):
    """What is used of a process group: dist.ProcessGroupGloo, dist.ProcessGroupNCCL. Results have a wait()."""

    def allreduce(self, tensors: list[Tensor]) -> Any: ...

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> Any: ...

    def broadcast(self, tensors: list[Tensor], options: Any) -> Any: ...


class Ranks:
    """One rank's place among the others. All ranks call the same methods in the same order."""

    def __init__(self, shard: Shard, vocab_size: int, group: Group) -> None:
        """vocab_size: of the whole model; group: of shard.size ranks, whose timeout bounds every call."""
        self.shard = shard
        self._group = group
        self._vocabulary = [Shard(rank, shard.size).vocabulary(vocab_size) for rank in range(shard.size)]

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, contiguous, which is overwritten."""
        self._group.allreduce([x]).wait()
        return x

    def embed(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows [len(ids), hidden] of the whole embedding; table: this rank's rows of it, ids int64."""
        first, count = self._vocabulary[self.shard.rank]
        local = ids - first
        elsewhere = (local < 0) | (local >= count)
        rows = torch.nn.functional.embedding(local.masked_fill_(elsewhere, 0), table)
        return self.sum(rows.masked_fill_(elsewhere.unsqueeze(-1), 0))

    def gather_logits(self, part: Tensor) -> Tensor:
        """On rank 0 logits [rows, vocab], contiguous, of every rank's part [rows, its vocabulary]; else the part."""
        widest = self._vocabulary[0][1]
        padded = torch.nn.functional.pad(part, (0, widest - part.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in self._vocabulary] if self.shard.rank == 0 else []
        if len(part):  # how many rows, all ranks know
            self._group.gather([parts] if parts else [], [padded], dist.GatherOptions()).wait()
        if not parts:
            return part
        return torch.cat([one[:, :count] for one, (_, count) in zip(parts, self._vocabulary, strict=True)], dim=-1)

    def broadcast(self, x: Tensor) -> None:
        """Overwrite x, contiguous, of one shape and type on all ranks, by rank 0's."""
        self._group.broadcast([x], dist.BroadcastOptions()).wait()
