"""The command line of each process, and the address at which it says that it is ready."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SERVICE_RANGE = "10.96.0.0/14"
POD_RANGE = "10.128.0.0/9"
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
PORTS = (*COMPONENTS, "etcd-peer")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a control plane is started with; kept in its folder, so that any process can restart a part of it."""

    name: str
    ports: Mapping[str, int]
    nodes: int = 3
    qps: int = 500  # of the controller manager and the scheduler; bursts of twice as many
    ready_after: float = 0.0  # seconds from a pod's start to its readiness
    plain_pods: bool = False  # annotations steer nothing; simulating such pods costs a third
    audited: Sequence[str] = ()  # users whose requests the audit log lists; empty: all
    flags: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)  # added to a component's own


def url(settings: Settings) -> str:
    """The API server's address."""
    return f"https://127.0.0.1:{settings.ports['kube-apiserver']}"


def health_urls(settings: Settings) -> dict[str, str]:
    """Where each component answers 200 once it is ready."""
    at = {name: f"127.0.0.1:{port}" for name, port in settings.ports.items()}
    return {
        "etcd": f"http://{at['etcd']}/health",
        "kube-apiserver": f"https://{at['kube-apiserver']}/readyz",
        "kube-controller-manager": f"https://{at['kube-controller-manager']}/healthz",
        "kube-scheduler": f"https://{at['kube-scheduler']}/readyz",
        "kwok": f"http://{at['kwok']}/healthz",
    }


def write_configuration(folder: Path, settings: Settings) -> None:
    """The files that flags point to (JSON is YAML)."""
    (folder / "audit-policy.json").write_text(json.dumps(_audit_policy(settings.audited)))
    (folder / "scheduler.json").write_text(json.dumps(_scheduler(folder, settings)))


def _audit_policy(users: Sequence[str]) -> dict[str, Any]:
    rules = [{"level": "Metadata", "users": users}, {"level": "None"}] if users else [{"level": "Metadata"}]
    return {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}


def arguments(component: str, folder: Path, settings: Settings) -> list[str]:
    """The flags of a component."""
    build = {
        "etcd": _etcd,
        "kube-apiserver": _apiserver,
        "kube-controller-manager": _controller_manager,
        "kube-scheduler": _scheduler_flags,
        "kwok": _kwok,
    }[component]
    return [*build(folder, settings), *settings.flags.get(component, ())]


def _etcd(folder: Path, settings: Settings) -> list[str]:
    client, peer = (f"http://127.0.0.1:{settings.ports[name]}" for name in ("etcd", "etcd-peer"))
    return [
        "--name=default",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver(folder: Path, settings: Settings) -> list[str]:
    pki = folder / "pki"
    return [
        f"--etcd-servers=http://127.0.0.1:{settings.ports['etcd']}",
        "--bind-address=127.0.0.1",
        f"--secure-port={settings.ports['kube-apiserver']}",
        "--endpoint-reconciler-type=none",  # it refuses to publish a loopback address
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=RBAC",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki / 'accounts.pub'}",
        f"--service-account-signing-key-file={pki / 'accounts.key'}",
        f"--kubelet-client-certificate={pki / 'admin.crt'}",
        f"--kubelet-client-key={pki / 'admin.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={folder / 'audit-policy.json'}",
        f"--audit-log-path={folder / 'audit.log'}",
        "--audit-log-maxsize=100000",  # MB: one file, whatever a benchmark does
        "--allow-privileged=true",
        "--profiling=false",
    ]


def _controller_manager(folder: Path, settings: Settings) -> list[str]:
    pki = folder / "pki"
    return [
        f"--kubeconfig={folder / 'kube-controller-manager.kubeconfig'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={settings.ports['kube-controller-manager']}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki / 'accounts.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        "--controllers=*,-nodeipam,-node-route-controller,-service-lb-controller,-cloud-node-lifecycle-controller",
        f"--kube-api-qps={settings.qps}",
        f"--kube-api-burst={2 * settings.qps}",
        "--profiling=false",
    ]


def _scheduler_flags(folder: Path, settings: Settings) -> list[str]:
    pki = folder / "pki"
    return [
        f"--config={folder / 'scheduler.json'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={settings.ports['kube-scheduler']}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
    ]


def _scheduler(folder: Path, settings: Settings) -> dict[str, Any]:
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {
            "kubeconfig": str(folder / "kube-scheduler.kubeconfig"),
            "qps": settings.qps,
            "burst": 2 * settings.qps,
        },
    }


def _kwok(folder: Path, settings: Settings) -> list[str]:
    pki = folder / "pki"
    return [
        f"--kubeconfig={folder / 'kwok.kubeconfig'}",
        f"--config={folder / 'kwok.yaml'}",
        "--manage-all-nodes=true",
        "--node-ip=127.0.0.1",
        f"--cidr={POD_RANGE}",
        "--node-lease-duration-seconds=40",
        f"--server-address=127.0.0.1:{settings.ports['kwok']}",
        f"--tls-cert-file={pki / 'server.crt'}",
        f"--tls-private-key-file={pki / 'server.key'}",
    ]
