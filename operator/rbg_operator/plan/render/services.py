"""Services of a role: one headless for its ready pods, one for the names of its nodes, and some for single ordinals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.plan import labels, names
from rbg_operator.plan.environment import CALLS, lists_replicas
from rbg_operator.plan.kinds import Stage
from rbg_operator.plan.render.metadata import object_metadata, selector
from rbg_operator.plan.render.scope import LWS_WORKER_INDEX, Node, Scope, copied

NamedOrdinals = dict[str, set[int]]
"""By role: ordinals whose Service is named in some template."""


def services(scope: Scope, named: NamedOrdinals) -> tuple[Json, ...]:
    """All of the role's."""
    group, role = scope.group, scope.role
    chosen = selector(group, role)
    first = {**chosen, **_first_node(scope)}
    ports = copied(role.service_ports) if role.service_ports else []
    found = [_service(scope, names.headless_service(group.name, role.name), first, ports)]
    if role.size > 1 and scope.kind == "StatefulSet":
        nodes = _service(scope, names.nodes_service(group.name, role.name), chosen, [])
        nodes["spec"]["publishNotReadyAddresses"] = True  # workers look for their leader before it is ready
        found.append(nodes)
    for ordinal in _ordinals(scope, named):
        pod = {**chosen, labels.POD_NAME: names.pod_name(group.name, role.name, ordinal)}
        one = _service(scope, names.ordinal_service(group.name, role.name, ordinal), pod, [])
        one["spec"]["publishNotReadyAddresses"] = True
        found.append(one)
    return tuple(found)


def _service(scope: Scope, name: str, chosen: Json, ports: list[Json]) -> Json:
    spec: Json = {"clusterIP": "None", "selector": chosen}
    if ports:
        spec["ports"] = ports
    metadata = object_metadata(scope.group, name, scope.role)
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _first_node(scope: Scope) -> dict[str, str]:
    if scope.kind == "LeaderWorkerSet":
        return {LWS_WORKER_INDEX: "0"}
    return {labels.NODE: Node.LEADER.value} if scope.is_multi_node else {}


def _ordinals(scope: Scope, named: NamedOrdinals) -> Iterable[int]:
    """Ordinals that get a Service of their own."""
    replicas = scope.role.replicas
    if scope.kind == "Deployment":
        return ()
    if _wants_all(scope):
        return range(replicas)
    return sorted(ordinal for ordinal in named.get(scope.role.name, ()) if ordinal < replicas)


def _wants_all(scope: Scope) -> bool:
    group, role = scope.group, scope.role
    asked = role.annotations.get(labels.ORDINAL_SERVICES, group.annotations.get(labels.ORDINAL_SERVICES))
    return asked == "true" or any(
        scope.stage.kind in CALLS[caller.kind] and lists_replicas(group, caller.role) for caller in scope.stages
    )


def named_ordinals(group: RoleBasedGroup, stages: Sequence[Stage]) -> NamedOrdinals:
    """Which Services of single ordinals the templates of the group name, as KEP-75's manifest does."""
    templates = [[role.template, role.worker_template] for role in group.roles]
    text = msgspec.json.encode(templates).decode().replace("$(RBG_GROUP_NAME)", group.name)
    prefix = f"s-{group.name}-"
    if prefix not in text:
        return {}
    roles = {stage.role.name for stage in stages}
    found: NamedOrdinals = {}
    for role, ordinal in re.findall(rf"{re.escape(prefix)}([a-z0-9-]+)-([0-9]{{1,5}})(?![a-z0-9-])", text):
        if role in roles:
            found.setdefault(role, set()).add(int(ordinal))
    return found
