"""The whole group."""

from __future__ import annotations

from rbg_operator.api.documents import Json
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.plan import labels
from rbg_operator.plan.compare import content_hash, sealed
from rbg_operator.plan.environment import stages
from rbg_operator.plan.render import gang
from rbg_operator.plan.render.discovery import config_map
from rbg_operator.plan.render.history import revision_and_record
from rbg_operator.plan.render.pinned import origin_annotation
from rbg_operator.plan.render.pod_template import pod_template
from rbg_operator.plan.render.scope import Node, Scope, workload_kind
from rbg_operator.plan.render.services import NamedOrdinals, named_ordinals, services
from rbg_operator.plan.render.sidecars import Sidecars, sidecars
from rbg_operator.plan.render.workloads import Marks, stateful_set, workload
from rbg_operator.plan.rendering import Context, RenderedRole, Rendering


def render(group: RoleBasedGroup, context: Context) -> Rendering:
    """Every object of the group. What is wrong in the cluster's view is in the rendering's problems."""
    found = stages(group)
    scopes = [
        Scope(group=group, role=one.role, stage=one, stages=found, kind=workload_kind(one.role, context.kinds))
        for one in found
    ]
    named = named_ordinals(group, found)
    problems = gang.problems(group, context.kinds)
    roles = {}
    for index, scope in enumerate(scopes):
        added, wrong = sidecars(scope.role, f"spec.roles[{index}]", context.profiles)
        problems += wrong
        roles[scope.role.name] = _role(scope, added, named)
    revision, history = revision_and_record(group)
    first = [sealed(config_map(group, scopes)), *map(sealed, gang.pod_group(group))]
    return Rendering(
        group=group, revision=revision, first=tuple(first), roles=roles, history=history, problems=tuple(problems)
    )


def _role(scope: Scope, added: list[Sidecars], named: NamedOrdinals) -> RenderedRole:
    first, worker = _templates(scope, added)
    revision = _revision(scope, added, first, worker)
    for template in (first, worker):
        if template is not None:
            template["metadata"]["labels"][labels.ROLE_REVISION] = revision
    marks = Marks(revision=revision, sidecars=origin_annotation(added))
    has_own_workers = worker is not None and scope.kind == "StatefulSet"
    return RenderedRole(
        role=scope.role,
        revision=revision,
        workload=workload(scope, first, worker, marks),
        workers=stateful_set(scope, worker, marks, Node.WORKER) if worker and has_own_workers else None,
        services=tuple(map(sealed, services(scope, named))),
        size=scope.role.size,
    )


def _templates(scope: Scope, added: list[Sidecars]) -> tuple[Json, Json | None]:
    role = scope.role
    first = pod_template(scope, role.template, scope.first_node, added)
    if role.worker_template is None:
        return first, None
    return first, pod_template(scope, role.worker_template, Node.WORKER, added)


def _revision(scope: Scope, added: list[Sidecars], first: Json, worker: Json | None) -> str:
    """Hash of the templates. Of profiles with NoUpdate only that they are used counts, not what is in them."""
    rolling = [one for one in added if one.rolls]
    if len(rolling) == len(added):
        return content_hash([first, worker])
    used = [one.runtime for one in added if not one.rolls]
    return content_hash([*_templates(scope, rolling), used])
