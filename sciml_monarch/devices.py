"""Devices by name, as programs take them."""

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
