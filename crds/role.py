"""One role of a group."""

from __future__ import annotations

from crds.kubernetes import default_list_keys, pod_template, structural
from crds.rollout import ROLLOUT_STRATEGY
from crds.schema import (
    DNS_LABEL,
    Schema,
    anything,
    boolean,
    dns_label,
    integer,
    list_by,
    record,
    rule,
    set_of,
    string_map,
    text,
)

MAX_NAME = 50  # of a group or role: <group>-<role> has at most 52 characters
MAX_ROLES = 100
MAX_DEPENDENCIES = 32

DEPLOYMENT = "self.?workload.kind.orValue('StatefulSet') == 'Deployment'"
PARTITION = "self.?rolloutStrategy.?rollingUpdate.?partition.orValue(0)"

ROLE_RULES = (
    rule(
        "has(self.template) != has(self.templateRef)",
        "give either template, a pod template, or templateRef, the name of one of spec.roleTemplates",
        at=".template",
    ),
    rule(
        "!has(self.templatePatch) || has(self.templateRef)",
        "needs templateRef: it changes one of spec.roleTemplates; put the change into template itself",
        at=".templatePatch",
    ),
    rule(
        "!has(self.dependencies) || !(self.name in self.dependencies)",
        "a role cannot depend on itself; remove its own name",
        at=".dependencies",
    ),
    rule(
        f"type({PARTITION}) != int || {PARTITION} == 0 || {PARTITION} < self.replicas",
        "must be below replicas: it is the lowest ordinal that is updated; to update nobody, set paused",
        at=".rolloutStrategy.rollingUpdate.partition",
    ),
    rule(
        f"!({DEPLOYMENT}) || {PARTITION} == 0 || {PARTITION} == '0%'",
        "a Deployment has no ordinals, so no partition; use paused, or a StatefulSet",
        at=".rolloutStrategy.rollingUpdate.partition",
    ),
    rule(
        f"!({DEPLOYMENT}) || self.?leaderWorkerSet.size.orValue(1) == 1",
        "a Deployment cannot have instances of several pods; use a StatefulSet or a LeaderWorkerSet",
        at=".leaderWorkerSet.size",
    ),
)

WORKLOAD = record(
    "Kind of the object that keeps the role's pods",
    {
        "apiVersion": text(
            "API version of kind; found from kind when absent",
            enum=["apps/v1", "leaderworkerset.x-k8s.io/v1", "workloads.x-k8s.io/v1alpha1"],
        ),
        "kind": text(
            "StatefulSet: pods with ordinals, the rule. Deployment: pods without identity, for routers. "
            "LeaderWorkerSet: needs its controller in the cluster. InstanceSet: the same as StatefulSet here",
            enum=["StatefulSet", "Deployment", "LeaderWorkerSet", "InstanceSet"],
            default="StatefulSet",
        ),
    },
    default={"kind": "StatefulSet"},
    rules=[
        rule(
            "!has(self.apiVersion) || self.apiVersion == {'StatefulSet': 'apps/v1', 'Deployment': 'apps/v1', "
            "'LeaderWorkerSet': 'leaderworkerset.x-k8s.io/v1', 'InstanceSet': "
            "'workloads.x-k8s.io/v1alpha1'}[self.kind]",
            "is not the API version of this kind; leave it out, or write the one that serves the kind",
            at=".apiVersion",
        )
    ],
)

LEADER_WORKER_SET = record(
    "Makes every instance a set of pods, one leader and its workers, for models that need several nodes. Works with "
    "and without the LeaderWorkerSet controller (see workload)",
    {
        "size": integer("Pods in an instance, the leader included", minimum=1, default=1),
        "patchLeaderTemplate": anything("Strategic merge patch of the pod template for leaders"),
        "patchWorkerTemplate": anything("Strategic merge patch of the pod template for workers"),
    },
)

COMPONENTS = {
    "description": "Part of the upstream contract, refused here: use leaderWorkerSet for instances of several pods",
    "type": "array",
    "maxItems": 16,
    "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    "x-kubernetes-validations": [
        rule("size(self) == 0", "components are not supported; use leaderWorkerSet for instances of several pods")
    ],
}

