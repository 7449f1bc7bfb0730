"""The loop of an engine that generates: messages, images and handoff events in; one step; outputs out.

    poll → messages → embeddings → handoff events → vision batch (own tower) → step (overlap.py) → send

The loop sleeps only when nothing can be computed.
"""

from __future__ import annotations

import logging

import msgspec
import torch
import zmq

from epd_runtime.config import Role, ServerConfig
from epd_runtime.disaggregation.decode_scheduler import DecodeScheduler
from epd_runtime.disaggregation.handoff.decode_side import DecodeSide
from epd_runtime.disaggregation.handoff.prefill_side import PrefillSide
from epd_runtime.disaggregation.handoff.staged import StagedDecode, StagedPrefill
from epd_runtime.disaggregation.prefill_scheduler import PrefillScheduler
from epd_runtime.engine.channel import Channel
from epd_runtime.engine.cuda_graphs import graph_sizes
from epd_runtime.engine.image_source import ImageSource, LocalImages, RemoteImages
from epd_runtime.engine.intake import Intake
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.loading import Placement, StartError, anonymous_storage, is_disaggregated, plan_kv
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.overlap import StepPipeline
from epd_runtime.engine.ranks.leader import Leader
from epd_runtime.engine.sampling.grammar import GrammarCompiler
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.engine.waker import Waker
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.mirror import PageMirror
from epd_runtime.kvcache.pool import KVPool
from epd_runtime.messages import (
    EngineReady,
    EngineStats,
    RequestFailed,
    StepOutputs,
)
from epd_runtime.models.loader import weight_bytes
from epd_runtime.models.registry import load_language_model, load_vision_tower
from epd_runtime.net.address import advertised_address
from epd_runtime.transfer.base import allocate_pool

log = logging.getLogger("epd_runtime.engine")

IDLE_POLL_MS = 1000
COPY_POLL_MS = 1  # while KV is being copied off the device


