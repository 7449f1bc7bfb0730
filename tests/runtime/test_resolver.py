"""Name resolution: sources, liveness, what an error keeps and what it drops."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from epd_runtime.net import resolver
from epd_runtime.net.resolver import ResolutionError, WorkerSet, WorkerUrlError, parse_hosts, parse_worker_url, resolve

Answer = list[tuple[str, int]] | Exception
INTERVAL = 0.02


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    path = tmp_path / "hosts"
    monkeypatch.setenv("EPD_HOSTS_FILE", str(path))

    def replace(text: str) -> None:
        (tmp_path / "new").write_text(text)
        os.replace(tmp_path / "new", path)

    return replace


class Dns:
    """Answers in place of the name server, which a test cannot make fail."""

    def __init__(self) -> None:
        self.answer: Answer = []
        self.delay = 0.0
        self.asked: list[str] = []

    async def getaddrinfo(self, host: str, port: object, *, type: int) -> list[tuple[object, ...]]:
        self.asked.append(host)
        if self.delay:
            await asyncio.sleep(self.delay)
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(family, type, 6, "", (address, 0)) for address, family in self.answer]


@pytest.fixture
async def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    fake = Dns()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fake.getaddrinfo)
    return fake


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the condition is the state of the thing under test
            await asyncio.sleep(INTERVAL / 4)


def test_hosts_format() -> None:
    text = "127.0.0.2 a B # c\n\n# 127.0.0.9 x\n127.0.0.1\ta\nnot-an-address a\n127.0.0.2 a\n::1 six.\n127.0.0.5"
    assert parse_hosts(text) == {"a": ("127.0.0.1", "127.0.0.2"), "b": ("127.0.0.2",), "six": ("::1",)}


async def test_literal_addresses_pass_through() -> None:
    assert await resolve("10.1.2.3") == ("10.1.2.3",)
    assert await resolve("::1") == ("::1",)


async def test_hosts_file_comes_before_dns_and_is_read_again(hosts: Callable[[str], None], dns: Dns) -> None:
    dns.answer = [("9.9.9.9", socket.AF_INET)]
    assert await resolve("pre") == ("9.9.9.9",)  # no file yet
    hosts("127.1.0.2 pre\n127.1.0.1 pre\n")
    assert await resolve("PRE.") == ("127.1.0.1", "127.1.0.2")
    hosts("127.1.0.3 pre\n")
    assert await resolve("pre") == ("127.1.0.3",)


async def test_dns_answers_are_sorted_unique_and_of_one_family(dns: Dns) -> None:
    dns.answer = [("10.0.0.2", socket.AF_INET), ("10.0.0.1", socket.AF_INET), ("10.0.0.2", socket.AF_INET)]
    assert await resolve("name") == ("10.0.0.1", "10.0.0.2")
    dns.answer = [("fd00::1", socket.AF_INET6), ("10.0.0.2", socket.AF_INET)]
    assert await resolve("name") == ("10.0.0.2",)
    dns.answer = [("fd00::1", socket.AF_INET6)]
    assert await resolve("name") == ("fd00::1",)


async def test_missing_name_differs_from_failing_dns(dns: Dns) -> None:
    dns.answer = socket.gaierror(socket.EAI_NONAME, "unknown")
    assert await resolve("name") == ()
    dns.answer = socket.gaierror(socket.EAI_AGAIN, "try again")
    with pytest.raises(ResolutionError, match="'name'"):
        await resolve("name")


async def test_localhost_through_the_system() -> None:
    assert await resolve("localhost") in (("127.0.0.1",), ("::1",))
    assert await resolve("x" * 70) == ()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("localhost:30000", "no scheme"),
        ("ftp://a:1", "no scheme"),
        ("http://a", "no port"),
        ("http://a:0", "no port"),
        ("http://a:99999", "malformed"),
        ("http://:80", "no host"),
        ("http://a b:80", "no host"),
        ("http://a:80/v1", "more than"),
        ("http://u@a:80", "more than"),
        ("http://[::1:80", "malformed"),
        ("", "no scheme"),
    ],
)
def test_malformed_urls_are_refused(url: str, problem: str) -> None:
    with pytest.raises(WorkerUrlError, match=problem):
        parse_worker_url(url)
    with pytest.raises(WorkerUrlError, match="http://HOST:PORT"):
        WorkerSet([url])


async def test_worker_set_follows_the_hosts_file(hosts: Callable[[str], None], dns: Dns) -> None:
    dns.answer = socket.gaierror(socket.EAI_AGAIN, "no network")
    hosts("127.1.0.1 pre\n")
    workers = WorkerSet(["http://pre:80", "http://[::1]:81/", "http://pre:80"], INTERVAL)
    await workers.start()
    assert workers.urls == ("http://127.1.0.1:80", "http://[::1]:81")
    hosts("127.1.0.1 pre\n127.1.0.2 pre\n")
    await until(lambda: "http://127.1.0.2:80" in workers.urls)
    hosts("127.1.0.2 other\n")  # vanished: no address, although DNS fails
    await until(lambda: workers.urls == ("http://[::1]:81",))
    hosts("127.1.0.4 pre\n")
    await until(lambda: workers.urls == ("http://127.1.0.4:80", "http://[::1]:81"))
    await workers.stop()


async def test_hanging_dns_delays_neither_start_nor_the_hosts_file(hosts: Callable[[str], None], dns: Dns) -> None:
    dns.delay = 60
    hosts("127.1.0.1 pre\n")
    workers = WorkerSet(["http://dec:80", "http://pre:80"], INTERVAL)
    async with asyncio.timeout(30):
        await workers.start()
        assert workers.urls == ("http://127.1.0.1:80",)
        hosts("127.1.0.9 dec\n")
        await until(lambda: workers.urls == ("http://127.1.0.9:80",))
        await workers.stop()
    # One question under way per name, not one per look-up; "pre" is asked only if a look-up saw the file without it.
    assert dns.asked in (["dec"], ["dec", "pre"])


async def test_dns_error_keeps_the_answer_for_a_bounded_time(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "STALE_SECONDS", 0.3)
    dns.answer = [("10.0.0.1", socket.AF_INET)]
    workers = WorkerSet(["http://dec:80", "https://tls.example:443"], INTERVAL)
    await workers.start()
    assert workers.urls == ("http://10.0.0.1:80", "https://tls.example:443")
    asked, dns.answer = len(dns.asked), socket.gaierror(socket.EAI_AGAIN, "server failure")
    await until(lambda: len(dns.asked) > asked + 4)
    assert workers.urls == ("http://10.0.0.1:80", "https://tls.example:443")
    await until(lambda: workers.urls == ())
    dns.answer = [("10.0.0.2", socket.AF_INET)]
    await until(lambda: workers.urls[:1] == ("http://10.0.0.2:80",))
    dns.answer = socket.gaierror(socket.EAI_NONAME, "no such name")  # certain: dropped at once
    await until(lambda: workers.urls == ())
    await workers.stop()


async def test_changes_are_logged_once(dns: Dns, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "epd_runtime.net.resolver")
    dns.answer = socket.gaierror(socket.EAI_NONAME, "no such name")
    workers = WorkerSet(["http://dec:80"], INTERVAL)
    await workers.start()
    await until(lambda: len(dns.asked) > 4)
    dns.answer = [("10.0.0.1", socket.AF_INET)]
    await until(lambda: workers.urls != ())
    await until(lambda: len(dns.asked) > 10)
    await workers.stop()
    assert [record.getMessage() for record in caplog.records] == ["dec: no address (no such name)", "dec: 10.0.0.1"]
