"""linear.c and ops.c as a shared library: compiled when first used, then kept in the user's cache.

Compiling takes about a second. Where there is no compiler, or no OpenMP runtime of torch's to share, load() says so and
the engine runs plain PyTorch. Kept apart from the operations, whose import needs the library.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("linear.c", "ops.c"))
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
DEADLINE = 60.0  # seconds to compile
_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "linear": [*[_POINTER] * 4, *[_LONG] * 4],
    "panel_width": [],
    "rms_norm": [*[_POINTER] * 3, *[_LONG] * 5, _FLOAT],
    "add_rms_norm": [*[_POINTER] * 5, *[_LONG] * 2, _FLOAT],
    "rotate": [*[_POINTER] * 4, *[_LONG] * 5],
    "silu_mul": [*[_POINTER] * 2, *[_LONG] * 2],
    "store_kv": [*[_POINTER] * 6, *[_LONG] * 5],
    "decode_attention": [*[_POINTER] * 7, *[_LONG] * 8, _FLOAT],
}


class NativeUnavailableError(RuntimeError):
    """The library cannot be made or loaded here; the message says why."""


@functools.cache
def load() -> ctypes.CDLL:
    """The library; raises NativeUnavailableError."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NativeUnavailableError("no C compiler is installed (cc, gcc or clang, or name one in CC)")
    try:
        library = _open(compiler, _cache() / f"epd-ops-{_key(compiler)}.so")
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        raise NativeUnavailableError(f"{compiler} made no library of {SOURCES[0].parent}: {detail}") from error
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _LONG if name == "panel_width" else None
    return library


def is_available() -> bool:
    """Whether load() works; if not, the log says why."""
    try:
        load()
    except NativeUnavailableError as error:
        log.warning("kernels run as plain PyTorch, which is slower: %s", error)
        return False
    return True


def _open(compiler: str, path: Path) -> ctypes.CDLL:
    """The library at path, compiled unless a whole one is there."""
    if path.exists():
        with contextlib.suppress(OSError):  # what a full disk or a crash has left
            return ctypes.CDLL(str(path))
    _compile(compiler, path)
    return ctypes.CDLL(str(path))


def _cache() -> Path:
    """A folder that only this user writes to: code from it is run."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(root, "epd-runtime")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.geteuid():
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="epd-runtime-"))  # no home in this container: compiled at each start


def _key(compiler: str) -> str:
    """What the library depends on: its source, how it is compiled, and the processor that -march=native means."""
    try:
        processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        processor = platform.processor()
    parts = (*(source.read_text() for source in SOURCES), compiler, *FLAGS, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, path: Path) -> None:
    """Objects and library apart: linked without -fopenmp, so that no second OpenMP runtime comes in."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        objects, library = [str(Path(folder, source.stem + ".o")) for source in SOURCES], Path(folder, "ops.so")
        commands = [
            [compiler, *FLAGS, "-c", str(source), "-o", made] for source, made in zip(SOURCES, objects, strict=True)
        ]
        for command in (*commands, [compiler, "-shared", *objects, "-lm", "-o", str(library)]):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE)
        library.replace(path)  # another process may do the same: the last one wins, both are whole
