"""The pod template of a role: the user's, with identity, variables, discovery and what a known server needs."""

from __future__ import annotations

from collections.abc import Sequence

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.probes import default_readiness
from rbg_operator.plan.render import discovery, gang
from rbg_operator.plan.render.env import injected
from rbg_operator.plan.render.metadata import identity_labels
from rbg_operator.plan.render.scope import Node, Scope, copied
from rbg_operator.plan.render.sidecars import Sidecars

PRE_STOP_SECONDS = 5  # until endpoints and routers have forgotten the pod
GRACE_SECONDS = 120  # for running requests to finish


def pod_template(scope: Scope, source: Json, node: Node, sidecars: Sequence[Sidecars]) -> Json:
    """Complete but for the label with its own revision. The source stays as it is."""
    template: Json = copied(source)
    template["metadata"] = _metadata(scope, template.get("metadata") or {}, node)
    spec: Json = template["spec"]
    if scope.stage.is_known:
        _serve(scope, spec, node)
    for one in sidecars:
        one.add_to(spec)
    gang.schedule(scope.group, template)
    _equip_containers(scope, spec, node)
    return template


def _metadata(scope: Scope, metadata: Json, node: Node) -> Json:
    marks = identity_labels(scope.group, scope.role) | {labels.ROLE_KIND: scope.stage.kind.value}
    if node is not Node.SINGLE:
        marks[labels.NODE] = node.value
    metadata["labels"] = {**(metadata.get("labels") or {}), **marks}
    if restarted := scope.role.annotations.get(labels.RESTARTED_AT):
        metadata["annotations"] = {**(metadata.get("annotations") or {}), labels.RESTARTED_AT: restarted}
    return metadata


def _serve(scope: Scope, spec: Json, node: Node) -> None:
    """Defaults of a known server. Only the first node of an instance answers requests."""
    if spec.get("terminationGracePeriodSeconds") is None:
        spec["terminationGracePeriodSeconds"] = GRACE_SECONDS
    if node is Node.WORKER:
        return
    main = spec["containers"][0]
    if not main.get("readinessProbe") and scope.stage.port is not None:
        main["readinessProbe"] = default_readiness(scope.stage.port)
    lifecycle = main.get("lifecycle") or {}
    if not lifecycle.get("preStop") and spec["terminationGracePeriodSeconds"] > PRE_STOP_SECONDS:
        main["lifecycle"] = {**lifecycle, "preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}}


def _equip_containers(scope: Scope, spec: Json, node: Node) -> None:
    mount = discovery.add_volume(scope.group, spec)
    env = injected(scope, node)
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        own = container.get("env") or []
        taken = {variable["name"] for variable in own}
        container["env"] = [variable for variable in env if variable["name"] not in taken] + own
        if not container.get("terminationMessagePolicy"):
            container["terminationMessagePolicy"] = "FallbackToLogsOnError"  # crash evidence without access to logs
        if mount:
            discovery.add_mount(container)
