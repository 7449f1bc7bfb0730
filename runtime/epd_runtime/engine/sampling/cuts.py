"""top_k, top_p and min_p as one threshold per row: what lies below it is never drawn.

A threshold keeps equal logits together, as transformers does at the edge of top_k, and makes the answer independent of
the order in which a sort or a batch leaves ties. It is found among the CANDIDATES largest logits; only rows where these
are not enough (a wide top_k, a flat distribution under top_p) are sorted whole.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CANDIDATES = 256  # enough for almost every top_p below 1
MAX_TOP_K = 1024  # beyond it a sort is cheaper than a selection


def candidate_threshold(
    values: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor, vocab: int
) -> tuple[Tensor, Tensor]:
    """Threshold [rows, 1] from the largest logits, and whether they decide it, bool [rows, 1].

    values [rows, n] are the n largest scaled logits, largest first, 0 the first; total [rows, 1] is the sum of exp over
    the row; top_k int64 [rows, 1] is vocab or more for none, top_p [rows, 1] is 1 for none.
    """
    count = values.shape[-1]
    limited, without_top_p = top_k <= count, top_p >= 1
    kth = values.gather(-1, top_k.clamp(max=count) - 1).masked_fill(~limited, -torch.inf)
    weights = values.exp().masked_fill(values < kth, 0.0)
    mass = torch.where(limited, weights.sum(dim=-1, keepdim=True), total) * top_p
    place = (weights.cumsum(dim=-1) < mass).sum(dim=-1, keepdim=True)  # of the last token that top_p keeps
    nucleus = values.gather(-1, place.clamp(max=count - 1)).masked_fill(without_top_p, -torch.inf)
    threshold = torch.maximum(kth, nucleus)
    if count == vocab:
        return threshold, torch.ones_like(limited)
    known = (limited | (top_k >= vocab)) & (without_top_p | (place < count))
    return threshold, known & (values[:, -1:] < threshold)


def exact_threshold(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Threshold [rows, 1] of scaled logits [rows, vocab], 0 the largest of a row; top_k and top_p as above."""
    values = _descending(logits)
    total = values.exp().sum(dim=-1, keepdim=True)
    return candidate_threshold(values, total, top_k, top_p, logits.shape[-1])[0]


def _descending(x: Tensor) -> Tensor:
    """Rows of x, largest first. On a CPU numpy's vectorised sort is 16 times faster than torch's with its indices."""
    if x.device.type != "cpu":
        return x.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(x.numpy(), axis=-1)).flip(-1)
