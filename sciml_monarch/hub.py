"""Trained networks on disk: load from a training checkpoint or a shared folder, save to a folder.

A shared folder holds ``model.safetensors`` (weights and normalisation), ``config.json`` (network class, arguments,
description of the data) and ``README.md`` (the model card). Nothing is unpickled.
"""

import json
from pathlib import Path
from typing import Any

import torch

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.pde.base import Operator, n_parameters
from sciml_monarch.pde.description import Description
from sciml_monarch.pde.surrogate import Surrogate
from sciml_monarch.version import version

FORMAT = 1
CHECKPOINT_KEY = "sciml_monarch"


def surrogate_config(surrogate: Surrogate) -> dict[str, Any]:
    """Everything but the weights, as JSON values: what checkpoints and ``config.json`` hold."""
    return {
        "format": FORMAT,
        "version": version(),
        "net": type(surrogate.net).__name__,
        "arguments": surrogate.net.config,
        "description": surrogate.description.to_dict(),
    }


def surrogate_from_config(config: dict[str, Any], source: Path) -> Surrogate:
    """Builds a network with fresh weights from what :func:`surrogate_config` wrote.

    Args:
        config: The configuration.
        source: File to name in errors.

    Raises:
        InputError: The network is unknown to this version, or its arguments are not those of its class.
    """
    from sciml_monarch import pde

    if not isinstance(config, dict):
        raise InputError(f"{source}: its configuration is not a table of names and values")
    if config.get("format") != FORMAT:
        raise InputError(
            f"{source}: format {config.get('format')} of networks is not known; this version reads {FORMAT}"
        )
    cls = getattr(pde, str(config.get("net")), None)
    if not (isinstance(cls, type) and issubclass(cls, Operator)):
        raise InputError(f"{source}: holds a network {config.get('net')!r}, which this version does not know")
    try:
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced at once
            net = cls(**config["arguments"])
        description = Description.from_dict(config["description"])
        return Surrogate(net, description)
    except (AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{source}: the configuration does not fit {cls.__name__}: {error}") from None


def load(path: str | Path, map_location: str | torch.device = "cpu") -> Surrogate:
    """Rebuilds a trained network from a training checkpoint (``.ckpt``) or a folder written by :func:`save`.

    Args:
        path: The checkpoint or folder.
        map_location: Device of the weights.

    Returns:
        The network in evaluation mode with its normalisation and description. Of a checkpoint trained with an
        exponential moving average the averaged weights are loaded.

    Raises:
        InputError: There is no such file, it is damaged, or it holds another kind of network.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint or folder")
    config, state = _read_folder(path, map_location) if path.is_dir() else read_checkpoint(path, map_location)
    surrogate = surrogate_from_config(config, path)
    try:
        surrogate.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit {config['net']}: {' '.join(str(error).split())}") from None
    return surrogate.to(map_location).eval()


def read_checkpoint(
    path: Path, map_location: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Reads what a training checkpoint says of its network.

    Args:
        path: The ``.ckpt`` file.
        map_location: Device of the weights.

    Returns:
        The configuration that :func:`surrogate_config` wrote, and the weights.

    Raises:
        InputError: The file is damaged, or of another program.
    """
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint that can be read ({type(error).__name__})") from None
    if not (isinstance(checkpoint, dict) and {CHECKPOINT_KEY, "state_dict"} <= checkpoint.keys()):
        raise InputError(f"{path}: a checkpoint of another program; it lacks {CHECKPOINT_KEY!r} or 'state_dict'")
    prefix = "surrogate."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return checkpoint[CHECKPOINT_KEY], state


def _read_folder(path: Path, map_location: str | torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors.torch import load_file

    config_file, weights_file = path / "config.json", path / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise InputError(f"{path}: lacks {file.name}; a saved network has config.json and model.safetensors")
    try:
        config = json.loads(config_file.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{config_file}: not JSON: {error}") from None
    try:
        return config, load_file(weights_file, device=str(map_location))
    except Exception as error:
        raise InputError(f"{weights_file}: not a safetensors file that can be read: {error}") from None


def save(surrogate: Surrogate, folder: str | Path, results: str = "") -> Path:
    """Writes a network to share: weights, configuration and model card.

    Args:
        surrogate: The trained network.
        folder: Where to; made if absent. Files there are replaced one by one, each atomically.
        results: Markdown for the section "Results" of the card: scores, their data and protocol.

    Returns:
        The folder.
    """
    from safetensors.torch import save

    folder = Path(folder)
    config = surrogate_config(surrogate)
    state = {k: v.detach().cpu().contiguous() for k, v in surrogate.state_dict().items()}
    files = {
        "model.safetensors": save(state),
        "config.json": json.dumps(config, indent=2).encode(),
        "README.md": _card(surrogate, config, results).encode(),
    }
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder


def _card(surrogate: Surrogate, config: dict[str, Any], results: str) -> str:
    d = surrogate.description
    n_input = surrogate.net.in_channels // d.n_history
    physics = "\n".join(f"| {k} | {v} |" for k, v in sorted(d.attributes.items()))
    return f"""---
library_name: sciml-monarch
tags: [neural-operator, monarch]
---
# {config["net"]}: {", ".join(d.fields)}

`sciml_monarch.load("this folder")` returns the network; `.rollout(history, n_steps)` takes
`(batch, {d.n_history}, {n_input}, *grid)` and returns `(batch, n_steps, {len(d.fields)}, *grid)` in physical units.

| property | value |
|---|---|
| parameters (real numbers) | {n_parameters(surrogate.net):,} |
| trained on grid | {" x ".join(map(str, d.grid))} |
| domain lengths | {" x ".join(map(str, d.lengths))} |
| time between frames (s) | {d.dt} |
| history, trained roll-out (frames) | {d.n_history}, {d.n_steps} |
| units | {", ".join(d.units)} |
{physics}

## Results
{results or "Not given."}
"""
