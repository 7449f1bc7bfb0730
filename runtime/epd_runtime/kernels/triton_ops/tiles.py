"""Sizes of the blocks that attention kernels with many query rows work on."""

from __future__ import annotations

import dataclasses

import triton


@dataclasses.dataclass(frozen=True)
class Blocks:
    """rows and keys of one block, both powers of two, and how it runs."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def blocks_for(head_dim: int, element_size: int) -> Blocks:
    """Queries and the pipelined keys and values must fit into shared memory; in float32, which takes no matrix
    instructions, sums and operands into registers."""
    if element_size > 2:
        return Blocks(rows=32, keys=32, num_warps=4, num_stages=2)
    if block_dim(head_dim) <= 128:
        return Blocks(rows=128, keys=64, num_warps=8, num_stages=3)
    return Blocks(rows=64, keys=32, num_warps=4, num_stages=2)


def block_dim(head_dim: int) -> int:
    """The power of two that holds a head; 16 is the least that a matrix product takes."""
    return max(int(triton.next_power_of_2(head_dim)), 16)
