"""kubeconfig files, token files, exec plugins and the service account of a pod."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbg_operator.kube.credentials import Credentials, CredentialsError, in_cluster
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.exec_plugin import ExecToken
from rbg_operator.kube.kubeconfig import from_files, load

V1 = "client.authentication.k8s.io/v1"
Written = Callable[..., Path]


def config(user: dict[str, Any] | None = None, cluster: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"} | (cluster or {})}],
        "users": [{"name": "u", "user": user or {}}],
    }


@pytest.fixture
def write(tmp_path: Path) -> Written:
    def write(content: Any, name: str = "config") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


async def header(credentials: Credentials) -> str | None:
    return await credentials.tokens.header()


async def test_tokens_and_passwords(write: Written) -> None:
    credentials = from_files([write(config({"token": "t0"}))])
    assert (credentials.server, credentials.namespace, credentials.tls) == ("http://127.0.0.1:1", "team", None)
    assert await header(credentials) == "Bearer t0"
    basic = from_files([write(config({"username": "me", "password": "x:y"}))])
    assert await header(basic) == "Basic " + base64.b64encode(b"me:x:y").decode()
    assert await header(from_files([write(config())])) is None


async def test_files_are_merged_and_paths_are_relative_to_their_file(
    write: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("t1", "second/token")
    first = write({"current-context": "here", "users": None, "contexts": config()["contexts"]}, "first")
    second = write(
        config({"tokenFile": "token"}) | {"current-context": "there", "contexts": []},
        "second/config",
    )
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join([str(first), str(first.parent / "missing"), str(second)]))
    assert await header(load()) == "Bearer t1"


async def test_the_file_named_wins(write: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write(config({"token": "environment"}), "a")))
    assert await header(load(str(write(config({"token": "flag"}), "b")))) == "Bearer flag"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("users: [{name: 5}]", r"users\[0\]"),
        ({}, "current-context is not set"),
        (config() | {"contexts": []}, "contexts has no entry named 'here'"),
        (config() | {"clusters": []}, "clusters has no entry named 'c'"),
        (config() | {"users": []}, "users has no entry named 'u'"),
        (config(cluster={"server": "127.0.0.1:1"}), "no http or https URL"),
        (config(cluster={"proxy-url": "socks5://x"}), "proxy-url"),
        (config(cluster={"server": "https://x", "certificate-authority": "missing"}), "missing"),
        (config(cluster={"server": "https://x", "certificate-authority-data": "%%"}), "context 'here'"),
        (config(cluster={"server": "https://x", "certificate-authority-data": "eHg="}), "context 'here'"),
        (config({"client-certificate-data": "eHg="}, {"server": "https://x"}), "only one of"),
        (config({"client-certificate-data": "eHg=", "client-key-data": "eHg="}, {"server": "https://x"}), "context"),
        (config({"auth-provider": {"name": "gcp"}}), "auth-provider"),
        (config({"as": "root"}), "impersonation"),
        (config({"token": "a\nb"}), "cannot stand in a header"),
        (config({"exec": {"command": "x", "apiVersion": "v1alpha1"}}), "exec.apiVersion"),
        (config({"exec": {"command": "x", "apiVersion": V1, "interactiveMode": "Always"}}), "terminal"),
    ],
)
def test_mistakes_are_named(write: Written, content: Any, message: str) -> None:
    with pytest.raises(CredentialsError, match=message):
        from_files([write(content)])


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
FULL = config(
    {"exec": {"command": "x", "apiVersion": V1, "args": ["a"], "env": [{"name": "n", "value": "v"}]}, "username": "u"},
    {"tls-server-name": "x", "insecure-skip-tls-verify": True, "proxy-url": "http://p", "server": "https://h"},
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in children for found in places(child, (*path, key)))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.sampled_from(places(FULL)), odd=ODD)
def test_any_value_anywhere_is_used_or_refused(write: Written, place: tuple[Any, ...], odd: Any) -> None:
    whole: Any = {"root": json.loads(json.dumps(FULL))}
    parent = whole
    for key in ("root", *place)[:-1]:
        parent = parent[key]
    parent[("root", *place)[-1]] = odd
    with contextlib.suppress(CredentialsError):
        from_files([write(yaml.safe_dump(whole["root"]))])


async def test_a_token_file_is_read_again_when_it_changes_and_after_a_401(write: Written) -> None:
    path = write("one\n", "token")
    credentials = from_files([write(config({"tokenFile": str(path)}))])
    assert await header(credentials) == "Bearer one"
    other = write("two", "other")
    other.rename(path)
    assert await header(credentials) == "Bearer two"
    stat = path.stat()
    path.write_text("six")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert await header(credentials) == "Bearer two", "nothing shows that it changed"
    credentials.tokens.refused("Bearer two")
    assert await header(credentials) == "Bearer six"
    path.write_text("")
    with pytest.raises(ApiError, match="it is empty"):
        await header(credentials)
    path.unlink()
    with pytest.raises(ApiError, match="cannot be read"):
        await header(credentials)


def test_in_cluster(write: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(CredentialsError, match="not a pod"):
        in_cluster(tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(CredentialsError, match="automountServiceAccountToken"):
        in_cluster(tmp_path)


def plugin(write: Written, script: str) -> ExecToken:
    """A plugin that runs this Python and counts its runs."""
    write("", "runs")
    program = write(
        f"import json, os, sys\nopen({str(write('', 'runs'))!r}, 'a').write('x')\n"
        "def answer(**status):\n"
        f"    print(json.dumps({{'apiVersion': {V1!r}, 'kind': 'ExecCredential', 'status': status}}))\n" + script,
        "plugin.py",
    )
    info = {"apiVersion": V1, "kind": "ExecCredential", "spec": {"interactive": False}}
    return ExecToken([sys.executable, "-I", str(program)], {"WORD": "w1"}, info, None)


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text())


async def test_an_exec_plugin_runs_once_until_its_token_expires_or_is_refused(write: Written, tmp_path: Path) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    script = f"answer(token=os.environ['WORD'] + os.environ['KUBERNETES_EXEC_INFO'][:1], expirationTimestamp={later!r})"
    source = plugin(write, script)
    assert set(await asyncio.gather(*(source.header() for _ in range(5)))) == {"Bearer w1{"}
    assert runs(tmp_path) == 1
    source.refused("Bearer another")
    await source.header()
    assert runs(tmp_path) == 1
    source.refused("Bearer w1{")
    await source.header()
    assert runs(tmp_path) == 2


async def test_an_expired_token_is_not_used_again(write: Written, tmp_path: Path) -> None:
    source = plugin(write, "answer(token='t', expirationTimestamp='2020-01-01T00:00:00Z')")
    await source.header()
    await source.header()
    assert runs(tmp_path) == 2


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sys.exit('log in first')", "ended with status 1: log in first"),
        ("print('hello')", "cannot be used"),
        ('print(\'{"apiVersion": "v0", "status": {}}\')', "it speaks 'v0'"),
        ("answer()", "neither a token nor"),
        ("answer(token='a\\nb')", "cannot stand in a header"),
        ("answer(token='t', expirationTimestamp='soon')", "cannot be used"),
        ("print('x' * (2 << 20))", "longer than"),
        ("sys.stderr.write('x' * (2 << 20)); sys.exit(3)", "ended with status 3: xxx"),
    ],
)
async def test_a_plugin_that_fails_is_named(write: Written, script: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        await plugin(write, script).header()
    assert "credential plugin" in caught.value.message


async def test_a_missing_plugin_tells_its_hint() -> None:
    source = ExecToken(["/no/such/plugin"], {}, {"apiVersion": V1}, None, install_hint="Install it from there.")
    with pytest.raises(ApiError, match=r"cannot be started.*Install it from there\."):
        await source.header()


@pytest.mark.parametrize("endless", ["sleep 600", "yes"])
async def test_a_plugin_that_does_not_end_is_ended_with_its_children(tmp_path: Path, endless: str) -> None:
    source = shell(f"sleep 600 & echo $! > {tmp_path}/child; {endless}")
    with pytest.raises(ApiError, match=r"did not end within 3 s"):
        await source.header()
    child = int((tmp_path / "child").read_text())
    async with asyncio.timeout(10):
        while is_alive(child):  # noqa: ASYNC110 - no child of ours, so nothing tells its end
            await asyncio.sleep(0.01)


async def test_a_descendant_that_keeps_the_output_open_holds_nobody(tmp_path: Path) -> None:
    """It left the plugin's session, so it is not ended; nobody knows whether the answer before was whole."""
    source = shell(f"setsid sleep 600 & echo $! > {tmp_path}/child; echo '{{}}'")
    try:
        with pytest.raises(ApiError, match=r"did not end within 3 s"):
            await source.header()
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def shell(script: str) -> ExecToken:
    return ExecToken(["sh", "-c", script], {}, {"apiVersion": V1}, None, run_seconds=3)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
