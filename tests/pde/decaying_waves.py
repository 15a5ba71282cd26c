"""Data and networks whose errors are known: waves that decay, and frames times a factor."""

import dataclasses
import math

import pytest
import torch

from sciml_monarch import save
from sciml_monarch.pde import FNO, Description, MonarchFNO, Operator, Surrogate
from sciml_monarch.pde.predict import write_well

DT, DECAY, N_TIMES, N_TRAJECTORIES = 0.5, 0.25, 9, 5
DESCRIPTION = Description(
    fields=("vorticity",),
    units=("1/s",),
    grid=(16, 16),
    lengths=(1.0, 1.0),
    dt=DT,
    n_history=2,
    n_steps=3,
    attributes={"viscosity": 1e-3},
)


class Scale(Operator):
    """The last frame times a factor: with ``exp(-DECAY DT)`` the exact answer to the data below."""

    def __init__(self, factor, n_history=2):
        super().__init__({"in_channels": n_history, "out_channels": 1})
        self.factor = factor

    def forward(self, x, prepared=None):
        return x[:, -1:] * self.factor


def exact(t=DT):
    return math.exp(-DECAY * t)


def write_data(folder, description=DESCRIPTION, n=16, n_times=N_TIMES, n_trajectories=N_TRAJECTORIES):
    """Waves that decay: trajectory i is i + 1 waves in x times ``exp(-DECAY t)``, a shard each."""
    folder.mkdir(parents=True)
    x = torch.arange(n, dtype=torch.float64) / n
    times = [i * description.dt for i in range(n_times)]
    for i in range(n_trajectories):
        wave = torch.sin(2 * math.pi * (i + 1) * x)[:, None].expand(n, n)
        frames = torch.stack([wave * math.exp(-DECAY * t) for t in times])[:, None]
        write_well(folder / f"{i}.hdf5", frames, times, (1.0, 1.0), description, {"dataset_name": "waves"})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "waves")


def network(net, **changes):
    return Surrogate(net, dataclasses.replace(DESCRIPTION, **changes)).eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two FNOs and a Monarch operator with random weights, saved."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("runs")
    nets = {
        "a": FNO(2, 1, 4, (4, 4), n_layers=1),
        "b": FNO(2, 1, 4, (4, 4), n_layers=1),
        "monarch": MonarchFNO(2, 1, 4, (4, 4), (16, 16), n_layers=1),
    }
    return {name: save(network(net), folder / name / "net") for name, net in nets.items()}
