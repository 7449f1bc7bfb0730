"""Names of everything derived from a group; api/validate.py guarantees that they are unique and short enough.

workload                 <group>-<role>
pod                      <group>-<role>-<ordinal>
headless Service         s-<group>-<role>              all ready pods of the role
Service of one ordinal   s-<group>-<role>-<ordinal>    that pod, ready or not

Of roles whose instances have several nodes:

workers of an instance   <group>-<role>-<instance>     the first node is a pod of that name
governing Service        s-<group>-<role>-nodes        every node, ready or not
"""

from __future__ import annotations


def workload_name(group: str, role: str) -> str:
    """Name of the object that owns the role's pods."""
    return f"{group}-{role}"


def pod_name(group: str, role: str, ordinal: int) -> str:
    """Name of one pod."""
    return f"{group}-{role}-{ordinal}"


def headless_service(group: str, role: str) -> str:
    """Host name of all ready pods of a role."""
    return f"s-{group}-{role}"


def nodes_service(group: str, role: str) -> str:
    """Host name of all nodes of a multi-node role; the domain of each."""
    return f"s-{group}-{role}-nodes"


def ordinal_service(group: str, role: str, ordinal: int) -> str:
    """Host name of one pod."""
    return f"s-{group}-{role}-{ordinal}"


def qualified(service: str, namespace: str) -> tuple[str, ...]:
    """Every name under which a Service answers in the cluster's DNS, shortest first."""
    return (
        service,
        f"{service}.{namespace}",
        f"{service}.{namespace}.svc",
        f"{service}.{namespace}.svc.cluster.local",
    )
