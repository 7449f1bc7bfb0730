"""Gang scheduling: one PodGroup for all pods of the group, for scheduler-plugins or Volcano."""

from __future__ import annotations

from rbg_operator.api.documents import Json
from rbg_operator.api.model import KubeGang, RoleBasedGroup
from rbg_operator.api.problems import Problem
from rbg_operator.plan.render.metadata import object_metadata
from rbg_operator.plan.rendering import POD_GROUP, VOLCANO_POD_GROUP

KUBE_LABEL = "scheduling.x-k8s.io/pod-group"
KUBE_SCHEDULER = "scheduler-plugins-scheduler"
VOLCANO_ANNOTATION = "scheduling.k8s.io/group-name"
VOLCANO_SCHEDULER = "volcano"


def pod_group(group: RoleBasedGroup) -> list[Json]:
    """The PodGroup, if the group is to be scheduled as a gang."""
    if group.gang is None:
        return []
    spec: Json = {"minMember": sum(role.replicas * role.size for role in group.roles)}
    if isinstance(group.gang, KubeGang):
        version = "scheduling.x-k8s.io/v1alpha1"
        spec["scheduleTimeoutSeconds"] = group.gang.schedule_timeout_seconds
    else:
        version = "scheduling.volcano.sh/v1beta1"
        given = {"priorityClassName": group.gang.priority_class, "queue": group.gang.queue}
        spec |= {key: value for key, value in given.items() if value}
    metadata = object_metadata(group, group.name)
    return [{"apiVersion": version, "kind": "PodGroup", "metadata": metadata, "spec": spec}]


def problems(group: RoleBasedGroup, kinds: frozenset[str]) -> list[Problem]:
    """What keeps the cluster from scheduling the gang."""
    if group.gang is None:
        return []
    is_kube = isinstance(group.gang, KubeGang)
    key, needed = ("kubeScheduling", POD_GROUP) if is_kube else ("volcanoScheduling", VOLCANO_POD_GROUP)
    if needed in kinds:
        return []
    message = f"{needed} is not served by this cluster; install its scheduler, or remove podGroupPolicy"
    return [Problem(f"spec.podGroupPolicy.{key}", message)]


def schedule(group: RoleBasedGroup, template: Json) -> None:
    """Make pods of the template members of the gang. A scheduler that the user names stays."""
    if group.gang is None:
        return
    is_kube = isinstance(group.gang, KubeGang)
    key, mark = ("labels", KUBE_LABEL) if is_kube else ("annotations", VOLCANO_ANNOTATION)
    metadata = template["metadata"]
    metadata[key] = {**(metadata.get(key) or {}), mark: group.name}
    if not template["spec"].get("schedulerName"):
        template["spec"]["schedulerName"] = KUBE_SCHEDULER if is_kube else VOLCANO_SCHEDULER
