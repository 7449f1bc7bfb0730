"""ClusterEngineRuntimeProfile: sidecars that roles of any namespace can ask for."""

from __future__ import annotations

from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.api.fields import Fields
from rbg_operator.api.problems import Findings
from rbg_operator.api.template import check_containers


@dataclass(frozen=True, kw_only=True)
class EngineRuntimeProfile:
    """What is added to pods. rolls: whether a change of the profile replaces the pods that have it."""

    init_containers: tuple[Json, ...]
    containers: tuple[Json, ...]
    volumes: tuple[Json, ...]
    rolls: bool


def parse_profile(spec: object) -> EngineRuntimeProfile:
    """Read spec of a profile. Raises ManifestError with all problems."""
    findings = Findings()
    fields = Fields(spec, "spec", findings)
    fields.reject_unknown(("initContainers", "containers", "volumes", "updateStrategy"))
    containers = check_containers(fields)
    for volume in fields.each("volumes"):
        volume.required_string("name", "name the volume")
    profile = EngineRuntimeProfile(
        init_containers=tuple(containers["initContainers"]),
        containers=tuple(containers["containers"]),
        volumes=tuple(volume.value for volume in fields.each("volumes")),
        rolls=fields.choice("updateStrategy", "NoUpdate", ("NoUpdate", "RollingUpdate")) == "RollingUpdate",
    )
    findings.raise_errors()
    return profile
