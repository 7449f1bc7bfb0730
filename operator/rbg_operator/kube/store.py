"""The objects of one kind as last heard of, from lists, watches and the answers of our own writes.

These arrive in any order, so versions decide. All objects of a cluster count their versions with one counter, and a
watch tells changes in that order; therefore

- an older version never replaces a newer one,
- a deletion removes only what is older than the deletion, not a successor of the same name,
- the answer of a write that is older than what the watch has reached is ignored: the watch told that change already,
  and perhaps the deletion after it,
- a list removes what it does not contain, except what was written after it.

Versions that are not numbers cannot be compared; then what comes last is taken as newest.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from rbg_operator.kube.decoding import KubeObject

T = TypeVar("T", bound=KubeObject)
MAX_DIGITS = 20
Key = tuple[str, str]
"""(namespace, name)."""

OnChange = Callable[[T | None, T | None], None]
"""(old, new): old None for what appeared, new None for what vanished."""


class Store(Generic[T]):
    """Objects by (namespace, name) and by one index. Every change is told, whatever its source."""

    def __init__(self, on_change: OnChange[T], index: Callable[[T], Hashable | None] | None = None) -> None:
        """index: the key under which by_index finds an object, None for none."""
        self._objects: dict[Key, T] = {}
        self._indexed: dict[Hashable, dict[Key, T]] = {}
        self._index = index
        self._on_change = on_change
        self._reached: dict[str | None, str] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._objects.values()))

    def get(self, namespace: str, name: str) -> T | None:
        """The object, None if unknown."""
        return self._objects.get((namespace, name))

    def by_index(self, key: Hashable) -> tuple[T, ...]:
        """All objects with this index key."""
        return tuple(self._indexed.get(key, {}).values())

    def reached(self, namespace: str | None) -> str:
        """The version up to which all of a namespace (None: of all) was heard. KeyError before the first list."""
        return self._reached[namespace]

    def reach(self, namespace: str | None, version: str) -> None:
        """Everything up to this version was heard."""
        self._reached[namespace] = version

    def put(self, new: T) -> None:
        """A version of an object that was heard of."""
        key = _key(new)
        old = self._objects.get(key)
        if old is None or _newer(new, old.metadata.resource_version, unknown=_differs(new, old)):
            self._set(key, old, new)

    def put_written(self, written: T) -> None:
        """The answer of a write of ours."""
        reached = self._reached.get(written.metadata.namespace, self._reached.get(None))
        if reached is None or _newer(written, reached, unknown=True):
            self.put(written)

    def delete(self, last: T) -> None:
        """An object's deletion was heard of; last carries the version of the deletion."""
        key = _key(last)
        old = self._objects.get(key)
        if old is None:
            return
        successor = old.metadata.uid != last.metadata.uid
        if not _newer(old, last.metadata.resource_version, unknown=successor):
            self._set(key, old, None)

    def replace(self, namespace: str | None, listed: set[Key], version: str) -> None:
        """A list of this version contained these; what else is known of the namespace (None: all) vanished before."""
        for key, old in tuple(self._objects.items()):
            elsewhere = namespace is not None and key[0] != namespace
            if not elsewhere and key not in listed and not _newer(old, version, unknown=False):
                self._set(key, old, None)
        self.reach(namespace, version)

    def _set(self, key: Key, old: T | None, new: T | None) -> None:
        if old is not None and self._index is not None:
            self._unindex(key, self._index(old))
        if new is None:
            del self._objects[key]
        else:
            self._objects[key] = new
            if self._index is not None and (index_key := self._index(new)) is not None:
                self._indexed.setdefault(index_key, {})[key] = new
        self._on_change(old, new)

    def _unindex(self, key: Key, index_key: Hashable | None) -> None:
        if index_key is not None:
            bucket = self._indexed[index_key]
            del bucket[key]
            if not bucket:
                del self._indexed[index_key]


def _newer(item: KubeObject, than: str, *, unknown: bool) -> bool:
    """Whether an object is newer than a resource version; the answer for versions that cannot be compared is given."""
    version = item.metadata.resource_version
    return int(version) > int(than) if _is_number(version) and _is_number(than) else unknown


def _is_number(version: str) -> bool:
    return version.isascii() and version.isdecimal() and len(version) <= MAX_DIGITS


def _differs(new: KubeObject, old: KubeObject) -> bool:
    return new.metadata.resource_version != old.metadata.resource_version


def _key(item: KubeObject) -> Key:
    return item.metadata.namespace, item.metadata.name
