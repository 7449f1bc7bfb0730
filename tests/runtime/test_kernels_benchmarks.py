"""The GPU benchmarks run; what they measure without a GPU means nothing."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as everything


@pytest.mark.parametrize(("name", "rows"), [("decode", 2), ("prefill", 2), ("offline", 1), ("vision", 1)])
def test_benchmark_runs(name: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, "--tiny", "--json", str(file)])
    importlib.import_module(f"benchmarks.gpu.{name}").main()
    figures = json.loads(file.read_text())
    assert len(figures["rows"]) == rows
    assert all(row["of_roofline"] > 0 for row in figures["rows"])
    assert figures["machine"]["copy_gb_per_second"] > 0


def test_one_command_runs_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails leaves the others to run, and the whole fails; no time goes to what cannot end in time."""
    asked: list[list[str]] = []

    def run(command: list[str], seconds: float) -> dict[str, Any]:
        asked.append(command)
        return {"error": "?"} if command[0] == "offline" else {"rows": [seconds]}

    file = tmp_path / "figures.json"
    monkeypatch.setattr(everything, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--json", str(file)])
    assert everything.main() == 1
    assert [command[0] for command in asked] == ["decode", "offline", "prefill", "vision", "decode", "decode"]
    figures = json.loads(file.read_text())
    assert figures["offline"] == {"error": "?"}
    assert 0 < figures["vision"]["rows"][0] <= everything.RUN_SECONDS
    monkeypatch.undo()
    assert everything.run(["vision", "--tiny"], 0.5) == {"error": "no time was left"}
    assert everything.run(["no_such_benchmark"], 60) == {"error": "exit status 1"}
