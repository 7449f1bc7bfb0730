"""The tokenizer as xgrammar knows it, in the engine and in its compile server alike."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import tokenizers
import xgrammar

from epd_runtime.engine.sampling.compile_wire import Setup
from epd_runtime.engine.sampling.vocabulary import spell_tokens

CONTROL = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f]")  # bytes that xgrammar's strings may contain, and JSON's not


class TokenizerInfos:
    """Made when they are first asked for: a large vocabulary takes a second."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def of(self, kind: str) -> xgrammar.TokenizerInfo:
        """For a Grammar of this kind."""
        return self._of_json if kind.startswith("json") else self._of_text

    @functools.cached_property
    def _of_text(self) -> xgrammar.TokenizerInfo:
        return self._open(self._spellings)

    @functools.cached_property
    def _of_json(self) -> xgrammar.TokenizerInfo:
        """Where a schema bounds a string's length, xgrammar lets control characters into it, which JSON does not."""
        return self._open([b"" if CONTROL.search(one) else one for one in self._spellings])

    @functools.cached_property
    def _spellings(self) -> list[bytes]:
        tokenizer = tokenizers.Tokenizer.from_file(str(Path(self._setup.folder) / "tokenizer.json"))
        return spell_tokens(tokenizer, self._setup.vocab_size)

    def _open(self, spellings: list[bytes]) -> xgrammar.TokenizerInfo:
        return xgrammar.TokenizerInfo(
            spellings,
            xgrammar.VocabType.RAW,
            vocab_size=self._setup.vocab_size,
            stop_token_ids=sorted(token for token in self._setup.eos_token_ids if token < self._setup.vocab_size),
        )
