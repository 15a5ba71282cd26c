"""Makes Darcy sets in neuraloperator's layout: ``darcy_train_N.pt``, ``darcy_test_N.pt``, ``darcy_test_2N.pt``.

    python scripts/simulate_darcy.py --out data/darcy --resolution 32

Every flow is solved on a grid of four times as many intervals and sampled at the points ``i / n``, ``i = 0 .. n - 1``
of each axis: the first is a wall, the last is not. The test flows are the same at both resolutions.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from sciml_monarch.files import replacing
from sciml_monarch.pde.solvers.darcy import HIGH, permeability, solve_darcy

FINER = 4


def sampled(values: np.ndarray, n: int) -> torch.Tensor:
    """Every so many points, ``(N + 1, N + 1)`` to ``(n, n)``."""
    step = (len(values) - 1) // n
    return torch.from_numpy(np.ascontiguousarray(values[:-1:step, :-1:step]))


def simulate_darcy(
    out: Path, resolution: int = 32, n_train: int = 1000, n_test: int = 100, first_seed: int = 0
) -> None:
    """Simulates and writes the three files.

    Args:
        out: Folder.
        resolution: Points per axis of the training.
        n_train: Flows to train on.
        n_test: Flows for the test, of other seeds.
        first_seed: Seed of the first flow; each has the next one.
    """
    out.mkdir(parents=True, exist_ok=True)
    fine = FINER * resolution
    files: dict[str, tuple[int, list[tuple[torch.Tensor, torch.Tensor]]]] = {
        f"darcy_train_{resolution}.pt": (resolution, []),
        f"darcy_test_{resolution}.pt": (resolution, []),
        f"darcy_test_{2 * resolution}.pt": (2 * resolution, []),
    }
    for number in range(n_train + n_test):
        a = permeability(fine, first_seed + number)
        u = solve_darcy(a)
        for name, (n, pairs) in files.items():
            if ("train" in name) == (number < n_train):
                pairs.append((sampled(a, n) == HIGH, sampled(u, n).float()))
        if (number + 1) % 100 == 0:
            print(f"{number + 1} of {n_train + n_test}", flush=True)
    for name, (_, pairs) in files.items():
        x, y = (torch.stack(fields) for fields in zip(*pairs, strict=True))
        with replacing(out / name) as temporary:
            torch.save({"x": x, "y": y}, temporary)


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("simulate_darcy", lambda: call(simulate_darcy, sys.argv[1:])))
