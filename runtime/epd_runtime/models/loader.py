"""Reads weights: safetensors, memory-mapped, only the tensors of the component that is asked for.

A component (vision tower or language model) tells where each checkpoint tensor goes: a parameter, and which slice of it
(q, k and v are one matrix here). Every parameter must be filled completely; a missing or misshapen tensor is an error
that names it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from epd_runtime.json_fields import Fields

Target = tuple[str, int, int]  # parameter, first row, number of rows (0: all of it)
NameMap = Callable[[str], Target | None]  # checkpoint tensor -> target, or None: not of this component


class WeightError(ValueError):
    """The checkpoint does not fit the model; the message names the tensor."""


def load_weights(module: nn.Module, folder: Path, place: NameMap) -> None:
    """Fill every parameter of the module from the folder's safetensors; raises WeightError, ModelConfigError."""
    parameters = dict(module.named_parameters())
    filled = dict.fromkeys(parameters, 0)
    seen: set[Target] = set()
    for name, read in _tensors(folder):
        target = place(name)
        if target is None:
            continue
        parameter_name, first, count = target
        if parameter_name not in parameters:
            raise WeightError(f"tensor {name!r} of {folder} has no place in the model ({parameter_name})")
        if target in seen:
            raise WeightError(f"{folder} holds two tensors for the same place in the model, one of them {name!r}")
        seen.add(target)
        whole = parameters[parameter_name].data
        part = whole[first : first + count] if count else whole
        tensor = read()
        if tensor.shape != part.shape:
            raise WeightError(f"tensor {name!r} has shape {tuple(tensor.shape)}, the model needs {tuple(part.shape)}")
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise WeightError(f"tensor {name!r} is {tensor.dtype}: quantised weights are not supported")
        part.copy_(tensor)
        filled[parameter_name] += part.numel()
    for name, count in filled.items():
        if count != parameters[name].numel():
            raise WeightError(
                f"{folder} lacks weights for parameter {name!r} ({count} of {parameters[name].numel()} filled)"
            )


def _tensors(folder: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, reader) of every tensor of a checkpoint, shard by shard."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = Fields.read(index).object("weight_map")
        shards = sorted({weight_map.text(tensor) for tensor in weight_map.values})
    else:
        shards = [path.name for path in sorted(folder.glob("*.safetensors"))]
    if not shards:
        raise WeightError(f"{folder} holds no *.safetensors; use --load-format dummy for random weights")
    for shard in shards:
        if not (folder / shard).is_file():
            raise WeightError(f"{folder} lacks the shard {shard} that its index names")
        try:
            with safe_open(folder / shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, functools.partial(file.get_tensor, name)
        except SafetensorError as error:
            raise WeightError(f"{folder / shard} is damaged or no safetensors file: {error}") from None


def fill_dummy(module: nn.Module, seed: int) -> None:
    """Random weights for benchmarks: normal with deviation 0.02, norms at one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight")):
            parameter.data.fill_(1.0)
        else:
            drawn = torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator)
            parameter.data.copy_(drawn)


def weight_bytes(module: nn.Module | None) -> int:
    """Bytes of parameters that a component holds."""
    return 0 if module is None else sum(p.numel() * p.element_size() for p in module.parameters())
