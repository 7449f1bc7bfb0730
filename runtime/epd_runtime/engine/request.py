"""One request inside an engine: its tokens, its pages, and how far it has come."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from epd_runtime.engine.sampling.state import SamplerState
from epd_runtime.engine.state import State, advance
from epd_runtime.messages import GenerateRequest, ImageInput, SamplingParams, Span

NO_PAGES: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
NO_TOKEN = -1  # a sampled token that does not exist: the logits were not finite
TO_END_OF_CONTEXT = -1  # max_new_tokens: as many as the context allows


class Request:
    """Owned by exactly one scheduler; changed by nobody else, but for `sampled`, which is the sampler's."""

    def __init__(self, message: GenerateRequest) -> None:
        self.rid = message.rid
        self.input_ids = message.input_ids
        self.prompt_length = len(message.input_ids)  # tokens; a decode worker learns it before the tokens themselves
        self.sampling: SamplingParams = message.sampling
        self.images: list[ImageInput] = message.images
        self.positions: npt.NDArray[np.int32] | None = None  # [3, prompt]
        if message.positions:
            self.positions = np.frombuffer(message.positions, dtype=np.int32).reshape(3, -1)
        self.position_delta = message.position_delta
        self.bootstrap = message.bootstrap
        self.embeddings: list[Any] = [None] * len(message.images)  # one tensor [num_tokens, width] per image
        self.arrived = time.time()

        self.state = State.NEW
        self.output_ids: list[int] = []
        self.sampled = SamplerState()
        self.num_computed = 0  # tokens whose KV is in pages
        self.pages: list[int] = []
        self.page_table: npt.NDArray[np.int64] = NO_PAGES  # pages, as every step needs them
        self.max_new_tokens = 0  # resolved against the context once the prompt's length is known
        self.finish_reason: str | None = None
        self.matched_stop: int | None = None
        self.spans: list[Span] = []
        self.stage_started = self.arrived  # start of the stage under way

    @property
    def room(self) -> int:
        """Room number of the handoff; only for requests that have one."""
        assert self.bootstrap is not None
        return self.bootstrap.room

    @property
    def total_length(self) -> int:
        """Tokens of prompt and answer so far."""
        return self.prompt_length + len(self.output_ids)

    @property
    def has_all_images(self) -> bool:
        """Whether every image's embedding is here."""
        return all(embedding is not None for embedding in self.embeddings)

    def advance(self, state: State) -> None:
        """Change state; an illegal change raises."""
        self.state = advance(self.state, state)

    def own_pages(self, pages: list[int]) -> None:
        """Take pages from the allocator."""
        self.pages, self.page_table = pages, np.asarray(pages, dtype=np.int64)

    def disown_pages(self) -> list[int]:
        """Give the pages up to the caller, who frees them or keeps them from being reused."""
        pages, self.pages, self.page_table = self.pages, [], NO_PAGES
        return pages

    def forget_prompt_inputs(self) -> None:
        """The prompt is in the KV cache: its images and positions are never read again, and they are large."""
        self.images, self.embeddings, self.positions = [], [], None

    def resolve_max_new_tokens(self, context_length: int) -> None:
        """Bound the answer by the context, now that the prompt's length is known."""
        room_left = context_length - self.prompt_length
        asked = self.sampling.max_new_tokens
        self.max_new_tokens = room_left if asked == TO_END_OF_CONTEXT else min(asked, room_left)

    def end_stage(self, stage: str) -> None:
        """Record a finished stage and start the next."""
        now = time.time()
        self.spans.append(Span(stage, self.stage_started, now))
        self.stage_started = now

    def append_token(self, token: int, eos_token_ids: frozenset[int]) -> None:
        """Add a sampled token and decide whether it is the last."""
        self.output_ids.append(token)
        if token in self.sampling.stop_token_ids or (token in eos_token_ids and not self.sampling.ignore_eos):
            self.finish_reason, self.matched_stop = "stop", token
        elif len(self.output_ids) >= self.max_new_tokens:
            self.finish_reason = "length"
