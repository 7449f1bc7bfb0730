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
MAX_REPLICAS = 10_000  # instances of one role: names stay short, and nobody loops over two thousand million ordinals


class RestartPolicy(enum.StrEnum):
    """What else restarts when a pod of the role restarted."""

    NONE = "None"
    RECREATE_GROUP = "RecreateRBGOnPodRestart"
    RECREATE_INSTANCE = "RecreateRoleInstanceOnPodRestart"


@dataclass(frozen=True, kw_only=True)
class RollingUpdate:
    """How pods of a role are replaced: ordinals below partition stay as they are. Numbers are instances or "10%"."""

    partition: int | str = 0
    max_unavailable: int | str = 1
    max_surge: int | str = 0
    paused: bool = False


@dataclass(frozen=True, kw_only=True)
class EngineRuntime:
    """Sidecars of a ClusterEngineRuntimeProfile. inject: names of those to add, all if empty.

    overrides: mappings with the name of a container of the profile and its new command, args or env.
    """

    profile: str
    inject: tuple[str, ...] = ()
    overrides: tuple[Json, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Role:
    """One role: `replicas` instances, each of `size` pods.

    template is the pod template of an instance's first pod, worker_template that of the others, if there are any.
    """

    name: str
    replicas: int
    dependencies: tuple[str, ...]
    template: Json
    size: int = 1
    worker_template: Json | None = None
    labels: dict[str, str]
    annotations: dict[str, str]
    workload_kind: str
    restart_policy: RestartPolicy
    rolling_update: RollingUpdate
    min_ready_seconds: int
    scaling_adapter: bool
    adapter_labels: dict[str, str]
    service_ports: tuple[Json, ...]
    engine_runtimes: tuple[EngineRuntime, ...] = ()

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
class Coordination:
    """Roles whose rollouts keep pace. All three limits are shares such as "10%"; None leaves it to the roles."""

    name: str
    roles: tuple[str, ...]
    max_skew: str | None = None
    partition: str | None = None
    max_unavailable: str | None = None


@dataclass(frozen=True, kw_only=True)
class KubeGang:
    """All pods are placed or none, by the coscheduling of scheduler-plugins."""

    schedule_timeout_seconds: int


@dataclass(frozen=True, kw_only=True)
class VolcanoGang:
    """All pods are placed or none, by Volcano. Empty: Volcano's own defaults."""

    priority_class: str
    queue: str


@dataclass(frozen=True, kw_only=True)
class RoleBasedGroup:
    """A group of roles. `warnings` are things in the manifest that are allowed but probably mistakes.

    spec is the manifest's own, for the history; nothing else reads it.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    labels: dict[str, str]
    annotations: dict[str, str]
    roles: tuple[Role, ...]
    coordination: tuple[Coordination, ...] = ()
    gang: KubeGang | VolcanoGang | None = None
    spec: Json
    warnings: tuple[Problem, ...]

    def role(self, name: str) -> Role:
        """The role of that name; KeyError if there is none."""
        for role in self.roles:
            if role.name == name:
                return role
        raise KeyError(name)

    def with_replicas(self, name: str, replicas: int) -> RoleBasedGroup:
        """The same group with another number of instances of one role; KeyError if there is no such role."""
        scaled = dataclasses.replace(self.role(name), replicas=replicas)
        return dataclasses.replace(self, roles=tuple(scaled if role.name == name else role for role in self.roles))
