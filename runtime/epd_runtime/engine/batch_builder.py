"""Turns scheduled work into the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epd_runtime.attention.batch import ForwardBatch, Sequence
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Work

Ints = npt.NDArray[np.int64]


class BatchBuilder:
    """Holds what never changes between steps: page size, device, and whether positions have three axes."""

    def __init__(self, page_size: int, device: torch.device, num_axes: int) -> None:
        self._page_size = page_size
        self._device = device
        self._num_axes = num_axes  # 3 with M-RoPE, else 1

    def build(self, work: SequenceOf[Work]) -> ForwardBatch:
        """One flat batch; works keep their order."""
        starts = np.cumsum([0] + [item.num_tokens for item in work])
        index = [np.arange(item.request.num_computed, item.request.num_computed + item.num_tokens) for item in work]
        pages = [item.request.page_table for item in work]
        write_pages = np.concatenate([own[i // self._page_size] for own, i in zip(pages, index, strict=True)])
        write_slots = np.concatenate(index) % self._page_size
        single = [row for row, item in enumerate(work) if item.num_tokens == 1]
        image_rows, image_embeddings = self._images(work, starts)
        decode_pages, decode_lengths = self._decode_pages(work, pages, single)
        return ForwardBatch(
            input_ids=self._tensor(np.concatenate([_tokens(item) for item in work])),
            positions=self._tensor(self._positions(work, index)),
            write_pages=self._tensor(write_pages),
            write_slots=self._tensor(write_slots),
            begun_pages=self._tensor(self._begun_pages(work, pages)),
            logit_rows=self._tensor(
                np.array([starts[row + 1] - 1 for row, item in enumerate(work) if item.samples], dtype=np.int64)
            ),
            prefills=tuple(
                self._prefill(item, own, int(start))
                for item, own, start in zip(work, pages, starts[:-1], strict=True)
                if item.num_tokens > 1
            ),
            decode_rows=self._tensor(starts[:-1][single]) if single else None,
            decode_pages=decode_pages,
            decode_lengths=decode_lengths,
            image_rows=image_rows,
            image_embeddings=image_embeddings,
        )

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._device, non_blocking=True)

    def _begun_pages(self, work: SequenceOf[Work], pages: list[Ints]) -> Ints:
        """Pages that this batch starts and does not fill."""
        begun = []
        for item, own in zip(work, pages, strict=True):
            first = item.request.num_computed
            page, used_slots = divmod(first + item.num_tokens, self._page_size)
            if used_slots and first <= page * self._page_size:
                begun.append(own[page])
        return np.array(begun, dtype=np.int64)

    def _prefill(self, item: Work, pages: Ints, start: int) -> Sequence:
        kv_len = item.request.num_computed + item.num_tokens
        return Sequence(start, item.num_tokens, kv_len, self._tensor(pages[: -(-kv_len // self._page_size)]))

    def _decode_pages(
        self, work: SequenceOf[Work], pages: list[Ints], single: list[int]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Pages of one-token sequences, padded to the longest, and the number of tokens in each.

        The padding is a page of the sequence itself: masked values still meet arithmetic, and 0 times another
        request's NaN is NaN.
        """
        if not single:
            return None, None
        lengths = np.array([work[row].request.num_computed + 1 for row in single])
        counts = -(-lengths // self._page_size)
        widest = int(counts.max())
        table = np.empty((len(single), widest), dtype=np.int64)
        for place, (row, count) in enumerate(zip(single, counts, strict=True)):
            table[place, :count] = pages[row][:count]
            table[place, count:] = pages[row][0]
        return self._tensor(table), self._tensor(lengths)

    def _positions(self, work: SequenceOf[Work], index: list[Ints]) -> Ints:
        """[tokens], or [3, tokens]: the prompt's own positions, then one per token on all axes."""
        if self._num_axes == 1:
            return np.concatenate(index)
        return np.concatenate([_axes(item.request, i) for item, i in zip(work, index, strict=True)], axis=1)

    def _images(self, work: SequenceOf[Work], starts: Ints) -> tuple[Tensor | None, Tensor | None]:
        """Rows of the batch that lie in an image, and their embeddings."""
        rows, parts = [], []
        for item, start in zip(work, starts[:-1], strict=True):
            first = item.request.num_computed
            for image, embedding in zip(item.request.images, item.request.embeddings, strict=True):
                begin = max(image.offset, first)
                end = min(image.offset + image.num_tokens, first + item.num_tokens)
                if begin < end:
                    rows.append(np.arange(start + begin - first, start + end - first))
                    parts.append(embedding[begin - image.offset : end - image.offset])
        if not rows:
            return None, None
        return self._tensor(np.concatenate(rows)), torch.cat([part.to(self._device) for part in parts])


def _tokens(item: Work) -> Ints:
    """The ids that this work feeds to the model."""
    request, first = item.request, item.request.num_computed
    prompt_part = request.input_ids[first : first + item.num_tokens]
    answer_first = max(first - request.prompt_length, 0)
    answer_part = request.output_ids[answer_first : answer_first + item.num_tokens - len(prompt_part)]
    return np.array(prompt_part + answer_part, dtype=np.int64)


def _axes(request: Request, index: Ints) -> Ints:
    """[3, n] M-RoPE positions of the tokens at these indices."""
    if request.positions is None or index[0] >= request.prompt_length:
        return np.broadcast_to(index + request.position_delta, (3, len(index)))
    return request.positions[:, index].astype(np.int64)
