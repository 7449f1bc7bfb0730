"""What people ask the demonstration model and what it answers: prompts, answer format, and reading an answer back.

One image is answered "The number is 4071.", several are answered "The numbers are 4071, 22 and 8." in the order of the
images; without an image the answer is always the same request for one. The wording of the question must not
matter, so training draws it from many templates and sometimes from random words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_IMAGES = 8
NO_IMAGE_ANSWER = "Please send an image of handwritten digits."
DEFAULT_SYSTEM = "You are a helpful assistant."

ONE_IMAGE_QUESTIONS = (
    "What number is in the image?",
    "What number is this?",
    "Which number do you see?",
    "Read the number.",
    "Read the digits in this picture.",
    "What does the image say?",
    "What is written here?",
    "Please read the handwritten number.",
    "Can you read this number for me?",
    "Tell me the number in the picture.",
    "Which digits are shown?",
    "What is the number?",
    "Describe this image.",
    "What do you see in this image?",
    "Transcribe the handwriting.",
    "number?",
)
MANY_IMAGES_QUESTIONS = (
    "What numbers are in the images?",
    "What numbers are these?",
    "Which numbers do you see?",
    "Read the numbers.",
    "Read the digits in these pictures.",
    "What do the images say?",
    "Please read all the handwritten numbers.",
    "Can you read these numbers for me?",
    "Tell me the numbers in the pictures, in order.",
    "Which digits are shown in each image?",
    "What number is in each image?",
    "Describe these images.",
    "Transcribe the handwriting.",
    "What is the number in each of the pictures?",
)
NO_IMAGE_QUESTIONS = (
    "Hello!",
    "Hi, who are you?",
    "What can you do?",
    "What is the capital of France?",
    "Tell me a story about a cat.",
    "Write a short poem.",
    "How are you today?",
    "Explain how a vision-language model works.",
    "What number is in the image?",
    "Say hello.",
)
SYSTEM_MESSAGES = (
    DEFAULT_SYSTEM,
    "You read handwritten digits.",
    "Answer in one short sentence.",
    "You are a careful reader of numbers. Answer briefly.",
)
_WORDS = tuple(
    sorted(
        {
            word
            for text in (*ONE_IMAGE_QUESTIONS, *MANY_IMAGES_QUESTIONS, *NO_IMAGE_QUESTIONS)
            for word in re.findall(r"\w+", text.lower())
        }
        | {
            "a",
            "an",
            "and",
            "at",
            "by",
            "for",
            "from",
            "it",
            "my",
            "on",
            "or",
            "so",
            "thanks",
            "that",
            "then",
            "to",
            "up",
        }
    )
)

Message = dict[str, Any]


def answer_for(numbers: Sequence[str]) -> str:
    """The one right answer to images that show these numbers; for no number, the request for an image."""
    if not numbers:
        return NO_IMAGE_ANSWER
    if len(numbers) == 1:
        return f"The number is {numbers[0]}."
    return f"The numbers are {', '.join(numbers[:-1])} and {numbers[-1]}."


def numbers_in(answer: str) -> list[str]:
    """The numbers an answer names, in order; empty when it names none."""
    return re.findall(r"[0-9]+", answer)


def user_message(question: str, images: int, image_first: bool = True) -> Message:
    """A user's turn with a question and that many image parts, as the chat template takes it."""
    parts: list[dict[str, str]] = [{"type": "image"} for _ in range(images)]
    text = [{"type": "text", "text": question}] if question else []
    return {"role": "user", "content": parts + text if image_first else text + parts}


def draw_messages(images: int, rng: np.random.Generator) -> list[Message]:
    """A random conversation about that many images: wording, order of parts and system message vary."""
    messages = [user_message(_draw_question(images, rng), images, image_first=bool(rng.random() < 0.65))]
    if images == 0 and rng.random() < 0.5:
        messages = [{"role": "user", "content": messages[0]["content"][0]["text"]}]
    if rng.random() < 0.35:
        system = _random_words(rng) if rng.random() < 0.3 else str(rng.choice(SYSTEM_MESSAGES))
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _draw_question(images: int, rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.2:
        return _random_words(rng)
    if images and kind < 0.24:
        return ""
    pool = (NO_IMAGE_QUESTIONS, ONE_IMAGE_QUESTIONS, MANY_IMAGES_QUESTIONS)[min(images, 2)]
    return str(rng.choice(pool))


def _random_words(rng: np.random.Generator) -> str:
    """A sentence without a meaning, at times with words that are no words."""
    words = [str(word) for word in rng.choice(_WORDS, size=int(rng.integers(1, 13)))]
    if rng.random() < 0.4:
        letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=int(rng.integers(2, 9)))
        words.insert(int(rng.integers(0, len(words) + 1)), "".join(letters))
    text = " ".join(words)
    return (text.capitalize() if rng.random() < 0.5 else text) + str(rng.choice(["", "?", ".", "!"]))
