"""What this process may use of its machine: a container sees all of it, its cgroup (version 2) knows the limits."""

from __future__ import annotations

import math
import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int:
    """Bytes that can still be used: the machine's, counting caches that can go, and no more than the cgroup's."""
    machine = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    available = int(machine.split()[1]) * 1024
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
    except FileNotFoundError:  # the root cgroup, or version 1
        return available
    return available if limit == "max" else min(available, max(int(limit) - used, 0))


def usable_cpus(cgroup: Path = CGROUP) -> int:
    """Threads that can run at once: cores this process may run on, and no more than its cgroup's quota, rounded up.

    More threads than the quota allows would be stopped together for the rest of each period.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except FileNotFoundError:
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
