"""What an observed workload says of itself, read leniently: a controller that we do not know may have written it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from rbg_operator.plan import labels
from rbg_operator.plan.observed import Condition, Live


class _K8s(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """Field names as on the wire."""


class _Partition(_K8s, frozen=True):
    partition: int = 0


class _Strategy(_K8s, frozen=True):
    rolling_update: _Partition | None = None  # StatefulSet
    rolling_update_configuration: _Partition | None = None  # LeaderWorkerSet


class _Spec(_K8s, frozen=True):
    replicas: int = 1
    update_strategy: _Strategy | None = None
    rollout_strategy: _Strategy | None = None


class _Status(_K8s, frozen=True):
    observed_generation: int = 0
    current_revision: str = ""
    update_revision: str = ""
    conditions: tuple[Condition, ...] = ()


class Workload(msgspec.Struct, frozen=True, gc=False):
    """A role's StatefulSet, Deployment or LeaderWorkerSet."""

    live: Live
    revision: str  # role revision of its template
    replicas: int
    partition: int
    is_seen: bool  # its controller has acted on the newest spec
    is_changing: bool  # its controller has not finished the rollout it is in


def read_workload(live: Live) -> Workload:
    """Decode the parts that decisions need."""
    spec = _decoded(live.spec, _Spec, _Spec())
    status = _decoded(live.status, _Status, _Status())
    return Workload(
        live=live,
        revision=live.metadata.labels.get(labels.ROLE_REVISION, ""),
        replicas=spec.replicas,
        partition=_partition(spec),
        is_seen=status.observed_generation >= live.metadata.generation,
        is_changing=_is_changing(status),
    )


def _partition(spec: _Spec) -> int:
    strategy = spec.update_strategy or spec.rollout_strategy or _Strategy()
    rolling = strategy.rolling_update or strategy.rolling_update_configuration
    return rolling.partition if rolling else 0


def _is_changing(status: _Status) -> bool:
    if status.update_revision:  # StatefulSet
        return status.current_revision != status.update_revision
    for condition in status.conditions:
        if condition.type == "UpdateInProgress":  # LeaderWorkerSet
            return condition.status == "True"
        if condition.type == "Progressing":  # Deployment
            return condition.reason != "NewReplicaSetAvailable"
    return False


_T = TypeVar("_T")


def _decoded(raw: msgspec.Raw, kind: type[_T], default: _T) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind) or default
    except msgspec.MsgspecError:
        return default
