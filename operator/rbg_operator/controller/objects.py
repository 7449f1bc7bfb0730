"""The operator's own kinds as kopf hands them over, decoded to what is needed."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.plan.labels import GROUP_NAME, SET_NAME, TEARDOWN_FINALIZER
from rbg_operator.plan.observed import Live, Metadata, Pod

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Key(NamedTuple):
    """What the work queue works on: a RoleBasedGroup or a RoleBasedGroupSet."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class Custom(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """A group, a set or a profile: spec and status stay plain JSON of any shape."""

    metadata: Metadata
    api_version: str = ""
    kind: str = ""
    spec: Any = None
    status: Any = None

    @property
    def key(self) -> Key:
        """Where the queue finds it."""
        return Key(self.kind, self.metadata.namespace, self.metadata.name)

    @property
    def conditions(self) -> tuple[Any, ...]:
        """status.conditions, whatever is in there."""
        conditions = self.status.get("conditions") if isinstance(self.status, dict) else None
        return tuple(conditions) if isinstance(conditions, list) else ()

    @property
    def begun(self) -> bool:
        """Whether the operator has worked on it before."""
        return TEARDOWN_FINALIZER in self.metadata.finalizers or bool(self.status)

    def manifest(self) -> Json:
        """As a user would have written it, with what the API server added to metadata that parsing needs."""
        meta = self.metadata
        metadata = {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid, "generation": meta.generation}
        annotations = {key: value for key, value in meta.annotations.items() if key != LAST_APPLIED}
        metadata |= {"labels": meta.labels, "annotations": annotations}
        return {"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata, "spec": self.spec}


def custom(body: dict[str, Any]) -> Custom:
    """Raises msgspec.ValidationError for metadata that no API server sends."""
    return msgspec.convert(body, Custom)


def live(body: dict[str, Any]) -> Live:
    """The same form in which informers keep objects. Raises msgspec.ValidationError."""
    return msgspec.json.decode(msgspec.json.encode(body), type=Live)


def group_index(item: Live | Pod) -> tuple[str, str] | None:
    """(namespace, group) that an object of a group belongs to by its label."""
    name = item.metadata.labels.get(GROUP_NAME)
    return (item.metadata.namespace, name) if name else None


def set_index(group: Custom) -> tuple[str, str] | None:
    """(namespace, set) that made a group."""
    name = group.metadata.labels.get(SET_NAME)
    return (group.metadata.namespace, name) if name else None


def same_metadata(old: Metadata, new: Metadata) -> bool:
    """Whether nothing but the version differs."""
    return msgspec.structs.replace(new, resource_version=old.resource_version) == old
