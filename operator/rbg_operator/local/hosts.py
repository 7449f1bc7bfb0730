"""The hosts file of a group: what DNS is on a cluster. Every pod's runtime reads it through EPD_HOSTS_FILE.

The name of one ordinal always stands for its pod; the headless name of a role stands for its ready pods only. The file
is replaced in one step, so that a reader sees the old or the new one, never a part.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rbg_operator.plan.processes import PodProcess


def render(pods: Iterable[tuple[PodProcess, bool]]) -> str:
    """The file's text; each pod with whether it is ready."""
    lines = []
    for pod, ready in pods:
        names = (*pod.names_always, *(pod.names_ready if ready else ()))
        lines.append(f"{pod.address} {' '.join(names)}\n")
    return "".join(lines)


def replace(path: Path, text: str) -> None:
    """Write the file in one step."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    os.replace(temporary, path)
