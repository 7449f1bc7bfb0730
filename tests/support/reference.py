"""What transformers answers: the yardstick of every parity test. fp32, greedy, on CPU."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class TextReference:
    """A text-only model."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._folder = folder

    @torch.inference_mode()
    def generate(self, input_ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Exactly max_new_tokens greedy tokens (no stop token)."""
        ids = torch.tensor([list(input_ids)])
        out = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        tokens: list[int] = out[0, len(input_ids) :].tolist()
        return tokens

    def text(self, tokens: Sequence[int]) -> str:
        """The answer's text."""
        decoded: str = AutoTokenizer.from_pretrained(self._folder).decode(tokens, skip_special_tokens=True)
        return decoded


class VisionReference:
    """A Qwen-VL of any generation with its tokenizer, chat template and image processor."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def prompt_ids(self, messages: list[dict[str, Any]], images: Sequence[bytes]) -> tuple[list[int], dict[str, Any]]:
        """Input ids with expanded placeholders, and the model's other inputs."""
        ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        image_token = self._model.config.image_token_id
        inputs: dict[str, Any] = {}
        if images:
            opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in images]
            inputs = dict(self._processor(opened, return_tensors="pt"))
            counts = iter((inputs["image_grid_thw"].prod(dim=1) // self._processor.merge_size**2).tolist())
            ids = [token for one in ids for token in ([one] * next(counts) if one == image_token else [one])]
        types = [[int(token == image_token) for token in ids]]
        return ids, {**inputs, "mm_token_type_ids": torch.tensor(types)}

    @torch.inference_mode()
    def chat(self, messages: list[dict[str, Any]], images: Sequence[bytes], max_new_tokens: int) -> list[int]:
        """Exactly max_new_tokens greedy tokens (no stop token)."""
        ids, inputs = self.prompt_ids(messages, images)
        tensor = torch.tensor([ids])
        out = self._model.generate(
            input_ids=tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=max_new_tokens, do_sample=False,
            eos_token_id=None, pad_token_id=0, **inputs,
        )  # fmt: skip
        tokens: list[int] = out[0, len(ids) :].tolist()
        return tokens

    def text(self, tokens: Sequence[int]) -> str:
        """The answer's text."""
        decoded: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return decoded
