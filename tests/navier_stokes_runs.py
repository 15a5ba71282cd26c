"""The program behind the Navier-Stokes table and one of its trainings, on a tiny set; rows of its table."""

import sys
from argparse import Namespace

import pytest

from tests.programs import Inline, script

TINY = [
    "data.init_args={n_train: 6, n_val: 0, n_test: 2, n_history: 3, n_steps: 2, batch_size: 2}",
    "model.init_args.net.init_args={in_channels: 3, width: 4, n_modes: [4, 4]}",
]
LAST = "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def program():
    return script("reproduce_navier_stokes")


@pytest.fixture(scope="module")
def pieces(program):
    return sys.modules["checkpoint_pieces"]


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr("torch.multiprocessing.get_context", lambda kind: Inline())


@pytest.fixture(scope="module")
def data(tmp_path_factory, vorticity_folder):
    """A folder with one set, under the name that the YAMLs of 1e-5 have."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "navier_stokes_1e-5").symlink_to(vorticity_folder)
    return folder


def arguments(data, out, **options):
    usual = {
        "rows": ["fno_1e-5"],
        "seeds": [0],
        "epochs": 3,
        "validation": 0,
        "devices": None,
        "per_gpu": 1,
        "time_limit": 600.0,
        "set": TINY,
        "poll": 0.0,
    }
    return Namespace(data=data, out=out, **usual | options)


@pytest.fixture(scope="module")
def trained(program, data, tmp_path_factory):
    """An output folder with one finished training."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.multiprocessing.get_context", lambda kind: Inline())
        program.train(arguments(data, out))
    return out


def row_of(name, seed=0, error=None, done=500, epochs=500, **others):
    row = {
        "row": name,
        "seed": seed,
        "epochs": epochs,
        "epochs_done": done,
        "finished": error is not None,
        "validation": 0,
        "n_parameters": 1000,
        "n_train": 1000,
        "settings": [],
        "precision": "32",
        "trainings_on_the_device": 1,
        "torch": "2",
        "commit": "abc",
        "device": "a GPU",
    }
    return row | ({"relative_l2": error, "wall_seconds": 60.0, "train_loss": [0.5, 0.125]} if error else {}) | others
