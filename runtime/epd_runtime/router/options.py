"""The router's command line as one frozen object. Flags follow the reference router where they mean the same.

A value may hold several words, because "$(PREFILL_URLS)" in a manifest expands to one:
`--prefill "http://a:1 8998 http://b:1"`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from epd_runtime.net.address import bind_address
from epd_runtime.net.resolver import WorkerUrlError, parse_worker_url
from epd_runtime.router.policy import POLICY_NAMES


class OptionsError(ValueError):
    """The flags are wrong; the message says which and what to write."""


@dataclass(frozen=True)
class PrefillUrl:
    """A prefill URL; bootstrap_port None stands for the worker's own --disaggregation-bootstrap-port."""

    url: str
    bootstrap_port: int | None = None


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """Flags of `python -m epd_runtime.router`. Either prefill and decode, or worker_urls, are given."""

    prefill: tuple[PrefillUrl, ...] = ()
    decode: tuple[str, ...] = ()
    worker_urls: tuple[str, ...] = ()
    host: str | None = None
    port: int = 30000
    policy: str = "power_of_two"
    request_timeout_secs: float = 1800.0
    max_payload_size: int = 256 << 20  # bytes
    max_concurrent_requests: int = 2048
    api_key: str | None = None
    log_level: str = "info"

    @property
    def bind_host(self) -> str:
        """Address to listen on."""
        return bind_address(self.host)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="epd_runtime.router",
        description="Route requests to prefill and decode workers; a host name stands for all its addresses.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--pd-disaggregation", action="store_true", help="Send each request to a prefill and a decode worker.")
    add("--prefill", action="append", nargs="+", default=[], metavar=("URL", "BOOTSTRAP_PORT"),
        help="Prefill workers; give the port only when it is not the worker's own default. Repeatable.")  # fmt: skip
    add("--decode", action="append", nargs="+", default=[], metavar="URL", help="Decode workers. Repeatable.")
    add("--worker-urls", nargs="+", default=[], metavar="URL", help="Whole servers, without --pd-disaggregation.")
    add("--host", help="Address to listen on; default: the pod's own address, else 127.0.0.1.")
    add("--port", type=int, default=30000, help="Port to listen on (default 30000).")
    add("--policy", choices=POLICY_NAMES, default="power_of_two",
        help="How to choose a worker (default power_of_two: the less busy of two random ones).")  # fmt: skip
    add("--request-timeout-secs", type=float, default=1800.0,
        help="Longest time without progress; a stream that moves is never cut (default 1800).")  # fmt: skip
    add("--max-payload-size", type=int, default=256 << 20, help="Largest request body in bytes (default 256 MiB).")
    add("--max-concurrent-requests", type=int, default=2048, help="More are refused with 503 (default 2048).")
    add("--api-key", help="Sent to workers as bearer token when the client sends no Authorization of its own.")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser


def from_argv(argv: Sequence[str] | None = None) -> RouterOptions:
    """Parse and check a command line; on a mistake print it and exit with status 2."""
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    pd_disaggregation = values.pop("pd_disaggregation")
    try:
        values["prefill"] = parse_prefill([word for group in values["prefill"] for word in _words(group)])
        values["decode"] = _urls([word for group in values["decode"] for word in _words(group)])
        values["worker_urls"] = _urls(_words(values["worker_urls"]))
        return validate(RouterOptions(**values), pd_disaggregation)
    except (OptionsError, WorkerUrlError) as error:
        parser.error(str(error))


def parse_prefill(words: Sequence[str]) -> tuple[PrefillUrl, ...]:
    """URLs, each with an optional bootstrap port (or "none") after it."""
    found: list[PrefillUrl] = []
    open_to_port = False
    for word in words:
        if (word.isascii() and word.isdigit()) or word.lower() == "none":
            if not open_to_port:
                raise OptionsError(f"--prefill: {word!r} is a bootstrap port without a URL before it")
            port = None if word.lower() == "none" else _port(word)
            found[-1] = PrefillUrl(found[-1].url, port)
            open_to_port = False
        else:
            found.append(PrefillUrl(_urls([word])[0]))
            open_to_port = True
    return tuple(found)


def validate(options: RouterOptions, pd_disaggregation: bool) -> RouterOptions:
    """Return the options, or raise OptionsError naming the flags that contradict each other."""
    if pd_disaggregation and not (options.prefill and options.decode):
        missing = "--decode" if options.prefill else "--prefill"
        raise OptionsError(f"--pd-disaggregation needs {missing} http://HOST:PORT")
    if pd_disaggregation and options.worker_urls:
        raise OptionsError("--worker-urls are whole servers: give it without --pd-disaggregation")
    if not pd_disaggregation and (options.prefill or options.decode):
        raise OptionsError("--prefill and --decode need --pd-disaggregation")
    if not pd_disaggregation and not options.worker_urls:
        raise OptionsError("no workers: give --pd-disaggregation --prefill URL --decode URL, or --worker-urls URL")
    if not 0 < options.port < 65536:
        raise OptionsError(f"--port must be between 1 and 65535, not {options.port}")
    for name in ("request_timeout_secs", "max_payload_size", "max_concurrent_requests"):
        if not getattr(options, name) > 0:
            raise OptionsError(f"--{name.replace('_', '-')} must be more than 0, not {getattr(options, name)}")
    return options


def _words(values: Sequence[str]) -> list[str]:
    return [word for value in values for word in value.split()]


def _urls(words: Sequence[str]) -> tuple[str, ...]:
    for word in words:
        parse_worker_url(word)
    return tuple(words)


def _port(word: str) -> int:
    port = int(word)
    if not 0 < port < 65536:
        raise OptionsError(f"--prefill: bootstrap port {word} is not between 1 and 65535")
    return port
