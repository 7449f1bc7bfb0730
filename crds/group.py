"""The spec of a RoleBasedGroup, which is also the template of a RoleBasedGroupSet."""

from __future__ import annotations

from crds.kubernetes import pod_template
from crds.role import MAX_NAME, MAX_ROLES, role
from crds.schema import DNS_LABEL, PERCENT, Schema, dns_label, integer, list_by, record, rule, set_of, text

NAMES = "self.roles.map(o, o.name)"
UNKNOWN_DEPENDENCY = f"has(r.dependencies) && !sets.contains({NAMES}, r.dependencies)"
# A role "a-0" and pod 0 of a role "a" would both own the Service s-<group>-a-0.
ORDINAL_OF_ANOTHER = f"r.name.matches('-[0-9]+$') && r.name.substring(0, r.name.lastIndexOf('-')) in {NAMES}"
# A role "a-nodes" and a multi-node role "a" would both own the Service s-<group>-a-nodes.
NODES_OF_ANOTHER = (
    "r.name.endsWith('-nodes') && self.roles.exists(o, "
    "o.name + '-nodes' == r.name && o.?leaderWorkerSet.size.orValue(1) > 1)"
)
UNKNOWN_TEMPLATE = (
    "has(r.templateRef) && (!has(self.roleTemplates) || !self.roleTemplates.exists(t, t.name == r.templateRef.name))"
)


def _no_role(condition: str, message: str) -> Schema:
    """A rule that no role r may break; its message has the names of those that do."""
    return rule(
        f"!self.roles.exists(r, {condition})",
        f"a role {message}",
        detail=f"'role %s {message}'.format([self.roles.map(r, {condition}, r.name)])",
        at=".roles",
    )


SPEC_RULES = (
    _no_role(UNKNOWN_DEPENDENCY, "depends on a role that is not in this group; correct dependencies or add the role"),
    _no_role(ORDINAL_OF_ANOTHER, "is named like a pod of another role, so two Services have one name; rename one"),
    _no_role(NODES_OF_ANOTHER, "is named like the nodes Service of another role; rename one"),
    _no_role(UNKNOWN_TEMPLATE, "has a templateRef that is not in spec.roleTemplates; correct it or add the template"),
    rule(
        f"!has(self.coordination) || self.coordination.all(c, sets.contains({NAMES}, c.roles))",
        "names a role that is not in this group; correct the name or add the role",
        at=".coordination",
    ),
    rule(
        "!has(self.coordination) || self.coordination.all(a, self.coordination.all(b, a.name == b.name || "
        "!sets.intersects(a.roles, b.roles)))",
        "has a role in two coordinations; keep it in one",
        at=".coordination",
    ),
)

POD_GROUP_POLICY = record(
    "Gang scheduling: pods of the group are placed all or none, so all roles start at once and dependencies only "
    "order readiness and rollouts. Needs one of the two schedulers in the cluster",
    {
        "kubeScheduling": record(
            "PodGroup of scheduler-plugins (scheduling.x-k8s.io)",
            {"scheduleTimeoutSeconds": integer("Seconds that the scheduler waits for all pods to fit", default=60)},
        ),
        "volcanoScheduling": record(
            "PodGroup of Volcano (scheduling.volcano.sh)",
            {
                "priorityClassName": text("PriorityClass of the PodGroup", maxLength=253),
                "queue": text("Volcano queue; the scheduler's default queue when absent", maxLength=253),
            },
        ),
    },
    rules=[
        rule(
            "!(has(self.kubeScheduling) && has(self.volcanoScheduling))",
            "excludes volcanoScheduling; keep the scheduler that runs in the cluster",
            at=".kubeScheduling",
        )
    ],
)

COORDINATION = record(
    "Roles whose rolling updates go forward together",
    {
        "name": dns_label("Name of the coordination"),
        "roles": set_of(
            "Roles that are coordinated; each is in one coordination only",
            text("Name of a role of this group", maxLength=MAX_NAME, pattern=DNS_LABEL),
            32,
            minItems=1,
        ),
        "strategy": record(
            "What is coordinated",
            {
                "rollingUpdate": record(
                    "Limits while a rolling update runs",
                    {
                        "maxSkew": text(
                            "By how much the updated share of a role's instances may be ahead of the slowest role's",
                            pattern=PERCENT,
                        ),
                        "partition": text("Replaces the roles' own partition", pattern=PERCENT),
                        "maxUnavailable": text("Replaces the roles' own maxUnavailable", pattern=PERCENT),
                    },
                )
            },
        ),
    },
    required=["name", "roles"],
)


def group_spec(description: str, described: bool) -> Schema:
    """spec of a group; `described` decides whether Kubernetes' own fields carry their descriptions."""
    template = record(
        "A pod template that several roles share",
        {
            "name": dns_label("Name that templateRef uses"),
            "template": pod_template(
                "Pod template; fields as in roles.template. It may be incomplete when the roles' templatePatch "
                "completes it",
                described=False,
                partial=True,
            ),
        },
        required=["name", "template"],
    )
    fields = {
        "roles": list_by("name", "The roles of the group, in any order", role(described), MAX_ROLES, minItems=1),
        "roleTemplates": list_by("name", "Pod templates that several roles share", template, MAX_ROLES),
        "podGroupPolicy": POD_GROUP_POLICY,
        "coordination": list_by("name", "Roles whose rolling updates go forward together", COORDINATION, 16),
    }
    return record(description, fields, required=["roles"], rules=SPEC_RULES)
