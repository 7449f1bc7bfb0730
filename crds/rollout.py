"""How the pods of a role are replaced by those of a new revision."""

from __future__ import annotations

from crds.schema import boolean, integer, number_or_percent, record, rule, text

IN_PLACE = record(
    "Accepted and without effect: pods are recreated",
    {"gracePeriodSeconds": integer("Seconds between a pod leaving its Services and its change in place")},
)

ROLLING_UPDATE = record(
    "Pace and extent of a rolling update",
    {
        "type": text(
            "Pods are recreated in any case; InPlaceIfPossible is accepted and works as Recreate",
            enum=["Recreate", "InPlaceIfPossible"],
        ),
        "partition": number_or_percent(
            'Lowest ordinal that is updated, or such a share of replicas ("50%"): pods below it stay as they are, '
            "for canaries. A pod below it that dies comes back at its old revision",
            0,
        ),
        "maxUnavailable": number_or_percent(
            "Instances that may be unready during the update, or such a share of replicas, rounded down but at least "
            "1 where maxSurge is 0",
            1,
        ),
        "maxSurge": number_or_percent(
            "Instances above replicas that may run during the update, or such a share of replicas, rounded up", 0
        ),
        "paused": boolean("Stops the update where it stands; scaling and repair go on"),
        "inPlaceUpdateStrategy": IN_PLACE,
    },
    rules=[
        rule(
            "[self.maxUnavailable, self.maxSurge].exists(limit, limit != 0 && limit != '0%')",
            "and maxSurge are both 0, so no pod could ever be replaced; raise one of them",
            at=".maxUnavailable",
        )
    ],
)

ROLLOUT_STRATEGY = record(
    "How pods are replaced when the role changes",
    {
        "type": text("The only strategy there is", enum=["RollingUpdate"], default="RollingUpdate"),
        "rollingUpdate": ROLLING_UPDATE,
    },
)
