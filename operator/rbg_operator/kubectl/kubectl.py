"""Runs the kubectl binary: it knows every way to log in to a cluster, so the plugin needs none of its own.

Every call has a deadline, and every failure becomes one line with what to do about it.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from rbg_operator.api.documents import Json

REQUEST_SECONDS = 20
LOGIN_SECONDS = 40  # beyond the request itself: credential plugins may open a browser
SERVER_ERROR = re.compile(r"^Error from server \((\w+)\): ?(.*)$", re.MULTILINE | re.DOTALL)
HINTS = (
    ("rejected our request due to an error", "Conflict", "it was edited meanwhile"),  # a test in a JSON patch
    ("doesn't have a resource type", "NoKind", "the cluster does not know the kind RoleBasedGroup; install its CRDs"),
    ("no matches for kind", "NoKind", "the cluster does not know the kind; install the operator's CRDs"),
    ("was refused", "Unreachable", "the API server cannot be reached; is the cluster up, is the context right?"),
    ("no such host", "Unreachable", "the API server's name is not known; is the context right?"),
    ("i/o timeout", "Unreachable", "the API server does not answer; is the network up, is the context right?"),
    ("Client.Timeout", "Unreachable", f"the API server did not answer within {REQUEST_SECONDS} s"),
    ("must be logged in", "Unauthorized", "the cluster does not accept these credentials; log in again"),
)


class KubectlError(Exception):
    """A call that failed. reason: as the API server names it (NotFound, Conflict, ...), or one of HINTS, or ""."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the flags that say which cluster and namespace; empty values leave the choice to kubectl."""

    namespace: str = ""
    context: str = ""
    kubeconfig: str = ""
    binary: str = "kubectl"

    def argv(self, *arguments: str) -> list[str]:
        """The whole command line."""
        chosen = {"--namespace": self.namespace, "--context": self.context, "--kubeconfig": self.kubeconfig}
        return [self.binary, *(f"{flag}={value}" for flag, value in chosen.items() if value), *arguments]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Its standard output; raises KubectlError when it fails, is missing, or takes more than a minute."""
        command = self.argv(*arguments, f"--request-timeout={REQUEST_SECONDS}s")
        seconds = REQUEST_SECONDS + LOGIN_SECONDS
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, text=True, timeout=seconds, errors="replace"
            )
        except FileNotFoundError as error:
            raise KubectlError(f"{self.binary} is not on PATH; install kubectl", "NoKubectl") from error
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {arguments[0]} did not end within {seconds} s", "Timeout") from error
        if done.returncode != 0:
            raise explain(done.stderr, arguments)
        return done.stdout

    def json(self, *arguments: str, stdin: str | None = None) -> Json:
        """The object or list that a command prints with -o json."""
        output = self.run(*arguments, "-o", "json", stdin=stdin)
        try:
            value = json.loads(output)
        except ValueError as error:
            raise KubectlError(f"kubectl {arguments[0]} printed no JSON: {output[:100]!r}") from error
        if not isinstance(value, dict):
            raise KubectlError(f"kubectl {arguments[0]} printed no object: {output[:100]!r}")
        return value


def explain(stderr: str, arguments: Sequence[str]) -> KubectlError:
    """One line from what kubectl printed to its standard error."""
    server = SERVER_ERROR.search(stderr)
    if server and server[1] not in ("InternalError", "Timeout"):
        return KubectlError(_joined(server[2]), server[1])
    for sign, reason, message in HINTS:
        if sign in stderr:
            return KubectlError(message, reason)
    said = _joined(stderr).removeprefix("error: ")
    return KubectlError(said or f"kubectl {arguments[0]} failed and did not say why")


def _joined(message: str) -> str:
    return " ".join(message.split())[:500]
