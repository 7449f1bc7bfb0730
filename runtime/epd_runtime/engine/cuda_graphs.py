"""Decode steps of fixed sizes, so that CUDA graphs can replay them without launching kernel by kernel.

A step of n decodes runs as the next larger size. Its inputs lie in buffers whose addresses never change; the rows that
pad it write their KV to a scratch page that nobody owns and read nothing else. Without captured graphs (on CPU) the
same padded step runs eagerly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from epd_runtime.accelerator import to_device
from epd_runtime.attention.batch import ForwardBatch

log = logging.getLogger(__name__)

MIN_FREE_BYTES = 1 << 30  # left for prefill's activations; no graph is captured below it

Forward = Callable[[ForwardBatch], Tensor]  # a decode batch on the device to its logits [rows, vocab] float32


def graph_sizes(max_batch: int) -> tuple[int, ...]:
    """Batch sizes to capture: 1, 2, 4, 8, then every eighth, and max_batch itself."""
    sizes = {1, 2, 4, *range(8, max_batch, 8), max_batch}
    return tuple(sorted(size for size in sizes if size <= max_batch))


class DecodeBuffers:
    """The inputs of a padded decode step, at fixed addresses; one copy from pinned memory fills them."""

    def __init__(self, max_batch: int, max_pages: int, num_axes: int, device: torch.device, scratch_page: int) -> None:
        """max_batch in sequences, max_pages per sequence, num_axes of positions (3 with M-RoPE, else 1)."""
        self._num_axes = num_axes
        self._scratch_page = scratch_page
        self._shape = (4 + num_axes, max_batch)  # ids, pages and slots to write, lengths, positions
        self._num_fields = self._shape[0] * self._shape[1]
        length = self._num_fields + max_batch * max_pages
        pinned = device.type == "cuda"
        self._host, self._other_host = (torch.zeros(length, dtype=torch.int64, pin_memory=pinned) for _ in range(2))
        self._device = self._host.to(device, copy=True)
        self._table = torch.full((max_batch, max_pages), scratch_page, dtype=torch.int64, device=device)
        self._rows = torch.arange(max_batch, device=device)
        self._nothing = self._rows[:0]

    def load(self, batch: ForwardBatch, size: int) -> None:
        """Take a batch of decodes whose tensors are on the host, and pad it to `size` rows.

        Host buffers take turns: the results of this step must have been read before the load after the next.
        """
        assert batch.decode_pages is not None
        assert batch.decode_lengths is not None
        self._host, self._other_host = self._other_host, self._host
        count, width = batch.decode_pages.shape
        fields = self._host[: self._num_fields].view(self._shape)
        rows = (batch.input_ids, batch.write_pages, batch.write_slots, batch.decode_lengths)
        for field, row, padding in zip(fields, rows, (0, self._scratch_page, 0, 1), strict=False):
            field[:count] = row
            field[count:size] = padding
        fields[4:, :count] = batch.positions
        fields[4:, count:size] = 0
        end = self._num_fields + size * width
        table = self._host[self._num_fields : end].view(size, width)
        table[:count] = batch.decode_pages
        table[count:] = self._scratch_page
        self._device[:end].copy_(self._host[:end], non_blocking=True)
        self._table[:size, :width].copy_(self._device[self._num_fields : end].view(size, width))

    def batch(self, size: int, max_pages: int | None = None) -> ForwardBatch:
        """The first `size` rows as a batch; what load() writes later appears in it.

        max_pages: columns of the page table; None is all. Columns beyond those last loaded hold pages of other times.
        """
        fields = self._device[: self._num_fields].view(self._shape)[:, :size]
        return ForwardBatch(
            input_ids=fields[0],
            positions=fields[4:] if self._num_axes > 1 else fields[4],
            write_pages=fields[1],
            write_slots=fields[2],
            begun_pages=self._nothing,
            logit_rows=self._rows[:size],
            prefills=(),
            decode_rows=self._rows[:size],
            decode_pages=self._table[:size, :max_pages],
            decode_lengths=fields[3],
        )


class PaddedDecode:
    """Runs decode steps in the given sizes: captured, where capture() was called, else eagerly."""

    def __init__(self, forward: Forward, buffers: DecodeBuffers, sizes: Sequence[int]) -> None:
        """sizes ascending; forward as the model computes one step, with whatever must precede it."""
        self._forward = forward
        self._buffers = buffers
        self._sizes = list(sizes)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._logits: Tensor | None = None  # [largest size, vocab], which all graphs write to

    def takes(self, count: int) -> bool:
        """Whether a step of so many decodes fits."""
        return bool(self._sizes) and count <= self._sizes[-1]

    def run(self, batch: ForwardBatch, complete: Callable[[Tensor], None]) -> Tensor:
        """Logits [len(batch.logit_rows), vocab] float32 of decodes whose tensors are on the host.

        They may lie in memory that the next step overwrites. complete: puts into the step's tokens, int64 [rows] on the
        device, those that the host does not know.
        """
        assert batch.decode_pages is not None
        count, width = batch.decode_pages.shape
        size = next(size for size in self._sizes if size >= count)
        self._buffers.load(batch, size)
        complete(self._buffers.batch(size).input_ids)
        if size in self._graphs:
            assert self._logits is not None
            self._graphs[size].replay()
            logits = self._logits
        else:
            logits = self._forward(self._buffers.batch(size, width))
        if len(batch.logit_rows) == count:
            return logits[:count]
        return logits[to_device(batch.logit_rows, logits.device)]

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture all sizes, the largest first, whose memory the others share; fewer when memory runs short."""
        began, free_before = time.monotonic(), torch.cuda.mem_get_info()[0]
        log.info("capturing CUDA graphs for %d batch sizes up to %d", len(self._sizes), self._sizes[-1])
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes.copy()):
            if torch.cuda.mem_get_info()[0] < MIN_FREE_BYTES:
                log.warning("no memory for a CUDA graph of batch size %d: such steps run without", size)
                self._sizes.remove(size)
                continue
            self._capture_size(size, pool)
        seconds, used = time.monotonic() - began, free_before - torch.cuda.mem_get_info()[0]
        log.info("captured %d CUDA graphs in %.1f s, %.0f MiB", len(self._graphs), seconds, used / 2**20)

    def _capture_size(self, size: int, pool: Any) -> None:
        batch = self._buffers.batch(size)
        warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):  # kernels are compiled and libraries take their workspaces outside the graph
            logits = self._forward(batch)
        torch.cuda.current_stream().wait_stream(warm_up)
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._logits[:size].copy_(self._forward(batch))
        self._graphs[size] = graph
