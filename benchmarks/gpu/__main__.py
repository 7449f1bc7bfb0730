"""Every GPU benchmark, one after the other, in less than nine minutes on an H200.

    python -m benchmarks.gpu [--tiny] [--json FILE]

Each runs in a process of its own, so that none finds the memory of another and one that fails leaves the others to run.
Decode also runs without what is on by default, to show what that brings. Exit status 1 if any failed.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import arguments

TOTAL_SECONDS = 530
RUN_SECONDS = 180
RUNS: dict[str, tuple[str, ...]] = {
    "decode": ("decode",),
    "offline": ("offline",),
    "prefill": ("prefill",),
    "vision": ("vision",),
    "decode, no overlap": ("decode", "--disable-overlap-schedule"),
    "decode, no graphs": ("decode", "--disable-cuda-graph"),
    "decode by flashinfer": ("decode", "--attention", "flashinfer"),
    "prefill by flashinfer": ("prefill", "--attention", "flashinfer"),
}


def main() -> int:
    """Run all; returns the exit status."""
    options = arguments(__doc__)
    deadline = time.monotonic() + TOTAL_SECONDS
    figures: dict[str, Any] = {}
    for name, command in RUNS.items():
        if "flashinfer" in command and (options.tiny or importlib.util.find_spec("flashinfer") is None):
            continue
        print(f"\n{name}", flush=True)
        extra = ["--tiny"] if options.tiny else []
        figures[name] = run([*command, *extra], min(deadline - time.monotonic(), RUN_SECONDS))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    failed = {name: result["error"] for name, result in figures.items() if "error" in result}
    for name, error in failed.items():
        print(f"{name} FAILED: {error}")
    return 1 if failed else 0


def run(command: list[str], seconds: float) -> dict[str, Any]:
    """What one benchmark writes as JSON; {"error": …} if it ends otherwise."""
    if seconds < 1:
        return {"error": "no time was left"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "figures.json")
        module, *rest = command
        try:
            done = subprocess.run(
                [sys.executable, "-m", f"benchmarks.gpu.{module}", *rest, "--json", str(file)], timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {seconds:.0f} s"}
        if done.returncode:
            return {"error": f"exit status {done.returncode}"}
        figures: dict[str, Any] = json.loads(file.read_text())
        return figures


if __name__ == "__main__":
    sys.exit(main())
