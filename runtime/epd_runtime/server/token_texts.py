"""What single tokens look like, for logprobs and /tokenize."""

from __future__ import annotations

import functools
import re

import tokenizers

CACHED_TOKENS = 1 << 16
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """Characters of byte-level vocabularies and their bytes: printable Latin-1 stands for itself, the rest follows."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    shifted = {chr(256 + index): byte for index, byte in enumerate(others)}
    return {**{chr(byte): byte for byte in plain}, **shifted}


ALPHABET = _byte_alphabet()


class TokenTexts:
    """Texts and bytes of single tokens, remembered."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.of = functools.lru_cache(CACHED_TOKENS)(self._of)

    def _of(self, token: int) -> tuple[str, bytes]:
        """(text, bytes) of a token; part of a character is spelt like bytes:\\xe2\\x82."""
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        if "\ufffd" not in text:
            return text, text.encode()
        data = self._bytes(self._tokenizer.id_to_token(token) or "")
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data

    @staticmethod
    def _bytes(piece: str) -> bytes:
        if match := BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match[1], 16)])
        if all(char in ALPHABET for char in piece):
            return bytes(ALPHABET[char] for char in piece)
        return piece.encode()