SCALING_ADAPTER = record(
    "Makes the role scalable on its own by `kubectl scale`, an HPA or KEDA",
    {
        "enable": boolean(
            "Whether to make a RoleBasedGroupScalingAdapter `<group>-<role>`. Its spec.replicas is then what counts; "
            "a new value of the role's replicas in the manifest is copied to it, applying the same manifest again is "
            "not"
        ),
        "labels": string_map("Labels of the adapter"),
    },
)


def _engine_runtimes(described: bool) -> Schema:
    container: Schema = structural("Container", described)["properties"]
    override = record(
        "What to change in one container of the profile",
        {
            "name": dns_label("Name of the container in the profile"),
            **{key: container[key] for key in ("command", "args", "env")},
        },
        required=["name"],
    )
    runtime = record(
        "Containers to run beside the role's own",
        {
            "profileName": text("Name of a ClusterEngineRuntimeProfile", minLength=1, maxLength=253),
            "injectContainers": set_of(
                "Which of the profile's containers to add; all when absent", dns_label("Name of a container"), 32
            ),
            "containers": list_by("name", "Command, args or env of the profile's containers, to replace", override, 32),
        },
        required=["profileName"],
    )
    return list_by("profileName", "Sidecars from ClusterEngineRuntimeProfiles", runtime, 16)


def _service_ports(described: bool) -> Schema:
    ports = {
        "description": "Ports of the Service `s-<group>-<role>`; DNS needs none",
        "type": "array",
        "maxItems": 100,
        "items": structural("ServicePort", described),
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["port", "protocol"],
    }
    return default_list_keys(ports)


def role(described: bool) -> Schema:
    """One item of spec.roles; `described` decides whether Kubernetes' own fields carry their descriptions."""
    fields = {
        "name": dns_label(
            "Name of the role, unique in the group. `<group>-<role>` is the name of its workload, `s-<group>-<role>` "
            "the host name of its ready pods; the former has at most 52 characters",
            MAX_NAME,
        ),
        "replicas": integer("Number of instances: pods, or sets of leaderWorkerSet.size pods", default=1),
        "dependencies": set_of(
            "Roles that must be ready before this one is created and before a rollout reaches it. Deletion goes the "
            "other way round. A dependency lost later stops nothing",
            text("Name of a role of this group", maxLength=MAX_NAME, pattern=DNS_LABEL),
            MAX_DEPENDENCIES,
        ),
        "labels": string_map("Labels of the workload object; those of pods stand in the template"),
        "annotations": string_map("Annotations of the workload object; those of pods stand in the template"),
        "template": pod_template("Pod template of the role; either this or templateRef", described=described),
        "templateRef": record(
            "Uses one of spec.roleTemplates",
            {"name": dns_label("Name of the template")},
            required=["name"],
        ),
        "templatePatch": anything("Strategic merge patch of the template that templateRef names"),
        "workload": WORKLOAD,
        "rolloutStrategy": ROLLOUT_STRATEGY,
        "restartPolicy": text(
            "What else is recreated when a pod failed or one of its containers restarted. None: nothing. "
            "RecreateRoleInstanceOnPodRestart: all pods of its instance. RecreateRBGOnPodRestart: all pods of the "
            "group. The n-th time in a row waits 10 s · 2^(n-1), at most 300 s. When absent: the instance for roles "
            "with leaderWorkerSet.size above 1, else None",
            enum=["None", "RecreateRoleInstanceOnPodRestart", "RecreateRBGOnPodRestart"],
        ),
        "minReadySeconds": integer("Seconds that a pod must have been ready to count as ready", default=0),
        "leaderWorkerSet": LEADER_WORKER_SET,
        "scalingAdapter": SCALING_ADAPTER,
        "servicePorts": _service_ports(described),
        "engineRuntimes": _engine_runtimes(described),
        "components": COMPONENTS,
    }
    return record("A part of the service with its own pods", fields, required=["name"], rules=ROLE_RULES)
