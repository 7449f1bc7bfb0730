"""Vision towers at fixed sizes, so that CUDA graphs can replay them without launching kernel by kernel.

A batch of images runs as the next larger size: patches behind its own belong to no segment, so they attend to nothing
and nothing attends to them, and the rows that they give are cut off. Batches that fit no size run as they are: too many
patches, more segments than a size has room for, frames of videos. Without captured graphs (on CPU) the same padded
batch runs eagerly.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from epd_runtime.accelerator import to_device
from epd_runtime.attention.packed import Segments
from epd_runtime.config import ServerConfig
from epd_runtime.engine.cuda_graphs import MIN_FREE_BYTES
from epd_runtime.kernels.plain import PACKED_TILE_ROWS
from epd_runtime.models.vision import Grid, VisionTower
from epd_runtime.models.vision_plan import VisionPlan

log = logging.getLogger(__name__)

SMALLEST_TOKENS = 64
SPARE_TILES = 32  # beside those of full segments


def graph_tokens(largest: int) -> tuple[int, ...]:
    """Sizes to capture, in rows of the language model: powers of two from SMALLEST_TOKENS, none above largest."""
    sizes = []
    size = SMALLEST_TOKENS
    while size <= largest:
        sizes.append(size)
        size *= 2
    return tuple(sizes)


class TowerBuffers:
    """The inputs of one size, at addresses that never change."""

    def __init__(self, tower: VisionTower, num_patches: int, device: torch.device) -> None:
        config = tower.config
        self._pixels = torch.zeros(num_patches, config.in_channels * config.patch_size**2, device=device)
        used = tower.plan([(1, config.merge_size, config.merge_size)])
        unit = config.merge_size**2
        self._rows = torch.arange(num_patches, device=device)
        tiles = num_patches // PACKED_TILE_ROWS + SPARE_TILES
        self._plan = VisionPlan(
            positions=torch.zeros(num_patches, 2, dtype=torch.int64, device=device),
            images=Segments((), torch.zeros(tiles, 3, dtype=torch.int32, device=device)),
            windows=Segments((), torch.zeros(4 * tiles * len(used.windows.tiles), 3, dtype=torch.int32, device=device)),
            order=self._rows[: num_patches * bool(len(used.order))].clone(),
            merged_order=self._rows[: num_patches // unit * bool(len(used.order))].clone(),
            taps=torch.zeros(num_patches * bool(len(used.taps)), 4, dtype=torch.int64, device=device),
            weights=torch.zeros(num_patches * bool(len(used.weights)), 4, device=device),
        )

    @property
    def inputs(self) -> tuple[Tensor, VisionPlan]:
        """Pixels and plan; what load() writes later appears in them."""
        return self._pixels, self._plan

    def takes(self, pixels: Tensor, plan: VisionPlan) -> bool:
        """Whether a batch fits."""
        return (
            len(pixels) <= len(self._pixels)
            and pixels.shape[1] == self._pixels.shape[1]
            and len(plan.images.tiles) <= len(self._plan.images.tiles)
            and len(plan.windows.tiles) <= len(self._plan.windows.tiles)
        )

    def load(self, pixels: Tensor, plan: VisionPlan) -> None:
        """Take a batch that fits: pixels on the device, its plan on the host."""
        own = self._plan
        self._pixels[: len(pixels)].copy_(pixels)
        for name in ("positions", "taps", "weights"):
            _fill(getattr(own, name), getattr(plan, name))
        for segments, those in ((own.images, plan.images), (own.windows, plan.windows)):
            segments.tiles.zero_()  # first row and end of nothing
            _fill(segments.tiles, those.tiles)
        for order, known in ((own.order, plan.order), (own.merged_order, plan.merged_order)):
            order.copy_(self._rows[: len(order)])  # padding stays in its place, or it would overwrite rows
            _fill(order, known)

    def with_groups(self, plan: VisionPlan) -> VisionPlan:
        """The plan in the buffers, its segments also in the form that plain PyTorch takes."""
        own, device = self._plan, self._pixels.device
        return dataclasses.replace(
            own,
            images=Segments(plan.images.to(device).groups, own.images.tiles),
            windows=Segments(plan.windows.to(device).groups, own.windows.tiles),
        )


class PaddedTower(VisionTower):
    """A tower whose batches run in the given sizes: captured, where capture() was called, else eagerly."""

    def __init__(self, tower: VisionTower, num_tokens: Sequence[int], device: torch.device) -> None:
        """num_tokens: sizes in rows of the language model, ascending."""
        super().__init__(tower.config)
        self._tower = tower
        unit = tower.config.merge_size**2
        self._sizes = {size * unit: TowerBuffers(tower, size * unit, device) for size in num_tokens}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def forward(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """See VisionTower."""
        plan = self._tower.plan(grids)
        size = next((size for size, buffers in self._sizes.items() if buffers.takes(pixels, plan)), None)
        if size is None:
            return self._tower.compute(pixels, plan.to(pixels.device))
        buffers = self._sizes[size]
        buffers.load(pixels, plan)
        if size in self._graphs:
            graph, rows = self._graphs[size]
            graph.replay()
        else:
            rows = self._tower.compute(buffers.inputs[0], buffers.with_groups(plan))
        return rows[: len(pixels) // self.config.merge_size**2].clone()  # the next batch overwrites them

    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """See VisionTower."""
        return self._tower.plan(grids)

    def compute(self, pixels: Tensor, plan: VisionPlan) -> Tensor:
        """See VisionTower."""
        return self._tower.compute(pixels, plan)

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture all sizes, the largest first, whose memory the others share; fewer when memory runs short."""
        began, pool = time.monotonic(), torch.cuda.graph_pool_handle()
        for size in sorted(self._sizes, reverse=True):
            if torch.cuda.mem_get_info()[0] < MIN_FREE_BYTES:
                log.warning("no memory for a CUDA graph of %d patches: such images run without", size)
                del self._sizes[size]
                continue
            pixels, plan = self._sizes[size].inputs
            warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            warm_up.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm_up):  # kernels are compiled outside the graph
                self._tower.compute(pixels, plan)
            torch.cuda.current_stream().wait_stream(warm_up)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                rows = self._tower.compute(pixels, plan)
            self._graphs[size] = graph, rows
        log.info("captured %d CUDA graphs of the vision tower in %.1f s", len(self._graphs), time.monotonic() - began)


def with_graphs(tower: VisionTower, server: ServerConfig, device: torch.device) -> VisionTower:
    """The tower, on CUDA with graphs unless flags forbid it."""
    sizes = graph_tokens(server.encoder_cuda_graph_max_tokens)
    if device.type != "cuda" or server.disable_cuda_graph or not sizes:
        return tower
    padded = PaddedTower(tower, sizes, device)
    padded.capture()
    return padded


def _fill(buffer: Tensor, values: Tensor) -> None:
    """Put values at the beginning of a buffer; one that the family has no use for is empty."""
    if len(buffer):
        buffer[: len(values)].copy_(to_device(values, buffer.device))
