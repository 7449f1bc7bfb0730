"""The discovery ConfigMap: who is in the group and where, as /etc/rbg/config.yaml in every container."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.plan import names
from rbg_operator.plan.render.metadata import object_metadata
from rbg_operator.plan.render.scope import Scope

VOLUME = "rbg-config"
FOLDER = "/etc/rbg"
MAX_LISTED = 1000  # instances of a role: a ConfigMap holds 1 MiB


def config_map(group: RoleBasedGroup, scopes: Sequence[Scope]) -> Json:
    """The ConfigMap. Its text is JSON, which is YAML that needs no quoting rules."""
    config = {
        "group": {"name": group.name, "size": len(scopes), "roles": [scope.role.name for scope in scopes]},
        "roles": {scope.role.name: _role(scope) for scope in scopes},
    }
    text = msgspec.json.format(msgspec.json.encode(config), indent=2).decode()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": object_metadata(group, group.name),
        "data": {"config.yaml": text},
    }


def _role(scope: Scope) -> Json:
    role = scope.role
    if scope.kind == "Deployment":  # its pods have no names that could be known beforehand
        addresses = [names.headless_service(scope.group.name, role.name)] if role.replicas else []
    else:
        addresses = [f"{scope.name}-{ordinal}.{scope.domain}" for ordinal in range(min(role.replicas, MAX_LISTED))]
    ports = _ports(scope)
    return {"size": role.replicas, "instances": [{"address": address, "ports": ports} for address in addresses]}


def _ports(scope: Scope) -> dict[str, int]:
    """Ports by name; the one that the role serves HTTP on is http unless the user calls another one so."""
    found = {"http": scope.stage.port} if scope.stage.port is not None else {}
    for port in scope.role.main_container.get("ports") or ():
        if number := port.get("containerPort"):
            found[port.get("name") or f"port-{number}"] = number
    return found


def add_volume(group: RoleBasedGroup, spec: Json) -> bool:
    """Whether containers may mount it: a volume of that name may be the user's own."""
    volumes = spec.get("volumes") or []
    if any(volume.get("name") == VOLUME for volume in volumes):
        return False
    spec["volumes"] = [*volumes, {"name": VOLUME, "configMap": {"name": group.name}}]
    return True


def add_mount(container: Json) -> None:
    """Mount it unless the user has something else there."""
    mounts = container.get("volumeMounts") or []
    if all((mount.get("mountPath") or "").rstrip("/") != FOLDER for mount in mounts):
        container["volumeMounts"] = [*mounts, {"name": VOLUME, "mountPath": FOLDER, "readOnly": True}]
