"""How many pages a request needs, and what it shares with others through the prefix cache.

A request is admitted when there are pages for all tokens it has, and beside them a reserve: room for `reserve` more
tokens of every running request and of itself. Then it grows page by page. With nobody running there is nothing to
reserve for, so whatever fits alone is admitted.
"""

from __future__ import annotations

from collections.abc import Iterable

from epd_runtime.engine.request import Request
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.page_keys import page_keys
from epd_runtime.kvcache.prefix_cache import Holding, Node, PrefixCache


class RequestMemory:
    """The pages of all requests of one scheduler."""

    def __init__(self, allocator: PageAllocator, page_size: int, reserve: int, keeps_prefixes: bool) -> None:
        """reserve: tokens."""
        self.cache = PrefixCache(allocator, keeps_prefixes)
        self._page_size = page_size
        self._reserve = reserve

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold that many tokens."""
        return -(-num_tokens // self._page_size)

    def match(self, request: Request) -> list[Node]:
        """Cached pages that the request begins with; at least one token is left to compute."""
        if not self.cache.is_enabled:
            return []
        return self.cache.match(self._known_keys(request, self._most_cached(request) // self._page_size))

    def num_cached(self, path: list[Node]) -> int:
        """Tokens of a path."""
        return len(path) * self._page_size

    def fits(self, request: Request, path: list[Node], running: Iterable[Request]) -> bool:
        """Whether the request, with that cached path, can be admitted beside the running ones."""
        available = self.cache.num_available - sum(node.users == 0 for node in path)
        available -= self._ahead(request) - len(path)
        return available >= 0 and available >= sum(max(self._ahead(one) - len(one.pages), 0) for one in running)

    def admit(self, request: Request, path: list[Node]) -> None:
        """Give a request that fits its pages."""
        holding = self.cache.open(path, self.pages_for(request.total_length))
        assert holding is not None
        request.holding = holding
        request.num_computed = self.num_cached(path)
        request.num_valid = self.num_cached([node for node in path if node.is_proven])

    def grow(self, request: Request) -> bool:
        """Make room for the next token; False if there is no page for it."""
        return self.cache.grow(request.holding, self.pages_for(request.num_computed + 1))

    def publish(self, request: Request, num_computed: int) -> None:
        """Let others begin with what the request has computed so far; it is kept only if it proves valid."""
        self._share(request, num_computed)

    def share(self, request: Request) -> None:
        """Offer the request's full and valid pages to others, for good."""
        self._share(request, request.num_valid)
        self.cache.prove(request.holding, request.num_valid // self._page_size)

    def discredit(self, request: Request) -> None:
        """What the request computed led to no valid token: nobody else may begin with it."""
        self.cache.discredit(request.holding)

    def release(self, request: Request) -> None:
        """Take a request's pages back, keeping what others can use."""
        self.share(request)
        self.cache.close(request.surrender())
        request.num_computed = request.num_valid = 0

    def close(self, holding: Holding) -> None:
        """Take back the pages of a request that is gone."""
        self.cache.close(holding)

    def _share(self, request: Request, num_tokens: int) -> None:
        num_full, num_shared = num_tokens // self._page_size, len(request.holding.nodes)
        if self.cache.is_enabled and num_full > num_shared:
            self.cache.share(request.holding, self._known_keys(request, num_full)[num_shared:])

    def _ahead(self, request: Request) -> int:
        """Pages for the tokens that the request has and those that it may soon have."""
        return self.pages_for(min(request.total_length + self._reserve, request.num_slots))

    def _most_cached(self, request: Request) -> int:
        """Tokens that may come from the cache: those whose logits nobody asks for."""
        wanted = request.sampling.prompt_logprobs_from
        if wanted >= 0 and not request.output_ids:
            return min(max(wanted - 1, 0), request.total_length - 1)
        return request.total_length - 1

    def _known_keys(self, request: Request, count: int) -> list[bytes]:
        """Keys of the request's first pages; each is made once."""
        keys = request.page_keys
        if len(keys) < count:
            first = len(keys) * self._page_size
            keys += page_keys(request.tokens(first, count * self._page_size), first, request.images, self._page_size)
        return keys[:count]
