"""Where an answer stands in its grammar, and which tokens may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epd_runtime.engine.request import Request

if TYPE_CHECKING:
    import xgrammar

Words = npt.NDArray[np.int32]  # 32 tokens each, the lowest bit first


class GrammarMatcher:
    """Follows the tokens of one answer; behind after a handoff or a retraction, it catches up by itself."""

    def __init__(self, compiled: xgrammar.CompiledGrammar) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._num_accepted = 0
        self._broken = False

    def fill(self, output_ids: Sequence[int], bitmask: Words, row: int) -> None:
        """Set bitmask[row] to the tokens that may follow; none if the answer broke the grammar, as only a peer can."""
        for token in output_ids[self._num_accepted :]:
            self._broken = self._broken or not self._matcher.accept_token(token)
        self._num_accepted = len(output_ids)
        if self._broken or self._matcher.is_terminated():
            bitmask[row] = 0
        else:
            self._matcher.fill_next_token_bitmask(bitmask, row)


def constrain(logits: Tensor, rows: Sequence[int], requests: Sequence[Request], eos: frozenset[int]) -> None:
    """Tokens that their grammars forbid get probability 0 in these rows of logits [n, vocab]."""
    vocab = logits.shape[-1]
    bitmask = np.zeros((len(rows), -(-vocab // 32)), dtype=np.int32)
    for index, request in enumerate(requests):
        request.sampled.matcher.fill(request.output_ids, bitmask, index)
        if len(request.output_ids) < request.sampling.min_new_tokens:
            _forbid_end(bitmask[index], eos.union(request.sampling.stop_token_ids), vocab)
    allowed = np.unpackbits(bitmask.view(np.uint8), axis=-1, bitorder="little", count=vocab)
    forbidden = torch.from_numpy(allowed == 0).to(logits.device)
    for row, mask in zip(rows, forbidden, strict=True):
        logits[row].masked_fill_(mask, -torch.inf)


def _forbid_end(words: Words, tokens: frozenset[int], vocab: int) -> None:
    """min_new_tokens, but a grammar that can only end does."""
    ends = np.zeros(len(words) * 32, dtype=np.uint8)
    ends[[token for token in tokens if token < vocab]] = 1
    rest = words & ~np.packbits(ends, bitorder="little").view(np.int32)
    if rest.any():
        words[:] = rest
