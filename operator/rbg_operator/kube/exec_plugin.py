"""Credentials from a program that the kubeconfig names (client.authentication.k8s.io)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.tokens import bearer

RUN_SECONDS = 20.0
END_SECONDS = 5.0
EARLY_SECONDS = 10.0
MAX_ANSWER = 1024 * 1024
MAX_QUOTED = 500


class _Credential(msgspec.Struct, rename="camel"):
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: datetime | None = None


class _Answer(msgspec.Struct, rename="camel"):
    api_version: str
    status: _Credential


class ExecToken:
    """Runs the plugin when a credential is first needed, shortly before it expires and after a 401."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        info: Mapping[str, Any],
        tls: ssl.SSLContext | None,
        install_hint: str = "",
        run_seconds: float = RUN_SECONDS,
    ) -> None:
        self._command = command
        self._environment = {**os.environ, **environment, "KUBERNETES_EXEC_INFO": json.dumps(info)}
        self._api_version = info["apiVersion"]
        self._tls = tls
        self._install_hint = install_hint
        self._run_seconds = run_seconds
        self._header: str | None = None
        self._usable = False
        self._expires: datetime | None = None
        self._lock = asyncio.Lock()

    async def header(self) -> str | None:
        async with self._lock:
            if not self._usable or self._expired():
                self._take(await self._run())
            return self._header

    def refused(self, header: str | None) -> None:
        if header == self._header:
            self._usable = False

    def _expired(self) -> bool:
        return self._expires is not None and (self._expires - datetime.now(UTC)).total_seconds() < EARLY_SECONDS

    def _take(self, output: bytes) -> None:
        try:
            if len(output) > MAX_ANSWER:
                raise ValueError(f"it is longer than {MAX_ANSWER} bytes")
            answer = msgspec.json.decode(output, type=_Answer)
            if answer.api_version != self._api_version:
                raise ValueError(f"it speaks {answer.api_version!r}, the kubeconfig says {self._api_version!r}")
            credential = answer.status
            header = bearer(credential.token) if credential.token else None
            certificate, key = credential.client_certificate_data, credential.client_key_data
            if certificate and key and self._tls:
                load_certificate(self._tls, certificate.encode(), key.encode())
            elif header is None:
                raise ValueError("its status has neither a token nor clientCertificateData with clientKeyData")
        except (ValueError, ssl.SSLError, msgspec.MsgspecError) as error:
            raise self._error(f"its answer cannot be used: {error}") from error
        expires = credential.expiration_timestamp
        self._header, self._usable = header, True
        self._expires = expires.replace(tzinfo=UTC) if expires and expires.tzinfo is None else expires

    async def _run(self) -> bytes:
        output = _Output()
        try:
            transport, _ = await asyncio.get_running_loop().subprocess_exec(
                lambda: output,
                *self._command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise self._error(f"it cannot be started: {error}. {self._install_hint}".rstrip()) from error
        try:
            async with asyncio.timeout(self._run_seconds):
                await output.ended.wait()
        except TimeoutError as error:
            raise self._error(f"it did not end within {self._run_seconds:g} s") from error
        finally:
            await _end(transport, output)
        if status := transport.get_returncode():
            raise self._error(f"it ended with status {status}: {output.complaint()}")
        return output.answer()

    def _error(self, what: str) -> ApiError:
        return ApiError(0, "NoCredentials", f"credential plugin {self._command[0]!r} of the kubeconfig: {what}")


def load_certificate(tls: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Use a client certificate (PEM) for connections made from now on. Raises ssl.SSLError for a bad pair.

    The library reads files only, so both go through a file that nobody else can read and that is gone at once.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        tls.load_cert_chain(file.name)


class _Output(asyncio.SubprocessProtocol):
    """What the plugin printed, as far as it is of use. Reading never stops: a full pipe would hide its end."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()  # gone, and nobody holds its standard output or error any more
        self._printed = {1: bytearray(), 2: bytearray()}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if len(self._printed[fd]) <= MAX_ANSWER:
            self._printed[fd] += data

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.set()

    def answer(self) -> bytes:
        """Standard output, cut after a little more than MAX_ANSWER bytes."""
        return bytes(self._printed[1])

    def complaint(self) -> str:
        """The beginning of standard error."""
        return self._printed[2][:MAX_QUOTED].decode("utf-8", "replace").strip()


async def _end(transport: asyncio.SubprocessTransport, output: _Output) -> None:
    """Nothing of the plugin stays, whatever it started; who left its process group only loses our ear."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(transport.get_pid(), signal.SIGKILL)
    transport.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            await output.ended.wait()
