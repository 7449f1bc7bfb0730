"""Builds manifests for tests."""

from __future__ import annotations

from typing import Any


def role(name: str, *command: str, replicas: int = 1, after: tuple[str, ...] = (), **container: Any) -> dict[str, Any]:
    """A role of a manifest; further keywords are fields of its container."""
    template = {"spec": {"containers": [{"name": "server", "command": list(command), **container}]}}
    return {"name": name, "replicas": replicas, "dependencies": list(after), "template": template}


def manifest(*roles: dict[str, Any], name: str = "g") -> dict[str, Any]:
    """A RoleBasedGroup."""
    return {
        "apiVersion": "workloads.x-k8s.io/v1alpha1",
        "kind": "RoleBasedGroup",
        "metadata": {"name": name},
        "spec": {"roles": list(roles)},
    }
