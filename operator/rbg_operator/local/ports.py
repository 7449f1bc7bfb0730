"""Whether a pod could listen on its port, and if not, which process is in the way."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

LISTEN = "0A"  # connection state in /proc/net/tcp


def port_problem(address: str, port: int) -> str:
    """Empty if the port is free on the address; else who has it and what to do."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections just closed are no obstacle
        try:
            probe.bind((address, port))
        except OSError as error:
            holder = listener(port)
            by = f"in use by {holder}" if holder else f"not available: {error.strerror}"
            return f"port {port} on {address} is {by}; end that process or change --port in the manifest"
    return ""


def listener(port: int) -> str:
    """A process that listens on the port, such as "process 4711 (python3)"; empty if none can be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for name in os.listdir("/proc") if sockets else ():
        if name.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in os.scandir(f"/proc/{name}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(descriptor.path) in sockets:
                            return f"process {name} ({Path(f'/proc/{name}/comm').read_text().strip()})"
    return ""


def _listening(port: int) -> list[str]:
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    found.append(fields[9])
    return found
