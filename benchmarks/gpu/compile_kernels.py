"""Compile every Triton kernel for an H200 (sm_90) at the sizes of an 8B model; needs no GPU.

    python benchmarks/gpu/compile_kernels.py [--json FILE]

Prints registers and bytes of stack (what spills) of each kernel as the assembler reports them, its shared memory in
bytes, and how many matrix instructions of Hopper (wgmma) it has. This says that kernels fit the machine, and nothing of
their speed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from epd_runtime.attention.packed import Segments
from epd_runtime.kernels import triton_ops
from epd_runtime.kernels.triton_ops.decode import decode_attention
from epd_runtime.kernels.triton_ops.prefill import plan_tiles, prefill_attention, tokens_per_tile

TARGET = GPUTarget("cuda", 90, 32)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")


def compile_launch(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Compile a kernel as a launch with these arguments would."""
    options = {name: kwargs[name] for name in OPTIONS if name in kwargs}
    values = dict(zip(kernel.arg_names, args, strict=False)) | {k: v for k, v in kwargs.items() if k not in OPTIONS}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif kernel.params[index].is_constexpr or (value == 1 and isinstance(value, int)):
            signature[name], constants[(index,)] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i64" if abs(value) >= 2**31 else "i32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(ASTSource(kernel, signature, constants, attributes), target=TARGET, options=options)
    return {"kernel": kernel.__name__, "shared": compiled.metadata.shared, **_usage(compiled.asm)}


def _usage(asm: Any) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        report = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found, report
    return {"registers": int(found[1]), "stack": int(found[2]), "wgmma": asm["ptx"].count("wgmma.mma_async")}


def launches(dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> list[Callable[[], object]]:
    """Calls of every kernel for one model; tensors have its strides, not its number of pages."""
    hidden, page_size, tokens = heads * head_dim, 16, 8
    x = torch.zeros(tokens, hidden, dtype=dtype)
    projected = torch.zeros(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
    q, k, v = projected.split([heads, kv_heads, kv_heads], dim=1)
    angles = torch.zeros(tokens, head_dim, dtype=dtype)
    pool = torch.zeros(2, 32, 2, page_size, kv_heads, head_dim, dtype=dtype)
    keys, values = pool[:, 3, 0], pool[:, 3, 1]
    index, table, out = torch.zeros(tokens, dtype=torch.int64), torch.zeros(tokens, 16, dtype=torch.int64), q.clone()
    per_tile = tokens_per_tile(heads, kv_heads, head_dim, dtype.itemsize)
    tiles = plan_tiles([(0, tokens, 2 * tokens)], page_size, per_tile)
    segments = Segments.from_lengths([tokens])
    return [
        lambda: triton_ops.rms_norm(x, x[0], 1e-6),
        lambda: triton_ops.rms_norm(q, x[0, :head_dim], 1e-6),
        lambda: triton_ops.add_rms_norm(x, x, x[0], 1e-6),
        lambda: triton_ops.rotate(q, k, angles, angles),
        lambda: triton_ops.silu_mul(torch.zeros(tokens, 2 * 14336, dtype=dtype)),
        lambda: triton_ops.store_kv(k, v, keys, values, index, index),
        lambda: decode_attention(q, keys, values, index, table, index, 1, out),
        lambda: decode_attention(q, keys, values, index, table, index, 8, out),
        lambda: prefill_attention(q, keys, values, index, tiles, per_tile, out),
        lambda: triton_ops.packed_attention(k, k, v, segments.groups, segments.tiles),
    ]


def compile_all(models: list[tuple[torch.dtype, int, int, int]]) -> list[dict[str, Any]]:
    """Every kernel of every model (dtype, heads, key heads, head_dim), in place of its launch."""
    found: list[dict[str, Any]] = []
    run = JITFunction.run
    for dtype, heads, kv_heads, head_dim in models:
        where = {"dtype": str(dtype).removeprefix("torch."), "heads": f"{heads}/{kv_heads}x{head_dim}"}

        def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, where: dict[str, str] = where, **kw: Any):  # type: ignore[no-untyped-def]
            found.append({**where, **compile_launch(kernel, args, kw)})

        JITFunction.run = record
        try:
            for launch in launches(dtype, heads, kv_heads, head_dim):
                launch()
        finally:
            JITFunction.run = run
    return found


MODELS = [
    (torch.bfloat16, 32, 8, 128),  # Llama 3.1 8B; Qwen3-VL 8B alike
    (torch.bfloat16, 28, 4, 128),  # Qwen2.5-VL 7B: groups of seven
    (torch.bfloat16, 16, 16, 80),  # a vision tower
    (torch.float32, 32, 8, 64),  # Llama 3.2 1B in float32
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="Write the table there.")
    parser.add_argument("--tiny", action="store_true", help="Only the first model.")
    options = parser.parse_args()
    found = compile_all(MODELS[:1] if options.tiny else MODELS)
    for row in found:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
