"""Turns scheduled work into the tensors of one forward pass.

One-token sequences (nearly all of them answers) are handled together, as arrays; only chunks of prompts one by one.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epd_runtime.accelerator import to_device
from epd_runtime.attention.batch import ForwardBatch, Sequence
from epd_runtime.engine.page_tables import PageTables
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Work

Ints = npt.NDArray[np.int64]


class _Flat:
    """One value per token of the batch, to be filled in."""

    def __init__(self, work: SequenceOf[Work], num_axes: int) -> None:
        self.counts = np.array([item.num_tokens for item in work], dtype=np.int64)
        self.first = np.array([item.request.num_computed for item in work], dtype=np.int64)  # of each work's tokens
        self.starts = np.cumsum(self.counts) - self.counts  # its row in the batch
        total = int(self.counts.sum())
        self.index = np.arange(total) - np.repeat(self.starts - self.first, self.counts)  # place in its own sequence
        self.input_ids = np.empty(total, dtype=np.int64)
        self.write_pages = np.empty(total, dtype=np.int64)
        self.positions = np.empty((num_axes, total), dtype=np.int64)
        self.positions[:] = self.index
        self.begun_pages: list[int] = []


class BatchBuilder:
    """Holds what stays between steps: page size, device, number of position axes, pages of running answers."""

    def __init__(self, page_size: int, device: torch.device, num_axes: int) -> None:
        self._page_size = page_size
        self._device = device
        self._num_axes = num_axes  # 3 with M-RoPE, else 1
        self._tables = PageTables(device)

    def build(self, work: SequenceOf[Work]) -> ForwardBatch:
        """One flat batch; works keep their order."""
        flat = _Flat(work, self._num_axes)
        single = np.flatnonzero(flat.counts == 1)
        decode_pages = (
            self._fill_singles(flat, single, [work[row].request for row in single.tolist()]) if len(single) else None
        )
        prefills = tuple(self._fill_chunk(flat, row, work[row]) for row in np.flatnonzero(flat.counts > 1).tolist())
        samples = [row for row, item in enumerate(work) if item.samples]
        image_rows, image_embeddings = self._images(work, flat)
        return ForwardBatch(
            input_ids=self._tensor(flat.input_ids),
            positions=self._tensor(flat.positions if self._num_axes > 1 else flat.positions[0]),
            write_pages=self._tensor(flat.write_pages),
            write_slots=self._tensor(flat.index % self._page_size),
            begun_pages=self._tensor(np.array(flat.begun_pages, dtype=np.int64)),
            logit_rows=self._tensor((flat.starts + flat.counts - 1)[samples]),
            prefills=prefills,
            decode_rows=self._tensor(flat.starts[single]) if len(single) else None,
            decode_pages=decode_pages,
            decode_lengths=self._tensor(flat.first[single] + 1) if len(single) else None,
            image_rows=image_rows,
            image_embeddings=image_embeddings,
        )

    def _tensor(self, array: Ints) -> Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)), self._device)

    def _fill_singles(self, flat: _Flat, works: Ints, requests: list[Request]) -> Tensor:
        """Values of one-token sequences; returns their pages."""
        place, rows = flat.first[works], flat.starts[works]
        page, slot = np.divmod(place, self._page_size)
        table, pages = self._tables.update([request.holding for request in requests], (page + 1).tolist())
        flat.input_ids[rows] = [_token(request) for request in requests]
        flat.write_pages[rows] = written = table[np.arange(len(works)), page]
        if self._page_size > 1:
            flat.begun_pages += written[slot == 0].tolist()
        if self._num_axes > 1:
            flat.positions[:, rows] += [request.position_delta for request in requests]
            for row, request in zip(rows.tolist(), requests, strict=True):
                if request.num_computed < request.prompt_length:
                    flat.positions[:, row] = _axes(request, request.num_computed, 1)[:, 0]
        return pages

    def _fill_chunk(self, flat: _Flat, work: int, item: Work) -> Sequence:
        """Values of one chunk of a prompt, or of prompt and answer of a retracted request."""
        request, first = item.request, item.request.num_computed
        last = first + item.num_tokens
        start = int(flat.starts[work])
        rows = slice(start, start + item.num_tokens)
        flat.input_ids[rows] = request.tokens(first, last)
        flat.write_pages[rows] = request.page_table[flat.index[rows] // self._page_size]
        if self._num_axes > 1:
            flat.positions[:, rows] = _axes(request, first, item.num_tokens)
        page, used_slots = divmod(last, self._page_size)
        if used_slots and first <= page * self._page_size:  # begun here, and not filled
            flat.begun_pages.append(request.pages[page])
        pages = request.page_table[: -(-last // self._page_size)]
        return Sequence(start, item.num_tokens, last, self._tensor(pages))

    def _images(self, work: SequenceOf[Work], flat: _Flat) -> tuple[Tensor | None, Tensor | None]:
        """Rows of the batch that lie in an image, and their embeddings."""
        rows, parts = [], []
        for item, start in zip(work, flat.starts.tolist(), strict=True):
            request, first = item.request, item.request.num_computed
            if not request.images or first >= request.prompt_length:
                continue
            for image, embedding in zip(request.images, request.embeddings, strict=True):
                for offset, row, length in image.runs:
                    begin, end = max(offset, first), min(offset + length, first + item.num_tokens)
                    if begin < end:
                        rows.append(np.arange(start + begin - first, start + end - first))
                        parts.append(embedding[row + begin - offset : row + end - offset])
        if not rows:
            return None, None
        return self._tensor(np.concatenate(rows)), torch.cat([to_device(part, self._device) for part in parts])


def _token(request: Request) -> int:
    """The next token that is fed to the model; 0 for one that only the device knows (FutureTokens)."""
    beyond = request.num_computed - request.prompt_length
    if beyond < 0:
        return request.input_ids[request.num_computed]
    return request.output_ids[beyond] if beyond < len(request.output_ids) else 0


def _axes(request: Request, first: int, count: int) -> Ints:
    """[3, count] M-RoPE positions: the prompt's own, then one per token on all axes."""
    index = np.arange(first, first + count)
    axes = np.repeat((index + request.position_delta)[None], 3, axis=0)
    if request.positions is not None and first < request.prompt_length:
        known = request.positions[:, first : first + count]
        axes[:, : known.shape[1]] = known
    return axes
