"""The programs of a control plane: found in the cache or on PATH, else built from the Go module index.

Versions are pinned three times over: here, in modules/*/go.mod, and by the hashes in modules/*/go.sum.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster.waiting import locked

MODULES = Path(__file__).parent / "modules"
BUILD_SECONDS = 1800.0
KUBERNETES = "1.34.4"
KUBERNETES_STAMPS = (
    f"k8s.io/component-base/version.gitVersion=v{KUBERNETES}",
    "k8s.io/component-base/version.gitMajor=1",
    "k8s.io/component-base/version.gitMinor=34",
    "k8s.io/component-base/version.gitTreeState=clean",
    f"k8s.io/client-go/pkg/version.gitVersion=v{KUBERNETES}",
)


class ClusterError(Exception):
    """A control plane, or a program of it, is not as it should be; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Program:
    """One program: where its source is, and how it tells its version."""

    name: str
    version: str
    module: str  # a folder of modules/
    package: str
    version_arguments: tuple[str, ...] = ("--version",)
    stamps: tuple[str, ...] = ()  # name=value of variables that the linker sets


def _kubernetes(name: str, *version_arguments: str) -> Program:
    arguments = version_arguments or ("--version",)
    return Program(name, KUBERNETES, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", arguments, KUBERNETES_STAMPS)


CONTROL_PLANE = (
    Program("etcd", "3.6.7", "etcd", "go.etcd.io/etcd/server/v3"),
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kube-scheduler"),
    _kubernetes("kubectl", "version", "--client"),
    Program("kwok", "0.8.0", "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
)
HELM = Program(
    "helm",
    "4.3.1",
    "helm",
    "helm.sh/helm/v4/cmd/helm",
    ("version", "--short"),
    ("helm.sh/helm/v4/internal/version.version=v4.3.1",),
)
OPTIONAL = {HELM.name: HELM}


def named(name: str) -> Program:
    """The program of a control plane that has this name."""
    return next(program for program in CONTROL_PLANE if program.name == name)


def cache_folder() -> Path:
    """Where built programs and the state of running control planes are kept."""
    if chosen := os.environ.get("RBG_CLUSTER_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rbg-cluster"


def find(program: Program) -> Path | None:
    """The program in its version from the cache, else from PATH; None if neither has it."""
    cached = _cached(program)
    if cached.exists():
        return cached
    on_path = shutil.which(program.name)
    return Path(on_path) if on_path and _has_version(on_path, program) else None


def path_of(program: Program) -> Path:
    """The program's path; raises ClusterError when it is not built."""
    found = find(program)
    if found is None:
        raise ClusterError(f"{program.name} {program.version} is not built: run `python -m tests.cluster build`")
    return found


def obstacle(programs: Sequence[Program] = CONTROL_PLANE) -> str | None:
    """Why a control plane can neither run nor be built on this machine; None if it can."""
    if sys.platform != "linux":
        return "control planes for tests run on Linux only"
    if not shutil.which("openssl"):
        return "openssl is missing: install the package openssl"
    missing = [f"{program.name} {program.version}" for program in programs if find(program) is None]
    if missing and not shutil.which("go"):
        return f"{', '.join(missing)} not found, and no Go to build them: install Go 1.26 or newer"
    return None


def build(programs: Sequence[Program] = CONTROL_PLANE, say: Callable[[str], None] = print) -> None:
    """Build what is missing; waits while another process builds. Raises ClusterError, or TimeoutError of that wait."""
    if all(find(program) for program in programs):
        return
    waiting = functools.partial(say, "another process is building; waiting for it ...")
    with locked(cache_folder() / "build.lock", BUILD_SECONDS, waiting) as lock:
        missing = [program for program in programs if find(program) is None]
        for number, program in enumerate(missing, 1):
            say(f"building {program.name} {program.version} ({number} of {len(missing)}) ...")
            started = time.monotonic()
            _build_one(program, lock)
            say(f"built {program.name} in {time.monotonic() - started:.0f} s")


def _cached(program: Program) -> Path:
    return cache_folder() / f"{program.name}-{program.version}" / program.name


@functools.cache
def _has_version(path: str, program: Program) -> bool:
    try:
        done = subprocess.run([path, *program.version_arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(rf"(?<![\d.]){re.escape(program.version)}(?![\d.-])", done.stdout) is not None


def _build_one(program: Program, lock: int) -> None:
    """Into a file beside the final one, then renamed: a build that is killed leaves nothing that looks finished.

    The compiler has the lock too: should it outlive a killed parent, the next build waits for it.
    """
    go = shutil.which("go")
    if go is None:
        raise ClusterError(f"{program.name} {program.version} must be built: install Go 1.26 or newer")
    final = _cached(program)
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = final.with_name(f"{program.name}.unfinished")
    stamps = " ".join(f"-X {stamp}" for stamp in program.stamps)
    command = [go, "build", "-C", str(MODULES / program.module), "-mod=readonly", "-buildvcs=false", "-trimpath"]
    command += ["-ldflags", f"-s -w {stamps}", "-o", str(unfinished), program.package]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"},
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            pass_fds=(lock,),
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"building {program.name} took more than {BUILD_SECONDS:.0f} s") from error
    if done.returncode:
        raise ClusterError(f"building {program.name} failed:\n{done.stderr[-3000:]}")
    unfinished.rename(final)
