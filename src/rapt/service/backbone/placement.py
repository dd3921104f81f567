"""The device that models compute on: chosen by name, and refused in one line where it is not there or is too small."""

from __future__ import annotations

import os
import re
from typing import Final

import torch
from torch import nn

from rapt.errors import UsageError

# What `auto` means on this machine, for every command.
VARIABLE: Final = "RAPT_DEVICE"
_DEVICE: Final = re.compile(r"cpu|cuda(?::(\d{1,3}))?", re.ASCII)


def choose_device(device: str) -> torch.device:
    """The device on which models compute.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, or `auto`: what `RAPT_DEVICE` says, else a GPU where there is one.

    Raises:
        UsageError: It is none of these, or torch finds no such GPU.
    """
    if device == "auto":
        device = os.environ.get(VARIABLE) or "auto"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = _DEVICE.fullmatch(device)
    if found is None:
        raise UsageError("the device must be auto, cpu, cuda or cuda:N, got another; choose one")
    if device != "cpu" and not torch.cuda.is_available():
        raise UsageError(
            "a GPU was asked for, and torch finds none that its build and the driver of this machine can use; "
            "take the device cpu, or install a torch for this driver"
        )
    if device != "cpu" and int(found[1] or 0) >= torch.cuda.device_count():
        raise UsageError(f"the device must be below cuda:{torch.cuda.device_count()}, got {device}; choose another")
    return torch.device(device)


def move_to(place: torch.device, module: nn.Module, *, model: str) -> None:
    """Put a model on its device; one that is too small for it is refused (`UsageError`)."""
    try:
        module.to(place)
    except torch.OutOfMemoryError:
        needed = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())) // 2**20
        raise UsageError(
            f"the device {place} must hold model={model!r}, of {needed} MiB, and has too little memory free; "
            "take another device, or a smaller model"
        ) from None
