"""Makes a Burgers set between walls in neuraloperator's layout: ``burgers_walls_train_N.pt``, and two for the test.

    python scripts/simulate_burgers.py --out data/burgers_walls

Values on the two walls differ: the field has a jump where its ends would meet. It is solved on 1,024 intervals and
sampled at the points ``i / n``, ``i = 0 .. n - 1``: the first is a wall, the last is not. The test starts are the same
at both resolutions.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.pde.solvers.burgers import solve_burgers, start

FINE = 1024


def simulate_burgers(
    out: Path,
    resolution: int = 128,
    n_train: int = 1000,
    n_test: int = 200,
    viscosity: float = 0.04,
    time: float = 0.5,
    first_seed: int = 0,
) -> None:
    """Simulates and writes the three files.

    Args:
        out: Folder.
        resolution: Points of the training, a divisor of 512; the second test has twice as many.
        n_train: Starts to train on.
        n_test: Starts for the test, of other seeds.
        viscosity: Of the equation.
        time: From start to end.
        first_seed: Seed of the first start; each has the next one.

    Raises:
        InputError: The resolution is no divisor of 512.
    """
    if resolution < 1 or FINE // 2 % resolution:
        raise InputError(f"resolution {resolution} must divide {FINE // 2}")
    out.mkdir(parents=True, exist_ok=True)
    starts = np.stack([start(FINE, first_seed + number) for number in range(n_train + n_test)])
    ends = np.stack([solve_burgers(u, viscosity, time) for u in starts])
    for name, n, part in (
        ("train", resolution, slice(n_train)),
        ("test", resolution, slice(n_train, None)),
        ("test", 2 * resolution, slice(n_train, None)),
    ):
        x, y = (torch.from_numpy(fields[part, : -1 : FINE // n].copy()).float() for fields in (starts, ends))
        with replacing(out / f"burgers_walls_{name}_{n}.pt") as temporary:
            torch.save({"x": x, "y": y}, temporary)


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("simulate_burgers", lambda: call(simulate_burgers, sys.argv[1:])))
