"""Trained networks of ``reproduce_navier_stokes.py`` as folders to share: safetensors and a model card."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoint_pieces import WEIGHTS
from reproduce_navier_stokes_job import CONFIGS, ROW
from reproduce_navier_stokes_table import precision
from reproduce_training import read_config

from sciml_monarch import load, save
from sciml_monarch.errors import InputError
from sciml_monarch.pde import Surrogate
from sciml_monarch.training import LAST


def tested_steps(row: dict[str, Any]) -> int:
    """Frames of the roll-outs that a training was tested on; of rows that do not say it those of its configuration."""
    if "test_steps" in row:
        return int(row["test_steps"])
    data = read_config(CONFIGS / f"{row['row']}.yaml", row["settings"])["data"]["init_args"]
    return int(data["loader"].get("test_steps") or row["n_steps"])


def card(row: dict[str, Any]) -> str:
    """What a model card says of a training and its test."""
    settings = f", --set {' '.join(row['settings'])}" if row["settings"] else ""
    steps = tested_steps(row)
    known, first = row.get("known_frames", row["n_history"]), row.get("epochs_of_first")
    seen = f", of which it sees {row['n_history']}" if row["n_history"] != known else ""
    before = f" after {first} epochs of the network that it begins from" if first else ""
    trained = f"precision {precision(row)}, on one {row['device']} with torch {row['torch']}"
    return (
        f"Relative L2 error of the whole roll-out, {steps} frames behind {known}{seen}, mean over "
        f"{row['n_test']} test trajectories: **{row['relative_l2']:.4f}**.\n\n"
        f"`configs/navier_stokes/{row['row']}.yaml`{settings}: {row['n_train']:,} trajectories, {row['epochs']} "
        f"epochs{before}, seed {row['seed']}, {trained}, {row['trainings_on_the_device']} trainings side by side, in "
        f"{row['wall_seconds']:.0f} s. The weights are those of the last epoch."
    )


def share(runs: Path, target: Path, names: list[str] | None = None, seed: int = 0) -> list[Path]:
    """Writes the networks that are trained and tested, a folder for each row.

    Args:
        runs: Output folder of ``train``, or of ``unpack``.
        target: Folder for the folders.
        names: Rows; ``None``: all.
        seed: Of several trainings of a row the one with this seed.

    Returns:
        The folders.

    Raises:
        InputError: A row is asked for that has no tested network of this seed, or none has; or its weights are not
            those that were tested.
    """
    trained = [(json.loads(file.read_text()), file.parent) for file in sorted(runs.glob(f"*/{ROW}"))]
    tested = [pair for pair in trained if "relative_l2" in pair[0] and pair[0]["seed"] == seed]
    found = {pair[0]["row"]: pair for pair in sorted(tested, key=lambda pair: pair[0]["epochs"])}  # of the most epochs
    rounded = [name for name in names or found if name in found and found[name][0].get("is_rounded")]
    if rounded:
        raise InputError(f"{runs}: the weights of {', '.join(rounded)} were rounded after the test, by pack --bf16")
    missing = [name for name in names or () if name not in found]
    if missing or not found:
        raise InputError(f"{runs}: holds no tested network of seed {seed}{' of ' * bool(missing)}{', '.join(missing)}")
    written = []
    for name in names or sorted(found):
        row, folder = found[name]
        checkpoint = folder / LAST if (folder / LAST).is_file() else folder / WEIGHTS
        network = load(checkpoint)
        assert isinstance(network, Surrogate)
        own = network.description
        # which checkpoints of before it was noted do not say
        network.describe(replace(own, split=own.split | {"test_steps": tested_steps(row)}))
        written.append(save(network, target / name, card(row)))
    return written
