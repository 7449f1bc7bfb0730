"""What was observed in the cluster about one group: the planner's input, decoded once from what the API server sent.

Only the fields that decisions need are kept; msgspec skips the others while decoding. Raw parts stay bytes until
somebody compares them. Instances are never changed after decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rbg_operator.api.documents import Json


class _K8s(msgspec.Struct, rename="camel", frozen=True, kw_only=True, gc=False):
    """Field names as on the wire."""


class OwnerReference(_K8s, frozen=True):
    """metadata.ownerReferences[]."""

    uid: str
    kind: str = ""
    name: str = ""
    controller: bool = False


class Metadata(_K8s, frozen=True):
    """metadata of any object. Timestamps are RFC 3339 text in UTC."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()

    def controlled_by(self, uid: str) -> bool:
        """Whether the object with this uid is the controlling owner."""
        return any(owner.uid == uid and owner.controller for owner in self.owner_references)


class Condition(_K8s, frozen=True):
    """status.conditions[] of a pod."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class Waiting(_K8s, frozen=True):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class Terminated(_K8s, frozen=True):
    """How a container ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""
    finished_at: str | None = None


class ContainerState(_K8s, frozen=True):
    """At most one of the two; a running container has neither."""

    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(_K8s, frozen=True):
    """status.containerStatuses[]."""

    name: str
    ready: bool = False
    restart_count: int = 0
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodSpec(_K8s, frozen=True):
    """The part of a pod's spec that decisions need."""

    node_name: str = ""


class PodStatus(_K8s, frozen=True):
    """status of a pod."""

    phase: str = ""
    conditions: tuple[Condition, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(_K8s, frozen=True):
    """A pod of a group, found by label."""

    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Live(_K8s, frozen=True):
    """Any other object of a group as the API server holds it; bodies stay raw JSON until compared."""

    metadata: Metadata
    api_version: str = ""  # absent from items of a list of a built-in kind
    spec: msgspec.Raw = msgspec.Raw(b"null")
    data: msgspec.Raw = msgspec.Raw(b"null")
    status: msgspec.Raw = msgspec.Raw(b"null")

    def body(self, key: str) -> Any:
        """spec, data or status, decoded; None when absent."""
        return msgspec.json.decode(getattr(self, key))


ObjectKey = tuple[str, str]
"""(kind, name) of an object in the group's namespace."""

STATUS_INTERVAL = 10.0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything known of one group at one moment. now: seconds since the epoch."""

    now: float
    pods: tuple[Pod, ...] = ()
    objects: Mapping[ObjectKey, Live] = field(default_factory=dict)  # all but pods, found by label
    foreign: frozenset[ObjectKey] = frozenset()  # names we need that belong to somebody else
    refused: Mapping[ObjectKey, str] = field(default_factory=dict)  # the API server's words on our last apply
    status: Json = field(default_factory=dict)  # the group's status as last written; any shape, it is only read
    status_written_at: float = 0.0  # seconds since the epoch; 0 when unknown
    status_interval: float = STATUS_INTERVAL  # seconds between writes that only tell new counts or messages
    finalizers: tuple[str, ...] = ()
    deletion_timestamp: str | None = None
