"""Seconds from the command to a server that answers /health with 200, and to its first answer.

    python benchmarks/start.py [--rounds 3] [--model models/handwriting] [--flags --num-threads 1]

Beside it, in turns, what `import torch` alone takes in a fresh interpreter: nothing that computes can start sooner.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "models" / "handwriting"
DEADLINE_SECONDS = 60.0


def start_once(model: Path, flags: list[str]) -> tuple[float, float]:
    """(seconds to ready, seconds from there to the first answer of one token); raises SystemExit with the log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        begun = time.monotonic()
        command = [sys.executable, "-m", "epd_runtime.launch_server", "--model-path", str(model), "--port", str(port)]
        server = subprocess.Popen([*command, *flags], stdout=log, stderr=log)
        try:
            while not is_healthy(port):
                if server.poll() is not None or time.monotonic() - begun > DEADLINE_SECONDS:
                    log.seek(0)
                    raise SystemExit(f"the server is not ready:\n{log.read().decode(errors='replace')}")
                time.sleep(0.02)
            ready = time.monotonic()
            ask(port)
            return ready - begun, time.monotonic() - ready
        finally:
            server.terminate()
            server.wait(20)


def is_healthy(port: int) -> bool:
    """Whether /health answers 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except OSError:
        return False


def ask(port: int) -> None:
    """Have one token generated."""
    body = json.dumps({"prompt": "Hi", "max_tokens": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
        answer.read()


def import_torch() -> float:
    """Seconds of a fresh interpreter that only imports torch."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.monotonic() - begun


def main() -> None:
    """Measure in turns, print every round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="of the server")
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        rounds.append((import_torch(), *start_once(options.model, options.flags)))
        print(
            "import torch {:.2f} s, ready after {:.2f} s, first answer {:.2f} s later".format(*rounds[-1]), flush=True
        )
    torch_alone, ready, first = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"medians: ready after {ready:.2f} s, {ready / torch_alone:.2f} of import torch; first answer {first:.2f} s")


if __name__ == "__main__":
    main()
