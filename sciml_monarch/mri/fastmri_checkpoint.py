"""fastMRI's trained networks: their files hold weights only, everything else follows from the shapes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import Recon
from sciml_monarch.mri.unet import UNet
from sciml_monarch.mri.varnet import VarNet

State = dict[str, Tensor]


def load_fastmri_checkpoint(path: str | Path, crop: Sequence[int] | None = (320, 320)) -> Recon:
    """Reads a U-Net or an E2E-VarNet trained with fastMRI.

    Understood are the published state dicts (such as ``knee_mc_leaderboard_state_dict.pt``) and Lightning checkpoints
    of ``UnetModule`` and ``VarNetModule``. Nothing is unpickled but tensors and plain values.

    Args:
        path: The file.
        crop: Rows and columns of the central part on which a U-Net works, with the statistics that fastMRI's
            ``UnetDataTransform`` takes: ``recon_size`` of the scans that it was trained on. ``None``: whole images.
            A VarNet has none.

    Returns:
        A ``UNet(magnitude=True)`` or a ``VarNet`` in evaluation mode, on the CPU.

    Raises:
        InputError: There is no such file, it is damaged, or it holds something else.
    """
    path = Path(path)
    state, is_lightning = _tensors(path)
    for prefix in ("varnet.", "unet."):
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if is_lightning and inner:  # beside the network lie buffers of the loss and the metrics
            state = inner
            break
    try:
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced at once
            net: Recon
            if any(k.startswith("cascades.") for k in state):
                net = VarNet(**_varnet_arguments(state))
                net.load_state_dict(state)
            elif any(k.startswith("down_sample_layers.") for k in state):
                net = UNet(**_unet_arguments(state), magnitude=True, crop=crop)
                net.unet.load_state_dict(state)
            else:
                some = ", ".join(list(state)[:3])
                raise InputError(f"{path}: neither a U-Net nor a VarNet of fastMRI; it begins with {some}")
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"{path}: not a network of fastMRI: {reason}") from None
    return net.eval()


def _tensors(path: Path) -> tuple[State, bool]:
    """The tensors of a file, and whether it is a Lightning checkpoint."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: not a file of tensors that can be read ({type(error).__name__}); of a checkpoint with other "
            "objects save the entry 'state_dict' alone"
        ) from None
    is_lightning = isinstance(content, Mapping) and "state_dict" in content
    state = content["state_dict"] if is_lightning else content
    if not (isinstance(state, Mapping) and state and all(isinstance(v, Tensor) for v in state.values())):
        raise InputError(f"{path}: holds no state dict, a table of names and tensors")
    return {str(k): v.float() for k, v in state.items()}, is_lightning


def _unet_arguments(state: Mapping[str, Tensor], prefix: str = "", n_channels: int = 1) -> dict[str, int]:
    """Channels and poolings of a U-Net with so many channels in and out.

    Raises:
        ValueError: It has other channels in or out.
    """
    n_pools = _count(state, f"{prefix}down_sample_layers.")
    first = state[f"{prefix}down_sample_layers.0.layers.0.weight"]
    last = state[f"{prefix}up_conv.{n_pools - 1}.1.weight"]
    if first.shape[1] != n_channels or last.shape[0] != n_channels:
        raise ValueError(
            f"a U-Net with {first.shape[1]} channels in and {last.shape[0]} out, where {n_channels} and {n_channels} "
            "were expected"
        )
    return {"channels": first.shape[0], "n_pools": n_pools}


def _varnet_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    cascade = _unet_arguments(state, "cascades.0.model.unet.", 2)
    sensitivity = _unet_arguments(state, "sens_net.norm_unet.unet.", 2)
    return {
        "n_cascades": _count(state, "cascades."),
        "channels": cascade["channels"],
        "n_pools": [cascade["n_pools"], sensitivity["n_pools"]],
        "sens_channels": sensitivity["channels"],
    }


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules are numbered behind a prefix."""
    numbers = {int(m[1]) for k in state if (m := re.match(re.escape(prefix) + r"(\d+)\.", k))}
    return len(numbers)
