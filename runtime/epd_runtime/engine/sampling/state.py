"""What sampling keeps of one request between steps. Rebuilt from the request's tokens whenever it is behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from epd_runtime.messages import TokenLogprobs


class TokenCounts:
    """The distinct tokens of a request and how often each came in its answer."""

    def __init__(self, prompt: Sequence[int]) -> None:
        """prompt: its tokens if they count as seen, else nothing."""
        seen = list(dict.fromkeys(prompt))
        self._place = {token: place for place, token in enumerate(seen)}
        self._ids = np.array(seen, dtype=np.int64)
        self._counts = np.zeros(len(seen), dtype=np.float32)
        self._num_counted = 0

    def update(self, output_ids: Sequence[int]) -> None:
        """Count the tokens of an answer beyond those counted already."""
        for token in output_ids[self._num_counted :]:
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._ids):
                self._grow()
            self._ids[place] = token
            self._counts[place] += 1
        self._num_counted = len(output_ids)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Distinct tokens, [n]."""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """Occurrences of each in the answer, [n]; 0 for tokens of the prompt alone."""
        return self._counts[: len(self._place)]

    def _grow(self) -> None:
        more = max(len(self._ids), 64)
        self._ids = np.concatenate([self._ids, np.zeros(more, dtype=np.int64)])
        self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.float32)])


class SamplerState:
    """Owned by the sampler; the scheduler only takes the logprobs that it reports."""

    def __init__(self, num_prompt_logprobs: int) -> None:
        self.counts: TokenCounts | None = None
        self.matcher: Any = None  # of the grammar
        self.logprobs: list[TokenLogprobs] = []  # of tokens not reported yet
        self.prompt_logprobs: list[TokenLogprobs | None] = [None] * num_prompt_logprobs

    def take_logprobs(self) -> tuple[list[TokenLogprobs], list[TokenLogprobs | None]]:
        """Logprobs of answer and prompt that were not reported yet."""
        taken = self.logprobs, self.prompt_logprobs
        self.logprobs, self.prompt_logprobs = [], []
        return taken
