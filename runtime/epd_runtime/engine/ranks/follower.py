"""A rank that computes what rank 0 tells it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec
import torch
from torch import Tensor

from epd_runtime.attention.batch import ForwardBatch
from epd_runtime.attention.registry import open_attention
from epd_runtime.config import ServerConfig
from epd_runtime.engine.loading import Placement, anonymous_storage, plan_kv
from epd_runtime.engine.ranks import CAUSE_SECONDS, steps
from epd_runtime.engine.ranks.group import join_store, open_group
from epd_runtime.engine.ranks.rendezvous import join, settings
from epd_runtime.engine.ranks.wire import Begin, Failed, Loaded, RankError, Step
from epd_runtime.kvcache.pool import KVPool
from epd_runtime.models.loader import weight_bytes
from epd_runtime.models.ranks import Ranks
from epd_runtime.models.registry import load_language_model


class Follower:
    """Any rank but 0."""

    def __init__(
        self, server: ServerConfig, placement: Placement, address: str, on_loss: Callable[[str], None]
    ) -> None:
        """Join rank 0 at HOST:PORT; raises StartError. on_loss: called from a thread when rank 0 is gone."""
        self._server, self._placement = server, placement
        rank = placement.shard.rank
        self._connection, welcome = join(server, rank, address, settings(server, placement))
        threading.Thread(target=self._watch, args=[on_loss, address], name="rank-watch", daemon=True).start()
        store = join_store(self._connection.peer, welcome.store_port)
        group = open_group(store, placement.shard, placement.device, self._connection.address)
        self._ranks = Ranks(placement.shard, placement.config.text.vocab_size, group)

    def serve(self, on_ready: Callable[[int, int], None]) -> NoReturn:
        """Load, then compute until rank 0 is gone: RankError. on_ready: told bytes of weights and of the KV pool."""
        try:
            self._load(on_ready)
            while True:
                self._run_next()
        except RankError:
            raise
        except Exception as error:
            time.sleep(CAUSE_SECONDS)  # if another rank's loss is behind it, this one is ended meanwhile
            with contextlib.suppress(RankError):
                self._connection.send(Failed(f"{type(error).__name__}: {error}"))
            raise
        finally:
            self._connection.close()

    def _load(self, on_ready: Callable[[int, int], None]) -> None:
        server, place = self._server, self._placement
        seed = server.random_seed if server.load_format == "dummy" else None
        self._model = load_language_model(
            place.config, place.folder, place.device, place.dtype, place.context_length, seed, self._ranks
        )
        layout, nbytes = plan_kv(server, place), weight_bytes(self._model)
        self._connection.send(Loaded(layout.num_pages, nbytes))
        begin = self._connection.receive_from_leader(time.monotonic() + server.dist_timeout)
        if not isinstance(begin, Begin):
            raise RankError("rank 0 began with a step")
        layout = msgspec.structs.replace(layout, num_pages=begin.num_pages)
        kv_bytes = layout.num_pages * layout.page_bytes
        storage = anonymous_storage(kv_bytes, place.device)
        self._pool = KVPool(layout, place.part, place.dtype, storage)
        self._attention = open_attention(
            self._pool,
            self._model.config.num_heads,
            server.prefill_attention_backend or server.attention_backend,
            server.decode_attention_backend or server.attention_backend,
        )
        on_ready(nbytes, kv_bytes)

    @torch.inference_mode()
    def _run_next(self) -> None:
        """One step, exactly as ModelRunner computes it."""
        step = self._connection.receive_from_leader(None)
        if not isinstance(step, Step):
            raise RankError("rank 0 sent what is no step")
        batch = self._take_embeddings(steps.unpack(step, self._placement.device), step.embedding_width)
        self._pool.clear(batch.begun_pages)
        self._attention.prepare(batch)
        x, residual = self._model.hidden(batch, self._attention)
        for first, count in step.scored:
            self._model.logits(x, residual, torch.arange(first, first + count, device=x.device))
        self._model.logits(x, residual, batch.logit_rows)

    def _take_embeddings(self, batch: ForwardBatch, width: int) -> ForwardBatch:
        if batch.image_rows is None:
            return batch
        embeddings: Tensor = torch.empty(
            len(batch.image_rows), width, dtype=self._placement.dtype, device=self._placement.device
        )
        self._ranks.broadcast(embeddings)
        return dataclasses.replace(batch, image_embeddings=embeddings)

    def _watch(self, on_loss: Callable[[str], None], address: str) -> None:
        self._connection.wait_for_end()
        on_loss(f"rank 0 at {address} is gone")
