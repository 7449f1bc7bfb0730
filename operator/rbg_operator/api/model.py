"""A RoleBasedGroup v1alpha1 after parsing and defaulting; the rest of the operator sees nothing else of a manifest.

Instances exist only if they are valid: names fit, dependencies are known and have no cycle (see validate.py).
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.api.problems import Problem

API_GROUP = "workloads.x-k8s.io"
API_VERSION = f"{API_GROUP}/v1alpha1"
KIND = "RoleBasedGroup"


class RestartPolicy(enum.StrEnum):
    """What else restarts when a pod of the role restarted."""

    NONE = "None"
    RECREATE_GROUP = "RecreateRBGOnPodRestart"
    RECREATE_INSTANCE = "RecreateRoleInstanceOnPodRestart"


@dataclass(frozen=True, kw_only=True)
class RollingUpdate:
    """How pods of a role are replaced: ordinals below partition stay as they are; the limits are pods or "10%"."""

    partition: int = 0
    max_unavailable: int | str = 1
    max_surge: int | str = 0
    paused: bool = False


@dataclass(frozen=True, kw_only=True)
class Role:
    """One role: `replicas` pods of one template. `other` holds the known fields that nothing here interprets."""

    name: str
    replicas: int
    dependencies: tuple[str, ...]
    template: Json
    labels: dict[str, str]
    annotations: dict[str, str]
    workload_api_version: str
    workload_kind: str
    restart_policy: RestartPolicy
    rolling_update: RollingUpdate
    min_ready_seconds: int
    scaling_adapter: bool
    service_ports: tuple[Json, ...]
    other: Json

    @property
    def pod_spec(self) -> Json:
        """template.spec."""
        spec: Json = self.template["spec"]
        return spec

    @property
    def main_container(self) -> Json:
        """The first container, which runs the role's server."""
        container: Json = self.pod_spec["containers"][0]
        return container


@dataclass(frozen=True, kw_only=True)
class RoleBasedGroup:
    """A group of roles. `warnings` are things in the manifest that are allowed but probably mistakes."""

    name: str
    namespace: str
    uid: str
    generation: int
    labels: dict[str, str]
    annotations: dict[str, str]
    roles: tuple[Role, ...]
    other: Json
    warnings: tuple[Problem, ...]

    def role(self, name: str) -> Role:
        """The role of that name; KeyError if there is none."""
        for role in self.roles:
            if role.name == name:
                return role
        raise KeyError(name)

    def with_replicas(self, name: str, replicas: int) -> RoleBasedGroup:
        """The same group with another number of pods of one role; KeyError if there is no such role."""
        scaled = dataclasses.replace(self.role(name), replicas=replicas)
        return dataclasses.replace(self, roles=tuple(scaled if role.name == name else role for role in self.roles))
