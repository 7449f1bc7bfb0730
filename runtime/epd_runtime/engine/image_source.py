"""Where a generating engine gets image embeddings from: its own vision tower, or encoder servers.

`fetch(request)` starts it, `step()` attaches what has come and tells for which requests; a request that left
meanwhile is skipped. A request whose images the prefix cache holds runs without them; it may still want them later,
when it was retracted and the prefix is gone.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
import zmq

from epd_runtime.config import ServerConfig
from epd_runtime.disaggregation.embeddings.receiver import PARK_SECONDS, EmbeddingReceiver, Parking, Part
from epd_runtime.encoder.cache import EmbeddingCache
from epd_runtime.encoder.tower_graphs import with_graphs
from epd_runtime.encoder.vision_runner import Encoded, VisionRunner, cache_key
from epd_runtime.engine.loading import Placement, StartError
from epd_runtime.engine.request import Request
from epd_runtime.engine.state import State
from epd_runtime.engine.waker import Waker
from epd_runtime.messages import ImagesWanted, Span, media_name
from epd_runtime.models.vision import VisionTower

CACHE_BYTES = 1 << 30
RECEIVED_CACHE_BYTES = 1 << 28  # of embeddings from encoder servers, which have caches of their own
TIMEOUT_VARIABLE = "SGLANG_ENCODER_RECV_TIMEOUT"
CLEAN_SECONDS = 1.0  # between two looks for requests whose embeddings are overdue
Done: TypeAlias = tuple[Request, tuple[int, str] | None]  # a request, and (status, message) if its image failed


class ImageSource(Protocol):
    """Gives requests their embeddings."""

    @property
    def num_pending(self) -> int:
        """Images asked for that have not come."""

    @property
    def cache_bytes(self) -> int:
        """Bytes of cached embeddings."""

    def clear_cache(self) -> None:
        """Forget cached embeddings."""

    def expect(self, request: Request) -> None:
        """A request with images has come; called once, before fetch()."""

    def fetch(self, request: Request) -> None:
        """Start getting the images that a request awaits."""

    def has_work(self) -> bool:
        """Whether step() has something to do now."""

    def step(self) -> list[Done]:
        """Attach what has come; one entry per image that came or failed."""


class LocalImages:
    """The vision tower in this engine."""

    def __init__(self, tower: VisionTower, server: ServerConfig, placement: Placement, waker: Waker) -> None:
        self._runner = VisionRunner(
            with_graphs(tower, server, placement.device),
            placement.folder,
            placement.device,
            server.encoder_max_batch_size,
            server.max_image_pixels,
            CACHE_BYTES,
            waker.wake,
        )
        self._done: list[Done] = []

    @property
    def num_pending(self) -> int:
        return self._runner.num_pending

    @property
    def cache_bytes(self) -> int:
        return self._runner.cache.nbytes

    def clear_cache(self) -> None:
        self._runner.cache.clear()

    def expect(self, request: Request) -> None:
        """Nothing comes before it is fetched."""

    def fetch(self, request: Request) -> None:
        for index in sorted(request.awaited):
            if request.embeddings[index] is not None:
                continue
            self._runner.submit(
                request.images[index],
                functools.partial(self._encoded, request, index),
                lambda: request.state is not State.FINISHED,
            )

    def _encoded(self, request: Request, index: int, encoded: Encoded) -> None:
        if request.state is State.FINISHED:
            return
        if encoded.embedding is None:
            self._done.append((request, (encoded.status, f"{media_name(request.images, index)}: {encoded.error}")))
            return
        request.embeddings[index] = encoded.embedding
        request.spans.extend(encoded.spans)
        self._done.append((request, None))

    def has_work(self) -> bool:
        return self._runner.has_work() or bool(self._done)

    def step(self) -> list[Done]:
        if self._runner.has_work():
            self._runner.step()
        done, self._done = self._done, []
        return done


class RemoteImages:
    """Encoder servers: the API process asks them, they push to `port`.

    An image that was never delivered here can be in no cache: the API process asks for it before the engine has even
    seen the request (`GenerateRequest.images_coming`), so that encoders work while a step runs. For others it waits for
    `ask`, which comes only when neither the prefix cache nor the cache of embeddings has them when the request arrives,
    or any more when it is admitted or comes back from a retraction.

    Failures of encoders reach the engine as FailRequest. The deadline here is a last resort against a lost part.
    """

    def __init__(self, host: str, width: int, waker: Waker, ask: Callable[[ImagesWanted], None]) -> None:
        """Listen on host for parts; ask() tells the API process what to ask encoders for. Raises StartError."""
        try:
            self._receiver = EmbeddingReceiver(host, waker.wake)
        except zmq.ZMQError as error:
            raise StartError(f"cannot listen on {host} for embeddings ({error}); check --host") from None
        self.port = self._receiver.port
        self._width = width
        self._ask = ask
        self._cache = EmbeddingCache(RECEIVED_CACHE_BYTES)
        self._waiting: dict[str, tuple[Request, float]] = {}  # a request for which parts are to come, and since when
        self._served: dict[str, float] = {}  # rid -> time since which it waits no more: parts that come are dropped
        self._parking = Parking()
        self._timeout = _receive_timeout()
        self._last_clean = 0.0
        self._done: list[Done] = []

    @property
    def num_pending(self) -> int:
        return sum(request.num_coming for request, _ in self._waiting.values()) + len(self._parking)

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    def clear_cache(self) -> None:
        self._cache.clear()

    def close(self) -> None:
        """Stop listening."""
        self._receiver.close()

    def expect(self, request: Request) -> None:
        if request.coming:
            self._wait_for(request)
            for part in self._parking.take(request.rid, len(request.images)):
                self._attach(request, part)

    def fetch(self, request: Request) -> None:
        missing = []
        for index in sorted(request.awaited - request.coming):
            cached = request.embeddings[index] = self._cache.get(cache_key(request.images[index]))
            if cached is None:
                missing.append(index)
        if missing:
            request.coming.update(missing)
            self._ask(ImagesWanted(request.rid, missing))
            self._wait_for(request)
        self._done.append((request, None))  # it may have all that it awaits

    def _wait_for(self, request: Request) -> None:
        self._waiting[request.rid] = (request, time.time())
        self._served.pop(request.rid, None)

    def has_work(self) -> bool:
        return bool(self._done)

    def step(self) -> list[Done]:
        for part in self._receiver.take():
            request, _ = self._waiting.get(part.header.request_id, (None, 0.0))
            if request is not None:
                self._attach(request, part)
            elif part.header.request_id not in self._served:
                self._parking.put(part)
        self._clean(time.time())
        done, self._done = self._done, []
        return done

    def _attach(self, request: Request, part: Part) -> None:
        """Give a request its embedding; one that does not fit its placeholders fails the request."""
        header = part.header
        if request.state is State.FINISHED or not 0 <= header.part_idx < len(request.images):
            return
        if request.embeddings[header.part_idx] is not None:
            return  # the same part from a second encoder, after a failover
        expected = (request.images[header.part_idx].num_tokens, self._width)
        if (header.num_rows, header.hidden) != expected:
            shape, name = (header.num_rows, header.hidden), media_name(request.images, header.part_idx)
            self._done.append((request, (502, f"{name}: embedding is {shape}, expected {expected}")))
            return
        dtype = getattr(torch, header.dtype)
        rows = torch.frombuffer(bytearray(part.payload), dtype=dtype).view(expected)
        if not rows.isfinite().all():
            name = media_name(request.images, header.part_idx)
            self._done.append((request, (502, f"{name}: embedding has NaN or infinity in it")))
            return
        request.embeddings[header.part_idx] = rows
        self._cache.put(cache_key(request.images[header.part_idx]), rows)
        request.spans.extend([*header.spans, Span("transfer", header.sent_at, part.arrived)])
        self._done.append((request, None))

    def _clean(self, now: float) -> None:
        """Forget requests that have all or ended; fail those whose part is lost. Looks at all, so not in every step."""
        if 0 <= now - self._last_clean < CLEAN_SECONDS:
            return
        self._last_clean = now
        self._parking.expire(now)
        self._served = {rid: since for rid, since in self._served.items() if 0 <= now - since < PARK_SECONDS}
        for rid, (request, since) in list(self._waiting.items()):
            overdue = request.state is State.AWAIT_IMAGES and now - since > self._timeout
            if overdue and request.num_coming:
                self._done.append((request, (504, f"no embedding arrived within {self._timeout:.0f} s")))
            elif request.num_coming and request.state is not State.FINISHED:
                continue
            del self._waiting[rid]
            self._served[rid] = now


def _receive_timeout() -> float:
    """Seconds from a request's arrival to its last embedding; raises StartError on a value that is no time."""
    text = os.environ.get(TIMEOUT_VARIABLE, "180")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise StartError(f"environment variable {TIMEOUT_VARIABLE}={text!r} must be a positive number of seconds")
    return seconds
