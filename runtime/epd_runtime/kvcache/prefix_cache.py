"""KV pages of prompts and answers seen before: a tree whose edges are pages, and what a request holds of it.

Who owns a page (PageAllocator counts all three):

    free ──allocate()──▶ used ──last user closes──▶ idle      in the tree, nobody's; freed when somebody needs a page
      ▲                   │ ▲                        │ │
      └──── close() ──────┘ └──── open() of a hit ───┘ │      close(): a page that the tree does not have, or unproven
      └──────────────── least recently used ───────────┘

A path from the root spells a sequence of tokens, page by page; a node owns the page with the KV of its last page_size
tokens. A request *uses* a path (every node counts its users) and *owns* the pages behind it. share() turns owned pages
into nodes; where the tree has an equal node already the request uses that one too but goes on with its own copy, so the
pages of a request never change while somebody may be reading them (a transfer, a step under way).

Whoever uses a node uses its parent, so below an idle node all are idle: every idle page can be freed, leaves first.

A node is *proven* when its page led to valid probabilities. Others can use it before, but it goes with its last user;
one whose user met NaN is cut off, with all below it, so that nobody else finds it. Above a proven node all are proven.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from epd_runtime.kvcache.allocator import PageAllocator

NO_PAGES: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)


class Node:
    """One cached page. Its key is its own tokens (page_keys.py); the tokens before it are its ancestors'."""

    __slots__ = ("children", "is_proven", "key", "last_used", "page", "parent", "users")

    def __init__(self, key: bytes, page: int, parent: Node | None) -> None:
        self.key = key
        self.page = page
        self.parent = parent  # None: the root, or a node that was evicted or cut off
        self.children: dict[bytes, Node] = {}
        self.users = 0  # requests
        self.is_proven = False
        self.last_used = 0  # PrefixCache's clock when the last user closed

    @property
    def is_evictable(self) -> bool:
        """Whether the page can be freed now."""
        return self.users == 0 and not self.children and self.parent is not None


class Holding:
    """The pages of one request, in the order of its tokens."""

    __slots__ = ("nodes", "owned", "pages", "table")

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.table = NO_PAGES  # pages, int64 [len(pages)], as every step needs them
        self.nodes: list[Node] = []  # used; node i is about the same tokens as pages[i]
        self.owned: dict[int, None] = {}  # those of the pages that are in no node; a set that keeps its order

    def append(self, pages: Sequence[int]) -> None:
        """Pages behind those held; the caller accounts for them."""
        self.pages.extend(pages)
        self.table = np.asarray(self.pages, dtype=np.int64)


class PrefixCache:
    """Gives pages to requests and keeps what they leave; with is_enabled False it keeps nothing."""

    def __init__(self, allocator: PageAllocator, is_enabled: bool = True) -> None:
        self.is_enabled = is_enabled
        self.num_evicted = 0  # pages, since the start
        self.num_changes = 0  # grows whenever pages come free or can be found
        self._allocator = allocator
        self._root = Node(b"", -1, None)
        self._clock = 0
        self._serial = itertools.count()
        self._leaves: list[tuple[int, int, Node]] = []  # heap by last use; entries whose node changed are stale

    @property
    def num_available(self) -> int:
        """Pages that allocations can get."""
        return self._allocator.num_free + self._allocator.num_idle

    def match(self, keys: Sequence[bytes]) -> list[Node]:
        """The longest cached path of these pages, without using it."""
        path: list[Node] = []
        node: Node | None = self._root
        for key in keys if self.is_enabled else ():
            if (node := node.children.get(key) if node else None) is None:
                break
            path.append(node)
        return path

    def open(self, path: Sequence[Node], num_pages: int) -> Holding | None:
        """Use a path and own pages behind it, num_pages in all; None if there are too few."""
        holding = Holding()
        holding.nodes = list(path)
        for node in path:
            self._use(node)
        holding.append([node.page for node in path])
        if not self.grow(holding, num_pages):
            self.close(holding)
            return None
        return holding

    def grow(self, holding: Holding, num_pages: int) -> bool:
        """Own more pages, so that the holding has num_pages; False, and nothing changed, if there are too few."""
        count = num_pages - len(holding.pages)
        if count <= 0:
            return True
        if count > self.num_available:
            return False
        self._evict(count - self._allocator.num_free)
        pages = self._allocator.allocate(count)
        assert pages is not None
        holding.owned.update(dict.fromkeys(pages))
        holding.append(pages)
        return True

    def share(self, holding: Holding, keys: Sequence[bytes]) -> None:
        """Put the pages behind the used path, one for each key, into the tree: they are full."""
        if not self.is_enabled:
            return
        self.num_changes += 1
        parent = holding.nodes[-1] if holding.nodes else self._root
        for key in keys:
            page = holding.pages[len(holding.nodes)]
            node = parent.children.get(key)
            if node is None:
                node = parent.children[key] = Node(key, page, parent)
                node.users = 1
                del holding.owned[page]
            else:
                self._use(node)
            holding.nodes.append(node)
            parent = node

    def prove(self, holding: Holding, count: int) -> None:
        """The first count pages led to valid probabilities."""
        for node, page in zip(holding.nodes[:count], holding.pages, strict=False):
            if not node.is_proven and (node.page != page or node.parent is None):
                return  # another's copy, or cut off
            node.is_proven = True

    def discredit(self, holding: Holding) -> None:
        """The pages led to NaN: those that are not proven are found by nobody else."""
        for node in holding.nodes:
            if not node.is_proven:
                _cut_off(node)
                return

    def close(self, holding: Holding) -> None:
        """Give everything up: with their last user proven nodes become idle and others free, as owned pages do."""
        self._clock += 1
        self.num_changes += 1
        for node in reversed(holding.nodes):
            node.users -= 1
            if node.users == 0 and node.is_proven:
                node.last_used = self._clock
                self._allocator.rest(node.page)
                self._offer(node)
            elif node.users == 0:
                _cut_off(node)
                self._allocator.free([node.page])
        self._allocator.free(list(holding.owned))
        holding.pages, holding.table, holding.nodes, holding.owned = [], NO_PAGES, [], {}

    def flush(self) -> None:
        """Forget every page that nobody uses."""
        self._evict(self._allocator.num_idle)

    def _use(self, node: Node) -> None:
        if node.users == 0:
            self._allocator.wake(node.page)
        node.users += 1

    def _offer(self, node: Node) -> None:
        """A node may have become evictable."""
        if not node.is_evictable:
            return
        heapq.heappush(self._leaves, (node.last_used, next(self._serial), node))
        if len(self._leaves) > 2 * self._allocator.num_idle + 64:
            self._leaves = [entry for entry in self._leaves if _is_current(entry)]
            heapq.heapify(self._leaves)

    def _evict(self, count: int) -> None:
        """Free that many idle pages, those used longest ago first."""
        while count > 0:
            entry = heapq.heappop(self._leaves)
            if _is_current(entry):
                self._remove(entry[2])
                count -= 1

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        _cut_off(node)
        self._allocator.free([node.page])
        self.num_evicted += 1
        self._offer(parent)


def _cut_off(node: Node) -> None:
    """Nobody finds the node any more."""
    if node.parent is not None:
        del node.parent.children[node.key]
        node.parent = None


def _is_current(entry: tuple[int, int, Node]) -> bool:
    return entry[2].is_evictable and entry[2].last_used == entry[0]
