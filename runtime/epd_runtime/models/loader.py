"""Reads weights: safetensors, memory-mapped, only the tensors, and of them only the parts, that are asked for.

A component (vision tower or language model) tells where each checkpoint tensor goes: which parameter, which part of it
(q, k and v are one matrix here) and which part of the tensor (a rank of several takes its share). Everything is
checked from the headers before a byte is read: missing, unexpected, doubled and misshapen tensors are errors that name
them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from epd_runtime.json_fields import Fields

Index = tuple[int | slice, ...]
Shape = tuple[int, ...]
FLOATS = ("F64", "F32", "F16", "BF16")
NAMED = 5  # names in one error message


@dataclasses.dataclass(frozen=True)
class Cut:
    """A run of rows (columns, …) of a checkpoint tensor that has `total` of them along `axis`."""

    axis: int
    first: int
    count: int
    total: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """Part of a checkpoint tensor and where it goes. cut None: the whole tensor; into (): the whole parameter."""

    parameter: str
    into: Index = ()
    cut: Cut | None = None
    transposed: bool = False  # the checkpoint's last two axes are swapped


Place = Callable[[str, Shape], Sequence[Piece] | None]  # (): not needed here; None: no such tensor is known


class WeightError(ValueError):
    """The checkpoint does not fit the model; the message names the tensor."""


@dataclasses.dataclass(frozen=True)
class _Copy:
    """One piece, ready to be read."""

    name: str
    piece: Piece
    target: Tensor


def load_weights(module: nn.Module, folder: Path, place: Place) -> None:
    """Fill every parameter of the module from the folder's safetensors; raises WeightError, ModelConfigError."""
    shards = _shards(folder)
    plan = _plan(module, folder, shards, place)
    for number, shard in enumerate(shards, 1):
        with _opened(shard) as file:
            for copy in plan[shard]:
                copy.target.copy_(_read(file, copy))
        _progress(number, len(shards))


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = Fields.read(index).object("weight_map")
        shards = [folder / name for name in sorted({weight_map.text(tensor) for tensor in weight_map.values})]
    else:
        shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise WeightError(f"{folder} holds no *.safetensors; use --load-format dummy for random weights")
    for shard in shards:
        if not shard.is_file():
            raise WeightError(f"{folder} lacks the shard {shard.name} that its index names")
    return shards


def _plan(module: nn.Module, folder: Path, shards: Sequence[Path], place: Place) -> dict[Path, list[_Copy]]:
    """Every copy to make, by shard; raises WeightError unless they fill every parameter exactly once."""
    parameters = dict(module.named_parameters())
    missing = {name: parameter.numel() for name, parameter in parameters.items()}
    taken: set[tuple[str, str]] = set()
    unexpected: list[str] = []
    plan: dict[Path, list[_Copy]] = {shard: [] for shard in shards}
    for shard, name, shape, dtype in _headers(shards):
        pieces = place(name, shape)
        if pieces is None or any(piece.parameter not in parameters for piece in pieces):
            unexpected.append(name)
            continue
        if pieces and dtype not in FLOATS:
            raise WeightError(f"tensor {name!r} is {dtype}: quantised weights are not supported")
        for piece in pieces:
            if (key := (piece.parameter, str(piece.into))) in taken:
                raise WeightError(f"{folder} holds two tensors for the same place in the model, one of them {name!r}")
            taken.add(key)
            target = parameters[piece.parameter].data[piece.into]
            _check_shape(name, shape, piece, target)
            missing[piece.parameter] -= target.numel()
            plan[shard].append(_Copy(name, piece, target))
    if unexpected:
        raise WeightError(f"{folder} holds tensors that have no place in the model: {_listed(unexpected)}")
    if lacking := [name for name, count in missing.items() if count]:
        raise WeightError(f"{folder} lacks weights, in whole or in part, for: {_listed(lacking)}")
    return plan


def _headers(shards: Sequence[Path]) -> Iterator[tuple[Path, str, Shape, str]]:
    """(shard, tensor, shape, data type) of every tensor."""
    for shard in shards:
        with _opened(shard) as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(name)
                yield shard, name, tuple(part.get_shape()), part.get_dtype()


def _opened(shard: Path) -> Any:
    """A context manager with the shard's tensors; raises WeightError."""
    try:
        return safe_open(shard, framework="pt")
    except SafetensorError as error:
        raise WeightError(f"{shard} is damaged or no safetensors file: {error}") from None


def _check_shape(name: str, shape: Shape, piece: Piece, target: Tensor) -> None:
    needed = list(target.shape)
    if piece.transposed:
        needed[-2:] = needed[:-3:-1]
    if piece.cut is not None and piece.cut.axis < len(needed):
        needed[piece.cut.axis] = piece.cut.total
    if shape != tuple(needed):
        raise WeightError(f"tensor {name!r} has shape {shape}, the model needs {tuple(needed)}")


def _read(file: Any, copy: _Copy) -> Tensor:
    cut = copy.piece.cut
    if cut is None or cut.count == cut.total:
        tensor: Tensor = file.get_tensor(copy.name)
    else:
        run = slice(cut.first, cut.first + cut.count)
        tensor = file.get_slice(copy.name)[(*(slice(None),) * cut.axis, run)]
    return tensor.transpose(-1, -2) if copy.piece.transposed else tensor


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(repr(name) for name in names[:NAMED]) + more


def _progress(number: int, count: int) -> None:
    """One line that overwrites itself; nothing where nobody watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\rloading weights: {number} of {count} files" + ("\n" if number == count else ""))
        sys.stderr.flush()


def fill_dummy(module: nn.Module, seed: int) -> None:
    """Random weights for benchmarks: normal with deviation 0.02, norms at one. Drawn where the parameters are."""
    generator = None
    for name, parameter in module.named_parameters():
        if "norm" in name.split(".")[-2] and name.endswith(".weight"):
            parameter.data.fill_(1.0)
            continue
        generator = generator or torch.Generator(parameter.device).manual_seed(seed)
        parameter.data.normal_(0.0, 0.02, generator=generator)


def weight_bytes(module: nn.Module | None) -> int:
    """Bytes of parameters that a component holds."""
    return 0 if module is None else sum(p.numel() * p.element_size() for p in module.parameters())
