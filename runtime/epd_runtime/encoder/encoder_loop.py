"""The loop of an encoder engine: encode requests in, embeddings out to whoever asked.

    EncodeRequest → (decode, patch in threads) → ViT batch → Delivery → EncodeDone | RequestFailed

Every EncodeRequest ends with exactly one answer, unless it is aborted: then it is forgotten, and its image is not
computed if nobody else wants it.
"""

from __future__ import annotations

import functools
import time

import torch
import zmq

from epd_runtime.config import ServerConfig
from epd_runtime.disaggregation.embeddings.wire import WIRE_VERSION, EmbeddingHeader, checksum
from epd_runtime.encoder.delivery import Delivery
from epd_runtime.encoder.tower_graphs import with_graphs
from epd_runtime.encoder.vision_runner import Encoded, VisionRunner
from epd_runtime.engine.channel import Channel
from epd_runtime.engine.loading import Placement
from epd_runtime.engine.waker import Waker
from epd_runtime.messages import (
    AbortRequest,
    CacheFlushed,
    EncodeDone,
    EncodeRequest,
    EngineReady,
    EngineStats,
    FlushCache,
    RequestFailed,
    Span,
    StepOutputs,
)
from epd_runtime.models.loader import weight_bytes
from epd_runtime.models.registry import load_vision_tower

CACHE_BYTES = 1 << 30
IDLE_POLL_MS = 1000


class EncoderLoop:
    """Owns the vision tower of an encoder server."""

    def __init__(
        self, server: ServerConfig, placement: Placement, context: zmq.Context[zmq.Socket[bytes]], channel: Channel
    ) -> None:
        seed = server.random_seed if server.load_format == "dummy" else None
        tower = load_vision_tower(placement.config, placement.folder, placement.device, placement.dtype, seed)
        assert tower is not None  # place_model() refuses an encoder for a text-only model
        self._weight_bytes = {"vision": weight_bytes(tower), "language": 0}
        self._context_length = placement.context_length
        self._channel = channel
        self._waker = Waker()
        self._vision = VisionRunner(
            with_graphs(tower, server, placement.device),
            placement.folder,
            placement.device,
            server.encoder_max_batch_size,
            server.max_image_pixels,
            CACHE_BYTES,
            self._waker.wake,
        )
        self._poller = zmq.Poller()
        channel.watch(self._poller)
        self._poller.register(self._waker.fileno(), zmq.POLLIN)
        self._delivery = Delivery(context, self._poller)
        self._open: dict[str, EncodeRequest] = {}
        self._reported = EngineStats()

    def ready(self) -> EngineReady:
        """What the API process hears first."""
        return EngineReady(self._context_length, 0, 0, self._weight_bytes, 0, self._stats())

    def run(self) -> None:
        """Serve for ever; the process ends with its API process."""
        while True:
            if not self._vision.has_work():
                self._poller.poll(100 if self._delivery.num_waiting else IDLE_POLL_MS)
            self._waker.clear()
            for message in self._channel.receive():
                if isinstance(message, EncodeRequest):
                    self._open[message.rid] = message
                    self._vision.submit(
                        message.image,
                        functools.partial(self._encoded, message),
                        functools.partial(self._open.__contains__, message.rid),
                    )
                elif isinstance(message, AbortRequest):
                    self._open.pop(message.rid, None)
                elif isinstance(message, FlushCache):
                    self._flush_cache(message)
            if self._vision.has_work():
                self._vision.step()
            self._delivery.poll()
            self._report_gauges()

    def _flush_cache(self, message: FlushCache) -> None:
        if self._open:
            self._channel.send(RequestFailed(message.rid, 400, f"{len(self._open)} images are being encoded; wait"))
            return
        self._vision.cache.clear()
        self._channel.send(CacheFlushed(message.rid, self._stats()))

    def _encoded(self, request: EncodeRequest, encoded: Encoded) -> None:
        """Send a finished embedding to its receiver, unless nobody waits any more."""
        if request.rid not in self._open:
            return
        if encoded.embedding is None:
            self._finish(request, RequestFailed(request.rid, encoded.status, encoded.error))
            return
        rows = encoded.embedding.cpu().contiguous()
        payload = memoryview(rows.view(torch.uint8).numpy().data).cast("B")
        header = EmbeddingHeader(
            version=WIRE_VERSION,
            request_id=request.request_id,
            part_idx=request.part_idx,
            num_rows=rows.shape[0],
            hidden=rows.shape[1],
            dtype=str(rows.dtype).removeprefix("torch."),
            checksum=checksum(payload),
            spans=encoded.spans,
            sent_at=time.time(),
        )
        self._delivery.send(
            request.receive_url, header, payload, lambda error: self._delivered(request, header, encoded.spans, error)
        )

    def _delivered(self, request: EncodeRequest, header: EmbeddingHeader, spans: list[Span], error: str) -> None:
        if error:
            self._finish(request, RequestFailed(request.rid, 504, error))
        else:
            spans = [*spans, Span("transfer", header.sent_at, time.time())]
            self._finish(request, EncodeDone(request.rid, header.num_rows, header.hidden, spans, self._stats()))

    def _finish(self, request: EncodeRequest, answer: EncodeDone | RequestFailed) -> None:
        if self._open.pop(request.rid, None) is not None:
            self._channel.send(answer)

    def _stats(self) -> EngineStats:
        return EngineStats(
            num_running=self._vision.num_pending,
            embeddings_pending=len(self._open),
            encoder_cache_bytes=self._vision.cache.nbytes,
        )

    def _report_gauges(self) -> None:
        """Tell the API process when gauges changed, so that they return to zero when work ends."""
        stats = self._stats()
        if stats != self._reported:
            self._reported = stats
            self._channel.send(StepOutputs([], stats))
