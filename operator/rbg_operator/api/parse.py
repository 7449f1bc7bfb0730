"""From the mapping of a manifest to a RoleBasedGroup, or to every mistake in it at once.

Unknown fields are mistakes: a typo such as `replica: 4` must not silently run one pod.
"""

from __future__ import annotations

from dataclasses import dataclass

from rbg_operator.api.documents import Json, load_manifest
from rbg_operator.api.fields import Fields
from rbg_operator.api.header import read_header
from rbg_operator.api.model import KIND, Coordination, KubeGang, Role, RoleBasedGroup, VolcanoGang
from rbg_operator.api.problems import Findings, ManifestError, Problem
from rbg_operator.api.role import parse_role
from rbg_operator.api.rollout import parse_coordination
from rbg_operator.api.validate import check_coordination, check_dependencies, check_label, check_roles

MAX_ROLES = 100


@dataclass(frozen=True, kw_only=True)
class Spec:
    """spec of a group."""

    roles: tuple[Role, ...]
    coordination: tuple[Coordination, ...]
    gang: KubeGang | VolcanoGang | None


def parse_manifest(data: bytes, source: str) -> RoleBasedGroup:
    """Read one manifest file. `source` names it in errors. Raises ManifestError with all problems."""
    return parse_group(load_manifest(data, source))


def parse_group(manifest: Json) -> RoleBasedGroup:
    """Read a manifest as a mapping, from a file or from the API server. Raises ManifestError with all problems."""
    findings = Findings()
    root = Fields(manifest, "", findings)
    header = read_header(root, KIND, "name the group")
    if header.name:
        check_label(findings, "metadata.name", "the group's name", header.name)
    fields = root.inner("spec")
    spec = parse_spec(fields, header.name)
    findings.raise_errors()
    return RoleBasedGroup(
        **vars(header),
        roles=spec.roles,
        coordination=spec.coordination,
        gang=spec.gang,
        spec=fields.value,
        warnings=tuple(findings.warnings),
    )


def parse_spec(spec: Fields, group: str) -> Spec:
    """Read a group's spec; mistakes go to its findings. `group` is the longest name that a group of it has."""
    spec.reject_unknown(("roles", "roleTemplates", "podGroupPolicy", "coordination"))
    try:
        roles = _parse_roles(spec, group)
    except RecursionError:
        raise ManifestError([Problem(spec.at("roles"), "is nested too deeply to be read")]) from None
    coordination = tuple(parse_coordination(item) for item in spec.each("coordination"))
    check_coordination(spec, coordination, {role.name for role in roles})
    return Spec(roles=roles, coordination=coordination, gang=_parse_gang(spec))


def _parse_roles(spec: Fields, group: str) -> tuple[Role, ...]:
    shared = _shared_templates(spec)
    items = list(spec.each("roles"))
    if not items:
        spec.error("roles", "is empty; a group has at least one role")
    if len(items) > MAX_ROLES:
        spec.error("roles", f"has {len(items)} roles; at most {MAX_ROLES} are allowed")
        return ()
    parsed = [(item.path, parse_role(item, shared)) for item in items]
    check_roles(spec.findings, group, parsed)
    graph: dict[str, tuple[str, tuple[str, ...]]] = {}
    for path, role in parsed:
        if role.name:
            graph.setdefault(role.name, (path, role.dependencies))
    check_dependencies(spec.findings, graph)
    return tuple(role for _, role in parsed)


def _shared_templates(spec: Fields) -> dict[str, Json]:
    """By name. They may be incomplete: each is checked after the patch of every role that uses it."""
    shared: dict[str, Json] = {}
    for template in spec.each("roleTemplates"):
        template.reject_unknown(("name", "template"))
        name = template.required_string("name", "name the template")
        if name in shared:
            template.error("name", f'"{name}" is the name of two templates; give each its own')
        shared[name] = template.mapping("template")
    return shared


def _parse_gang(spec: Fields) -> KubeGang | VolcanoGang | None:
    if not spec.has("podGroupPolicy"):
        return None
    policy = spec.inner("podGroupPolicy")
    policy.reject_unknown(("kubeScheduling", "volcanoScheduling"))
    if policy.has("kubeScheduling") == policy.has("volcanoScheduling"):
        spec.error("podGroupPolicy", "needs one of kubeScheduling and volcanoScheduling: the scheduler of the cluster")
    if policy.has("volcanoScheduling"):
        volcano = policy.inner("volcanoScheduling")
        volcano.reject_unknown(("priorityClassName", "queue"))
        return VolcanoGang(priority_class=volcano.string("priorityClassName"), queue=volcano.string("queue"))
    kube = policy.inner("kubeScheduling")
    kube.reject_unknown(("scheduleTimeoutSeconds",))
    return KubeGang(schedule_timeout_seconds=kube.integer("scheduleTimeoutSeconds", 60))
