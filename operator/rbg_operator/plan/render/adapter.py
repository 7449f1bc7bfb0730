"""The scaling adapter of a role."""

from __future__ import annotations

from rbg_operator.api.adapter import ADAPTER_KIND
from rbg_operator.api.documents import Json
from rbg_operator.api.model import API_VERSION, Role, RoleBasedGroup
from rbg_operator.plan import labels
from rbg_operator.plan.compare import sealed
from rbg_operator.plan.names import workload_name
from rbg_operator.plan.render.metadata import object_metadata


def adapter_object(group: RoleBasedGroup, role: Role, replicas: int) -> Json:
    """The adapter as it is when it has seen the manifest's number of replicas."""
    metadata = object_metadata(
        group,
        workload_name(group.name, role.name),
        role,
        extra_labels=role.adapter_labels,
        annotations={labels.ADAPTER_ROLE_REPLICAS: str(replicas)},
    )
    target = {"name": group.name, "role": role.name}
    return sealed({
        "apiVersion": API_VERSION,
        "kind": ADAPTER_KIND,
        "metadata": metadata,
        "spec": {"replicas": replicas, "scaleTargetRef": target},
    })  # fmt: skip
