"""Labels, annotations and the finalizer that the operator writes or reads. Nothing else spells them out."""

from __future__ import annotations

PREFIX = "rbg.workloads.x-k8s.io/"
OLD_PREFIX = "rolebasedgroup.workloads.x-k8s.io/"

# On every object of a group; informers select by GROUP_NAME.
GROUP_NAME = PREFIX + "group-name"
ROLE_NAME = PREFIX + "role-name"
GROUP_UID = PREFIX + "group-uid"  # the RoleBasedGroup's uid: pods of a deleted group of the same name are not ours
OLD_GROUP_NAME = OLD_PREFIX + "name"
OLD_ROLE_NAME = OLD_PREFIX + "role"

# On pods and on the workload that owns them.
ROLE_REVISION = PREFIX + "role-revision"  # content hash of the role's pod templates
ROLE_KIND = PREFIX + "role-kind"  # encoder, prefill, decode, router, other; also read from the user's role
INSTANCE = PREFIX + "role-instance-index"  # multi-node roles: the replica that the pod belongs to
NODE = PREFIX + "node"  # multi-node roles: leader or worker
POD_INDEX = "apps.kubernetes.io/pod-index"  # written by the StatefulSet controller
POD_NAME = "statefulset.kubernetes.io/pod-name"  # likewise

# On our ControllerRevisions only.
GROUP_REVISION = PREFIX + "group-revision"
REVISION_NUMBER = PREFIX + "revision-number"  # annotation: their field `revision`, which metadata-only reads leave out

# On groups made by a RoleBasedGroupSet.
SET_NAME = PREFIX + "groupset-name"
SET_INDEX = PREFIX + "groupset-index"
OLD_SET_NAME = "rolebasedgroupset.workloads.x-k8s.io/name"
OLD_SET_INDEX = "rolebasedgroupset.workloads.x-k8s.io/rbg-index"

# Annotations that users set on a group or a role.
STAGE_URLS = PREFIX + "stage-urls"  # Headless (default) or PerReplica
ORDINAL_SERVICES = PREFIX + "ordinal-services"  # "true": one Service per ordinal although nothing names it
RESTARTED_AT = PREFIX + "restarted-at"  # on a role: any new value restarts its pods as a rollout

# Annotations that the operator keeps on its own objects.
DEPENDENCIES = PREFIX + "dependencies"  # on workloads: a removed role's dependencies, for its teardown
ADAPTER_ROLE_REPLICAS = PREFIX + "role-replicas"  # on adapters: spec.roles[].replicas when last seen
SIDECARS = PREFIX + "sidecars"  # on workloads: what comes from profiles whose change is not to replace pods
APPLIED_HASH = PREFIX + "applied-hash"  # on all: hash of the object as we want it; a field no longer wanted shows here

TEARDOWN_FINALIZER = PREFIX + "ordered-teardown"
FIELD_MANAGER = "rbg-operator"
