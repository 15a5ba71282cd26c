"""Files of travelling waves, which readers give back."""

import numpy as np

from sciml_monarch.pde import synthetic
from sciml_monarch.pde.synthetic import WellField, travelling_waves

N, T, GRID = 5, 7, (8, 6)
WAVES = travelling_waves(N, T, GRID)


def write_scalar_well(path, values=WAVES, times=None, name="vorticity", **attributes):
    times = range(values.shape[1]) if times is None else times
    fields = {name: WellField(values, unit="1/s")}
    return synthetic.write_well(path, fields, values.shape[2:], times, len(values), attributes)


def save_npy(path, values):
    np.save(path, values)
    return path


def two_shards(folder):
    write_scalar_well(folder / "shard_0000.hdf5", WAVES[:3])
    write_scalar_well(folder / "shard_0001.hdf5", WAVES[3:])
    return folder
