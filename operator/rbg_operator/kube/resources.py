"""The kinds of objects that the operator asks for, and where the API server serves them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

_NOT_A_NAME = ("", ".", "..")


@dataclass(frozen=True)
class Resource:
    """One kind as one version of its API group serves it; plural is the word in the path."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """The path of an object; without a name, of its collection; without a namespace, of all namespaces.

        Raises ValueError for what would be the path of something else.
        """
        if namespace is not None and not self.namespaced:
            raise ValueError(f"{self.kind} belongs to no namespace, but {namespace!r} was given")
        if name is not None and self.namespaced and namespace is None:
            raise ValueError(f"{self.kind} {name!r}: its namespace is missing")
        parts = [group_path(self.api_version)]
        parts += ["namespaces", _segment("namespace", namespace)] if namespace is not None else []
        parts.append(self.plural)
        parts += [_segment("name", name)] if name is not None else []
        parts += [subresource] if subresource else []
        return "/".join(parts)


def group_path(api_version: str) -> str:
    """Where a group and version lives: /api/v1 or /apis/<group>/<version>."""
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _segment(what: str, value: str) -> str:
    if value in _NOT_A_NAME or "/" in value or "%" in value:
        raise ValueError(f"{what} {value!r} cannot stand in a path")
    return quote(value, safe="")


POD = Resource("v1", "Pod", "pods")
SERVICE = Resource("v1", "Service", "services")
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps")
EVENT = Resource("v1", "Event", "events")
STATEFUL_SET = Resource("apps/v1", "StatefulSet", "statefulsets")
DEPLOYMENT = Resource("apps/v1", "Deployment", "deployments")
CONTROLLER_REVISION = Resource("apps/v1", "ControllerRevision", "controllerrevisions")
LEASE = Resource("coordination.k8s.io/v1", "Lease", "leases")
LEADER_WORKER_SET = Resource("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "leaderworkersets")
POD_GROUP = Resource("scheduling.x-k8s.io/v1alpha1", "PodGroup", "podgroups")
VOLCANO_POD_GROUP = Resource("scheduling.volcano.sh/v1beta1", "PodGroup", "podgroups")
ROLE_BASED_GROUP = Resource("workloads.x-k8s.io/v1alpha1", "RoleBasedGroup", "rolebasedgroups")
ROLE_BASED_GROUP_SET = Resource("workloads.x-k8s.io/v1alpha1", "RoleBasedGroupSet", "rolebasedgroupsets")
SCALING_ADAPTER = Resource(
    "workloads.x-k8s.io/v1alpha1", "RoleBasedGroupScalingAdapter", "rolebasedgroupscalingadapters"
)
ENGINE_RUNTIME_PROFILE = Resource(
    "workloads.x-k8s.io/v1alpha1", "ClusterEngineRuntimeProfile", "clusterengineruntimeprofiles", namespaced=False
)
