"""Tokens that a step samples and the next one reads, without passing the host (overlap.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from epd_runtime.accelerator import to_device
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Work


class FutureTokens:
    """The tokens of the last step, and whose they are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tokens = torch.empty(0, dtype=torch.int64, device=device)
        self._place: dict[Request, int] = {}
        self._key: tuple[list[int], list[int]] | None = None  # of the indices last copied; they seldom change
        self._indices = torch.empty(2, 0, dtype=torch.int64, device=device)

    def keep(self, tokens: Tensor, requests: Sequence[Request]) -> None:
        """Remember a step's tokens int64 [requests] until the next step has begun."""
        self._tokens = tokens.clamp(min=0)  # NO_TOKEN is no row of the embedding
        self._place = {request: index for index, request in enumerate(requests)}

    def fill(self, work: Sequence[Work], input_ids: Tensor) -> None:
        """Put pending tokens into input_ids int64 [tokens] (or more), whose rows are those of the works in order."""
        rows, places, row = [], [], 0
        for item in work:
            if item.request.num_pending:
                rows.append(row)
                places.append(self._place[item.request])
            row += item.num_tokens
        if not rows:
            return
        if self._key != (rows, places):
            self._key = (rows, places)
            self._indices = to_device(torch.tensor([rows, places]), self._device)
        input_ids.index_copy_(0, self._indices[0], self._tokens[self._indices[1]])
