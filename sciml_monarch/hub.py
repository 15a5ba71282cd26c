"""Trained networks on disk: load from a training checkpoint or a shared folder, save to a folder.

A shared folder holds ``model.safetensors`` (weights and normalisation), ``config.json`` (task, network class,
arguments, which layers are Monarch, description of the data) and ``README.md`` (the model card). Nothing is unpickled.
"""

import json
from pathlib import Path
from typing import Any

import torch

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.monarch.structure import restructure, structure
from sciml_monarch.mri.base import Recon
from sciml_monarch.mri.description import Description as ScanDescription
from sciml_monarch.mri.description import describe, description_of
from sciml_monarch.pde.base import Operator, n_parameters
from sciml_monarch.pde.description import Description
from sciml_monarch.pde.surrogate import Surrogate
from sciml_monarch.version import version

FORMAT = 1
CHECKPOINT_KEY = "sciml_monarch"


def surrogate_config(surrogate: Surrogate) -> dict[str, Any]:
    """Everything but the weights, as JSON values: what checkpoints and ``config.json`` hold."""
    return _config("pde", surrogate.net, surrogate.description.to_dict())


def recon_config(net: Recon) -> dict[str, Any]:
    """The same for a reconstruction network."""
    description = description_of(net)
    return _config("mri", net, None if description is None else description.to_dict())


def _config(task: str, net: Operator | Recon, description: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": version(),
        "task": task,
        "net": type(net).__name__,
        "arguments": net.config,
        "structure": structure(net),
        "description": description,
    }


