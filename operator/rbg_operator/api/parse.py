"""From the mapping of a manifest to a RoleBasedGroup, or to every mistake in it at once.

Unknown fields are mistakes: a typo such as `replica: 4` must not silently run one pod. Fields that the contract has and
nothing here interprets are kept in `other`.
"""

from __future__ import annotations

import re

from rbg_operator.api.documents import Json, load_manifest
from rbg_operator.api.fields import Fields
from rbg_operator.api.model import API_GROUP, API_VERSION, KIND, RestartPolicy, Role, RoleBasedGroup, RollingUpdate
from rbg_operator.api.problems import Findings, ManifestError
from rbg_operator.api.template import resolve_template
from rbg_operator.api.validate import check_dependencies, check_label, check_roles

OTHER_SPEC_FIELDS = ("podGroupPolicy", "coordination")
OTHER_ROLE_FIELDS = ("leaderWorkerSet", "components", "engineRuntimes")
WORKLOADS = ("StatefulSet", "Deployment", "LeaderWorkerSet", "InstanceSet")
MAX_ROLES = 100
PERCENT = re.compile(r"^(100|[1-9]?[0-9])%$")


def parse_manifest(data: bytes, source: str) -> RoleBasedGroup:
    """Read one manifest file. `source` names it in errors. Raises ManifestError with all problems."""
    return parse_group(load_manifest(data, source))


def parse_group(manifest: Json) -> RoleBasedGroup:
    """Read a manifest as a mapping, from a file or from the API server. Raises ManifestError with all problems."""
    findings = Findings()
    root = Fields(manifest, "", findings)
    _check_type(root)
    metadata = root.inner("metadata")
    name = metadata.required_string("name", "name the group")
    if name:
        check_label(findings, "metadata.name", "the group's name", name)
    spec = root.inner("spec")
    spec.reject_unknown(("roles", "roleTemplates", *OTHER_SPEC_FIELDS))
    group = RoleBasedGroup(
        name=name,
        namespace=metadata.string("namespace", "default"),
        uid=metadata.string("uid"),
        generation=metadata.integer("generation", 0),
        labels=metadata.string_map("labels"),
        annotations=metadata.string_map("annotations"),
        roles=_parse_roles(spec, name),
        other={key: spec.value[key] for key in OTHER_SPEC_FIELDS if spec.has(key)},
        warnings=tuple(findings.warnings),
    )
    findings.raise_errors()
    return group


def _check_type(root: Fields) -> None:
    """apiVersion and kind; a manifest of something else is not read any further."""
    root.reject_unknown(("apiVersion", "kind", "metadata", "spec", "status"))
    version = root.required_string("apiVersion", f"write apiVersion: {API_VERSION}")
    kind = root.required_string("kind", f"write kind: {KIND}")
    if kind and kind != KIND:
        root.error("kind", f"is {kind!r}; this program runs {KIND} manifests")
    if version and version != API_VERSION:
        what = "another version of it" if version.startswith(f"{API_GROUP}/") else "no version of it"
        root.error("apiVersion", f"is {version!r}, {what}; write {API_VERSION}")
    if kind != KIND:
        raise ManifestError(root.findings.errors)


def _parse_roles(spec: Fields, group: str) -> tuple[Role, ...]:
    shared: dict[str, Json] = {}
    for template in spec.each("roleTemplates"):
        template.reject_unknown(("name", "template"))
        name = template.required_string("name", "name the template")
        if name in shared:
            template.error("name", f'"{name}" is the name of two templates; give each its own')
        # A shared template may be incomplete: it is checked after the patch of each role that uses it.
        shared[name] = template.mapping("template")
    items = list(spec.each("roles"))
    if not items:
        spec.error("roles", "is empty; a group has at least one role")
    if len(items) > MAX_ROLES:
        spec.error("roles", f"has {len(items)} roles; at most {MAX_ROLES} are allowed")
        return ()
    parsed = [(item.path, _parse_role(item, shared)) for item in items]
    check_roles(spec.findings, group, [(path, role.name) for path, role in parsed])
    graph: dict[str, tuple[str, tuple[str, ...]]] = {}
    for path, role in parsed:
        if role.name:
            graph.setdefault(role.name, (path, role.dependencies))
    check_dependencies(spec.findings, graph)
    return tuple(role for _, role in parsed)


ROLE_FIELDS = (
    "name", "replicas", "dependencies", "labels", "annotations", "template", "templateRef", "templatePatch", "workload",
    "rolloutStrategy", "restartPolicy", "minReadySeconds", "scalingAdapter", "servicePorts", *OTHER_ROLE_FIELDS,
)  # fmt: skip


def _parse_role(item: Fields, shared: dict[str, Json]) -> Role:
    item.reject_unknown(ROLE_FIELDS)
    workload = item.inner("workload")
    workload.reject_unknown(("apiVersion", "kind"))
    adapter = item.inner("scalingAdapter")
    adapter.reject_unknown(("enable", "labels"))
    return Role(
        name=item.required_string("name", "name the role"),
        replicas=item.integer("replicas", 1),
        dependencies=tuple(item.strings("dependencies")),
        template=resolve_template(item, shared),
        labels=item.string_map("labels"),
        annotations=item.string_map("annotations"),
        workload_api_version=workload.string("apiVersion", "apps/v1"),
        workload_kind=workload.choice("kind", "StatefulSet", WORKLOADS),
        restart_policy=RestartPolicy(item.choice("restartPolicy", "None", tuple(RestartPolicy))),
        rolling_update=_parse_rollout(item),
        min_ready_seconds=item.integer("minReadySeconds", 0),
        scaling_adapter=adapter.boolean("enable"),
        service_ports=_parse_ports(item),
        other={key: item.value[key] for key in OTHER_ROLE_FIELDS if item.has(key)},
    )


def _parse_ports(item: Fields) -> tuple[Json, ...]:
    ports = []
    for port in item.each("servicePorts"):
        port.string("name")
        port.integer("port", 1, minimum=1)
        ports.append(port.value)
    return tuple(ports)


def _parse_rollout(item: Fields) -> RollingUpdate:
    strategy = item.inner("rolloutStrategy")
    strategy.reject_unknown(("rollingUpdate",))
    update = strategy.inner("rollingUpdate")
    update.reject_unknown(("type", "partition", "maxUnavailable", "maxSurge", "paused", "inPlaceUpdateStrategy"))
    rolling = RollingUpdate(
        partition=update.integer("partition", 0),
        max_unavailable=_pods_or_percent(update, "maxUnavailable", 1),
        max_surge=_pods_or_percent(update, "maxSurge", 0),
        paused=update.boolean("paused"),
    )
    if rolling.max_unavailable in (0, "0%") and rolling.max_surge in (0, "0%"):
        update.error("maxUnavailable", "and maxSurge are both 0, so no pod could ever be replaced; raise one")
    replicas = item.value.get("replicas", 1)
    if update.has("partition") and isinstance(replicas, int) and rolling.partition >= max(replicas, 1):
        update.error("partition", f"must be below replicas ({replicas}); it is the lowest ordinal that is updated")
    return rolling


def _pods_or_percent(fields: Fields, key: str, default: int) -> int | str:
    value = fields.value.get(key)
    if isinstance(value, str):
        if PERCENT.match(value):
            return value
        fields.error(key, f'must be a number of pods or a percentage such as "25%", not {value!r}')
        return default
    return fields.integer(key, default)
