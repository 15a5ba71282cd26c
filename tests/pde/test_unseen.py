"""Which trajectories a test may have: those that the training has not seen, whatever file they are in."""

import dataclasses
from pathlib import Path

import pytest

from sciml_monarch import InputError
from sciml_monarch.pde import FNO, Surrogate
from sciml_monarch.pde.data import TrajectoryData
from sciml_monarch.pde.protocol import make_protocol
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.pde.simulate import simulate

SET = {"n_trajectories": 6, "final_time": 4.0, "simulation_resolution": 16, "resolution": 8, "viscosity": 1e-3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network for which the last two of six trajectories are left."""
    folder = tmp_path_factory.mktemp("data") / "set"
    simulate(out=folder, **SET)
    source = TrajectoryData(folder, 3, 1, 2, n_history=2, n_steps=2, batch_size=1)
    return Surrogate(FNO(2, 1, 4, (4, 4), n_layers=1), source.description)


def indices(network, folder, *, n_test=None):
    return make_protocol({Path("net"): network}, open_trajectories(folder), n_test, resolution=8).indices


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, range(4, 6)),
        ({"n_trajectories": 9, "shard_size": 2}, range(4, 9)),
        ({"resolution": 16}, range(4, 6)),
        ({"final_time": 5.0}, range(4, 6)),
        ({"first": 3, "n_trajectories": 2}, range(1, 2)),  # numbers 3 and 4
        ({"first": 4, "n_trajectories": 2}, range(2)),
        ({"first": 20, "n_trajectories": 2}, range(2)),
        ({"seed": 1}, range(6)),
        ({"viscosity": 1e-2}, range(6)),
    ],
    ids=str,
)
def test_what_is_simulated_again_is_known_by_seed_and_number(trained, change, expected, tmp_path):
    simulate(out=tmp_path / "again", **SET | change)
    assert indices(trained, tmp_path / "again") == expected
    if len(expected) < open_trajectories(tmp_path / "again").n_trajectories:
        with pytest.raises(InputError, match=f"left its last {len(expected)} trajectories"):
            indices(trained, tmp_path / "again", n_test=len(expected) + 1)


def test_nothing_is_left_of_a_part_that_was_trained_on(trained, tmp_path):
    simulate(out=tmp_path / "part", **SET | {"n_trajectories": 3})
    with pytest.raises(InputError, match="left its last 0 trajectories for the test"):
        indices(trained, tmp_path / "part")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three files of two trajectories, and folders of some of them."""
    whole = tmp_path_factory.mktemp("shards") / "whole"
    simulate(out=whole, **SET | {"shard_size": 2})
    files = sorted(whole.iterdir())
    for name, kept in (("last_two", (1, 2)), ("ends", (0, 2))):
        (whole.parent / name).mkdir()
        for i in kept:
            (whole.parent / name / files[i].name).symlink_to(files[i])
    return {"whole": whole, "last": files[2], "last_two": whole.parent / "last_two", "ends": whole.parent / "ends"}


@pytest.mark.parametrize(
    ("source", "parts", "tested", "expected"),
    [
        ("last", (1, 0, 1), "whole", range(5, 6)),
        ("last_two", (2, 1, 1), "whole", range(5, 6)),
        ("whole", (3, 1, 2), "last", range(2)),
        ("whole", (3, 1, 2), "last_two", range(2, 4)),
        ("last_two", (2, 1, 1), "last", range(1, 2)),
        ("whole", (3, 1, 2), "ends", None),  # whose numbers do not follow one another
    ],
    ids=str,
)
def test_files_of_a_set_know_their_place_in_it(shards, source, parts, tested, expected):
    description = TrajectoryData(shards[source], *parts, n_history=2, n_steps=2, batch_size=1).description
    network = Surrogate(FNO(2, 1, 4, (4, 4), n_layers=1), description)
    if expected is not None:
        assert indices(network, shards[tested]) == expected
        return
    with pytest.raises(InputError, match="left its last 0 trajectories"):
        indices(network, shards[tested])


def test_checkpoints_of_whole_folders_from_before_are_known_by_the_number_of_their_set(trained, shards):
    description = dataclasses.replace(trained.description, attributes=dict(trained.description.attributes))
    del description.attributes["first_trajectory"]
    old = Surrogate(trained.net, description)
    assert indices(old, shards["whole"]) == range(4, 6)
    assert indices(old, shards["last"]) == range(2)


def test_another_machine_makes_no_other_trajectories(trained, tmp_path):
    simulate(out=tmp_path / "again", **SET)
    data = open_trajectories(tmp_path / "again")
    data.attributes.update(device="another", version="another")
    assert make_protocol({Path("net"): trained}, data, None).indices == range(4, 6)
