"""A certificate authority and what it signs, made by openssl (elliptic curves: a few milliseconds each)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cluster.programs import ClusterError

DAYS = "3650"
SERVER_NAMES = (
    "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1"
)
# User (CN) and group (O) of each client; the API server's own roles know the two system users.
CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "kube-controller-manager": "/CN=system:kube-controller-manager",
    "kube-scheduler": "/CN=system:kube-scheduler",
    "kwok": "/O=system:masters/CN=kwok",
}


def make(folder: Path) -> None:
    """ca, server and client pairs (NAME.crt, NAME.key) and accounts.key, .pub for tokens."""
    folder.mkdir()
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", DAYS)
    ca = ("-x509", "-subj", "/CN=rbg-cluster", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _openssl(folder, "req", *key, *ca, "-keyout", "ca.key", "-out", "ca.crt")
    signed = ("-x509", "-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")
    server = ("-addext", f"subjectAltName={SERVER_NAMES}", "-addext", "extendedKeyUsage=serverAuth")
    _openssl(
        folder, "req", *key, *signed, *server, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.crt"
    )
    for name, subject in CLIENTS.items():
        client = ("-addext", "extendedKeyUsage=clientAuth", "-subj", subject)
        _openssl(folder, "req", *key, *signed, *client, "-keyout", f"{name}.key", "-out", f"{name}.crt")
    _openssl(folder, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "accounts.key")
    _openssl(folder, "pkey", "-in", "accounts.key", "-pubout", "-out", "accounts.pub")


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise ClusterError(f"openssl {arguments[0]} failed (version 3 or newer is needed): {done.stderr[-1000:]}")
