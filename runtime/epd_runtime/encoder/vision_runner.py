"""Turns images and videos into embeddings, batching images of different requests.

    submit(image) ──▶ threads decode and patch ──▶ ready ──▶ step(): one ViT pass over up to max_batch images, or over
    some frames of one video ──▶ results

Frames do not attend to each other, so a long video takes several steps; others go between them.

Equal images in flight are computed once (single flight), images seen before come from the cache. The owner's loop calls
`step()`; `wake` is called, from a thread, when that is worth it.

Failure cases: a file that cannot be decoded fails alone with 400. When the tower fails on a batch, its images are tried
one by one, so that one too many for the memory fails alone, with 500; an error that the device does not recover from
ends the engine. An image that nobody wants any more, because clients left, is dropped before it costs anything; its
callbacks are not called.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epd_runtime.accelerator import raise_if_lost
from epd_runtime.container import usable_cpus
from epd_runtime.encoder.cache import EmbeddingCache
from epd_runtime.encoder.preprocess import ImageError, Normalisation, read_patches
from epd_runtime.encoder.video import VideoNormalisation, read_video_patches
from epd_runtime.messages import ImageInput, Span
from epd_runtime.model_config import VisionConfig
from epd_runtime.models.vision import VisionTower

VIDEO_PATCHES = 8192  # of one video in one pass, unless a single patch of frames has more

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image's embedding [num_tokens, embedding_width] and when it was computed; or why there is none.

    status is the HTTP status of an error: 400 when the file is at fault, 500 when this engine is.
    """

    embedding: Tensor | None
    spans: list[Span]
    error: str = ""
    status: int = 400


Callback = Callable[[Encoded], None]  # called from submit() or step()
IsWanted = Callable[[], bool]  # called from any thread; never true again once it was false


@dataclasses.dataclass(eq=False)
class _Job:
    image: ImageInput
    submitted: float  # time.time()
    waiters: list[tuple[Callback, IsWanted]]
    patches: npt.NDArray[np.uint8] | None = None
    rows: list[Tensor] = dataclasses.field(default_factory=list)  # of a video's frames so far
    embedding: Tensor | None = None
    error: str = ""
    status: int = 400

    @property
    def key(self) -> str:
        return cache_key(self.image)

    @property
    def is_wanted(self) -> bool:
        return any(is_wanted() for _, is_wanted in self.waiters.copy())

    def fail(self, status: int, error: str) -> None:
        self.status, self.error = status, error


