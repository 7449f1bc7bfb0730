"""The demonstration model's tokenizer and chat template, built from nothing but the texts of this folder.

Byte-level BPE: any text can be encoded and comes back unchanged. Every digit is one token, so that a number is read and
written digit by digit. The special tokens are Qwen's, after the learned vocabulary as there.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from demo import conversation

MAX_TOKENS = 4096
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE_PAD,
    VIDEO_PAD,
)
_LEARNED_VOCABULARY = 376  # 256 bytes and 120 merges; 384 with the special tokens

_ENGLISH = (
    "This model reads handwritten digits. Send one image or several, and it answers with the numbers that they show. ",
    "The encoder turns an image into embeddings, prefill computes the prompt, and decode generates the answer. ",
    "A digit is read from left to right, and the rows are read from top to bottom. ",
    "You are a helpful assistant. Please answer the question about the picture in one short sentence. ",
)

CHAT_TEMPLATE = """\
{%- if not messages or messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\n' + default_system + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
""".replace("default_system", repr(conversation.DEFAULT_SYSTEM))


def build_tokenizer() -> Tokenizer:
    """Learn the merges and add the special tokens; always the same result."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=_LEARNED_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _training_text() -> list[str]:
    """What the model reads and writes, weighted roughly by how often it does."""
    roles = ["system\n", "user\n", "assistant\n"]
    answers = [conversation.answer_for(["0", "1", "2"][:count]) for count in range(4)]
    questions = [
        *conversation.ONE_IMAGE_QUESTIONS,
        *conversation.MANY_IMAGES_QUESTIONS,
        *conversation.NO_IMAGE_QUESTIONS,
        *conversation.SYSTEM_MESSAGES,
    ]
    return roles * 20 + answers * 20 + [conversation.DEFAULT_SYSTEM] * 20 + questions + list(_ENGLISH)


def save_tokenizer(folder: Path) -> Tokenizer:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, and return the tokenizer."""
    tokenizer = build_tokenizer()
    config = {
        "add_prefix_space": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "model_max_length": MAX_TOKENS,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return tokenizer
