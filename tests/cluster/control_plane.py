"""A Kubernetes control plane on this machine: a folder of files and five processes, on ports of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.cluster import certificates, client, components, processes, programs, runs, stages
from tests.cluster.components import COMPONENTS, Settings
from tests.cluster.programs import ClusterError
from tests.cluster.waiting import locked, wait_until

START_SECONDS = 60.0
STOP_SECONDS = 1.0  # between SIGTERM and SIGKILL: the API server would drain its watches for a minute
LOCK_SECONDS = 10.0
REPOSITORY = Path(__file__).parents[2]


class ControlPlane:
    """A control plane by its name; as a context manager it is up inside and gone afterwards.

    Use `up(...)` to start one, `attach(name)` to find one that runs.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = runs.folder_of(settings.name)
        self.url = components.url(settings)
        self.kubeconfig = self.folder / "admin.kubeconfig"
        self.audit_log = self.folder / "audit.log"
        self.pod_log = self.folder / "pods.log"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # Life

    def down(self) -> None:
        """End every process and delete the folder; fine on one that is half there."""
        runs.remove(self.settings.name)

    def start(self, component: str, wait: bool = True) -> None:
        """Start one component and wait until it is ready; raises ClusterError with its last lines if it is not."""
        program = programs.path_of(programs.named(component))
        command = [str(program), *components.arguments(component, self.folder, self.settings)]
        processes.spawn(self.folder, component, command, self.folder / f"{component}.log")
        if wait:
            self.wait_ready(component)

    def stop(self, component: str, grace: float = STOP_SECONDS) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds (at once with 0)."""
        processes.end([self._pid(component)], grace)

    def restart(self, component: str, grace: float = STOP_SECONDS) -> None:
        """Stop and start; with grace=0 it is killed.

        Others find it again in their own time: the controllers' informers try less and less often, up to every 30 s.
        """
        self.stop(component, grace)
        self.start(component)

    def pause(self, component: str) -> None:
        """Stop a component in its tracks: its connections stay open and nobody answers."""
        os.kill(self._pid(component), signal.SIGSTOP)

    def resume(self, component: str) -> None:
        """Let a paused component go on."""
        os.kill(self._pid(component), signal.SIGCONT)

    def status(self) -> dict[str, tuple[int | None, int, bool]]:
        """Pid (None: not running), port and readiness by component."""
        pids, urls = processes.running(self.folder), components.health_urls(self.settings)
        return {
            name: (pids.get(name), self.settings.ports[name], name in pids and client.is_healthy(urls[name]))
            for name in COMPONENTS
        }

    def wait_ready(self, component: str) -> None:
        """Until the component says that it is ready; raises ClusterError if it ends or START_SECONDS pass."""
        health = components.health_urls(self.settings)[component]

        def ready() -> bool:
            if client.is_healthy(health):
                return True
            if component not in processes.running(self.folder):
                raise ClusterError(f"{component} has ended:\n{self._log_tail(component)}")
            return False

        try:
            wait_until(ready, f"{component} is not ready", START_SECONDS)
        except TimeoutError as error:
            raise ClusterError(f"{error}:\n{self._log_tail(component)}") from error

    # Use

    def api(self, user: str = "admin") -> client.Client:
        """Plain API requests as one of the users with a certificate."""
        return client.Client(self.url, self.folder / "pki", user)

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 60.0) -> str:
        """What kubectl prints; raises ClusterError with its complaint. `timeout` in seconds."""
        done = subprocess.run(
            [str(programs.path_of(programs.named("kubectl"))), *arguments],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.folder / "kubectl-cache")},
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig with a token, valid for an hour, of a service account that exists."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = self.api().request("POST", path, {"spec": {"expirationSeconds": 3600}})
        kubeconfig = self.folder / f"{namespace}.{name}.kubeconfig"
        user = {"token": answer["status"]["token"]}
        client.write_kubeconfig(kubeconfig, self.url, self.folder / "pki" / "ca.crt", user, namespace)
        return kubeconfig

    def write_pod_log(self, *lines: str) -> None:
        """Add lines to the one log that `kubectl logs` shows of every container."""
        with self.pod_log.open("a") as log:
            log.writelines(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} stdout F {line}\n" for line in lines)

    def audit_mark(self) -> int:
        """The end of the audit log now, for `audit`."""
        return self.audit_log.stat().st_size

    def audit(self, mark: int = 0) -> Iterator[dict[str, Any]]:
        """Finished requests since `mark`, oldest first: verb, requestURI, objectRef, user, responseStatus ..."""
        with self.audit_log.open() as log:
            log.seek(mark)
            for line in log:
                if line.endswith("\n"):
                    yield json.loads(line)

    def make_namespace(self, name: str) -> None:
        """A namespace in which pods can be made: with its default service account."""
        self.api().request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        complaint = f"namespace {name} has no default service account"
        wait_until(lambda: self.api().exists(account), complaint, START_SECONDS)

    def delete_namespace(self, name: str) -> None:
        """Start the deletion; nobody waits for its end."""
        self.api().request("DELETE", f"/api/v1/namespaces/{name}")

    def _pid(self, component: str) -> int:
        pid = processes.running(self.folder).get(component)
        if pid is None:
            raise ClusterError(f"{component} of control plane {self.settings.name} does not run")
        return pid

    def _log_tail(self, component: str) -> str:
        return (self.folder / f"{component}.log").read_text(errors="replace")[-2000:]


def up(
    name: str,
    *,
    nodes: int = 3,
    qps: int = 500,
    ready_after: float = 0.0,
    plain_pods: bool = False,
    audited: Sequence[str] = (),
    flags: Mapping[str, Sequence[str]] | None = None,
    owned: bool = True,
) -> ControlPlane:
    """Start a control plane and wait until pods would run on it.

    An owned one goes when the calling process dies, however it dies. Raises ClusterError; nothing is left then.
    """
    folder = runs.claim(name)
    try:
        if owned:
            _watch_owner(folder, name)
        with locked(runs.lock(), LOCK_SECONDS):
            ports = runs.free_ports(components.PORTS)
            settings = Settings(name, ports, nodes, qps, ready_after, plain_pods, audited, flags or {})
            runs.settings_file(name).write_text(json.dumps(dataclasses.asdict(settings)))
        control_plane = ControlPlane(settings)
        _prepare(control_plane)
        _start_all(control_plane)
    except BaseException:
        runs.remove(name)
        raise
    return control_plane


def attach(name: str) -> ControlPlane:
    """The control plane of that name, which another process has started."""
    try:
        settings = json.loads(runs.settings_file(name).read_text())
    except FileNotFoundError:
        raise ClusterError(f"no control plane {name}: `python -m tests.cluster up --name {name}` starts it") from None
    return ControlPlane(Settings(**settings))


def _prepare(control_plane: ControlPlane) -> None:
    folder, settings = control_plane.folder, control_plane.settings
    certificates.make(folder / "pki")
    for user in certificates.CLIENTS:
        credentials = client.certificate_user(folder / "pki", user)
        client.write_kubeconfig(
            folder / f"{user}.kubeconfig", control_plane.url, folder / "pki" / "ca.crt", credentials
        )
    components.write_configuration(folder, settings)
    control_plane.pod_log.touch()
    pods = stages.plain(settings.ready_after) if settings.plain_pods else stages.steered(settings.ready_after)
    stages.write(folder / "kwok.yaml", pods, control_plane.pod_log)


def _start_all(control_plane: ControlPlane) -> None:
    """etcd and the API server side by side, then the others, while the nodes are registered."""
    for component in ("etcd", "kube-apiserver"):
        control_plane.start(component, wait=False)
    control_plane.wait_ready("kube-apiserver")
    others = COMPONENTS[2:]
    for component in others:
        control_plane.start(component, wait=False)
    api = control_plane.api()
    for number in range(control_plane.settings.nodes):
        api.request("POST", "/api/v1/nodes", stages.node(number, control_plane.settings.ports["kwok"]))
    for component in others:
        control_plane.wait_ready(component)
    complaint = "the nodes are not schedulable, or the default service account is missing"
    wait_until(lambda: _accepts_pods(api), complaint, START_SECONDS)


def _accepts_pods(api: client.Client) -> bool:
    nodes = api.request("GET", "/api/v1/nodes")["items"]
    untainted = not any(node["spec"].get("taints") for node in nodes)
    return untainted and api.exists("/api/v1/namespaces/default/serviceaccounts/default")


def _watch_owner(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "tests.cluster", "watch", "--name", name, str(os.getpid())]
    processes.spawn(folder, "watchdog", command, folder / "watchdog.log", {"PYTHONPATH": str(REPOSITORY)})
