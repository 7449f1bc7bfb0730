"""kubeconfig files: found and merged as kubectl does, and turned into credentials.

Of several files the first to name an entry, and the first to name the current context, wins. Relative paths are
relative to the file that they stand in.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from rbg_operator.kube.credentials import Credentials, CredentialsError, in_cluster
from rbg_operator.kube.exec_plugin import ExecToken, load_certificate
from rbg_operator.kube.tokens import FileToken, StaticHeader, TokenSource, bearer

MAX_FILE_BYTES = 16 * 1024 * 1024
EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


class _Cluster(msgspec.Struct, rename="kebab"):
    server: str = ""
    certificate_authority: str | None = None
    certificate_authority_data: str | None = None
    insecure_skip_tls_verify: bool = False
    tls_server_name: str | None = None
    proxy_url: str | None = None


class _Variable(msgspec.Struct):
    name: str
    value: str = ""


class _Exec(msgspec.Struct, rename="camel"):
    command: str
    api_version: str
    args: list[str] | None = None
    env: list[_Variable] | None = None
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: str = "IfAvailable"


class _User(
    msgspec.Struct,
    rename={
        "as_": "as",
        "token_file": "tokenFile",
        "auth_provider": "auth-provider",
        "client_certificate": "client-certificate",
        "client_key": "client-key",
        "client_certificate_data": "client-certificate-data",
        "client_key_data": "client-key-data",
    },
):
    client_certificate: str | None = None
    client_certificate_data: str | None = None
    client_key: str | None = None
    client_key_data: str | None = None
    token: str | None = None
    token_file: str | None = None
    username: str | None = None
    password: str | None = None
    exec: _Exec | None = None
    auth_provider: Any = None
    as_: str | None = None


class _Context(msgspec.Struct):
    cluster: str
    user: str = ""
    namespace: str = "default"


class _NamedCluster(msgspec.Struct):
    name: str
    cluster: _Cluster


class _NamedUser(msgspec.Struct):
    name: str
    user: _User


class _NamedContext(msgspec.Struct):
    name: str
    context: _Context


class _File(msgspec.Struct, rename={"current_context": "current-context"}):
    current_context: str = ""
    clusters: list[_NamedCluster] | None = None
    users: list[_NamedUser] | None = None
    contexts: list[_NamedContext] | None = None
    folder: Path = Path()


E = TypeVar("E")


def load(path: str | None = None, context: str | None = None) -> Credentials:
    """Credentials from this file; else from KUBECONFIG; else of the pod we run in; else from ~/.kube/config.

    context: None for the current one. Raises CredentialsError.
    """
    if path is not None:
        return from_files([Path(path)], context)
    if paths := [Path(part) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]:
        return from_files([path for path in paths if path.exists()] or paths[:1], context)
    default = Path.home() / ".kube" / "config"
    if "KUBERNETES_SERVICE_HOST" in os.environ or not default.exists():
        return in_cluster()
    return from_files([default], context)


def from_files(paths: list[Path], context: str | None = None) -> Credentials:
    """Credentials from these files, merged. Raises CredentialsError."""
    files = [_read(path) for path in paths]
    where = ", ".join(map(str, paths))
    wanted = context or next((file.current_context for file in files if file.current_context), "")
    if not wanted:
        raise CredentialsError(f"{where}: current-context is not set: kubectl config use-context NAME sets it")
    chosen, _ = _find(
        "contexts", wanted, [(c.name, c.context, f.folder) for f in files for c in f.contexts or ()], where
    )
    cluster, home = _find(
        "clusters", chosen.cluster, [(c.name, c.cluster, f.folder) for f in files for c in f.clusters or ()], where
    )
    user, user_home = _User(), home
    if chosen.user:
        user, user_home = _find(
            "users", chosen.user, [(u.name, u.user, f.folder) for f in files for u in f.users or ()], where
        )
    try:
        return _credentials(cluster, home, user, user_home, chosen.namespace)
    except (OSError, ValueError, binascii.Error) as error:  # SSLError is an OSError
        raise CredentialsError(f"{where}: context {wanted!r}: {error}") from error


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
        file = msgspec.yaml.decode(text, type=_File)
    except (OSError, ValueError, RecursionError) as error:
        raise CredentialsError(f"kubeconfig {path} cannot be read: {error}") from error
    file.folder = path.resolve().parent
    return file


def _find(what: str, name: str, entries: list[tuple[str, E, Path]], where: str) -> tuple[E, Path]:
    for entry_name, entry, folder in entries:
        if entry_name == name:
            return entry, folder
    raise CredentialsError(f"{where}: {what} has no entry named {name!r}")


def _credentials(cluster: _Cluster, home: Path, user: _User, user_home: Path, namespace: str) -> Credentials:
    server = cluster.server.rstrip("/")
    if not server.startswith(("https://", "http://")):
        raise ValueError(f"the cluster's server is {cluster.server!r}, no http or https URL")
    if cluster.proxy_url and not cluster.proxy_url.startswith(("http://", "https://")):
        raise ValueError(f"proxy-url {cluster.proxy_url!r}: only http and https proxies can be used")
    tls = _tls(cluster, home, user, user_home) if server.startswith("https://") else None
    return Credentials(
        server=server,
        namespace=namespace,
        tls=tls,
        tls_server_name=cluster.tls_server_name,
        proxy=cluster.proxy_url,
        tokens=_tokens(cluster, home, user, user_home, tls),
    )


def _tls(cluster: _Cluster, home: Path, user: _User, user_home: Path) -> ssl.SSLContext:
    authority = _content(cluster.certificate_authority_data, cluster.certificate_authority, home)
    tls = ssl.create_default_context(cadata=authority.decode("ascii") if authority else None)
    if cluster.insecure_skip_tls_verify:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    certificate = _content(user.client_certificate_data, user.client_certificate, user_home)
    key = _content(user.client_key_data, user.client_key, user_home)
    if (certificate is None) != (key is None):
        raise ValueError("the user has only one of client-certificate and client-key")
    if certificate and key:
        load_certificate(tls, certificate, key)
    return tls


def _tokens(cluster: _Cluster, home: Path, user: _User, user_home: Path, tls: ssl.SSLContext | None) -> TokenSource:
    if user.auth_provider is not None:
        raise ValueError("auth-provider is no longer part of Kubernetes: use its exec plugin instead")
    if user.as_ is not None:
        raise ValueError("impersonation (as) is not supported: use the user's own credentials")
    if user.token_file:
        return FileToken(user_home / user.token_file)
    if user.token:
        return StaticHeader(bearer(user.token))
    if user.username:
        return StaticHeader(aiohttp.encode_basic_auth(user.username, user.password or ""))
    if user.exec is not None:
        return _plugin(user.exec, cluster, home, user_home, tls)
    return StaticHeader()


def _plugin(plugin: _Exec, cluster: _Cluster, home: Path, user_home: Path, tls: ssl.SSLContext | None) -> ExecToken:
    if plugin.api_version not in EXEC_VERSIONS:
        raise ValueError(f"exec.apiVersion {plugin.api_version!r} is none of {', '.join(EXEC_VERSIONS)}")
    if plugin.interactive_mode == "Always":
        raise ValueError(
            f"exec plugin {plugin.command!r} wants a terminal (interactiveMode: Always); there is none here"
        )
    spec: dict[str, Any] = {"interactive": False}
    if plugin.provide_cluster_info:
        authority = _content(cluster.certificate_authority_data, cluster.certificate_authority, home)
        shown = {
            "server": cluster.server,
            "tls-server-name": cluster.tls_server_name,
            "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify or None,
            "certificate-authority-data": base64.b64encode(authority).decode() if authority else None,
            "proxy-url": cluster.proxy_url,
        }
        spec["cluster"] = {key: value for key, value in shown.items() if value is not None}
    command = str(user_home / plugin.command) if os.sep in plugin.command else plugin.command
    return ExecToken(
        [command, *(plugin.args or ())],
        {variable.name: variable.value for variable in plugin.env or ()},
        {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec},
        tls,
        plugin.install_hint,
    )


def _content(data: str | None, path: str | None, folder: Path) -> bytes | None:
    """Inline base64 wins over a file, as in kubectl."""
    if data:
        return base64.b64decode(data, validate=True)
    return (folder / path).read_bytes() if path else None
