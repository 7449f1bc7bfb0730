"""One item of spec.roles."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rbg_operator.api.documents import Json
from rbg_operator.api.fields import Fields
from rbg_operator.api.model import MAX_REPLICAS, EngineRuntime, RestartPolicy, Role
from rbg_operator.api.rollout import parse_rollout
from rbg_operator.api.template import check_env, resolve_templates

WORKLOADS = MappingProxyType(
    {
        "StatefulSet": "apps/v1",
        "Deployment": "apps/v1",
        "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1",
        "InstanceSet": "workloads.x-k8s.io/v1alpha1",
    }
)
MAX_SIZE = 1000  # pods of one instance

ROLE_FIELDS = (
    "name", "replicas", "dependencies", "labels", "annotations", "template", "templateRef", "templatePatch", "workload",
    "rolloutStrategy", "restartPolicy", "minReadySeconds", "scalingAdapter", "servicePorts", "leaderWorkerSet",
    "components", "engineRuntimes",
)  # fmt: skip


def parse_role(item: Fields, shared: Mapping[str, Json]) -> Role:
    """Read one role. `shared` are the templates that it may refer to; mistakes go to the role's findings."""
    item.reject_unknown(ROLE_FIELDS)
    if item.value.get("components"):
        item.error("components", "components are not supported; use leaderWorkerSet")
    kind = _parse_kind(item)
    replicas = item.integer("replicas", 1, maximum=MAX_REPLICAS)
    instance = item.inner("leaderWorkerSet")
    instance.reject_unknown(("size", "patchLeaderTemplate", "patchWorkerTemplate"))
    size = instance.integer("size", 1, minimum=1, maximum=MAX_SIZE)
    if size > 1 and kind == "Deployment":
        instance.error("size", "a Deployment cannot have instances of several pods; use a StatefulSet")
    template, worker_template = resolve_templates(item, shared, instance, size)
    adapter = item.inner("scalingAdapter")
    adapter.reject_unknown(("enable", "labels"))
    return Role(
        name=item.required_string("name", "name the role"),
        replicas=replicas,
        dependencies=tuple(item.strings("dependencies")),
        template=template,
        size=size,
        worker_template=worker_template,
        labels=item.string_map("labels"),
        annotations=item.string_map("annotations"),
        workload_kind=kind,
        restart_policy=_parse_restart_policy(item, size),
        rolling_update=parse_rollout(item, replicas, kind == "Deployment"),
        min_ready_seconds=item.integer("minReadySeconds", 0),
        scaling_adapter=adapter.boolean("enable"),
        adapter_labels=adapter.string_map("labels"),
        service_ports=_parse_ports(item),
        engine_runtimes=_parse_runtimes(item),
    )


def _parse_kind(item: Fields) -> str:
    """An InstanceSet of one template is what a StatefulSet is."""
    workload = item.inner("workload")
    workload.reject_unknown(("apiVersion", "kind"))
    kind = workload.choice("kind", "StatefulSet", tuple(WORKLOADS))
    version = workload.string("apiVersion", WORKLOADS[kind])
    if version != WORKLOADS[kind]:
        workload.error("apiVersion", f"is {version[:40]!r}, but {kind} is of {WORKLOADS[kind]}; leave it out")
    return "StatefulSet" if kind == "InstanceSet" else kind


def _parse_restart_policy(item: Fields, size: int) -> RestartPolicy:
    """Nodes of one instance are useless without each other, so there the default is to recreate them together."""
    default = RestartPolicy.RECREATE_INSTANCE if size > 1 else RestartPolicy.NONE
    return RestartPolicy(item.choice("restartPolicy", default, tuple(RestartPolicy)))


def _parse_ports(item: Fields) -> tuple[Json, ...]:
    ports = []
    for port in item.each("servicePorts"):
        port.string("name")
        port.integer("port", 1, minimum=1)
        ports.append(port.value)
    return tuple(ports)


def _parse_runtimes(item: Fields) -> tuple[EngineRuntime, ...]:
    found: list[EngineRuntime] = []
    for runtime in item.each("engineRuntimes"):
        runtime.reject_unknown(("profileName", "injectContainers", "containers"))
        profile = runtime.required_string("profileName", "name a ClusterEngineRuntimeProfile")
        if profile and profile in {other.profile for other in found}:
            runtime.error("profileName", f'"{profile}" is listed twice; keep one')
        found.append(
            EngineRuntime(
                profile=profile,
                inject=tuple(runtime.strings("injectContainers")),
                overrides=tuple(_parse_override(container) for container in runtime.each("containers")),
            )
        )
    return tuple(found)


def _parse_override(container: Fields) -> Json:
    container.reject_unknown(("name", "command", "args", "env"))
    container.required_string("name", "name a container of the profile")
    container.strings("command")
    container.strings("args")
    check_env(container)
    return container.value
