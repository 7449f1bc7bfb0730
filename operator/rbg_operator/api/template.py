"""The part of a pod template that the operator itself reads: checked here, so nobody downstream meets a wrong type.

Everything else in a template is Kubernetes' and passes through untouched.
"""

from __future__ import annotations

import re

from rbg_operator.api.documents import Json
from rbg_operator.api.fields import Fields
from rbg_operator.api.problems import Findings
from rbg_operator.api.strategic_merge import merge

TWO_WORDS = re.compile(r"^(-{1,2}[A-Za-z][\w-]*)\s+(\S.*)$", re.DOTALL)
ENV_NAME = re.compile(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")


def resolve_template(role: Fields, shared: dict[str, Json]) -> Json:
    """The pod template of a role: inline, or a shared one with its patch; checked. Findings go to the role's."""
    if role.has("template") and role.has("templateRef"):
        role.error("templateRef", "excludes template; keep one of the two")
    if role.has("templatePatch") and not role.has("templateRef"):
        role.error("templatePatch", "needs templateRef: it changes a template of spec.roleTemplates")
    if role.has("template"):
        return check_template(role.inner("template"))
    if not role.has("templateRef"):
        role.error("template", "is missing; give a pod template, or templateRef with the name of a spec.roleTemplates")
        return {}
    reference = role.inner("templateRef")
    reference.reject_unknown(("name",))
    name = reference.required_string("name", "give the name of one of spec.roleTemplates")
    if name and name not in shared:
        known = ", ".join(shared) or "none"
        reference.error("name", f'no template of spec.roleTemplates is called "{name}"; templates are {known}')
    if name not in shared:
        return {}
    merged = merge(shared[name], role.mapping("templatePatch"))
    return check_template(Fields(merged, f"{role.path}.templateRef({name})", role.findings))


def check_template(template: Fields) -> Json:
    """Check the fields read by the operator; returns the template unchanged."""
    metadata = template.inner("metadata")
    metadata.string_map("labels")
    metadata.string_map("annotations")
    spec = template.inner("spec")
    spec.integer("terminationGracePeriodSeconds", 30)
    names: set[str] = set()
    containers = list(spec.each("containers"))
    if not containers:
        spec.error("containers", "is empty; a pod needs at least one container")
    for container in containers:
        name = container.required_string("name", "name the container")
        if name in names:
            container.error("name", f'"{name}" is the name of two containers; give each its own')
        names.add(name)
        _check_container(container)
    return template.value


def _check_container(container: Fields) -> None:
    for key in ("command", "args"):
        for index, word in enumerate(container.strings(key)):
            _warn_two_words(container.findings, f"{container.at(key)}[{index}]", word)
    container.string("workingDir")
    for variable in container.each("env"):
        name = variable.required_string("name", "name the variable")
        if name and not ENV_NAME.match(name):
            variable.error("name", f"{name!r} is no name of an environment variable: letters, digits, _, - and .")
        variable.string("value")
        variable.mapping("valueFrom")
        if variable.value.get("value") and variable.has("valueFrom"):
            variable.error("valueFrom", "excludes value; keep one of the two")
    for port in container.each("ports"):
        port.string("name")
        port.integer("containerPort", 1, minimum=1)
    container.mapping("readinessProbe")


def _warn_two_words(findings: Findings, path: str, word: str) -> None:
    """`- --port 30002` is one argument with a space in it, which no program takes."""
    match = TWO_WORDS.match(word)
    if match:
        first, rest = match.groups()
        rest = rest if len(rest) <= 40 else rest[:37] + "..."
        findings.warn(path, f'"{first} {rest}" is one argument with a space in it; write two items: {first} and {rest}')