def network_from_config(config: dict[str, Any], source: Path) -> Surrogate | Recon:
    """Builds a network with fresh weights from what :func:`surrogate_config` or :func:`recon_config` wrote.

    Args:
        config: The configuration; one without ``task`` is of a PDE network.
        source: File to name in errors.

    Raises:
        InputError: The network is unknown to this version, or its arguments are not those of its class.
    """
    from sciml_monarch import mri, pde

    if not isinstance(config, dict):
        raise InputError(f"{source}: its configuration is not a table of names and values")
    if config.get("format") != FORMAT:
        raise InputError(
            f"{source}: format {config.get('format')} of networks is not known; this version reads {FORMAT}"
        )
    task = config.get("task", "pde")
    if task not in ("pde", "mri"):
        raise InputError(f"{source}: holds a network for the task {task!r}, which this version does not know")
    cls = getattr(mri if task == "mri" else pde, str(config.get("net")), None)
    if not (isinstance(cls, type) and issubclass(cls, Recon if task == "mri" else Operator)):
        raise InputError(f"{source}: holds a network {config.get('net')!r}, which this version does not know")
    try:
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced at once
            net = cls(**config["arguments"])
            if "structure" in config:  # else it is as it was made
                _restructure(net, config["structure"], source)
        description = config["description"]
        if isinstance(net, Recon):
            describe(net, None if description is None else ScanDescription.from_dict(description))
            return net
        return Surrogate(net, Description.from_dict(description))
    except (AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{source}: the configuration does not fit {cls.__name__}: {error}") from None


def _restructure(net: Operator | Recon, layers: dict[str, Any], source: Path) -> None:
    try:
        restructure(net, layers)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def load(path: str | Path, map_location: str | torch.device = "cpu") -> Surrogate | Recon:
    """Rebuilds a trained network from a training checkpoint (``.ckpt``) or a folder written by :func:`save`.

    Args:
        path: The checkpoint or folder.
        map_location: Device of the weights.

    Returns:
        In evaluation mode, of a PDE network a ``Surrogate``: the network with its normalisation and description; of
        an MRI network the ``Recon``, whose attribute ``description`` says what it was trained on. Of a checkpoint
        trained with an exponential moving average the averaged weights are loaded.

    Raises:
        InputError: There is no such file, it is damaged, or it holds another kind of network.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint or folder")
    config, state = _read_folder(path, map_location) if path.is_dir() else read_checkpoint(path, map_location)
    network = network_from_config(config, path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: the weights do not fit {config['net']}: {' '.join(str(error).split())}") from None
    return network.to(map_location).eval()


def load_surrogate(path: str | Path) -> Surrogate:
    """As :func:`load`, for a PDE network.

    Raises:
        InputError: It cannot be loaded, or is an MRI network.
    """
    network = load(path)
    if not isinstance(network, Surrogate):
        raise InputError(f"{path}: holds {type(network).__name__}, an MRI network; a PDE network is needed here")
    return network


def load_recon(path: str | Path) -> Recon:
    """As :func:`load`, for an MRI network.

    Raises:
        InputError: It cannot be loaded, or is a PDE network.
    """
    network = load(path)
    if not isinstance(network, Recon):
        raise InputError(f"{path}: holds {type(network.net).__name__}, a PDE network; an MRI network is needed here")
    return network


def is_checkpoint(path: Path) -> bool:
    """Whether a file can be read and was written by a training of this package."""
    try:
        checkpoint = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # torch.load raises whatever its pickle contains makes it
        return False
    return isinstance(checkpoint, dict) and CHECKPOINT_KEY in checkpoint


def read_checkpoint(
    path: Path, map_location: str | torch.device = "cpu"
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Reads what a training checkpoint says of its network.

    Args:
        path: The ``.ckpt`` file.
        map_location: Device of the weights.

    Returns:
        The configuration that :func:`surrogate_config` or :func:`recon_config` wrote, and the weights.

    Raises:
        InputError: The file is damaged, or of another program.
    """
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint that can be read ({type(error).__name__})") from None
    if not (isinstance(checkpoint, dict) and {CHECKPOINT_KEY, "state_dict"} <= checkpoint.keys()):
        raise InputError(f"{path}: a checkpoint of another program; it lacks {CHECKPOINT_KEY!r} or 'state_dict'")
    config = checkpoint[CHECKPOINT_KEY]
    # the attribute of the task that holds the network
    prefix = "net." if isinstance(config, dict) and config.get("task") == "mri" else "surrogate."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return config, state


def _read_folder(path: Path, map_location: str | torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors.torch import load_file

    config_file, weights_file = path / "config.json", path / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            last = path / "checkpoints/last.ckpt"
            hint = f"; give {last}" if last.is_file() else "; a saved network has config.json and model.safetensors"
            raise InputError(f"{path}: lacks {file.name}{hint}")
    try:
        config = json.loads(config_file.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{config_file}: not JSON: {error}") from None
    try:
        return config, load_file(weights_file, device=str(map_location))
    except Exception as error:
        raise InputError(f"{weights_file}: not a safetensors file that can be read: {error}") from None


def save(network: Surrogate | Recon, folder: str | Path, results: str = "") -> Path:
    """Writes a network to share: weights, configuration and model card.

    Args:
        network: The trained network: what :func:`load` returned, a PDE task's ``surrogate`` or an MRI task's ``net``.
        folder: Where to; made if absent. Files there are replaced one by one, each atomically.
        results: Markdown for the section "Results" of the card: scores, their data and protocol.

    Returns:
        The folder.
    """
    from safetensors.torch import save

    folder = Path(folder)
    if isinstance(network, Recon):
        config, card = recon_config(network), _recon_card(network, results)
    else:
        config, card = surrogate_config(network), _surrogate_card(network, results)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    files = {
        "model.safetensors": save(state),
        "config.json": json.dumps(config, indent=2).encode(),
        "README.md": card.encode(),
    }
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder


def _surrogate_card(surrogate: Surrogate, results: str) -> str:
    d = surrogate.description
    n_input = surrogate.net.in_channels // d.n_history
    physics = "\n".join(f"| {k} | {v} |" for k, v in sorted(d.attributes.items()))
    return f"""---
library_name: sciml-monarch
tags: [neural-operator, monarch]
---
# {type(surrogate.net).__name__}: {", ".join(d.fields)}

`sciml_monarch.load("this folder")` returns the network; `.rollout(history, n_steps)` takes
`(batch, {d.n_history}, {n_input}, *grid)` and returns `(batch, n_steps, {len(d.fields)}, *grid)` in physical units.

| property | value |
|---|---|
| parameters (real numbers) | {n_parameters(surrogate.net):,} |
| trained on grid | {" x ".join(map(str, d.grid))} |
| domain lengths | {" x ".join(map(str, d.lengths))} |
| time between frames (s) | {d.dt} |
| history, trained roll-out, tested roll-out (frames) | {d.n_history}, {d.n_steps}, {d.n_test_steps} |
| units | {", ".join(d.units)} |
{physics}

## Results
{results or "Not given."}
"""


def _recon_card(net: Recon, results: str) -> str:
    d = description_of(net)
    kind = "a magnitude" if net.is_magnitude else "a complex image for each set of maps"
    rows = [
        ("parameters (real numbers)", f"{n_parameters(net):,}"),
        ("coil maps", "needed" if net.needs_maps else "not needed"),
    ]
    if d is not None:
        rows += [
            ("trained on k-space (y x x)", ", ".join(f"{ny} x {nx}" for ny, nx in d.shapes)),
            ("coils", ", ".join(map(str, d.n_coils))),
            ("acquisitions", ", ".join(d.acquisitions) or "not named"),
            ("volumes, slices", f"{d.n_volumes}, {d.n_slices}"),
            ("mask", ", ".join(f"{k} {v}" for k, v in d.mask.items()) or "of the files"),
            ("acceleration", f"{d.acceleration:.3g}"),
            ("maps", "none" if d.maps is None else ", ".join(f"{k} {v}" for k, v in d.maps.items())),
            ("target", d.target),
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: sciml-monarch
tags: [mri-reconstruction, monarch]
---
# {type(net).__name__}: accelerated MRI

`sciml_monarch.load("this folder")` returns the network; called with k-space `(batch, coil, y, x)`, mask
`(batch, 1, 1 or y, x)` and maps `(batch, set, coil, y, x)` it returns {kind}, `(batch, set, y, x)`.
`sciml-monarch reconstruct SCANS --checkpoint "this folder" --out OUT` reconstructs files. Not a medical device.

| property | value |
|---|---|
{table}

## Results
{results or "Not given."}
"""
