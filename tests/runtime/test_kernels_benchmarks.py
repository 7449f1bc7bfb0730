"""The GPU benchmarks run; what they measure without a GPU means nothing."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("name", "rows"), [("decode", 2), ("prefill", 2), ("offline", 1), ("vision", 1)])
def test_benchmark_runs(name: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [name, "--tiny", "--json", str(file)])
    importlib.import_module(f"benchmarks.gpu.{name}").main()
    figures = json.loads(file.read_text())
    assert len(figures["rows"]) == rows
    assert all(row["of_roofline"] > 0 for row in figures["rows"])
    assert figures["machine"]["copy_gb_per_second"] > 0
