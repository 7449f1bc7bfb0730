"""The objects of a group, read and written through kubectl."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.kubectl.errors import UnknownNameError, unknown
from rbg_operator.kubectl.kubectl import Kubectl, KubectlError
from rbg_operator.kubectl.read import mapping, mappings, number, text
from rbg_operator.plan import labels
from rbg_operator.plan.observed import Pod

GROUPS = "rolebasedgroups.workloads.x-k8s.io"
ADAPTERS = "rolebasedgroupscalingadapters.workloads.x-k8s.io"
FIELD_MANAGER = "kubectl-rbg"
ATTEMPTS = 5


class _PodList(msgspec.Struct):
    items: tuple[Pod, ...] = ()


def get_group(kubectl: Kubectl, name: str) -> Json:
    """The group; raises UnknownNameError, or KubectlError for everything else."""
    try:
        return kubectl.json("get", GROUPS, name)
    except KubectlError as error:
        if error.reason != "NotFound":
            raise
        raise _no_group(kubectl, name) from error


def get_groups(kubectl: Kubectl, everywhere: bool) -> list[Json]:
    """All groups of the namespace, or of all namespaces."""
    return mappings(kubectl.json("get", GROUPS, *(["--all-namespaces"] if everywhere else [])), "items")


def get_pods(kubectl: Kubectl, group: str = "", role: str = "") -> tuple[Pod, ...]:
    """The pods of a group, or of one of its roles."""
    selector = f"{labels.GROUP_NAME}={group}" + (f",{labels.ROLE_NAME}={role}" if role else "")
    output = kubectl.run("get", "pods", "-l", selector, "-o", "json")
    try:
        return msgspec.json.decode(output, type=_PodList).items
    except msgspec.MsgspecError as error:
        raise KubectlError(f"kubectl get pods printed something else: {error}") from error


def get_adapters(kubectl: Kubectl, group: str) -> list[Json]:
    """The scaling adapters of a group; none where the cluster does not know the kind."""
    try:
        return mappings(kubectl.json("get", ADAPTERS, "-l", f"{labels.GROUP_NAME}={group}"), "items")
    except KubectlError as error:
        if error.reason in ("NoKind", "NotFound"):
            return []
        raise


def get_revisions(kubectl: Kubectl, group: Json) -> list[Json]:
    """The group's ControllerRevisions, oldest first; those of a deleted group of the same name are left out."""
    uid, name = text(group, "metadata", "uid"), text(group, "metadata", "name")
    selector = f"{labels.GROUP_NAME}={name},{labels.GROUP_REVISION}"
    found = mappings(kubectl.json("get", "controllerrevisions.apps", "-l", selector), "items")
    owned = [
        item for item in found if any(text(o, "uid") == uid for o in mappings(item, "metadata", "ownerReferences"))
    ]
    return sorted(owned, key=lambda item: number(item, "revision"))


def replace_spec(kubectl: Kubectl, group: Json) -> None:
    """Write the spec of a group that was read before. Raises KubectlError, reason Conflict if it was edited since.

    A patch, since `kubectl replace` would also rewrite the annotation by which `kubectl apply` knows what it applied.
    It is bound to the generation: the resourceVersion changes with every status that the operator writes.
    """
    patch = [
        {"op": "test", "path": "/metadata/generation", "value": number(group, "metadata", "generation")},
        {"op": "replace", "path": "/spec", "value": mapping(group, "spec")},
    ]
    flags = ("--type=json", "--patch-file=/dev/stdin", f"--field-manager={FIELD_MANAGER}")
    kubectl.run("patch", GROUPS, text(group, "metadata", "name"), *flags, stdin=json.dumps(patch))


def edit(kubectl: Kubectl, name: str, change: Callable[[Json], Json]) -> None:
    """Read, change, write; again if somebody else wrote in between: for changes that hold whatever else was edited."""
    for attempt in itertools.count(1):
        try:
            replace_spec(kubectl, change(get_group(kubectl, name)))
            return
        except KubectlError as error:
            if error.reason != "Conflict" or attempt == ATTEMPTS:
                raise


def _no_group(kubectl: Kubectl, name: str) -> UnknownNameError:
    namespace = current_namespace(kubectl)
    known = [text(group, "metadata", "name") for group in get_groups(kubectl, everywhere=False)]
    hint = "choose a namespace with -n, or list the groups of all with: kubectl rbg status -A"
    return unknown(f'no RoleBasedGroup "{name}" in namespace {namespace}', name, known, hint)


def current_namespace(kubectl: Kubectl) -> str:
    """The namespace that the flags or the kubeconfig choose."""
    if kubectl.namespace:
        return kubectl.namespace
    return kubectl.run("config", "view", "--minify", "-o", "jsonpath={..namespace}").strip() or "default"