class LanguageLoop:
    """Owns language model, KV cache, scheduler and, where the role has them, vision tower and handoff."""

    def __init__(
        self, server: ServerConfig, placement: Placement, context: zmq.Context[zmq.Socket[bytes]], channel: Channel
    ) -> None:
        seed = server.random_seed if server.load_format == "dummy" else None
        self._channel = channel
        self._waker = Waker()
        leader = Leader(server, placement, channel.abandon) if server.tp_size > 1 else None
        model = load_language_model(
            placement.config,
            placement.folder,
            placement.device,
            placement.dtype,
            placement.context_length,
            seed,
            leader.ranks if leader is not None else None,
        )
        tower = None
        if server.has_vision_tower:
            tower = load_vision_tower(placement.config, placement.folder, placement.device, placement.dtype, seed)
        self._weight_bytes = {"vision": weight_bytes(tower), "language": weight_bytes(model)}
        self._layout = plan_kv(server, placement)
        if leader is not None:
            num_pages, self._weight_bytes["language"] = leader.agree(
                self._layout.num_pages, self._weight_bytes["language"]
            )
            self._layout = msgspec.structs.replace(self._layout, num_pages=num_pages)
        self._allocator = PageAllocator(self._layout.num_pages)
        pool = KVPool(self._layout, placement.part, placement.dtype, self._open_storage(server, placement))
        self._scheduler = self._open_scheduler(server, placement, pool)
        self._runner = ModelRunner(
            model,
            pool,
            placement.device,
            server.prefill_attention_backend or server.attention_backend,
            server.decode_attention_backend or server.attention_backend,
            frozenset(placement.config.eos_token_ids),
            leader,
        )
        if placement.device.type == "cuda" and not server.disable_cuda_graph and leader is None:
            largest = min(server.cuda_graph_max_bs or server.max_running_requests, server.max_running_requests)
            self._runner.pad_decode(graph_sizes(largest), placement.context_length)
        overlaps = placement.device.type == "cuda" and not server.disable_overlap_schedule and leader is None
        self._steps = StepPipeline(self._scheduler, self._runner.launch, overlaps)
        self._images: ImageSource | None = None
        if tower is not None:
            self._images = LocalImages(tower, server, placement, self._waker)
        elif server.language_only:
            self._images = RemoteImages(
                server.bind_host, placement.config.embedding_width, self._waker, self._channel.send
            )
        self._grammars = GrammarCompiler(
            placement.folder,
            placement.config.text.vocab_size,
            frozenset(placement.config.eos_token_ids),
            self._waker.wake,
        )
        self._context_length = placement.context_length
        self._num_ranks = server.tp_size
        self._reported = EngineStats()
        self._intake = Intake(self._scheduler, self._images, self._grammars, self._channel.send, self._stats)

    def _open_storage(self, server: ServerConfig, placement: Placement) -> torch.Tensor:
        """Memory of the KV pool; such that other engines can be given it where KV crosses between engines."""
        nbytes = self._layout.num_pages * self._layout.page_bytes
        if is_disaggregated(server):
            self._memory = allocate_pool(server.disaggregation_transfer_backend, nbytes)
            if placement.device.type == "cpu":
                return torch.frombuffer(self._memory.buffer, dtype=torch.uint8)
        return anonymous_storage(nbytes + self._layout.page_bytes, placement.device)  # and a scratch page

    def _open_scheduler(self, server: ServerConfig, placement: Placement, pool: KVPool) -> Scheduler:
        """The scheduler of this role; the halves of disaggregated serving also open their side of the handoff."""
        limits = Limits(
            placement.context_length,
            server.page_size,
            server.max_running_requests,
            server.chunked_prefill_size,
            frozenset(placement.config.eos_token_ids),
            placement.config.text.vocab_size,
            server.schedule_policy,
            not server.disable_radix_cache,
        )
        self._handoff: PrefillSide | DecodeSide | None = None
        self._staged: StagedPrefill | None = None
        if not is_disaggregated(server):
            return Scheduler(limits, self._allocator)
        if server.role is Role.PREFILL:
            self._handoff = prefill = self._open_prefill_side(server)
            if pool.device.type == "cpu":
                return PrefillScheduler(limits, self._allocator, prefill)
            self._staged = StagedPrefill(prefill, PageMirror(pool, self._memory.buffer))
            return PrefillScheduler(limits, self._allocator, self._staged)
        backend = server.disaggregation_transfer_backend
        decode = DecodeSide(self._layout, self._memory.buffer, advertised_address(server.host), backend)
        self._handoff = decode
        if pool.device.type == "cpu":
            return DecodeScheduler(limits, self._allocator, decode, pool)
        staged = StagedDecode(decode, PageMirror(pool, self._memory.buffer))
        return DecodeScheduler(limits, self._allocator, staged, pool)

    def _open_prefill_side(self, server: ServerConfig) -> PrefillSide:
        """Listen for decode workers; raises StartError naming the flag when the port is taken."""
        host, port = server.bind_host, server.disaggregation_bootstrap_port
        try:
            return PrefillSide(self._layout, self._memory.buffer, host, port, server.disaggregation_transfer_backend)
        except OSError as error:
            raise StartError(
                f"cannot listen on {host}:{port} for decode workers ({error.strerror}); "
                "choose another --disaggregation-bootstrap-port"
            ) from None

    def ready(self) -> EngineReady:
        """What the API process hears first."""
        return EngineReady(
            context_length=self._context_length,
            embedding_port=self._images.port if isinstance(self._images, RemoteImages) else 0,
            bootstrap_port=self._handoff.bootstrap_port if isinstance(self._handoff, PrefillSide) else 0,
            weight_bytes=self._weight_bytes,
            kv_bytes=self._num_ranks * self._layout.num_pages * self._layout.page_bytes,
            stats=self._stats(),
        )

    def run(self) -> None:
        """Serve for ever; the process ends with its API process."""
        poller = zmq.Poller()
        self._channel.watch(poller)
        poller.register(self._waker.fileno(), zmq.POLLIN)
        if self._handoff is not None:
            poller.register(self._handoff.fileno(), zmq.POLLIN)
        while True:
            if not self._steps.is_busy and not self._scheduler.has_work() and not self._intake.has_work():
                is_copying = self._staged is not None and self._staged.is_copying
                poller.poll(COPY_POLL_MS if is_copying else IDLE_POLL_MS)
            self._waker.clear()
            for message in self._channel.receive():
                self._intake.handle(message)
            self._intake.poll()
            self._steps.step()
            self._intake.fetch_images()
            self._flush()

    def _flush(self) -> None:
        """Send what the schedulers produced, and the gauges when they changed."""
        outputs = []
        for item in self._scheduler.outbox:
            if isinstance(item, RequestFailed):
                self._channel.send(item)
            else:
                outputs.append(item)
        self._scheduler.outbox.clear()
        stats = self._stats()
        if outputs or stats != self._reported:
            self._reported = stats
            self._channel.send(StepOutputs(outputs, stats))

    def _stats(self) -> EngineStats:
        scheduler, handoff, images = self._scheduler, self._handoff, self._images
        return EngineStats(
            num_running=len(scheduler.running),
            num_queued=len(scheduler.requests) - len(scheduler.running) + self._grammars.num_held,
            pages_total=self._allocator.num_pages,
            pages_used=self._allocator.num_used,
            pages_cached=self._allocator.num_idle,
            pages_evicted=scheduler.memory.cache.num_evicted,
            prefix_tokens=scheduler.counters.prefix_tokens,
            prefix_hit_tokens=scheduler.counters.prefix_hit_tokens,
            retractions=scheduler.counters.retractions,
            rooms=handoff.num_rooms() if handoff is not None else 0,
            rooms_done=handoff.rooms_done if handoff is not None else 0,
            rooms_failed=handoff.rooms_failed if handoff is not None else 0,
            handoff_pages=scheduler.num_handoff_pages,
            handoff_bytes=scheduler.counters.handed_pages * self._layout.page_bytes,
            embeddings_pending=images.num_pending if images is not None else 0,
            encoder_cache_bytes=images.cache_bytes if images is not None else 0,
        )
