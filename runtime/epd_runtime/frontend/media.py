"""Fetch images from URLs that strangers wrote, without becoming their way into the private network.

Refused: other schemes than http(s), redirects, addresses that are not public (checked in the resolver, so that the
address checked is the address connected to, whatever a later lookup would say), files over the limit (counted while
streaming), and anything slower than the timeout. Hosts named by --allowed-media-domains may be private; then no other
host is reachable at all.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.frontend.images import ImageLimits, decode_data, too_large

MAX_CONNECTIONS = 64
CHUNK_BYTES = 256 * 1024


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, also when it embeds an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if embedded is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast


class HostRefusedError(OSError):
    """A host name leads to an address that must not be reached."""


class CheckedResolver(AbstractResolver):
    """Resolves names as the system does and returns only addresses that may be connected to."""

    def __init__(self, allowed_hosts: frozenset[str]) -> None:
        self._allowed_hosts = allowed_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of the host; raises HostRefusedError when one is private, OSError when there is none."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        addresses = [(kind, proto, address[0]) for kind, _, proto, _, address in found]
        if host not in self._allowed_hosts and not all(is_public(str(address)) for _, _, address in addresses):
            raise HostRefusedError(f"{host} has a private address")
        return [
            ResolveResult(
                hostname=host, host=str(address), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, proto, address in addresses
        ]

    async def close(self) -> None:
        """Holds nothing."""


class MediaFetcher:
    """Turns image sources into bytes. One per process; close() ends its connections."""

    def __init__(self, limits: ImageLimits, timeout_s: float, allowed_hosts: tuple[str, ...]) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._allowed_hosts = frozenset(host.lower().rstrip(".") for host in allowed_hosts)
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, source: str, param: str) -> bytes:
        """Bytes of an http(s) URL, data: URL or base64 string; raises RequestError naming `param`."""
        if source[:8].lower().startswith(("http://", "https://")):
            return await self._download(self._checked_url(source, param), param)
        if "://" in source[:32]:
            raise bad_request(f"{param}: only http, https and data URLs are supported, not {source[:32]!r}", param)
        if len(source) < CHUNK_BYTES:
            return decode_data(source, self._limits, param)
        return await asyncio.to_thread(decode_data, source, self._limits, param)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _checked_url(self, source: str, param: str) -> yarl.URL:
        try:
            url = yarl.URL(source)
            host = (url.host or "").lower().rstrip(".")
        except ValueError as error:
            raise bad_request(f"{param}: {source[:200]!r} is not a valid URL ({error})", param) from None
        if not host:
            raise bad_request(f"{param}: {source[:200]!r} names no host", param)
        if self._allowed_hosts and host not in self._allowed_hosts:
            raise bad_request(f"{param}: images from {host} are not allowed; see --allowed-media-domains", param)
        try:  # addresses do not pass through the resolver
            public = is_public(host)
        except ValueError:
            public = True
        if not public and host not in self._allowed_hosts:
            raise self._private(host, param)
        return url

    @staticmethod
    def _private(host: str, param: str) -> RequestError:
        return bad_request(
            f"{param}: {host} is a private address; name it in --allowed-media-domains if images may come from there",
            param,
        )

    async def _download(self, url: yarl.URL, param: str) -> bytes:
        shown = f"{url.scheme}://{url.host}{url.path}"[:200]  # no credentials or signatures from the query
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._stream(url, shown, param)
        except TimeoutError:
            raise bad_request(f"{param}: {shown} did not answer within {self._timeout_s:g} s", param) from None
        except HostRefusedError:
            raise self._private(str(url.host), param) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, HostRefusedError):
                raise self._private(str(url.host), param) from None
            raise bad_request(f"{param}: {shown} cannot be fetched ({type(error).__name__}: {error})", param) from None

    async def _stream(self, url: yarl.URL, shown: str, param: str) -> bytes:
        # A compressed answer is not unpacked: it could grow beyond any limit. It is refused as an unreadable image.
        headers = {"Accept-Encoding": "identity"}
        async with self._open_session().get(url, allow_redirects=False, headers=headers) as response:
            if 300 <= response.status < 400:
                raise bad_request(f"{param}: {shown} redirects, which is refused; send the final URL", param)
            if response.status != 200:
                raise bad_request(f"{param}: {shown} answered with status {response.status}", param)
            if (response.content_length or 0) > self._limits.max_file_bytes:
                raise too_large(self._limits, param)
            body = bytearray()
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                body += chunk
                if len(body) > self._limits.max_file_bytes:
                    raise too_large(self._limits, param)
            return bytes(body)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, resolver=CheckedResolver(self._allowed_hosts))
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session
