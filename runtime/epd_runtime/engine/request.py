"""One request inside an engine: its tokens, its pages, and how far it has come."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from epd_runtime.engine.sampling.state import SamplerState
from epd_runtime.engine.state import State, advance
from epd_runtime.kvcache.prefix_cache import Holding
from epd_runtime.messages import GenerateRequest, ImageInput, SamplingParams, Span

UNRANKED = (0.0, 0)  # order of a request that was never queued
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
        self.priority = message.priority
        self.arrived = time.time()

        self.state = State.NEW
        self.output_ids: list[int] = []
        self.num_pending = 0  # tokens behind those, sampled by a step whose result has not been read (overlap.py)
        self.sampled = SamplerState(self.num_prompt_logprobs)
        self.num_computed = 0  # tokens whose KV is in pages, or will be when the steps under way have run
        self.num_valid = 0  # those of them that led to a token with valid probabilities: fit for the prefix cache
        self.holding = Holding()
        self.page_keys: list[bytes] = []  # of its first pages (kvcache/page_keys.py), each made once
        self.num_slots = 0  # most tokens whose KV it will hold, once the prompt's length is known
        self.cached_tokens = 0  # of the prompt, found in the prefix cache
        self.awaited: frozenset[int] = frozenset()  # images without which it cannot go on
        self.coming = set(message.images_coming)  # images that encoders were asked for
        self.order = UNRANKED  # smaller goes first (policy.py)
        self.is_retracted = False  # waits for pages a second time; goes before those that never ran
        self.saved_kv: Any = None  # on a decode worker, while retracted
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
    def pages(self) -> list[int]:
        """Pages of its KV, in the order of its tokens."""
        return self.holding.pages

    @property
    def page_table(self) -> npt.NDArray[np.int64]:
        """The same pages as an array."""
        return self.holding.table

    @property
    def total_length(self) -> int:
        """Tokens of prompt and answer so far."""
        return self.prompt_length + self.num_sampled

    @property
    def num_sampled(self) -> int:
        """Tokens of the answer so far, those that only the device knows included."""
        return len(self.output_ids) + self.num_pending

    @property
    def num_prompt_logprobs(self) -> int:
        """Tokens of the prompt whose logprobs are reported; the first token of all has none, and counts."""
        start = self.sampling.prompt_logprobs_from
        return max(self.prompt_length - start, 0) if start >= 0 else 0

    @property
    def num_coming(self) -> int:
        """Images that encoders were asked for whose embedding is not here."""
        return sum(self.embeddings[index] is None for index in self.coming) if self.embeddings else 0

    @property
    def has_awaited_images(self) -> bool:
        """Whether every embedding that it waits for is here."""
        return all(self.embeddings[index] is not None for index in self.awaited)

    def images_missing(self, num_cached: int) -> frozenset[int]:
        """Images whose embedding is not here but needed, when the KV of the first num_cached tokens is."""
        return frozenset(
            index
            for index, (image, embedding) in enumerate(zip(self.images, self.embeddings, strict=True))
            if embedding is None and image.end > num_cached
        )

    def tokens(self, first: int, last: int) -> list[int]:
        """Tokens first to last (exclusive) of prompt and answer."""
        prompt = self.prompt_length
        return self.input_ids[first:last] + self.output_ids[max(first - prompt, 0) : max(last - prompt, 0)]

    def advance(self, state: State) -> None:
        """Change state; an illegal change raises."""
        self.state = advance(self.state, state)

    def surrender(self) -> Holding:
        """Give the pages up to the caller, who closes the holding or keeps it from being reused."""
        holding, self.holding = self.holding, Holding()
        return holding

    def forget_prompt_inputs(self) -> None:
        """The prompt is not computed again: its images and positions are never read again, and they are large."""
        self.images, self.embeddings, self.positions = [], [], None

    def resolve_max_new_tokens(self, context_length: int, num_slots: int) -> None:
        """Bound the answer by the context, now that the prompt's length is known; one without a bound also by the pool.

        num_slots: tokens whose KV the pool can hold; the last token of an answer needs no place in it.
        """
        room_left = context_length - self.prompt_length
        asked = self.sampling.max_new_tokens
        to_the_end = max(min(room_left, num_slots + 1 - self.prompt_length), 1)
        self.max_new_tokens = to_the_end if asked == TO_END_OF_CONTEXT else min(asked, room_left)

    def end_stage(self, stage: str) -> None:
        """Record a finished stage and start the next."""
        now = time.time()
        self.spans.append(Span(stage, self.stage_started, now))
        self.stage_started = now

    def append_token(self, token: int, eos_token_ids: frozenset[int]) -> None:
        """Add a sampled token and decide whether it is the last."""
        self.output_ids.append(token)
        ends = not self.sampling.ignore_eos or self.sampling.grammar is not None  # behind its end a grammar has nothing
        if token in self.sampling.stop_token_ids or (token in eos_token_ids and ends):
            self.finish_reason, self.matched_stop = "stop", token
        elif len(self.output_ids) >= self.max_new_tokens:
            self.finish_reason = "length"