class VisionRunner:
    """The vision tower of one engine with its preprocessing threads and cache."""

    def __init__(
        self,
        tower: VisionTower,
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
        self._video_normalisation = VideoNormalisation.load(folder, tower.config)
        self.cache = EmbeddingCache(cache_bytes)
        self._jobs: dict[str, _Job] = {}  # single flight, by content
        self._ready: deque[_Job] = deque()
        self._wake = wake
        self._threads = ThreadPoolExecutor(min(4, usable_cpus()), thread_name_prefix="preprocess")

    def submit(self, image: ImageInput, callback: Callback, is_wanted: IsWanted) -> None:
        """Encode an image while is_wanted(); the callback runs in a later step(), or now if the cache has it."""
        key = cache_key(image)
        now = time.time()
        if (cached := self.cache.get(key)) is not None:
            callback(Encoded(cached, [Span("encode", now, now)]))
        elif (job := self._jobs.get(key)) is not None:
            job.waiters.append((callback, is_wanted))
        else:
            job = self._jobs[key] = _Job(image, now, [(callback, is_wanted)])
            self._threads.submit(self._preprocess, job)

    @property
    def num_pending(self) -> int:
        """Images submitted and not finished."""
        return len(self._jobs)

    def has_work(self) -> bool:
        """Whether step() would compute something."""
        return bool(self._ready)

    def step(self) -> None:
        """Run one batch of the images that are ready, or a part of a video, and call the callbacks of what is done."""
        jobs = self._take_batch()
        if len(jobs) == 1 and jobs[0].image.video is not None and not self._encode_frames(jobs[0]):
            self._ready.append(jobs[0])
            return
        self._encode([job for job in jobs if job.patches is not None and job.image.video is None])
        now = time.time()
        for job in jobs:
            del self._jobs[job.key]
            if job.embedding is not None:
                self.cache.put(job.key, job.embedding)
            encoded = Encoded(job.embedding, [Span("encode", job.submitted, now)], job.error, job.status)
            for callback, _ in job.waiters:
                callback(encoded)

    def _take_batch(self) -> list[_Job]:
        """Up to max_batch ready images that somebody wants, or one video."""
        batch: list[_Job] = []
        while self._ready and len(batch) < self._max_batch:
            job = self._ready.popleft()
            if not job.is_wanted:
                del self._jobs[job.key]
            elif job.patches is None and not job.error:  # the thread passed it over, then somebody else submitted it
                self._threads.submit(self._preprocess, job)
            elif job.image.video is None:
                batch.append(job)
            else:
                if not batch:
                    return [job]
                self._ready.appendleft(job)
                break
        return batch

    def _encode(self, jobs: list[_Job]) -> None:
        """Give every job its embedding or its error."""
        try:
            for job, embedding in zip(jobs, self._forward(jobs) if jobs else [], strict=True):
                job.embedding = embedding
            return
        except Exception as error:
            raise_if_lost(error)
            log.exception("the vision tower failed on a batch of %d images", len(jobs))
            if len(jobs) == 1:
                jobs[0].fail(500, f"the vision tower failed: {error}")
                return
        for job in jobs:  # not inside the handler, whose exception keeps the tensors of the failed pass alive
            self._encode([job])

    def _encode_frames(self, job: _Job) -> bool:
        """Encode the next frames of a video; whether it is done, with its embedding or its error."""
        if job.patches is None:
            return True
        try:
            job.rows.append(self._forward_frames(job, sum(len(rows) for rows in job.rows)))
        except Exception as error:
            raise_if_lost(error)
            log.exception("the vision tower failed on a video")
            job.fail(500, f"the vision tower failed: {error}")
            return True
        if sum(len(rows) for rows in job.rows) < job.image.num_tokens:
            return False
        job.embedding = torch.cat(job.rows)
        return True

    @torch.inference_mode()
    def _forward_frames(self, job: _Job, row: int) -> Tensor:
        """Rows of the video from `row` on, of as many patches of frames as one pass takes."""
        assert job.patches is not None
        frames, h, w = job.image.grid
        first = row * self._vision.merge_size**2 // (h * w)
        count = min(max(VIDEO_PATCHES // (h * w), 1), frames - first)
        patches = torch.from_numpy(job.patches[first * h * w : (first + count) * h * w]).to(self._device)
        pixels = self._video_normalisation.apply(patches, self._vision.in_channels)
        rows: Tensor = self._tower(pixels, [(count, h, w)])
        return rows

    @torch.inference_mode()
    def _forward(self, jobs: list[_Job]) -> list[Tensor]:
        patches = torch.from_numpy(np.concatenate([job.patches for job in jobs if job.patches is not None]))
        pixels = self._normalisation.apply(patches.to(self._device), self._vision.in_channels)
        rows = self._tower(pixels, [job.image.grid for job in jobs])
        # clones: a cached image must not keep its whole batch alive
        return [part.clone() for part in rows.split([job.image.num_tokens for job in jobs])]

    def _read(self, image: ImageInput) -> npt.NDArray[np.uint8]:
        if image.video is not None:
            resample = self._video_normalisation.resample
            return read_video_patches(image, self._vision, resample, self._max_pixels).numpy()
        return read_patches(image.data, image.grid, self._vision, self._normalisation.resample, self._max_pixels)

    def _preprocess(self, job: _Job) -> None:
        try:
            if job.is_wanted:
                job.patches = self._read(job.image)
        except ImageError as error:
            job.fail(400, str(error))
        except Exception as error:
            log.exception("preprocessing failed")
            job.fail(500, f"preprocessing failed: {error}")
        self._ready.append(job)
        self._wake()


def cache_key(image: ImageInput) -> str:
    """What an image's embedding depends on."""
    return f"{image.content_hash}:{image.grid}"
