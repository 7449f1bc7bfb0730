"""Live name resolution: a host name stands for all its addresses, asked again every second.

Workers come and go while routers and encoder clients run; the name in a flag stays. `resolve` answers one question,
`WorkerSet` keeps the answer of several URLs current. Sources, in this order:

    literal address     is its own answer
    EPD_HOSTS_FILE      /etc/hosts format, replaced atomically by whoever runs the pods; stat()ed at every look-up
    DNS                 getaddrinfo off the event loop, never more than one question per name under way

States of one name in a WorkerSet, by what the last look-up said:

    in the hosts file                 → exactly those addresses
    gone from the hosts file, or DNS
      says that there is no such name → no address: the workers are gone
    DNS error (server failure, no
      answer within 10 s)             → the last answer of DNS, for at most STALE_SECONDS; then no address
    DNS has not answered yet          → unchanged; start() waits no longer than one interval

Where DNS knows IPv4 and IPv6 addresses, IPv4 is taken: both would count every worker twice. An https URL keeps its
name, because the certificate is for the name: it is one worker, present while the name resolves.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

STALE_SECONDS = 30.0
DNS_TIMEOUT_SECONDS = 10.0
_NO_SUCH_NAME = {socket.EAI_NONAME, socket.EAI_NODATA}

log = logging.getLogger(__name__)


class ResolutionError(OSError):
    """The name server gave no answer; whether the name exists is unknown."""


class WorkerUrlError(ValueError):
    """A worker's URL is malformed; the message says how to write it."""


