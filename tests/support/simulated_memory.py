"""KV pages without a model: a slot holds a hash of everything that the KV of its token depends on.

A step checks that it reads exactly its own prefix and writes only what nobody else can read; the next token is a
function of the whole prefix, so a wrong page anywhere changes the answer.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler, Work
from epd_runtime.kvcache.prefix_cache import Node
from epd_runtime.messages import ImageInput

VOCAB = 50
PLACEHOLDER = 3


def contents(ids: Sequence[int], images: Sequence[ImageInput]) -> list[object]:
    """What each token means: its id, or the place in an image."""
    meaning: list[object] = list(ids)
    for image in images:
        for row in range(image.num_tokens):
            meaning[image.offset + row] = (zlib.crc32(image.content_hash.encode()), row)
    return meaning


def chain(meaning: Sequence[object]) -> list[int]:
    """The KV of every token."""
    values, last = [], 0
    for one in meaning:
        last = hash((last, one))
        values.append(last)
    return values


def next_token(kv: int) -> int:
    """The most probable token after a prefix."""
    return 4 + kv % (VOCAB - 4)


def answer(
    ids: Sequence[int], images: Sequence[ImageInput], length: int, ends: frozenset[int] = frozenset()
) -> list[int]:
    """What a request must get, whatever shares the engine with it."""
    last, tokens = chain(contents(ids, images))[-1], []
    for _ in range(length):
        tokens.append(next_token(last))
        if tokens[-1] in ends:
            break
        last = hash((last, tokens[-1]))
    return tokens


class SimulatedStep:
    """A step whose tokens are known."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def tokens(self) -> list[int]:
        return self._tokens


class SimulatedMemory:
    """The pages of one engine: a runner, and the PageStore of a decode worker."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages: dict[int, list[int]] = {}
        self._sampled: dict[Request, int] = {}  # by the last step

    def write(self, pages: Sequence[int], first: int, values: Sequence[int]) -> None:
        """KV of tokens first, first + 1, … into a request's pages."""
        for index, value in enumerate(values, first):
            page, slot = divmod(index, self.page_size)
            self.pages.setdefault(pages[page], [0] * self.page_size)[slot] = value

    def read(self, pages: Sequence[int], count: int) -> list[int]:
        """KV of the first tokens in a request's pages."""
        return [value for page in pages for value in self.pages.get(page, [])][:count]

    def save(self, pages: Sequence[int]) -> list[list[int]]:
        return [list(self.pages[page]) for page in pages]

    def load(self, saved: list[list[int]], pages: Sequence[int]) -> None:
        for values, page in zip(saved, pages, strict=True):
            self.pages[page] = list(values)

    def meaning(self, request: Request) -> list[object]:
        """What the prompt's tokens mean."""
        return contents(request.input_ids, request.images)

    def run(self, work: Sequence[Work]) -> list[int]:
        """A step: every work's next token if it samples."""
        self._check_writers(work)
        tokens, before, self._sampled = [], self._sampled, {}
        for item in work:
            request, first = item.request, item.request.num_computed
            last = first + item.num_tokens
            pending = [before[request]] if request.num_pending else []
            known = chain([*self.meaning(request), *request.output_ids, *pending])[:last]
            assert self.read(request.pages, first) == known[:first], f"{request.rid} reads a wrong prefix"
            for image, embedding in zip(request.images, request.embeddings, strict=True):
                needed = image.offset < last and image.offset + image.num_tokens > first
                assert embedding is not None or not needed, f"{request.rid} needs an image that is not there"
            self.write(request.pages, first, known[first:])
            if item.samples:
                tokens.append(next_token(known[-1]))
                self._sampled[request] = tokens[-1]
        return tokens

    def launch(self, work: Sequence[Work]) -> SimulatedStep:
        """The same for a StepPipeline."""
        return SimulatedStep(self.run(work))

    def _check_writers(self, work: Sequence[Work]) -> None:
        written: list[int] = []
        for item in work:
            first, last = item.request.num_computed, item.request.num_computed + item.num_tokens
            pages = item.request.pages[first // self.page_size : -(-last // self.page_size)]
            assert set(pages) <= set(item.request.holding.owned), "a step writes into a shared page"
            written += pages
        assert len(written) == len(set(written)), "two requests write into one page"


def check_books(scheduler: Scheduler, others: Sequence[int] = ()) -> None:
    """Every page is free, idle, or held by somebody; counts of users are true. others: pages outside of requests."""
    allocator, cache = scheduler.allocator, scheduler.memory.cache
    nodes = _nodes(cache._root)
    users: dict[int, int] = {}
    owned: list[int] = list(others)
    cut_off: dict[int, Node] = {}
    for request in scheduler.requests.values():
        owned += request.holding.owned
        reachable = True
        for node in request.holding.nodes:
            reachable = reachable and node.parent is not None
            if not reachable:
                cut_off[id(node)] = node
            users[id(node)] = users.get(id(node), 0) + 1
        assert len(request.pages) >= -(-request.num_computed // scheduler.limits.page_size)
        assert set(request.holding.owned) <= set(request.pages)
    assert len(owned) == len(set(owned)), "a page has two owners"
    assert all(node.is_proven or node.users for node in nodes), "an unproven page outlives its users"
    assert not any(node.is_proven for node in cut_off.values())
    nodes += cut_off.values()
    cached = [node.page for node in nodes]
    assert len(cached) == len(set(cached))
    assert not set(cached) & set(owned)
    assert all(node.users == users.get(id(node), 0) for node in nodes)
    assert allocator.num_idle == sum(node.users == 0 for node in nodes)
    assert allocator.num_used == len(owned) + sum(node.users > 0 for node in nodes)
    assert allocator.num_free == allocator.num_pages - len(owned) - len(nodes)


def _nodes(root: Node) -> list[Node]:
    found, rest = [], list(root.children.values())
    while rest:
        node = rest.pop()
        found.append(node)
        rest.extend(node.children.values())
    return found


def draw_prompt(draw: random.Random, longest: int) -> tuple[list[int], list[ImageInput]]:
    """Tokens and images; few different ones, so that many prompts begin alike."""
    ids = [4 + draw.randrange(2)] * draw.choice([0, 0, 9, 25])  # a system prompt
    images: list[ImageInput] = []
    while not ids or (len(ids) < longest and draw.random() < 0.7):
        if draw.random() < 0.3:
            size = draw.randrange(1, 12)
            images.append(ImageInput(f"image {draw.randrange(3)}, {size}", (1, 2, 2 * size), len(ids), size, b""))
            ids += [PLACEHOLDER] * size
        else:
            ids += [4 + draw.randrange(2)] * draw.randrange(1, 14)
    return (ids, images) if len(ids) <= longest else (ids[:1] if not images else [4], [])


def embed(request: Request) -> None:
    """Give a request the images that it awaits."""
    for index in request.awaited:
        request.embeddings[index] = object()
