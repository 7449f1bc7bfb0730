"""Train the demonstration model, or measure it.

    python -m demo.train --out models/handwriting         trains and writes the model
    python -m demo.train --evaluate models/handwriting    reads held-out digits with transformers

Training is deterministic: batch number i is drawn from (seed, i) alone, threads and algorithms are fixed. The same
packages on the same kind of processor give the same weights to the last bit; another processor sums in another order.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging

from demo import architecture, evaluate
from demo.batches import IGNORED_LABEL, Difficulty, Example, ExampleSource, Processor
from demo.digits import Split
from demo.distortion import Distortion
from demo.muon import Muon
from demo.tokenizer import save_tokenizer


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the weights."""

    steps: int = 1700
    threads: int = 1
    seed: int = 0
    batch_images: int = 48
    learning_rate: float = 2e-3  # AdamW: embeddings, norms, biases, output
    matrix_learning_rate: float = 0.02  # Muon: all other matrices
    warmup: int = 50
    weight_decay: float = 0.02
    naming_weight: float = 0.5  # of the loss of digits under image tokens
    average_decay: float = 0.997  # of the exponential average of the weights, which is what gets saved
    report_every: int = 50
    validate_every: int = 200
    validation_images: int = 10  # of each layout


def draw_examples(step: int, settings: Settings, source: ExampleSource) -> list[Example]:
    """The conversations of a step: images are distorted more and more, every other step has several."""
    rng = np.random.default_rng((settings.seed, step))
    progress = step / settings.steps
    distortion = Distortion().at(min(0.2 + 2 * progress, 1.0))
    if progress < 0.1:
        return source.single(settings.batch_images, Difficulty(distortion, digits=4), rng)
    if step % 2:
        images = 4 if progress < 0.2 else 8
        return source.several(settings.batch_images, Difficulty(distortion, images=images), rng)
    return source.single(settings.batch_images, Difficulty(distortion), rng)


def learning_rate_factor(step: int, settings: Settings) -> float:
    """Linear warm-up to 1, then a cosine down to a hundredth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def losses_of(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answers' tokens, and of the digits under the image tokens.

    The second makes each image token name the digit that it covers. Without it the model must find out what a digit
    looks like and where to look at once, and long stays where it began.
    """
    labels, covered = inputs.pop("labels")[:, 1:], inputs.pop("covered")
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    wanted, named = labels != IGNORED_LABEL, covered != IGNORED_LABEL
    answer = functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), labels[wanted])
    naming = functional.cross_entropy(model.lm_head(hidden[named]), covered[named])
    return answer, naming


def make_deterministic(settings: Settings) -> None:
    """Fix all that torch would otherwise choose by itself, and keep the progress lines the only output."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for everything else, on one schedule."""

    def __init__(self, model: Any, settings: Settings) -> None:
        self._model, self._settings = model, settings
        outer = ("embed", "lm_head")
        named = list(model.named_parameters())
        inner = {name for name, p in named if p.ndim == 2 and not any(part in name for part in outer)}
        self._muon = Muon([p for name, p in named if name in inner], 0.0, settings.weight_decay)
        others = [p for name, p in named if name not in inner]
        self._adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)

    def step(self, step: int) -> None:
        """Apply and clear the gradients of step number `step`."""
        factor = learning_rate_factor(step, self._settings)
        self._muon.learning_rate = self._settings.matrix_learning_rate * factor
        self._adam.param_groups[0]["lr"] = self._settings.learning_rate * factor
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._muon.step()
        self._adam.step()
        self._model.zero_grad()


class WeightAverage:
    """A second model whose weights are an exponential average of the first one's over the recent steps."""

    def __init__(self, model: Any, decay: float) -> None:
        self.model, self._decay = copy.deepcopy(model), decay
        self._pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`; early on the average is shorter."""
        decay = min(self._decay, step / (step + 10))
        for average, current in self._pairs:
            average.lerp_(current, 1 - decay)


def train(folder: Path, settings: Settings) -> None:
    """Train a new model and write it to the folder in Hugging Face layout."""
    make_deterministic(settings)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(folder)
    architecture.save_preprocessor_config(folder)
    processor = Processor(folder)
    model: Any = Qwen2_5_VLForConditionalGeneration(architecture.model_config(tokenizer)).train()
    optimizer, average = Optimizer(model, settings), WeightAverage(model, settings.average_decay)
    source, started, losses = ExampleSource(Split.TRAIN), time.monotonic(), []
    for step in range(settings.steps):
        inputs = processor.batch(draw_examples(step, settings, source), with_answer=True)
        answer, naming = losses_of(model, inputs)
        torch.autograd.backward(answer + settings.naming_weight * naming)
        optimizer.step(step)
        average.update(step)
        losses.append((answer.item(), naming.item()))
        done = step + 1
        if done % settings.report_every == 0 or done == settings.steps:
            _print_progress(done, losses, started, settings)
            losses.clear()
        if done % settings.validate_every == 0 or done == settings.steps:
            average.model.save_pretrained(folder)
            architecture.save_generation_config(folder, tokenizer)
            _print_validation(average.model, processor, settings)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    print(f"model.safetensors sha256 {digest}")


def _print_progress(done: int, losses: list[tuple[float, float]], started: float, settings: Settings) -> None:
    elapsed = time.monotonic() - started
    left = elapsed / done * (settings.steps - done)
    answer, naming = np.mean(losses, axis=0)
    print(
        f"step {done:5}/{settings.steps}  loss: answer {answer:.4f} naming {naming:.4f}  {elapsed / done:.2f} s/step  "
        f"elapsed {elapsed:.0f} s  left {left:.0f} s",
        flush=True,
    )


def _print_validation(model: Any, processor: Processor, settings: Settings) -> None:
    model.eval()
    results = evaluate.evaluate(model, processor, Split.VALIDATION, settings.validation_images)
    total = sum((result for _, result in results), evaluate.Score())
    model.train()
    print(f"validation: {total.digit_accuracy:.2%} of {total.digits} digits right", flush=True)


def main() -> None:
    """Command line of `python -m demo.train`."""
    parser = argparse.ArgumentParser(prog="demo.train", description="Train or measure the handwritten-digits model.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FOLDER", help="Train and write the model here.")
    what.add_argument("--evaluate", type=Path, metavar="FOLDER", help="Measure this model on held-out digits.")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="Training steps (default: %(default)s).")
    parser.add_argument("--threads", type=int, default=Settings.threads, help="CPU threads (default: %(default)s).")
    parser.add_argument("--seed", type=int, default=Settings.seed, help="Seed of weights and data.")
    parser.add_argument("--images", type=int, default=200, help="Test images per layout (default: %(default)s).")
    parser.add_argument("--split", type=Split, default=Split.TEST, choices=list(Split), help="Digits to measure on.")
    options = parser.parse_args()
    settings = Settings(steps=options.steps, threads=options.threads, seed=options.seed)
    if options.out is not None:
        train(options.out, settings)
    else:
        torch.set_num_threads(settings.threads)
        evaluate.report(options.evaluate, options.split, options.images)


if __name__ == "__main__":
    main()
