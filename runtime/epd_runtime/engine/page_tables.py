"""The pages of one-token sequences as one array, kept from step to step: most rows change once in page_size steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epd_runtime.accelerator import to_device
from epd_runtime.kvcache.prefix_cache import Holding

Ints = npt.NDArray[np.int64]
MIN_WIDTH = 16  # pages; doubled as sequences grow


class PageTables:
    """int64 [sequences, pages]: row i has the pages of the i-th sequence, padded with its first.

    The padding is a page of the sequence itself: masked values still meet arithmetic, and 0 times another request's NaN
    is NaN. For the same reason pages that are held but not begun are left out.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._table: Ints = np.zeros((0, MIN_WIDTH), dtype=np.int64)
        self._holdings: list[Holding | None] = []  # whose pages a row has; a new admission is a new holding
        self._counts: list[int] = []  # how many of them
        self._tensor: Tensor | None = None  # what the last step used; None when the array has changed since

    def update(self, holdings: Sequence[Holding], counts: Sequence[int]) -> tuple[Ints, Tensor]:
        """The table for sequences whose first counts[i] pages are read or written now, and the same on the device.

        Neither may be changed. The array is valid until the next call, the tensor for ever.
        """
        widest = max(counts)
        self._make_room(len(holdings), widest)
        for row, (holding, count) in enumerate(zip(holdings, counts, strict=True)):
            if self._holdings[row] is not holding or self._counts[row] != count:
                self._set_row(row, holding, count)
        table = self._table[: len(holdings), :widest]
        if self._tensor is None or self._tensor.shape != table.shape:
            self._tensor = to_device(torch.from_numpy(table.copy()), self._device)
        return table, self._tensor

    def _set_row(self, row: int, holding: Holding, count: int) -> None:
        known = self._counts[row] if self._holdings[row] is holding else 0
        if known == 0 or count < known:
            known = 0
            self._table[row] = holding.table[0]
        self._table[row, known:count] = holding.table[known:count]
        self._holdings[row], self._counts[row] = holding, count
        self._tensor = None

    def _make_room(self, num_rows: int, width: int) -> None:
        """Forget everything when the array is too small."""
        rows, columns = self._table.shape
        if num_rows > rows or width > columns:
            shape = (max(num_rows, rows), columns if width <= columns else 2 * width)
            self._table = np.zeros(shape, dtype=np.int64)
            self._holdings, self._counts = [None] * shape[0], [0] * shape[0]
            self._tensor = None
