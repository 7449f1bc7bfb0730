"""The four kinds."""

from __future__ import annotations

from crds.definition import AGE, column, condition_column, definition
from crds.group import group_spec
from crds.kubernetes import structural
from crds.role import MAX_NAME
from crds.schema import DNS_LABEL, Schema, dns_label, integer, list_by, record, rule, text
from crds.status import ADAPTER_STATUS, GROUP_STATUS, SET_STATUS

READY = condition_column("Ready", "Ready", "status", "Whether everything runs the current revision and is ready")
PROGRESSING = condition_column("Progressing", "Progressing", "reason", "What is being done, or why nothing", wide=True)
MESSAGE = condition_column("Message", "Progressing", "message", "The same in words", wide=True)

# Of metadata, a schema may restrict the name and nothing else.
LABEL_NAME: Schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": MAX_NAME, "pattern": DNS_LABEL}},
}
MAX_GROUPS = 10_000
LONGEST = 52  # characters of <group>-<role>
SET_NUMBER = 5  # characters of the number that a set adds to its name: -9999 at most


def _names_fit(roles: str, longest: int) -> Schema:
    """The rule that the object's name, "-" and the name of each role have at most `longest` characters."""
    too_long = f"size(self.metadata.name) + 1 + size(r.name) > {longest}"
    message = f"<metadata.name>-<role> has more than {longest} characters; shorten one of the two names"
    return rule(
        f"!{roles}.exists(r, {too_long})",
        message,
        detail=f"'role %s: {message}'.format([{roles}.map(r, {too_long}, r.name)])",
        at=roles.removeprefix("self"),
    )


def group() -> Schema:
    """RoleBasedGroup."""
    return definition(
        "RoleBasedGroup",
        "A service made of roles, such as the encoder, prefill, decode and router of a vision-language model, that "
        "start, are updated and end in the order of their dependencies.",
        spec=group_spec("What the group shall be", described=True),
        status=GROUP_STATUS,
        metadata=LABEL_NAME,
        rules=[_names_fit("self.spec.roles", LONGEST)],
        short="rbg",
        categories=["all", "inference"],
        columns=[
            column("Roles", ".status.rolesReady", "Roles that are ready, of all"),
            READY,
            AGE,
            PROGRESSING,
            MESSAGE,
        ],
    )


def group_set() -> Schema:
    """RoleBasedGroupSet."""
    return definition(
        "RoleBasedGroupSet",
        "A number of equal RoleBasedGroups, named `<set>-0`, `<set>-1` and so on.",
        spec=record(
            "What the set shall be",
            {
                "replicas": integer("Number of groups", default=1, maximum=MAX_GROUPS),
                "template": group_spec(
                    "spec of every group; see `kubectl explain rbg.spec` for all fields", described=False
                ),
            },
            required=["template"],
        ),
        status=SET_STATUS,
        metadata=LABEL_NAME,
        rules=[_names_fit("self.spec.template.roles", LONGEST - SET_NUMBER)],
        short="rbgs",
        categories=["all", "inference"],
        columns=[
            column("Desired", ".spec.replicas", "Groups wanted", kind="integer"),
            column("Groups", ".status.replicas", "Groups that exist", kind="integer"),
            column("Ready", ".status.readyReplicas", "Groups that are ready", kind="integer"),
            AGE,
            PROGRESSING,
            MESSAGE,
        ],
        scale=True,
    )


def adapter() -> Schema:
    """RoleBasedGroupScalingAdapter."""
    target = record(
        "The role that is scaled; cannot be changed",
        {
            "name": dns_label("Name of the RoleBasedGroup, in the same namespace", MAX_NAME),
            "role": dns_label("Name of the role", MAX_NAME),
        },
        required=["name", "role"],
        rules=[rule("self == oldSelf", "cannot be changed; delete the adapter and make another one")],
    )
    return definition(
        "RoleBasedGroupScalingAdapter",
        "The handle by which `kubectl scale`, an HPA or KEDA scales one role. The operator makes it for roles with "
        "scalingAdapter.enable.",
        spec=record(
            "What the role's scale shall be",
            {"replicas": integer("Instances of the role"), "scaleTargetRef": target},
            required=["scaleTargetRef"],
        ),
        status=ADAPTER_STATUS,
        short="rbgsa",
        categories=["inference"],
        columns=[
            column("Group", ".spec.scaleTargetRef.name", "The group"),
            column("Role", ".spec.scaleTargetRef.role", "The role"),
            column("Desired", ".spec.replicas", "Instances wanted", kind="integer"),
            column("Replicas", ".status.replicas", "Instances that exist", kind="integer"),
            column("Phase", ".status.phase", "Whether the adapter has its role"),
            AGE,
        ],
        scale=True,
    )


def profile() -> Schema:
    """ClusterEngineRuntimeProfile."""
    containers = {key: list_by("name", text_, structural("Container"), 32) for key, text_ in (
        ("containers", "Containers that run beside those of the role"),
        ("initContainers", "Containers that run before those of the role"),
    )}  # fmt: skip
    return definition(
        "ClusterEngineRuntimeProfile",
        "Sidecars that roles of any namespace can ask for by engineRuntimes.",
        spec=record(
            "What is added to the pods",
            {
                **containers,
                "volumes": list_by("name", "Volumes of these containers", structural("Volume"), 64),
                "updateStrategy": text(
                    "What a change of the profile does to roles that use it. NoUpdate: pods get it when they are "
                    "updated for another reason. RollingUpdate: it is rolled out",
                    enum=["NoUpdate", "RollingUpdate"],
                    default="NoUpdate",
                ),
            },
        ),
        status=None,
        short="cerp",
        categories=["inference"],
        columns=[column("Update", ".spec.updateStrategy", "What a change of the profile does"), AGE],
        namespaced=False,
    )


def definitions() -> list[Schema]:
    """All CustomResourceDefinitions."""
    return [profile(), group(), adapter(), group_set()]
