"""What the operator reports: conditions, roles, and the little it must remember."""

from __future__ import annotations

from crds.schema import Schema, generation, integer, list_by, record, text, timestamp


def _conditions(description: str) -> Schema:
    condition = record(
        "One aspect of the state",
        {
            "type": text("Name of the condition", maxLength=316),
            "status": text("Whether it holds", enum=["True", "False", "Unknown"]),
            "observedGeneration": generation("metadata.generation that the condition is about"),
            "lastTransitionTime": timestamp("When status changed last"),
            "reason": text("Why, as one word for programs", maxLength=1024),
            "message": text("Why, in words, with the names of roles, pods or fields", maxLength=32768),
        },
        required=["type", "status", "lastTransitionTime", "reason", "message"],
    )
    return list_by("type", description, condition, 16)


OBSERVED_GENERATION = generation("metadata.generation that this status is about; an older one means: not looked at yet")

RESTARTS = record(
    "Restarts ordered by restartPolicy, kept here so that a new operator goes on counting",
    {
        "count": integer("Restarts in a row; 0 again after ten minutes of being ready"),
        "lastTime": timestamp("When pods were deleted last for a restart"),
        "nextTime": timestamp("Earliest time of the next restart: 10 s · 2^(count-1), at most 300 s after the last"),
    },
)

LAST_CRASH = record(
    "The newest crash of a container of this role",
    {
        "pod": text("Name of the pod"),
        "container": text("Name of the container"),
        "exitCode": integer("Exit code; 128 + n when signal n ended it", minimum=-(2**31)),
        "reason": text("Kubernetes' reason, such as Error or OOMKilled"),
        "message": text("Last lines that the container wrote"),
        "time": timestamp("When it ended"),
    },
)

ROLE_STATUS = record(
    "State of one role",
    {
        "name": text("Name of the role"),
        "phase": text(
            "Waiting: not created, a dependency is not ready. Starting, RollingOut, Scaling, Restarting: under way. "
            "Paused: by rollingUpdate.paused. Held: the rollout waits for another role. Stalled: pods fail. Ready. "
            "Removing: no longer in the manifest"
        ),
        "message": text("What the phase waits for, or why it stalls"),
        "replicas": integer("Instances that exist"),
        "readyReplicas": integer("Instances of which all pods are ready"),
        "updatedReplicas": integer("Instances of which all pods run the current revision"),
        "revision": text("Hash of the role's current pod templates"),
        "restarts": RESTARTS,
        "lastCrash": LAST_CRASH,
    },
    required=["name"],
)

GROUP_STATUS = record(
    "What the operator sees. Written by the operator only",
    {
        "observedGeneration": OBSERVED_GENERATION,
        "conditions": _conditions(
            "Valid: the manifest can be used. DependenciesReady: no role waits for another. Progressing: something "
            "is being done; False with the reason Stalled tells what stops it. Ready: every role has all its "
            "instances, each on the current revision and ready"
        ),
        "roleStatuses": list_by("name", "State of every role", ROLE_STATUS, 1000),
        "rolesReady": text('Roles that are ready, of all: "3/4"'),
        "revision": text("Hash of the spec without replicas; `kubectl rbg rollout history` lists them"),
    },
)

SET_STATUS = record(
    "What the operator sees. Written by the operator only",
    {
        "observedGeneration": OBSERVED_GENERATION,
        "replicas": integer("Groups that exist"),
        "readyReplicas": integer("Groups whose condition Ready is True at their current generation"),
        "updatedReplicas": integer("Groups whose spec is the template"),
        "selector": text("Label selector of the groups, for the scale subresource"),
        "conditions": _conditions(
            "Valid: the manifest can be used. Progressing: groups are being made, changed or removed. Ready: all "
            "groups are ready"
        ),
    },
)

ADAPTER_STATUS = record(
    "What the operator sees. Written by the operator only",
    {
        "observedGeneration": OBSERVED_GENERATION,
        "phase": text("Bound: the role exists and follows spec.replicas. NotBound: there is no such group or role"),
        "message": text("Why the adapter is not bound"),
        "replicas": integer("Instances of the role that exist"),
        "selector": text("Label selector of the role's pods, from which an HPA reads its metrics"),
        "lastScaleTime": timestamp("When the operator took over a new spec.replicas last"),
    },
)
