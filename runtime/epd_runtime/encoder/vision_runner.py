"""Turns images into embeddings, batching those of different requests.

    submit(image) ──▶ threads decode and patch ──▶ ready ──▶ step(): one ViT pass over up to max_batch images
    ──▶ results

Equal images in flight are computed once (single flight), images seen before come from the cache. A bad image
fails alone. The owner's loop calls `step()`; `wake` is called, from a thread, when that is worth it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epd_runtime.encoder.cache import EmbeddingCache
from epd_runtime.encoder.preprocess import ImageError, Normalisation, read_patches
from epd_runtime.messages import ImageInput, Span
from epd_runtime.model_config import VisionConfig
from epd_runtime.models.qwen2_5_vl import Qwen25VisionTower

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image's embedding [num_tokens, hidden] and when it was computed; or why there is none."""

    embedding: Tensor | None
    spans: list[Span]
    error: str = ""


Callback = Callable[[Encoded], None]  # called from step()


@dataclasses.dataclass
class _Job:
    image: ImageInput
    callbacks: list[Callback]
    submitted: float
    patches: npt.NDArray[np.uint8] | None = None
    error: str = ""


class VisionRunner:
    """The vision tower of one engine with its preprocessing threads and cache."""

    def __init__(
        self,
        tower: Qwen25VisionTower,
        folder: Path,
        device: torch.device,
        max_batch: int,
        max_pixels: int,
        cache_bytes: int,
        wake: Callable[[], None],
    ) -> None:
        self._tower = tower
        self._vision: VisionConfig = tower.config
        self._device = device
        self._max_batch = max_batch
        self._max_pixels = max_pixels
        self._normalisation = Normalisation.load(folder)
        self.cache = EmbeddingCache(cache_bytes)
        self._jobs: dict[str, _Job] = {}  # single flight, by content
        self._ready: deque[_Job] = deque()
        self._wake = wake
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="preprocess")

    def submit(self, image: ImageInput, callback: Callback) -> None:
        """Encode an image; the callback runs in a later step(), or now if the cache has it."""
        key = _key(image)
        now = time.time()
        if (cached := self.cache.get(key)) is not None:
            callback(Encoded(cached, [Span("encode", now, now)]))
        elif (job := self._jobs.get(key)) is not None:
            job.callbacks.append(callback)
        else:
            job = self._jobs[key] = _Job(image, [callback], now)
            self._threads.submit(self._preprocess, job)

    @property
    def num_pending(self) -> int:
        """Images submitted and not finished."""
        return len(self._jobs)

    def has_work(self) -> bool:
        """Whether step() would compute something."""
        return bool(self._ready)

    def step(self) -> None:
        """Run one batch of the images that are ready and call their callbacks."""
        jobs = [self._ready.popleft() for _ in range(min(len(self._ready), self._max_batch))]
        good = [job for job in jobs if job.patches is not None]
        results: dict[int, Any] = {}
        if good:
            try:
                results = dict(zip(map(id, good), self._encode(good), strict=True))
            except Exception as error:
                log.exception("the vision tower failed on a batch of %d images", len(good))
                for job in good:
                    job.error = f"the vision tower failed: {error}"
        now = time.time()
        for job in jobs:
            del self._jobs[_key(job.image)]
            embedding = results.get(id(job))
            if embedding is not None:
                self.cache.put(_key(job.image), embedding)
            encoded = Encoded(embedding, [Span("encode", job.submitted, now)], job.error)
            for callback in job.callbacks:
                callback(encoded)

    @torch.inference_mode()
    def _encode(self, jobs: list[_Job]) -> list[Tensor]:
        patches = torch.from_numpy(np.concatenate([job.patches for job in jobs if job.patches is not None]))
        pixels = self._normalisation.apply(patches.to(self._device), self._vision.in_channels)
        rows = self._tower(pixels, [job.image.grid for job in jobs])
        # clones: a cached image must not keep its whole batch alive
        return [part.clone() for part in rows.split([job.image.num_tokens for job in jobs])]

    def _preprocess(self, job: _Job) -> None:
        try:
            job.patches = read_patches(
                job.image.data, job.image.grid, self._vision, self._normalisation.resample, self._max_pixels
            )
        except ImageError as error:
            job.error = str(error)
        except Exception as error:
            log.exception("preprocessing failed")
            job.error = f"preprocessing failed: {error}"
        self._ready.append(job)
        self._wake()


def _key(image: ImageInput) -> str:
    return f"{image.content_hash}:{image.grid}"