@dataclass(frozen=True)
class WorkerUrl:
    """A base URL as given in a flag: scheme, host (name or address, no brackets) and port."""

    scheme: str
    host: str
    port: int

    def with_host(self, host: str) -> str:
        """The base URL of one address, e.g. http://10.0.0.7:30000 or http://[::1]:30000."""
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def parse_worker_url(url: str) -> WorkerUrl:
    """Parts of a base URL, or WorkerUrlError saying what is wrong with it."""
    want = "write it as http://HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise WorkerUrlError(f"worker URL {url!r} is malformed ({error}); {want}") from None
    if parts.scheme not in ("http", "https"):
        raise WorkerUrlError(f"worker URL {url!r} has no scheme http or https; {want}")
    if not parts.hostname or any(character.isspace() for character in url):
        raise WorkerUrlError(f"worker URL {url!r} names no host; {want}")
    if not port:
        raise WorkerUrlError(f"worker URL {url!r} has no port from 1 to 65535; {want}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise WorkerUrlError(f"worker URL {url!r} has more than scheme, host and port; {want}")
    return WorkerUrl(parts.scheme, parts.hostname, port)


def parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """Addresses of every name (lower case) in a file of /etc/hosts format; lines without an address are skipped."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if words and _is_address(words[0]):
            for name in words[1:]:
                found.setdefault(_canonical(name), set()).add(words[0])
    return {name: tuple(sorted(addresses)) for name, addresses in found.items()}


class HostsFile:
    """The file named by EPD_HOSTS_FILE, read again whenever it was replaced or written."""

    def __init__(self) -> None:
        self._seen: tuple[str, int, int, int] | None = None
        self._names: dict[str, tuple[str, ...]] = {}

    def lookup(self, host: str) -> tuple[str, ...]:
        """Addresses of a name; empty when the file does not have it, or there is no file."""
        self._refresh(os.environ.get("EPD_HOSTS_FILE", ""))
        return self._names.get(_canonical(host), ())

    def _refresh(self, path: str) -> None:
        try:
            status = os.stat(path)
            seen = (path, status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                with open(path, encoding="utf-8", errors="replace") as file:
                    self._names = parse_hosts(file.read())
                self._seen = seen
        except OSError:
            self._names, self._seen = {}, None


_hosts_file = HostsFile()


async def resolve(host: str) -> tuple[str, ...]:
    """All current addresses of a host, sorted; empty when the name does not exist.

    Raises ResolutionError when DNS could not be asked, or did not answer within 10 seconds.
    """
    if _is_address(host):
        return (host,)
    return _hosts_file.lookup(host) or await _ask_dns(host)


async def _ask_dns(host: str) -> tuple[str, ...]:
    try:
        async with asyncio.timeout(DNS_TIMEOUT_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise ResolutionError(f"DNS gave no answer for {host!r} within {DNS_TIMEOUT_SECONDS:.0f} s") from None
    except UnicodeError:  # a label longer than 63 characters, or an empty one: no such name can exist
        return ()
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            return ()
        raise ResolutionError(f"DNS failed for {host!r}: {error.strerror}") from None
    except OSError as error:
        raise ResolutionError(f"DNS failed for {host!r}: {error}") from None
    version4 = {str(address[0]) for family, _, _, _, address in found if family == socket.AF_INET}
    version6 = {str(address[0]) for family, _, _, _, address in found if family == socket.AF_INET6}
    return tuple(sorted(version4 or version6))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _canonical(name: str) -> str:
    return name.lower().rstrip(".")


@dataclass
class _Name:
    """What is known of one host name; see the states in the module's docstring."""

    host: str
    addresses: tuple[str, ...] = ()
    from_dns: bool = False
    confirmed: float = 0.0  # loop time of the last answer of DNS
    question: asyncio.Task[tuple[str, ...]] | None = None
    reported: str = field(default="", repr=False)

    def look_up(self) -> None:
        """Take the newest answer that needs no waiting; else ask DNS, unless a question is under way."""
        found = (self.host,) if _is_address(self.host) else _hosts_file.lookup(self.host)
        if found:
            self.addresses, self.from_dns = found, False
            self._report("")
            return
        if not self.from_dns:
            self.addresses = ()
        if self.question is None:
            self.question = asyncio.create_task(_ask_dns(self.host))

    def take_answer(self, now: float) -> None:
        """Apply DNS's answer to the question asked by look_up, if it has come."""
        if self.question is None or not self.question.done():
            return
        question, self.question = self.question, None
        if self.addresses and not self.from_dns:  # the hosts file has the name by now
            return
        try:
            self.addresses, self.from_dns, self.confirmed = question.result(), True, now
            self._report("" if self.addresses else "no such name")
        except ResolutionError as error:
            if now - self.confirmed > STALE_SECONDS:
                self.addresses, self.from_dns = (), False
            self._report(str(error))

    def _report(self, problem: str) -> None:
        """One log line per change, not one per second."""
        state = f"{self.addresses} {problem}"
        if state != self.reported:
            self.reported = state
            shown = ", ".join(self.addresses) or "no address"
            log.log(
                logging.WARNING if problem else logging.INFO, "%s: %s%s", self.host, shown, problem and f" ({problem})"
            )


class WorkerSet:
    """The live tuple of base URLs behind the given URLs.

    urls: base URLs, http://HOST:PORT; raises WorkerUrlError for a malformed one. interval: seconds between look-ups.
    """

    def __init__(self, urls: Sequence[str], interval: float = 1.0) -> None:
        self._given = tuple(parse_worker_url(url) for url in urls)
        self._names = {given.host: _Name(given.host) for given in self._given}
        self._interval = interval
        self._urls: tuple[str, ...] = ()
        self._task: asyncio.Task[None] | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        """Current base URLs, in the order of the flags; the same object until they change."""
        return self._urls

    async def start(self) -> None:
        """Look every name up once (waiting at most one interval for DNS), then keep them current until stop()."""
        await self._look_up()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop looking up; the last answer stays."""
        tasks = [task for task in (self._task, *(name.question for name in self._names.values())) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._look_up()
            except Exception:  # a worker list that silently stops being current is worse than a noisy log
                log.exception("looking up worker names failed; trying again")

    async def _look_up(self) -> None:
        for name in self._names.values():
            name.look_up()
        self._publish()
        if questions := [name.question for name in self._names.values() if name.question]:
            await asyncio.wait(questions, timeout=self._interval)
        now = asyncio.get_running_loop().time()
        for name in self._names.values():
            name.take_answer(now)
        self._publish()

    def _publish(self) -> None:
        urls = tuple(dict.fromkeys(url for given in self._given for url in self._urls_of(given)))
        if urls != self._urls:
            self._urls = urls

    def _urls_of(self, given: WorkerUrl) -> list[str]:
        addresses = self._names[given.host].addresses
        if given.scheme == "https":
            return [given.with_host(given.host)] if addresses else []
        return [given.with_host(address) for address in addresses]
