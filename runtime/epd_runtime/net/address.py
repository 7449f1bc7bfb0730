"""Which address a server listens on.

On one machine every pod has a loopback address of its own, told by EPD_BIND_ADDRESS: a wildcard then means that
address, so that ports of different pods never collide. On Kubernetes POD_IP (downward API) is the default.
"""

from __future__ import annotations

import os

WILDCARDS = ("0.0.0.0", "::", "")


def bind_address(host: str | None) -> str:
    """Address to listen on for a --host flag that may be absent or a wildcard."""
    own = os.environ.get("EPD_BIND_ADDRESS")
    if own and (host is None or host in WILDCARDS):
        return own
    return host if host is not None else os.environ.get("POD_IP") or "127.0.0.1"


def advertised_address(host: str | None) -> str:
    """Address under which other pods reach this one."""
    bound = bind_address(host)
    return bound if bound not in WILDCARDS else os.environ.get("POD_IP") or "127.0.0.1"


def split_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [HOST]:PORT; raises ValueError with the text and what is wrong with it."""
    host, colon, digits = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or any(character.isspace() for character in host):
        raise ValueError(f"{text!r} is not HOST:PORT")
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits) < 65536):
        raise ValueError(f"{text!r} has no port from 1 to 65535")
    return host, int(digits)
