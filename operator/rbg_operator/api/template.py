"""The part of a pod template that the operator itself reads: checked here, so nobody downstream meets a wrong type.

Everything else in a template is Kubernetes' and passes through untouched, but for one correction: `- --port 30002` is
one argument with a space in it, which Python programs do not take. Manifests are often written so; it is read as two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from rbg_operator.api.documents import Json
from rbg_operator.api.fields import Fields
from rbg_operator.api.strategic_merge import merge

TWO_WORDS = re.compile(r"^(-{1,2}[A-Za-z][\w-]*)\s+(\S.*)$", re.DOTALL)
PYTHON = re.compile(r"^python[0-9.]*$")
ENV_NAME = re.compile(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
CONTAINER_LISTS = ("initContainers", "containers")


def resolve_templates(
    role: Fields, shared: Mapping[str, Json], instance: Fields, size: int
) -> tuple[Json, Json | None]:
    """Pod templates of an instance's first pod and of its others, None where there are no others.

    `instance` are the fields of leaderWorkerSet. Findings go to the role's.
    """
    base = _base(role, shared)
    if base is None:
        return {}, None
    patches = {key: instance.mapping(key) for key in ("patchLeaderTemplate", "patchWorkerTemplate")}
    leader, worker = (_patched(base, instance, key, patch) for key, patch in patches.items())
    template = check_template(leader)
    if size == 1:
        return template, None
    return template, template if not any(patches.values()) else check_template(worker)


def _patched(base: Fields, instance: Fields, key: str, patch: Json) -> Fields:
    return Fields(merge(base.value, patch), f"{base.path}({instance.at(key)})", base.findings) if patch else base


def _base(role: Fields, shared: Mapping[str, Json]) -> Fields | None:
    """The role's own template, or a shared one with its patch."""
    if role.has("template") and role.has("templateRef"):
        role.error("templateRef", "excludes template; keep one of the two")
    if role.has("templatePatch") and not role.has("templateRef"):
        role.error("templatePatch", "needs templateRef: it changes a template of spec.roleTemplates")
    if role.has("template"):
        return role.inner("template")
    if not role.has("templateRef"):
        role.error("template", "is missing; give a pod template, or templateRef with the name of a spec.roleTemplates")
        return None
    reference = role.inner("templateRef")
    reference.reject_unknown(("name",))
    name = reference.required_string("name", "give the name of one of spec.roleTemplates")
    if name and name not in shared:
        known = ", ".join(shared) or "none"
        reference.error("name", f'no template of spec.roleTemplates is called "{name}"; templates are {known}')
    if name not in shared:
        return None
    merged = merge(shared[name], role.mapping("templatePatch"))
    return Fields(merged, f"{role.path}.templateRef({name})", role.findings)


def check_template(template: Fields) -> Json:
    """Check the fields read by the operator; returns the template, arguments corrected."""
    metadata = template.inner("metadata")
    metadata.string_map("labels")
    metadata.string_map("annotations")
    spec = template.inner("spec")
    spec.integer("terminationGracePeriodSeconds", 30)
    spec.string("schedulerName")
    for volume in spec.each("volumes"):
        volume.string("name")
    containers = check_containers(spec)
    if not containers["containers"]:
        spec.error("containers", "is empty; a pod needs at least one container")
    corrected = {key: items for key, items in containers.items() if items != (spec.value.get(key) or [])}
    return {**template.value, "spec": {**spec.value, **corrected}} if corrected else template.value


def check_containers(spec: Fields) -> dict[str, list[Json]]:
    """Check both lists of containers, which share their names; returns them with arguments corrected."""
    names: set[str] = set()
    found: dict[str, list[Json]] = {}
    for key in CONTAINER_LISTS:
        found[key] = []
        for container in spec.each(key):
            name = container.required_string("name", "name the container")
            if name in names:
                container.error("name", f'"{name}" is the name of two containers; give each its own')
            names.add(name)
            found[key].append(_check_container(container))
    return found


def _check_container(container: Fields) -> Json:
    container.string("workingDir")
    check_env(container)
    for port in container.each("ports"):
        port.string("name")
        port.integer("containerPort", 1, minimum=1)
    for mount in container.each("volumeMounts"):
        mount.string("mountPath")
    container.mapping("readinessProbe")
    container.mapping("lifecycle")
    return _check_arguments(container)


def check_env(container: Fields) -> None:
    """Check the variables of a container."""
    names: set[str] = set()
    for variable in container.each("env"):
        name = variable.required_string("name", "name the variable")
        if name and not ENV_NAME.fullmatch(name):
            variable.error("name", f"{name!r} is no name of an environment variable: letters, digits, _, - and .")
        if name in names:
            variable.error("name", f'"{name}" is the name of two variables; keep one')
        names.add(name)
        variable.string("value")
        variable.mapping("valueFrom")
        if variable.value.get("value") and variable.has("valueFrom"):
            variable.error("valueFrom", "excludes value; keep one of the two")


def _check_arguments(container: Fields) -> Json:
    """The container with single arguments of two words split, if it starts Python; others are only warned of."""
    words = {key: container.strings(key) for key in ("command", "args")}
    is_python = bool(words["command"]) and PYTHON.match(PurePosixPath(words["command"][0]).name) is not None
    corrected: dict[str, list[str]] = {}
    for key, items in words.items():
        read: list[str] = []
        for index, word in enumerate(items):
            read += _check_argument(container, f"{container.at(key)}[{index}]", word, is_python)
        if len(read) != len(items):
            corrected[key] = read
    return {**container.value, **corrected} if corrected else container.value


def _check_argument(container: Fields, path: str, word: str, is_python: bool) -> list[str]:
    match = TWO_WORDS.match(word)
    if not match:
        return [word]
    first, rest = match.groups()
    is_split = is_python and not re.search(r"\s", rest.strip())
    short = rest if len(rest) <= 40 else rest[:37] + "..."
    advice = f"it is read as two items: {first} and {short}" if is_split else f"write two items: {first} and {short}"
    container.findings.warn(path, f'"{first} {short}" is one argument with a space in it; {advice}')
    return [first, rest.strip()] if is_split else [word]
