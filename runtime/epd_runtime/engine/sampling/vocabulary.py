"""The bytes that every token stands for, as grammars must know them."""

from __future__ import annotations

import json
import re

import tokenizers

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
PRINTABLE = [
    *range(0x21, 0x7F),
    *range(0xA1, 0xAD),
    *range(0xAE, 0x100),
]  # bytes that byte-level BPE writes as they are


def spell_tokens(tokenizer: tokenizers.Tokenizer, size: int) -> list[bytes]:
    """Bytes of tokens 0 to size - 1; empty for special tokens and unused ids, which no text contains."""
    decoder = json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
    is_byte_level, has_byte_tokens = '"ByteLevel"' in decoder, '"ByteFallback"' in decoder
    added = tokenizer.get_added_tokens_decoder()
    alphabet = _byte_level_alphabet()
    spelling = [b""] * size
    for text, token in tokenizer.get_vocab(with_added_tokens=True).items():
        if token >= size:
            continue
        if token in added:
            spelling[token] = b"" if added[token].special else text.encode()
        elif is_byte_level:
            spelling[token] = b"".join(alphabet.get(letter, letter.encode()) for letter in text)
        elif has_byte_tokens and (match := BYTE_TOKEN.fullmatch(text)):
            spelling[token] = bytes.fromhex(match[1])
        else:
            spelling[token] = text.replace("\u2581", " ").encode()  # SentencePiece's space
    return spelling


def _byte_level_alphabet() -> dict[str, bytes]:
    """Letters of byte-level BPE (GPT-2): printable bytes are themselves, the others are numbered from U+0100 on."""
    others = [byte for byte in range(256) if byte not in PRINTABLE]
    letters = {chr(byte): bytes([byte]) for byte in PRINTABLE}
    return letters | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}
