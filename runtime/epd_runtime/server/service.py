"""What all routes share: the model, the engine, the state of the server, and how many requests are under way.

    STARTING ──EngineReady──▶ SERVING ──SIGTERM──▶ DRAINING
        └──────────────── the engine died ────────────▶ FAILED

Only SERVING admits requests. Admission counts samples from before their images are fetched until their answer is sent,
so that neither this process nor the engine's queue can be flooded.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from epd_runtime.config import Role, ServerConfig
from epd_runtime.disaggregation.embeddings.encoder_client import EncoderClient
from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.frontend.images import ImageLimits
from epd_runtime.frontend.media import MediaFetcher
from epd_runtime.frontend.model_folder import ModelFolder
from epd_runtime.frontend.prompt import PromptBuilder
from epd_runtime.messages import Bootstrap, EngineReady
from epd_runtime.net.address import advertised_address
from epd_runtime.net.resolver import WorkerSet
from epd_runtime.server.engine_client import EngineClient
from epd_runtime.server.metrics import Metrics
from epd_runtime.server.protocol.base import RoomFields
from epd_runtime.server.rooms import plan_rooms
from epd_runtime.server.token_texts import TokenTexts

MEBIBYTE = 1024 * 1024


class Status(enum.StrEnum):
    """State of the server."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


class Abortable(Protocol):
    """A call whose samples can be ended from outside."""

    def abort(self, index: int) -> None: ...


class OpenCalls:
    """Calls under way by the names of their samples; names are the clients' and may repeat."""

    def __init__(self) -> None:
        self._samples: dict[str, list[tuple[Abortable, int]]] = {}

    @contextmanager
    def named(self, names: Sequence[str], call: Abortable) -> Iterator[None]:
        """Know the samples of a call by these names during the block."""
        entries = [(name, (call, index)) for index, name in enumerate(names)]
        for name, entry in entries:
            self._samples.setdefault(name, []).append(entry)
        try:
            yield
        finally:
            for name, entry in entries:
                self._samples[name].remove(entry)
                if not self._samples[name]:
                    del self._samples[name]

    def abort(self, name: str | None) -> int:
        """End the samples of this name, None: all; how many there were."""
        known = list(self._samples) if name is None else [name]
        found = [entry for one in known for entry in self._samples.get(one, ())]
        for call, index in found:
            call.abort(index)
        return len(found)


class Service:
    """Shared state of the routes of one server process."""

    def __init__(self, config: ServerConfig, model: ModelFolder, engine: EngineClient) -> None:
        self.config = config
        self.model = model
        self.engine = engine
        self.status = Status.STARTING
        self.num_open = 0
        self.metrics = Metrics(config.model_name, lambda: engine.stats, lambda: self.num_open)
        self.ready: EngineReady | None = None
        self.encoders: EncoderClient | None = None
        self._limits = ImageLimits(
            max_images=config.limit_images_per_request,
            max_file_bytes=config.media_url_max_file_size_mb * MEBIBYTE,
            max_pixels=config.max_image_pixels,
            max_videos=config.limit_videos_per_request,
            max_video_frames=config.max_video_frames,
            max_video_seconds=config.max_video_seconds,
        )
        self._fetcher = MediaFetcher(self._limits, config.media_url_timeout, config.allowed_media_domains)
        self._prompts: PromptBuilder | None = None
        self._workers: WorkerSet | None = None
        self._seeds = random.Random(config.random_seed)
        self.calls: OpenCalls = OpenCalls()
        self.token_texts = TokenTexts(model.tokenizer)

    @property
    def capacity(self) -> int:
        """Samples that may be under way."""
        return self.config.max_running_requests + self.config.max_queued_requests

    @property
    def prompts(self) -> PromptBuilder:
        """Builds prompts; exists once the engine told its context length."""
        if self._prompts is None:
            raise self._unavailable()
        return self._prompts

    def plan_rooms(self, fields: RoomFields, num_prompts: int, n: int) -> list[Bootstrap | None]:
        """One place in a list per sample, its room on the halves of a pair; raises RequestError 400.

        Checked here, before anything is made per sample: the request can ever fit.
        """
        self._check_size(num_prompts * n)
        host = advertised_address(self.config.host) if self.config.role is Role.PREFILL else None
        return plan_rooms(fields, num_prompts, n, self.config.role, host, self.config.disaggregation_bootstrap_port)

    def _check_size(self, num_samples: int) -> None:
        if num_samples > self.capacity:
            raise bad_request(f"the request asks for {num_samples} samples; this server takes at most {self.capacity}")

    async def begin(self, ready: EngineReady) -> None:
        """The engine is ready: start to serve."""
        self._prompts = PromptBuilder(self.model, self._fetcher, self._limits, ready.context_length)
        if self.config.language_only:
            self._workers = WorkerSet(self.config.encoder_urls)
            await self._workers.start()
            receive_host = advertised_address(self.config.host)
            self.encoders = EncoderClient(self._workers, receive_host, ready.embedding_port, self.config.api_key)
        self.ready = ready
        if self.status is Status.STARTING:
            self.status = Status.SERVING

    def fail(self, error: RequestError) -> None:
        """The engine died: end every open request with this error and admit no more."""
        self.status = Status.FAILED
        self.engine.fail_all(error)

    @contextmanager
    def admit(self, num_samples: int) -> Iterator[None]:
        """Count samples as under way; raises RequestError 503 when full or not serving, 400 when they can never fit."""
        self.check_serving()
        self._check_size(num_samples)
        if self.num_open + num_samples > self.capacity:
            raise RequestError(
                503, f"{self.num_open} requests are running or queued, the most this server takes; retry"
            )
        self.num_open += num_samples
        try:
            yield
        finally:
            self.num_open -= num_samples

    def check_serving(self) -> None:
        """Raise RequestError 503 while no requests are taken."""
        if self.status is not Status.SERVING:
            raise self._unavailable()

    def check_model_name(self, name: str | None) -> None:
        """Raise RequestError 404 for another model's name; routers write "unknown" when the client named none."""
        if name not in (None, "", "unknown") and not self.is_model_name(name):
            raise self.no_such_model(name)

    def is_model_name(self, name: str) -> bool:
        """Whether the model is called so."""
        return name in (self.config.model_name, self.config.model_path)

    def no_such_model(self, name: str) -> RequestError:
        """The error for another model's name."""
        return RequestError(
            404,
            f"the model {name[:200]!r} does not exist; this server has {self.config.model_name!r}",
            "model",
            "model_not_found",
        )

    def next_seed(self) -> int:
        """A seed for a request without one; the sequence follows from --random-seed."""
        return self._seeds.getrandbits(62)

    async def close(self) -> None:
        """End all connections of this process to others."""
        await self._fetcher.close()
        if self.encoders is not None:
            await self.encoders.close()
        if self._workers is not None:
            await self._workers.stop()

    def _unavailable(self) -> RequestError:
        if self.engine.dead is not None:
            return self.engine.dead
        doing = {Status.STARTING: "is loading its model", Status.DRAINING: "is shutting down"}
        return RequestError(503, f"this server {doing.get(self.status, 'has failed')}; retry later or elsewhere")
