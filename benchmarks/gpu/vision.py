"""Milliseconds per image of Qwen2.5-VL 7B's vision tower: 448 x 448, 1024 x 1024 and 1920 x 1080, beside the roofline.

    python -m benchmarks.gpu.vision [--tiny] [--json FILE]

Roofline: the floating-point operations of all matrix products and of attention inside windows and images at the rate of
a large matrix product, measured in the same run. Preprocessing is not part of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.common import LLAMA_8B, Machine, arguments, median_seconds, model_config, report
from epd_runtime.models.registry import load_vision_tower

TOWER = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "spatial_merge_size": 2,
    "temporal_patch_size": 2, "in_channels": 3, "hidden_act": "silu",
}  # fmt: skip
TINY_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "fullatt_block_indexes": [1]}
LANGUAGE = {
    **LLAMA_8B,
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
SIZES = ((448, 448), (1024, 1024), (1920, 1080))


def main() -> None:
    """Print one row per size."""
    options = arguments(__doc__)
    machine = Machine.measure(options.tiny)
    vision = TOWER | ({**TINY_TOWER, "out_hidden_size": 64} if options.tiny else {})
    rope = {"type": "mrope", "mrope_section": [2, 3, 3] if options.tiny else [16, 24, 24]}
    config = model_config({**LANGUAGE, "rope_scaling": rope, "vision_config": vision}, options.tiny)
    tower = load_vision_tower(config, Path(), machine.device, machine.dtype, 0)
    assert tower is not None
    sizes = ((112, 84),) if options.tiny else SIZES
    report(machine, options, [measure(tower, vision, machine, *size) for size in sizes])


@torch.inference_mode()
def measure(tower: Any, vision: dict[str, Any], machine: Machine, width: int, height: int) -> dict[str, Any]:
    """One image, rounded to whole merged patches."""
    side = vision["patch_size"] * vision["spatial_merge_size"]
    grid = (1, round(height / side) * 2, round(width / side) * 2)
    patches = grid[1] * grid[2]
    pixels = torch.randn(patches, 3 * vision["patch_size"] ** 2, device=machine.device)
    taken = median_seconds(lambda: tower(pixels, [grid]), machine.device)
    weights = sum(parameter.numel() for parameter in tower.parameters())
    window = (vision["window_size"] // vision["patch_size"]) ** 2
    whole = len(vision["fullatt_block_indexes"])
    seen = whole * patches + (vision["depth"] - whole) * min(window, patches)  # keys of each patch, over all blocks
    merged = vision["hidden_size"] * vision["spatial_merge_size"] ** 2
    merger = merged * (merged + vision["out_hidden_size"])  # used once for four patches
    operations = 2 * (weights - 0.75 * merger) * patches + 4 * vision["hidden_size"] * patches * seen
    bound = operations / machine.flops_per_second
    return {
        "pixels": f"{width}x{height}", "patches": patches, "ms": taken * 1e3, "roofline_ms": bound * 1e3,
        "of_roofline": bound / taken,
    }  # fmt: skip


if __name__ == "__main__":
    main()
