"""Limits of a container, as its cgroup gives them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from epd_runtime.container import available_memory, usable_cpus


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max", "5", 2048), ("1500", "500", 1000), ("100", "500", 0), ("9999999", "0", 2048)],
)
def test_available_memory_respects_the_container(tmp_path: Path, limit: str, used: str, expected: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:   2 kB\n")
    assert available_memory(meminfo, tmp_path) == 2048
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(used + "\n")
    assert available_memory(meminfo, tmp_path) == expected


def test_the_quota_of_cpus_counts(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert usable_cpus(tmp_path) == cores
    quotas = {"max 100000": cores, "50000 100000": 1, f"{cores * 100000} 100000": cores, "9999999 100": cores}
    for text, expected in quotas.items():
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert usable_cpus(tmp_path) == expected, text
