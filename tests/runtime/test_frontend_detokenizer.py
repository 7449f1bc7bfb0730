"""Incremental text: joined pieces equal the whole, characters stay whole, stop strings never leak."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from epd_runtime.frontend.detokenizer import Detokenizer, StopMatcher

HANDWRITING = Path(__file__).parents[2] / "models" / "handwriting"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(HANDWRITING / "tokenizer.json"))


def test_pieces_join_to_the_whole(tokenizer: Tokenizer) -> None:
    draw = random.Random(5)
    size = tokenizer.get_vocab_size()
    for _ in range(2000):
        ids = [draw.randrange(size + 3) for _ in range(draw.randint(1, 30))]
        stream = Detokenizer(tokenizer)
        pieces = [stream.feed([token])[0] for token in ids]
        rest, _ = stream.finish()
        assert "".join(pieces) + rest == tokenizer.decode(ids)


def test_characters_are_never_split(tokenizer: Tokenizer) -> None:
    text = "naïve 🙂🙃 日本語 ✓"
    stream = Detokenizer(tokenizer)
    pieces = [stream.feed([token])[0] for token in tokenizer.encode(text).ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text
    assert stream.finish() == ("", None)


def test_incomplete_characters_appear_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂").ids
    assert len(ids) > 1
    stream = Detokenizer(tokenizer)
    assert stream.feed(ids[:-1]) == ("", None)
    assert stream.finish() == (tokenizer.decode(ids[:-1]), None)


def test_special_tokens_on_request(tokenizer: Tokenizer) -> None:
    end = tokenizer.token_to_id("<|im_end|>")
    assert Detokenizer(tokenizer).feed([end]) == ("", None)
    assert Detokenizer(tokenizer, skip_special=False).feed([end]) == ("<|im_end|>", None)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.randoms())
def test_stop_matcher_cuts_where_a_stop_first_completes(text: str, stops: list[str], draw: random.Random) -> None:
    matcher, shown, matched = StopMatcher(stops), "", None
    for character in text:
        piece, matched = matcher.feed(character)
        shown += piece
        assert all(stop not in shown for stop in stops)
        if matched is not None:
            break
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if matched is None:
        assert not ends
        assert shown + matcher.flush() == text
    else:
        consumed = text[: min(ends)]
        assert consumed.endswith(matched)
        assert consumed.startswith(shown)
        assert len(shown) == min(consumed.find(stop) for stop in stops if stop in consumed)


def test_stop_across_tokens_and_in_the_rest(tokenizer: Tokenizer) -> None:
    stream = Detokenizer(tokenizer, ["STOP"])
    shown, matched = "", None
    for token in tokenizer.encode("go on STILL and STOP here").ids:
        piece, matched = stream.feed([token])
        shown += piece
        if matched:
            break
    assert (shown, matched) == ("go on STILL and ", "STOP")
    stream = Detokenizer(tokenizer, ["STOP"])
    shown = "".join(stream.feed([token])[0] for token in tokenizer.encode("almost STO").ids)
    assert shown == "almost "
    assert stream.finish() == ("STO", None)
