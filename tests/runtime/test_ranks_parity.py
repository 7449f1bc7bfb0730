"""Tensor parallelism: two ranks of random models of every family give the tokens of transformers.

Rank 1 is a thread of this process. It joins, loads its part and follows as the process of its own that it would be;
real processes are in test_ranks_processes.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from conversations import conversation, picture
from epd_runtime.config import ServerConfig
from epd_runtime.engine.loading import place_model
from epd_runtime.engine.ranks import group
from epd_runtime.engine.ranks.follower import Follower
from epd_runtime.engine.ranks.leader import Leader
from epd_runtime.engine.ranks.wire import RankError
from epd_runtime.frontend.prompt import Prompt
from in_process import InProcessEngine
from random_models import FAMILIES, WITH_IMAGES, make_telling
from reference import TextReference, VisionReference
from servers import free_port

NEW_TOKENS = 10


@pytest.fixture
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that fails shall not keep the other one for minutes."""
    monkeypatch.setattr(group, "TIMEOUT", timedelta(seconds=30))


def lost(reason: str) -> NoReturn:
    raise AssertionError(reason)


@contextlib.contextmanager
def two_ranks(folder: Path) -> Iterator[InProcessEngine]:
    """An engine whose model is divided between this thread and another."""
    address = f"127.0.0.1:{free_port()}"
    server = ServerConfig(model_path=str(folder), device="cpu", tp_size=2, nnodes=2, dist_init_addr=address)

    def follow() -> None:
        other = dataclasses.replace(server, node_rank=1, dist_timeout=60).validate()
        with contextlib.suppress(RankError):  # the leader closed its connection
            Follower(other, place_model(other), address, lambda reason: None).serve(lambda weights, kv: None)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    leader = Leader(server.validate(), place_model(server), lost)
    try:
        yield InProcessEngine(folder, leader=leader, ranks=2)
    finally:
        leader.close()
        thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITH_IMAGES)))
def test_text_equals_transformers(family: str, draw: random.Random, tmp_path: Path) -> None:
    prompts = [[draw.randrange(2, 300) for _ in range(length)] for length in (1, 16, 40, draw.randrange(50, 150))]

    def ask(model: Path) -> list[list[int]]:
        reference = TextReference(model)
        return [reference.generate(prompt, NEW_TOKENS) for prompt in prompts]

    folder, expected = make_telling(family, tmp_path, draw, ask, ranks=2)
    with two_ranks(folder) as engine:
        for chunk in (4096, draw.randrange(3, 40)):
            built = [Prompt(prompt, []) for prompt in prompts]
            assert engine.generate(built, [NEW_TOKENS] * len(prompts), chunk) == expected, f"chunk {chunk}"


@pytest.mark.parametrize("family", WITH_IMAGES)
def test_images_equal_transformers(family: str, draw: random.Random, tmp_path: Path) -> None:
    """The tower is rank 0's; embeddings, DeepStack among them, reach the other rank in pieces."""
    questions = [("What do you see? " * draw.randrange(1, 6), [picture(draw) for _ in range(n)]) for n in (1, 0, 2)]

    def ask(model: Path) -> list[list[int]]:
        reference = VisionReference(model)
        return [reference.chat(conversation(text, images, False), images, NEW_TOKENS) for text, images in questions]

    folder, expected = make_telling(family, tmp_path, draw, ask, ranks=2)
    with two_ranks(folder) as engine:
        prompts = [engine.chat(conversation(text, images, True)) for text, images in questions]
        for chunk in (4096, draw.randrange(5, 60)):
            assert engine.generate(prompts, [NEW_TOKENS] * len(prompts), chunk) == expected, f"chunk {chunk}"
