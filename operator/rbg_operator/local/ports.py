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
            holder = listener(address, port)
            by = f"in use by {holder}" if holder else f"not available: {error.strerror}"
            return f"port {port} on {address} is {by}; end that process or change --port in the manifest"
    return ""


def listener(address: str, port: int) -> str:
    """A process that listens there or on every address, such as "process 47 (python3)"; empty if none can be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening(address, port)}
    for name in os.listdir("/proc") if sockets else ():
        if name.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in os.scandir(f"/proc/{name}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(descriptor.path) in sockets:
                            return f"process {name} ({Path(f'/proc/{name}/comm').read_text().strip()})"
    return ""


def _listening(address: str, port: int) -> list[str]:
    """Inodes of the sockets in the way. The kernel's tables write an IPv4 address as a little-endian number."""
    own = socket.inet_aton(address)[::-1].hex().upper()
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                host, _, number = fields[1].rpartition(":")
                if fields[3] == LISTEN and int(number, 16) == port and (host == own or not host.strip("0")):
                    found.append(fields[9])
    return found
