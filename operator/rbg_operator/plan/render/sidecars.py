"""Engine runtimes: containers of ClusterEngineRuntimeProfiles beside those of the role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rbg_operator.api.documents import Json
from rbg_operator.api.model import EngineRuntime, Role
from rbg_operator.api.problems import ManifestError, Problem
from rbg_operator.api.profile import EngineRuntimeProfile, parse_profile
from rbg_operator.plan.render.scope import copied


@dataclass(frozen=True, kw_only=True)
class Sidecars:
    """What one profile adds to the pods of one role. rolls: whether it is part of the role's revision."""

    runtime: EngineRuntime
    init_containers: Sequence[Json]
    containers: Sequence[Json]
    volumes: Sequence[Json]
    rolls: bool

    def add_to(self, spec: Json) -> None:
        """Add it to a pod spec: to start before, and to run after, what is there."""
        if self.init_containers:
            spec["initContainers"] = [*map(copied, self.init_containers), *(spec.get("initContainers") or ())]
        spec["containers"] = [*spec["containers"], *map(copied, self.containers)]
        if self.volumes:
            spec["volumes"] = [*(spec.get("volumes") or ()), *map(copied, self.volumes)]


def sidecars(role: Role, path: str, profiles: Mapping[str, Json]) -> tuple[list[Sidecars], list[Problem]]:
    """Everything that profiles add to the role, and what is wrong. `path` is the role's in the manifest.

    A volume that the role or an earlier profile has stays as it is.
    """
    found: list[Sidecars] = []
    problems: list[Problem] = []
    own = (*(role.pod_spec.get("initContainers") or ()), *role.pod_spec["containers"])
    taken = {container["name"] for container in own}
    volumes = {volume.get("name") for volume in role.pod_spec.get("volumes") or ()}
    for index, runtime in enumerate(role.engine_runtimes):
        where = f"{path}.engineRuntimes[{index}]"
        try:
            profile = _profile(runtime, where, profiles)
            one = _sidecars(runtime, profile, where)
        except ManifestError as error:
            problems += error.problems
            continue
        for container in (*one.init_containers, *one.containers):
            if container["name"] in taken:
                message = f'adds a container "{container["name"]}", and the pod has one of that name; rename one'
                problems.append(Problem(f"{where}.profileName", message))
            taken.add(container["name"])
        found.append(replace(one, volumes=[volume for volume in one.volumes if volume["name"] not in volumes]))
        volumes |= {volume["name"] for volume in one.volumes}
    return found, problems


def _profile(runtime: EngineRuntime, where: str, profiles: Mapping[str, Json]) -> EngineRuntimeProfile:
    if runtime.profile not in profiles:
        message = f'there is no ClusterEngineRuntimeProfile "{runtime.profile}"; create it or remove the entry'
        raise ManifestError([Problem(f"{where}.profileName", message)])
    try:
        return parse_profile(profiles[runtime.profile])
    except ManifestError as error:
        message = f'the ClusterEngineRuntimeProfile "{runtime.profile}" cannot be used: {error.problems[0]}'
        raise ManifestError([Problem(f"{where}.profileName", message)]) from None


def _sidecars(runtime: EngineRuntime, profile: EngineRuntimeProfile, where: str) -> Sidecars:
    known = [container["name"] for container in profile.containers]
    every = known + [container["name"] for container in profile.init_containers]
    named = [(f"injectContainers[{place}]", name, known) for place, name in enumerate(runtime.inject)]
    named += [(f"containers[{place}].name", item["name"], every) for place, item in enumerate(runtime.overrides)]
    problems = [
        Problem(f"{where}.{key}", f'the profile has no container "{name}"; it has {", ".join(among) or "none"}')
        for key, name, among in named
        if name not in among
    ]
    if problems:
        raise ManifestError(problems)
    overrides = {override["name"]: override for override in runtime.overrides}
    chosen = runtime.inject or known
    wanted = [container for container in profile.containers if container["name"] in chosen]
    return Sidecars(
        runtime=runtime,
        init_containers=[_overridden(item, overrides.get(item["name"], {})) for item in profile.init_containers],
        containers=[_overridden(item, overrides.get(item["name"], {})) for item in wanted],
        volumes=profile.volumes,
        rolls=profile.rolls,
    )


def _overridden(container: Json, override: Json) -> Json:
    """command and args are replaced, variables too or added."""
    words = {key: override[key] for key in ("command", "args") if override.get(key) is not None}
    if not override.get("env"):
        return {**container, **words}
    env = {variable["name"]: variable for variable in (*(container.get("env") or ()), *override["env"])}
    return {**container, **words, "env": list(env.values())}
