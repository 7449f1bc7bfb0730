"""Loopback addresses of pods: each group has a block 127.x.y, each pod one address 127.x.y.z of it. Pure.

The block follows from the group's name and from where state is kept, which is each user's own, so that a group gets the
same addresses every time; it moves on if another group that runs has it. 127.0 is left to the system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

FIRST_BLOCK = 1 << 8  # 127.1.0
NUM_BLOCKS = (1 << 16) - 2 * FIRST_BLOCK  # up to 127.254.255
MAX_PODS = 254


def choose_block(group: str, owner: str, taken: Collection[str]) -> str:
    """The group's block such as "127.41.7", none of those taken."""
    digest = hashlib.sha256(f"{owner}/{group}".encode()).digest()
    first = int.from_bytes(digest[:8], "big")
    for step in range(NUM_BLOCKS):
        number = FIRST_BLOCK + (first + step) % NUM_BLOCKS
        block = f"127.{number >> 8}.{number & 255}"
        if block not in taken:
            return block
    raise ValueError("every block of loopback addresses is taken by a running group; end one with rbg down NAME")


def next_address(block: str, taken: Collection[str]) -> str:
    """The lowest address of the block that no pod has."""
    for last in range(1, MAX_PODS + 1):
        if (address := f"{block}.{last}") not in taken:
            return address
    raise ValueError(f"a group has at most {MAX_PODS} pods on one machine; scale something down")
