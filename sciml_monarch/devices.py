"""Devices by name, as programs take them."""

import platform

import torch

from sciml_monarch.errors import InputError


def choose_device(name: str) -> torch.device:
    """Turns ``"auto"`` or the name of a device into one that exists.

    Raises:
        InputError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); give cpu or auto") from None
    return device


def device_name(device: torch.device) -> str:
    """What the device is called, for results: the GPU's name, or the CPU's kind and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
