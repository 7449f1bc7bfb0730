"""`rbg-operator`: options, logs, signals, exit status."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence

from rbg_operator.controller.logs import set_up
from rbg_operator.controller.options import Options, parse_options
from rbg_operator.controller.replica import Replica
from rbg_operator.kube.credentials import Credentials, CredentialsError
from rbg_operator.kube.kubeconfig import load

log = logging.getLogger(__name__)

USAGE = 2  # exit status of a command line or a kubeconfig that cannot be used
FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. 0: ended as asked; 1: something failed; 2: cannot start like this."""
    options = parse_options(arguments)
    set_up(options.log_format, options.log_level)
    try:
        credentials = load(options.kubeconfig)
    except CredentialsError as error:
        log.error("%s", error)
        return USAGE
    return asyncio.run(_run(options, credentials))


async def _run(options: Options, credentials: Credentials) -> int:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        log.info("stopping")
        replica.stop()

    def handle_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)

    replica = Replica(options, credentials, handle_signals)
    handle_signals()
    try:
        await replica.run()
    except Exception as error:
        log.error("ended: %s", "; ".join(reasons(error)), exc_info=error)
        return FAILED
    log.info("stopped")
    return 0


def reasons(error: BaseException) -> list[str]:
    """The errors in a group of them, one text each."""
    if isinstance(error, BaseExceptionGroup):
        return [text for inner in error.exceptions for text in reasons(inner)]
    return [f"{type(error).__name__}: {error}"]
