"""`python -m epd_runtime.launch_server`: one server process; flags decide which stage it is.

Order: flags and folder are checked, the socket is bound, the engine starts, and only then the rest of this process is
imported while the engine loads. Mistakes of the user end in one line on standard error and exit status 2.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from epd_runtime import config as configuration
from epd_runtime.config import ServerConfig
from epd_runtime.net.resolver import WorkerUrlError, parse_worker_url
from epd_runtime.server.engine_process import ENGINE_COMMAND, EngineProcess

BACKLOG = 2048
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal or the engine's end; the exit status."""
    return launch(configuration.from_argv(argv))


def launch(config: ServerConfig, engine_command: Sequence[str] = ENGINE_COMMAND) -> int:
    """Run a server with the given engine program; exits with status 2 on a mistake of the user."""
    logging.basicConfig(level=config.log_level.upper(), format=LOG_FORMAT)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if not (Path(config.model_path) / "config.json").is_file():
        _refuse(
            f"--model-path {config.model_path}: there is no config.json; give a model folder in Hugging Face layout"
        )
    try:
        for url in config.encoder_urls:
            parse_worker_url(url)
    except WorkerUrlError as error:
        _refuse(f"--encoder-urls: {error}")
    sock = _bind(config.bind_host, config.port)
    process = EngineProcess(config, engine_command)
    process.start()
    try:
        return _serve(config, process, sock)
    finally:
        process.stop()


def _serve(config: ServerConfig, process: EngineProcess, sock: socket.socket) -> int:
    # Imported while the engine loads: together they take longer than all that came before.
    import uvloop

    from epd_runtime.frontend.model_folder import ModelFolderError, load_model_folder
    from epd_runtime.server.main import serve

    try:
        model = load_model_folder(config.model_path)
    except ModelFolderError as error:
        process.kill()
        _refuse(str(error))
    return uvloop.run(serve(config, model, process, sock))


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket; exits with status 2 when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        _refuse(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --host or --port")
    sock.set_inheritable(False)
    return sock


def _refuse(message: str) -> NoReturn:
    print(f"epd_runtime.launch_server: error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
