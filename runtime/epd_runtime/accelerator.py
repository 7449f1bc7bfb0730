"""Copies between host and device that wait for nothing, and which errors a device does not recover from."""

from __future__ import annotations

import torch
from torch import Tensor

# How libraries word an error that leaves the CUDA context unusable; running out of memory is none.
_LOST = ("CUDA error", "Triton Error [CUDA]", "CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR", "cuDNN")


class DeviceLostError(RuntimeError):
    """The device answers every further call with the same error: only a new process can use it again."""


def is_device_lost(error: BaseException) -> bool:
    """Whether an exception means that this process can use its device no more."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError | DeviceLostError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def raise_if_lost(error: BaseException) -> None:
    """DeviceLostError for an error that the device keeps; for any other, nothing."""
    if is_device_lost(error):
        raise DeviceLostError(f"the device failed and cannot be used any more: {error}") from error


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device. The copy to CUDA is queued behind what runs there; from pageable memory it waits."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class HostCopy:
    """A tensor of the device on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        """Queue the copy behind what runs on the device; on CPU the tensor itself is it."""
        self._event: torch.cuda.Event | None = None
        self._tensor = tensor
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def is_done(self) -> bool:
        """Whether wait() returns at once."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> Tensor:
        """The tensor on the host, once everything queued before the copy has run."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor
