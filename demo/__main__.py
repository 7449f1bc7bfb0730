"""`make demo`: handwritten digits through encoder, prefill and decode as separate processes.

Starts manifests/examples/01-handwriting-epd.yaml with `rbg up`, sends images made of digits that the model
never saw, prints what it sent and what came back with TTFT and a waterfall per request, and takes everything
down. Exits non-zero if a request fails or fewer than 9 in 10 digits are right.
"""

from __future__ import annotations

import asyncio
import difflib
import sys
import time
from collections.abc import Sequence

import aiohttp
from rich.console import Console

from demo.client import Reply, RequestFailedError, ask
from demo.conversation import numbers_in
from demo.digits import NumberImage, heldout
from demo.display import FULL_SCALE, draw, waterfall
from demo.group import GroupError, running_group

SEED = 7
REQUIRED = 0.9
COLUMNS_OF_PICTURE = 40  # at least, where several images share a line
ONE_IMAGE = "What number is in the image?"
MANY_IMAGES = "What numbers are in the images?"


def requests_to_send() -> list[list[NumberImage]]:
    """One image with 1, 2, … 8 digits (the larger ones in two rows), then eight images in one request."""
    layouts = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2), (8, 2)]
    single = [[next(heldout(SEED + index, digits, rows))] for index, (digits, rows) in enumerate(layouts)]
    small = [next(heldout(100 + SEED + index, 1 + index % 4, 1)) for index in range(8)]
    return [*single, small]


def digits_right(expected: Sequence[str], answered: Sequence[str]) -> int:
    """Digits that are right and in their place; a missing or extra digit costs itself, not all that follow it."""
    right = 0
    for index, number in enumerate(expected):
        answer = answered[index] if index < len(answered) else ""
        right += sum(block.size for block in difflib.SequenceMatcher(None, number, answer, False).get_matching_blocks())
    return right


def show(console: Console, sent: list[NumberImage], reply: Reply) -> tuple[int, int]:
    """Print one exchange; returns (digits right, digits sent)."""
    abreast = max(min(len(sent), console.width // COLUMNS_OF_PICTURE), 1)
    scale = min(FULL_SCALE, (console.width / abreast - 3) / max(item.image.width for item in sent))
    for start in range(0, len(sent), abreast):
        pictures = [draw(item.image, scale).split("\n") for item in sent[start : start + abreast]]
        widths = [max(map(len, picture)) + 2 for picture in pictures]
        for line in range(max(map(len, pictures))):
            cells = (picture[line] if line < len(picture) else "" for picture in pictures)
            console.print("".join(f"{cell:<{size}}" for cell, size in zip(cells, widths, strict=True)), markup=False)
    expected = [item.number for item in sent]
    right, total = digits_right(expected, numbers_in(reply.text)), sum(map(len, expected))
    wrong = f"[red]{right} of {total} digits right[/], sent {', '.join(expected)}"
    console.print(f"[bold]{reply.text}[/]  {'[green]right[/]' if right == total else wrong}", highlight=False)
    console.print(
        f"  {len(sent)} image{'s' * (len(sent) > 1)}, {reply.prompt_tokens} prompt tokens, {reply.num_tokens} new; "
        f"TTFT {1000 * reply.ttft:.0f} ms, total {1000 * reply.total:.0f} ms",
        highlight=False,
    )
    console.print(waterfall(reply.spans, reply.sent_at, reply.total))
    return right, total


async def converse(console: Console, url: str) -> tuple[int, int]:
    """Send every request, one after the other; returns (digits right, digits sent)."""
    right = total = 0
    async with aiohttp.ClientSession() as session:
        for number, sent in enumerate(requests_to_send(), 1):
            console.rule(f"request {number}", style="dim")
            reply = await ask(session, url, ONE_IMAGE if len(sent) == 1 else MANY_IMAGES, [item.image for item in sent])
            counts = show(console, sent, reply)
            right, total = right + counts[0], total + counts[1]
    return right, total


def main() -> int:
    """Run the demonstration; returns the exit status."""
    console = Console(soft_wrap=True)
    started = time.monotonic()
    try:
        with running_group(console) as url:
            console.print(f"Sending held-out digits to the router at {url} …", highlight=False)
            right, total = asyncio.run(converse(console, url))
    except (GroupError, RequestFailedError, aiohttp.ClientError, TimeoutError) as error:
        console.print(f"[red]The demonstration failed:[/] {error}", highlight=False)
        return 1
    console.rule(style="dim")
    console.print(
        f"{right} of {total} digits right ({100 * right / total:.1f} %) in {time.monotonic() - started:.1f} s, "
        "starting and stopping included.",
        highlight=False,
    )
    if right < REQUIRED * total:
        console.print(f"[red]Fewer than {100 * REQUIRED:.0f} % of the digits are right.[/]")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
