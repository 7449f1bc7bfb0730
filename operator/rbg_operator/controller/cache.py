"""Everything the operator knows of the cluster, kept up to date by kopf (own kinds) and informers (all others).

A change enqueues the group or set that it concerns, and is told nobody else. What our own writes answer is put in at
once, so a pass never reads what is older than its own work.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from rbg_operator.controller.news import SOON, adapter_news, object_news, pod_news, workload_news
from rbg_operator.controller.objects import Custom, Key, custom, group_index, live, same_metadata, set_index
from rbg_operator.kube.client import Client
from rbg_operator.kube.informer import Informer
from rbg_operator.kube.resources import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENGINE_RUNTIME_PROFILE,
    LEADER_WORKER_SET,
    POD,
    POD_GROUP,
    ROLE_BASED_GROUP,
    ROLE_BASED_GROUP_SET,
    SCALING_ADAPTER,
    SERVICE,
    STATEFUL_SET,
    VOLCANO_POD_GROUP,
    Resource,
)
from rbg_operator.kube.store import OnChange, Store
from rbg_operator.plan import rendering
from rbg_operator.plan.labels import GROUP_NAME, GROUP_REVISION
from rbg_operator.plan.observed import Live, ObjectKey, Pod
from rbg_operator.plan.rendering import Context

log = logging.getLogger(__name__)

OWN_KINDS = (ROLE_BASED_GROUP, ROLE_BASED_GROUP_SET, SCALING_ADAPTER, ENGINE_RUNTIME_PROFILE)
OBJECT_KINDS = (STATEFUL_SET, DEPLOYMENT, SERVICE, CONFIG_MAP, CONTROLLER_REVISION)
OPTIONAL_KINDS = {
    LEADER_WORKER_SET: rendering.LEADER_WORKER_SET,
    POD_GROUP: rendering.POD_GROUP,
    VOLCANO_POD_GROUP: rendering.VOLCANO_POD_GROUP,
}
"""Kinds that not every cluster serves, and how rendering calls them."""
WORKLOAD_KINDS = frozenset({STATEFUL_SET.kind, DEPLOYMENT.kind, LEADER_WORKER_SET.kind})
GROUP = ROLE_BASED_GROUP.kind
GROUP_SET = ROLE_BASED_GROUP_SET.kind
ADAPTER = SCALING_ADAPTER.kind

OWN_SECONDS = 0.01  # after a change of a group itself: a user waits

T = TypeVar("T", Live, Pod)


class Enqueue(Protocol):
    """Work on a key after so many seconds; edited: a user has just changed what is wanted."""

    def __call__(self, key: Key, after: float, *, edited: bool = False) -> None: ...


class Cache:
    """Stores by kind; what belongs to a group is found by its label."""

    def __init__(self, client: Client, namespaces: Sequence[str], enqueue: Enqueue) -> None:
        self._client = client
        self._namespaces = namespaces
        self._enqueue = enqueue
        self._writing = False
        self._context: Context | None = None
        self.groups: Store[Custom] = Store(self._on_group, set_index)
        self.sets: Store[Custom] = Store(self._on_set)
        self.profiles: Store[Custom] = Store(self._on_profile)
        self.adapters: Store[Live] = Store(self._child(adapter_news), group_index)
        self.pods = Informer(
            client,
            POD,
            Pod,
            on_change=self._child(pod_news),
            selector=GROUP_NAME,
            namespaces=namespaces,
            index=group_index,
        )
        self.informers: dict[Resource, Informer[Live]] = {}
        for resource in OBJECT_KINDS:
            self.add_kind(resource)

    def add_kind(self, resource: Resource) -> Informer[Live]:
        """Keep objects of one more kind; the caller runs the informer."""
        revisions = resource is CONTROLLER_REVISION  # theirs hold whole specs, and workloads make many of their own
        self._context = None
        informer = self.informers[resource] = Informer(
            self._client,
            resource,
            Live,
            on_change=self._child(workload_news if resource.kind in WORKLOAD_KINDS else object_news),
            selector=GROUP_REVISION if revisions else GROUP_NAME,
            namespaces=self._namespaces,
            index=group_index,
            metadata_only=revisions,
        )
        return informer

    def context(self) -> Context:
        """What rendering needs beyond a group; the same object until it changes."""
        if self._context is None:
            self._context = Context(
                profiles={profile.metadata.name: profile.spec for profile in self.profiles},
                kinds=frozenset(OPTIONAL_KINDS[resource] for resource in self.informers if resource in OPTIONAL_KINDS),
            )
        return self._context

    def objects_of(self, namespace: str, group: str) -> dict[ObjectKey, Live]:
        """All objects that carry the group's label, pods excepted."""
        index = (namespace, group)
        found = {(ADAPTER, adapter.metadata.name): adapter for adapter in self.adapters.by_index(index)}
        for resource, informer in self.informers.items():
            found |= {(resource.kind, item.metadata.name): item for item in informer.store.by_index(index)}
        return found

    def pods_of(self, namespace: str, group: str) -> tuple[Pod, ...]:
        """All pods that carry the group's label."""
        return self.pods.store.by_index((namespace, group))

    def on_event(self, kind: str, type_: str | None, body: dict[str, Any]) -> None:
        """What kopf tells about one of our own kinds."""
        try:
            item: Any = live(body) if kind == ADAPTER else custom(body)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            log.warning("a %s cannot be understood and is ignored: %s", kind, error)
            return
        store = self.store_of(kind)
        if type_ == "DELETED":
            store.delete(item)
        else:
            store.put(item)

    def store_of(self, kind: str) -> Store[Any]:
        """The store of one of our own kinds."""
        stores: dict[str, Store[Any]] = {GROUP: self.groups, GROUP_SET: self.sets, ADAPTER: self.adapters}
        return stores.get(kind, self.profiles)

    def put_custom(self, written: Custom) -> None:
        """The answer to our own write of a group or set: only what others changed meanwhile enqueues it."""
        store = self.store_of(written.kind)
        with self._quietly():
            if written.metadata.deletion_timestamp and not written.metadata.finalizers:
                store.delete(written)
            else:
                store.put(written)

    def put_written(self, resource: Resource, written: Live | Custom) -> None:
        """The answer to our own write of what a group or a set owns."""
        if isinstance(written, Custom) or resource is SCALING_ADAPTER:
            self.store_of(resource.kind).put(written)
        else:
            with self._quietly():
                self.informers[resource].put_written(written)

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Our own work is no news: whoever wrote looks again by itself."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False

    def silent_seconds(self) -> dict[str, float]:
        """Since when each informer heard nothing, by plural."""
        return {informer.resource.plural: informer.silent_seconds for informer in self.all_informers()}

    def all_keys(self) -> Iterator[Key]:
        """All groups and sets."""
        for item in (*self.groups, *self.sets):
            yield item.key

    def all_informers(self) -> tuple[Informer[Any], ...]:
        """Those of pods and of all other kinds that groups own."""
        return (self.pods, *self.informers.values())

    def _on_group(self, old: Custom | None, new: Custom | None) -> None:
        is_news = old is None or new is None or not self._nothing_new(old, new)
        for group in (old, new):
            if group is not None and is_news:
                self._enqueue(group.key, OWN_SECONDS, edited=is_edited(old, new))
            if group is not None and (owner := set_index(group)):
                self._enqueue(Key(GROUP_SET, *owner), SOON)  # for our own writes too: it counts ready groups

    def _nothing_new(self, old: Custom, new: Custom) -> bool:
        """Whether a change of a group or set is no more than our own write (finalizers, status), or nothing at all."""
        known = old.metadata
        if self._writing:
            known = msgspec.structs.replace(known, finalizers=new.metadata.finalizers)
        same_status = self._writing or old.status == new.status
        return same_status and same_metadata(known, new.metadata) and old.spec == new.spec

    def _on_set(self, old: Custom | None, new: Custom | None) -> None:
        if old is not None and new is not None and self._nothing_new(old, new):
            return
        for found in {item.key for item in (old, new) if item is not None}:
            self._enqueue(found, OWN_SECONDS, edited=is_edited(old, new))

    def _on_profile(self, old: Custom | None, new: Custom | None) -> None:
        if old is not None and new is not None and old.spec == new.spec:
            return
        self._context = None
        names = {profile.metadata.name for profile in (old, new) if profile is not None}
        for group in self.groups:
            if names & used_profiles(group.spec):
                self._enqueue(group.key, OWN_SECONDS)

    def _child(self, news: Callable[[T | None, T | None], float | None]) -> OnChange[T]:
        """What to do when an object of a group changes."""

        def on_change(old: T | None, new: T | None) -> None:
            seconds = None if self._writing else news(old, new)
            if seconds is None:
                return
            for index in {group_index(item) for item in (old, new) if item is not None}:
                if index is not None:
                    self._enqueue(Key(GROUP, *index), seconds)

        return on_change


def is_edited(old: Custom | None, new: Custom | None) -> bool:
    """Whether somebody changed the spec."""
    return old is not None and new is not None and old.metadata.generation != new.metadata.generation


def used_profiles(spec: Any) -> set[str]:
    """Names in spec.roles[].engineRuntimes[].profileName, of a spec of any shape."""
    roles = spec.get("roles") if isinstance(spec, dict) else None
    runtimes = [
        runtime
        for role in (roles if isinstance(roles, list) else ())
        if isinstance(role, dict) and isinstance(role.get("engineRuntimes"), list)
        for runtime in role["engineRuntimes"]
    ]
    names = (runtime.get("profileName") for runtime in runtimes if isinstance(runtime, dict))
    return {name for name in names if isinstance(name, str)}
