"""Fetching images: a real server on loopback, and every way in which a URL may be a trap."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from epd_runtime.frontend import media
from epd_runtime.frontend.errors import RequestError
from epd_runtime.frontend.images import ImageLimits
from epd_runtime.frontend.media import CheckedResolver, MediaFetcher, is_public

LIMITS = ImageLimits(max_images=4, max_file_bytes=1 << 20, max_pixels=1 << 22)


async def serve(request: web.Request) -> web.StreamResponse:
    match request.path:
        case "/ok":
            return web.Response(body=b"x" * 300_000)
        case "/redirect":
            return web.Response(status=302, headers={"Location": "/ok"})
        case "/large":
            return web.Response(body=bytes((1 << 20) + 1))
        case "/endless":
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(bytes(1 << 18))
        case "/slow":
            await asyncio.sleep(30)
        case "/dies":
            assert request.transport is not None
            request.transport.close()
    return web.Response(status=404)


@pytest.fixture
async def base() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def fetcher() -> AsyncIterator[MediaFetcher]:
    fetcher = MediaFetcher(LIMITS, 0.5, ("127.0.0.1", "Localhost."))
    yield fetcher
    await fetcher.close()


async def test_fetches_from_allowed_hosts(base: str, fetcher: MediaFetcher) -> None:
    assert await fetcher.fetch(f"{base}/ok", "image 0") == b"x" * 300_000
    assert await fetcher.fetch(base.replace("127.0.0.1", "LOCALHOST") + "/ok", "image 0") == b"x" * 300_000


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "answered with status 404"),
        ("/redirect", "redirects"),
        ("/large", "larger than 1 MiB"),
        ("/endless", "larger than 1 MiB"),
        ("/slow", "did not answer within 0.5 s"),
        ("/dies", "cannot be fetched"),
    ],
)
async def test_failures_are_bad_requests(base: str, fetcher: MediaFetcher, path: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        await fetcher.fetch(f"{base}{path}?signature=secret", "image 2")
    assert caught.value.status == 400
    assert "image 2" in caught.value.message
    assert "secret" not in caught.value.message


async def test_other_hosts_are_refused_when_hosts_are_named(fetcher: MediaFetcher) -> None:
    for host in ("93.184.216.34", "example.org", "127.0.0.2"):
        with pytest.raises(RequestError, match="not allowed"):
            await fetcher.fetch(f"http://{host}/x.png", "image 0")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/ok",
        "http://localhost:{port}/ok",
        "http://127.1:{port}/ok",
        "http://2130706433:{port}/ok",
        "http://0x7f000001:{port}/ok",
        "http://[::1]:{port}/ok",
        "http://[::ffff:127.0.0.1]:{port}/ok",
        "http://0.0.0.0:{port}/ok",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://user:pass@127.0.0.1:{port}/ok",
    ],
)
async def test_private_addresses_are_refused(base: str, url: str) -> None:
    fetcher = MediaFetcher(LIMITS, 1.0, ())
    try:
        with pytest.raises(RequestError) as caught:
            await fetcher.fetch(url.format(port=base.rsplit(":", 1)[1]), "image 0")
        assert caught.value.status == 400
        assert "private" in caught.value.message or "not a canonical" in caught.value.message
    finally:
        await fetcher.close()


@pytest.mark.parametrize(
    "source", ["file:///etc/passwd", "ftp://host/x", "gopher://x", "http://", "http:///x", "http://["]
)
async def test_malformed_urls(fetcher: MediaFetcher, source: str) -> None:
    with pytest.raises(RequestError) as caught:
        await fetcher.fetch(source, "image 0")
    assert caught.value.status == 400


async def test_the_checked_address_is_the_one_connected_to(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when first asked and private afterwards: nothing asks twice."""
    port = int(base.rsplit(":", 1)[1])
    answers = iter(["127.0.0.1"])
    monkeypatch.setattr(media, "is_public", lambda address: True)  # stands for the first, public answer

    async def answer(*args: Any, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer)
    fetcher = MediaFetcher(LIMITS, 1.0, ())
    assert len(await fetcher.fetch(f"http://rebinding.example:{port}/ok", "image 0")) == 300_000
    await fetcher.close()


async def test_one_private_address_among_public_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(*args: Any, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("93.184.216.34", "10.1.2.3")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer)
    with pytest.raises(OSError, match="private"):
        await CheckedResolver(frozenset()).resolve("mixed.example", 80)
    assert len(await CheckedResolver(frozenset({"mixed.example"})).resolve("mixed.example", 80)) == 2


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("127.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:0001::", False),
        ("64:ff9b::7f00:1", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("0.0.0.0", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public
