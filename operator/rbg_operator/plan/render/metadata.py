"""metadata of our objects: names, the labels by which everything of a group is found, the owner."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rbg_operator.api.documents import Json
from rbg_operator.api.model import API_VERSION, KIND, Role, RoleBasedGroup
from rbg_operator.plan import labels

_NOTHING: Mapping[str, str] = MappingProxyType({})


def identity_labels(group: RoleBasedGroup, role: Role | None = None) -> dict[str, str]:
    """Group and role in both generations. The uid is left out for a manifest that no API server has seen."""
    found = {labels.GROUP_NAME: group.name, labels.OLD_GROUP_NAME: group.name}
    if group.uid:
        found[labels.GROUP_UID] = group.uid
    if role is not None:
        found |= {labels.ROLE_NAME: role.name, labels.OLD_ROLE_NAME: role.name}
    return found


def selector(group: RoleBasedGroup, role: Role) -> dict[str, str]:
    """Labels that all pods of a role have, and no pods of a deleted group of the same name."""
    uid = {labels.GROUP_UID: group.uid} if group.uid else {}
    return {labels.GROUP_NAME: group.name, labels.ROLE_NAME: role.name, **uid}


def object_metadata(
    group: RoleBasedGroup,
    name: str,
    role: Role | None = None,
    *,
    extra_labels: Mapping[str, str] = _NOTHING,
    annotations: Mapping[str, str] = _NOTHING,
) -> Json:
    """metadata of an object that the group controls. What identifies it wins over extra labels."""
    metadata: Json = {
        "name": name,
        "namespace": group.namespace,
        "labels": {**extra_labels, **identity_labels(group, role)},
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    if group.uid:
        owner = {"apiVersion": API_VERSION, "kind": KIND, "name": group.name, "uid": group.uid}
        metadata["ownerReferences"] = [{**owner, "controller": True, "blockOwnerDeletion": True}]
    return metadata
