"""A preview as text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rbg_operator.api.documents import Json
from rbg_operator.colours import BOLD, DIM, GREEN, RED, YELLOW, paint
from rbg_operator.kubectl.read import mapping, mappings, number, text
from rbg_operator.plan import labels
from rbg_operator.plan.preview import Preview, RoleStep
from rbg_operator.preview.difference import Difference

MARKS = {"+": GREEN, "-": RED, "@": DIM}


def plan_text(headline: str, preview: Preview, colour: bool) -> str:
    """Steps in order, then the objects."""
    rows = [("KIND", "NAME", "NOTES"), *((*_name(item), note(item)) for item in preview.applied)]
    return "\n".join([paint(headline, BOLD, colour), "", *_steps(preview, colour), "", *_table(rows, colour)])


def difference_text(headline: str, preview: Preview, difference: Difference, colour: bool) -> str:
    """Steps in order, then what is created, changed and deleted."""
    lines = [paint(headline, BOLD, colour), "", *_steps(preview, colour), ""]
    lines += [paint(f"create  {' '.join(_name(item))}", GREEN, colour) for item in difference.created]
    lines += [paint(f"delete  {kind} {name}", RED, colour) for kind, name in difference.deleted]
    for (kind, name), changes in difference.changed.items():
        lines.append(paint(f"change  {kind} {name}", YELLOW, colour))
        lines += [f"  {paint(line, MARKS.get(line[:1], ''), colour)}" for line in changes.splitlines()[2:]]
    return "\n".join(lines)


def _steps(preview: Preview, colour: bool) -> Iterator[str]:
    """Numbered steps, one line for each role: `2  vlm-prefill  start 1 pod  when vlm-encoder is ready`."""
    rows = [(index, step, _what(step)) for index, steps in enumerate(preview.steps, 1) for step in steps]
    names = max((len(step.role) for _, step, _ in rows), default=0)
    widest = max((len(what) for _, _, what in rows), default=0)
    previous = 0
    for index, step, what in rows:
        count = str(index) if index != previous else ""
        previous = index
        when = paint(_when(step), DIM, colour)
        yield f"{count:>3}  {step.role:<{names}}  {what:<{widest}}  {when}".rstrip()
    if not rows:
        yield "  no pod is started, replaced or removed"
    if preview.message:
        yield f"  then it stays so: {preview.message}"


def _what(step: RoleStep) -> str:
    parts = (("start", step.started), ("replace", step.replaced), ("remove", step.removed))
    return ", ".join(f"{verb} {counted(count, 'pod')}" for verb, count in parts if count)


def counted(count: int, noun: str) -> str:
    """1 pod, 2 pods."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _when(step: RoleStep) -> str:
    if not step.after:
        return ""
    *others, last = step.after
    return f"when {', '.join(others)} and {last} are ready" if others else f"when {last} is ready"


def note(item: Json) -> str:
    """What is worth knowing of an object."""
    spec = mapping(item, "spec")
    match item["kind"]:
        case "StatefulSet" | "Deployment":
            return f"{counted(number(spec, 'replicas'), 'pod')} of {_container(spec)}"
        case "LeaderWorkerSet":
            template = mapping(spec, "leaderWorkerTemplate")
            nodes = f"{counted(number(spec, 'replicas'), 'instance')} of {counted(number(template, 'size'), 'pod')}"
            return f"{nodes} of {_container({'template': mapping(template, 'workerTemplate')})}"
        case "Service":
            return _service(spec)
        case "ConfigMap":
            return f"{', '.join(mapping(item, 'data'))}, mounted at /etc/rbg"
        case "PodGroup":
            return f"gang of {counted(number(spec, 'minMember'), 'pod')}"
        case "ControllerRevision":
            return f"revision {number(item, 'revision')} in the history"
        case "RoleBasedGroupScalingAdapter":
            return (
                f"scale subresource of role {text(spec, 'scaleTargetRef', 'role')}, {number(spec, 'replicas')} replicas"
            )
    return ""


def _container(spec: Json) -> str:
    """Image of the first container, with its GPUs."""
    containers = mappings(spec, "template", "spec", "containers")
    first = containers[0] if containers else {}
    limits = mapping(first, "resources", "limits")
    gpus = [f"{count} {name}" for name, count in limits.items() if "gpu" in name]
    return ", ".join([text(first, "image"), *gpus])


def _service(spec: Json) -> str:
    ports = ", ".join(f"{text(port, 'name')} {number(port, 'port')}".strip() for port in mappings(spec, "ports"))
    is_single = labels.POD_NAME in mapping(spec, "selector")
    pods = "one pod" if is_single else "all pods" if spec.get("publishNotReadyAddresses") is True else "the ready pods"
    return f"DNS name of {pods}" + (f", ports {ports}" if ports else "")


def _name(item: Json) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def _table(rows: Sequence[tuple[str, str, str]], colour: bool) -> Iterable[str]:
    kinds, names = (max(len(row[column]) for row in rows) for column in range(2))
    for index, (kind, name, notes) in enumerate(rows):
        line = f"{kind:<{kinds}}  {name:<{names}}  {notes}".rstrip()
        yield paint(line, DIM, colour and index == 0)
