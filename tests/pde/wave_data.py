"""A file of travelling waves and the data of a training on it."""

import numpy as np
import pytest

from sciml_monarch.pde import synthetic
from sciml_monarch.pde.data import Loader, TrajectoryData
from sciml_monarch.pde.synthetic import WellField, travelling_waves

N, T, GRID = 12, 9, (8, 8)
WAVES = travelling_waves(N, T, GRID)


@pytest.fixture
def path(tmp_path):
    fields = {"vorticity": WellField(WAVES, unit="1/s")}
    return synthetic.write_well(tmp_path / "a.hdf5", fields, GRID, 0.5 * np.arange(T), N, {"viscosity": 1e-3})


def trajectory_data(path, n_train=6, n_val=2, n_test=3, n_history=3, n_steps=2, batch_size=4, **loader):
    return TrajectoryData(path, n_train, n_val, n_test, n_history, n_steps, batch_size, Loader(**loader))


both_ways = pytest.mark.parametrize("preload", [False, True], ids=["lazy", "preloaded"])
