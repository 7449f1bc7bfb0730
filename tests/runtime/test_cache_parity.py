"""Prefix hits, retraction and small chunks change no token: random models against transformers, in this process."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from conversations import conversation, picture
from epd_runtime.engine.limits import Limits
from epd_runtime.frontend.prompt import Prompt
from in_process import CONTEXT, InProcessEngine
from random_models import make_random, make_telling
from reference import TextReference, VisionReference

NEW_TOKENS = 40


@pytest.fixture
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


def limits(draw: random.Random) -> Limits:
    """Small chunks, no reserve: requests run out of pages, and those that begin alike use what one computes."""
    chunk = draw.choice([draw.randrange(3, 30), 4096])
    return Limits(CONTEXT, 16, 6, chunk, frozenset(), 10**6, reserve=0, worth_waiting=16)


def check(
    engine: InProcessEngine, fewest_pages: int, prompts: list[Prompt], expected: list[list[int]], draw: random.Random
) -> None:
    """Rounds in one engine with too few pages for all, until some were retracted, evicted and hit.

    What is drawn decides how many pages are too few, so several pools are tried.
    """
    lengths = [len(answer) for answer in expected]
    seen: set[str] = set()
    for num_pages in range(fewest_pages, fewest_pages + 8):
        serving = engine.serve(limits(draw), num_pages)
        for overlaps in (True, False, True):
            assert serving.generate(prompts, lengths, overlaps=overlaps) == expected
        counters = serving.scheduler.counters
        happened = {
            "retracted": counters.retractions,
            "hit": counters.prefix_hit_tokens,
            "evicted": serving.scheduler.memory.cache.num_evicted,
        }
        seen |= {name for name, count in happened.items() if count}
        if len(seen) == len(happened):
            return
    raise AssertionError(f"only {sorted(seen)} happened")


def test_llama(draw: random.Random, tmp_path: Path) -> None:
    common = [draw.randrange(2, 300) for _ in range(draw.randrange(20, 60))]
    prompts = [[*common, *(draw.randrange(2, 300) for _ in range(length))] for length in (1, 9, 30, 16, 40)]

    def ask(model: Path) -> list[list[int]]:
        reference = TextReference(model)
        return [reference.generate(prompt, NEW_TOKENS) for prompt in prompts]

    folder, expected = make_telling("llama", tmp_path, draw, ask)
    check(InProcessEngine(folder), 15, [Prompt(prompt, []) for prompt in prompts], expected, draw)


def test_seeds_give_the_same_tokens_after_a_retraction(draw: random.Random, tmp_path: Path) -> None:
    folder = make_random("llama", tmp_path, draw)
    prompts = [Prompt([draw.randrange(2, 300) for _ in range(length)], []) for length in (1, 9, 30, 16, 40)]
    lengths = [NEW_TOKENS] * len(prompts)
    roomy = InProcessEngine(folder).serve(limits(draw))
    narrow = InProcessEngine(folder).serve(limits(draw), 10)
    assert narrow.generate(prompts, lengths, temperature=1.0, overlaps=True) == roomy.generate(
        prompts, lengths, temperature=1.0
    )
    assert (roomy.scheduler.counters.retractions, narrow.scheduler.counters.retractions > 0) == (0, True)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl_moe"])
def test_images(family: str, draw: random.Random, tmp_path: Path) -> None:
    """The same picture, other pictures in the same places, pictures cut by the end of the cached part."""
    one, other = picture(draw), picture(draw)
    questions = [("What?", [one]), ("What is it then?", [one, one]), ("What?", [other]), ("What is it?", [one, other])]

    def ask(model: Path) -> list[list[int]]:
        reference = VisionReference(model)
        return [reference.chat(conversation(text, images, False), images, NEW_TOKENS) for text, images in questions]

    folder, expected = make_telling(family, tmp_path, draw, ask)
    engine = InProcessEngine(folder)
    prompts = [engine.chat(conversation(text, images, True)) for text, images in questions]
    longest = max(len(prompt.input_ids) for prompt in prompts)
    check(engine, (longest + NEW_TOKENS) // 16 + 2, prompts, expected, draw)
