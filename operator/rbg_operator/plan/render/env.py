"""Variables that the operator puts before the user's own in every container."""

from __future__ import annotations

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.environment import stage_urls
from rbg_operator.plan.render.scope import LWS_GROUP_INDEX, Node, Scope


def injected(scope: Scope, node: Node) -> list[Json]:
    """In order: identity, pod, nodes of the instance, addresses of other stages."""
    return [
        *_identity(scope, node),
        _field("POD_NAME", "metadata.name"),
        _field("POD_IP", "status.podIP"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        *(_nodes(scope, node) if scope.is_multi_node else ()),
        *(_value(name, urls) for name, urls in stage_urls(scope.group, scope.stage, scope.stages)),
    ]


def _identity(scope: Scope, node: Node) -> list[Json]:
    found = []
    index = _index_label(scope, node)
    for prefix in ("RBG_", ""):
        found.append(_value(f"{prefix}GROUP_NAME", scope.group.name))
        found.append(_value(f"{prefix}ROLE_NAME", scope.role.name))
        if index:
            found.append(_label(f"{prefix}ROLE_INDEX", index))
    return found


def _index_label(scope: Scope, node: Node) -> str:
    """The label that holds the number of the instance; pods of a Deployment have none."""
    if scope.kind == "Deployment":
        return ""
    if scope.kind == "LeaderWorkerSet":
        return LWS_GROUP_INDEX
    return labels.INSTANCE if node is Node.WORKER else labels.POD_INDEX


def _nodes(scope: Scope, node: Node) -> list[Json]:
    """Who leads the instance, which node this is and of how many; LWS_* are the same under their better-known names."""
    ours = ("RBG_LWP_LEADER_ADDRESS", "RBG_LWP_WORKER_INDEX", "RBG_LWP_GROUP_SIZE")
    theirs = ("LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX", "LWS_GROUP_SIZE")
    if scope.kind == "LeaderWorkerSet":  # its controller puts them before all others
        return [_value(name, f"$({source})") for name, source in zip(ours, theirs, strict=True)]
    first = [
        _value(ours[0], f"{scope.name}-$(RBG_ROLE_INDEX).{scope.domain}"),
        _label(ours[1], labels.POD_INDEX) if node is Node.WORKER else _value(ours[1], "0"),
        _value(ours[2], str(scope.role.size)),
    ]
    return first + [_value(name, f"$({source})") for name, source in zip(theirs, ours, strict=True)]


def _value(name: str, value: str) -> Json:
    return {"name": name, "value": value}


def _field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _label(name: str, label: str) -> Json:
    return _field(name, f"metadata.labels['{label}']")
