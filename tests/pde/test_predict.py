"""The job predict: from a user's file to HDF5, picture and film."""

import dataclasses
import errno
import math

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from sciml_monarch import InputError, load, save
from sciml_monarch.cli import main
from sciml_monarch.pde import FNO, Description, MonarchFNO, Surrogate
from sciml_monarch.pde.predict import predict, write_well
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.pde.synthetic import write_mat_v5

DESCRIPTION = Description(
    fields=("vorticity",),
    units=("1/s",),
    grid=(16, 16),
    lengths=(2.0, 2.0),
    dt=0.1,
    n_history=3,
    n_steps=2,
    attributes={"viscosity": 1e-3, "seed": 7},
)


def network(net, **changes):
    surrogate = Surrogate(net, dataclasses.replace(DESCRIPTION, **changes))
    n = len(surrogate.description.fields)
    mean, std = torch.full((n,), 0.3), torch.full((n,), 2.0)
    surrogate.set_normalization(mean, std, mean, std)
    return surrogate.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(1)
    return save(network(FNO(3, 1, 4, (4, 4), n_layers=1)), tmp_path_factory.mktemp("net") / "fno")


@pytest.fixture
def frames():
    return torch.randn(5, 16, 16)


@pytest.fixture
def start(tmp_path, frames):
    np.save(tmp_path / "start.npy", frames.numpy())
    return tmp_path / "start.npy"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_prediction_is_the_roll_out_from_the_first_known_frames(checkpoint, start, frames, tmp_path, capsys):
    out = tmp_path / "out/mine.hdf5"
    files = predict(checkpoint, start, steps=4, out=out, device="cpu")
    with torch.no_grad():
        expected = load(checkpoint).rollout(frames[None, :3, None], 4)[0]
    found = open_trajectories(out)
    assert (found.fields, found.units, found.grid) == (("vorticity",), ("1/s",), (16, 16))
    assert (found.n_trajectories, found.n_times, found.lengths) == (1, 7, (2.0, 2.0))
    assert found.times == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    torch.testing.assert_close(found.read(0, 0, 3), frames[:3, None], rtol=0, atol=0)
    torch.testing.assert_close(found.read(0, 3, 7), expected, rtol=1e-6, atol=1e-6)
    assert found.attributes["network"] == "FNO"
    assert found.attributes["checkpoint"] == str(checkpoint)
    assert found.attributes["viscosity"] == 1e-3
    assert found.attributes["n_history"] == 3
    assert names(tmp_path / "out") == ["mine.gif", "mine.hdf5", "mine.png"]
    assert files == [out, out.with_suffix(".png"), out.with_suffix(".gif")]
    with Image.open(out.with_suffix(".gif")) as film:
        assert film.n_frames == 7
    assert capsys.readouterr().out.split() == [str(file) for file in files]


def test_trajectory_and_first_frame_are_chosen_and_times_continue(checkpoint, tmp_path):
    """From our own HDF5: trajectory 1 of a folder of two, from frame 2 on."""
    folder = tmp_path / "data"
    folder.mkdir()
    frames, times = torch.randn(2, 6, 1, 16, 16), [5 + 0.1 * i for i in range(6)]
    for i in range(2):
        write_well(folder / f"{i}.hdf5", frames[i], times, (2.0, 2.0), DESCRIPTION, {})
    predict(checkpoint, folder, steps=2, out=tmp_path / "p.hdf5", index=1, start=2, device="cpu")
    found = open_trajectories(tmp_path / "p.hdf5")
    torch.testing.assert_close(found.read(0, 0, 3), frames[1, 2:5], rtol=0, atol=0)
    np.testing.assert_allclose(found.times, [5.2, 5.3, 5.4, 5.5, 5.6], rtol=1e-12)


def test_a_prediction_can_be_continued_from_its_own_file(checkpoint, start, tmp_path):
    predict(checkpoint, start, steps=6, out=tmp_path / "whole.hdf5", device="cpu")
    predict(checkpoint, start, steps=3, out=tmp_path / "half.hdf5", device="cpu")
    predict(checkpoint, tmp_path / "half.hdf5", steps=3, start=3, out=tmp_path / "rest.hdf5", device="cpu")
    whole, rest = open_trajectories(tmp_path / "whole.hdf5"), open_trajectories(tmp_path / "rest.hdf5")
    torch.testing.assert_close(rest.read(0, 3, 6), whole.read(0, 6, 9), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rest.times[3:], whole.times[6:], rtol=1e-12)


def test_a_trajectory_that_is_not_there_is_refused(checkpoint, tmp_path):
    write_well(tmp_path / "a.hdf5", torch.randn(4, 1, 16, 16), [0, 0.1, 0.2, 0.3], (2.0, 2.0), DESCRIPTION, {})
    with pytest.raises(InputError, match=r"index is 1, but .*a\.hdf5 has 1 trajectories"):
        predict(checkpoint, tmp_path / "a.hdf5", index=1, out=tmp_path / "p.hdf5", device="cpu")


def test_several_fields_one_dimension_and_another_grid(tmp_path):
    one = dataclasses.replace(DESCRIPTION, fields=("u", "v"), units=("m/s", "1"), grid=(16,), lengths=(1.0,))
    surrogate = Surrogate(MonarchFNO(6, 2, 4, (4,), (16,), n_layers=1), one).eval()
    np.save(tmp_path / "start.npy", np.random.default_rng(0).normal(size=(3, 2, 32)))
    files = predict(save(surrogate, tmp_path / "net"), tmp_path / "start.npy", out=tmp_path / "p.h5", device="cpu")
    assert [file.name for file in files] == ["p.h5", "p_u.png", "p_v.png", "p_u.gif", "p_v.gif"]
    assert all(file.stat().st_size for file in files)
    found = open_trajectories(tmp_path / "p.h5")
    assert (found.fields, found.units, found.grid, found.n_times) == (("u", "v"), ("m/s", "1"), (32,), 13)


def test_layout_is_the_wells(checkpoint, start, tmp_path):
    """The attributes and groups that docs/data_format.md of PolymathicAI/the_well asks for."""
    predict(checkpoint, start, steps=1, out=tmp_path / "p.hdf5", device="cpu")
    with h5py.File(tmp_path / "p.hdf5") as file:
        assert {"dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields", "t2_fields"} == set(file)
        assert (file.attrs["grid_type"], file.attrs["n_spatial_dims"], file.attrs["n_trajectories"]) == (
            "cartesian",
            2,
            1,
        )
        assert list(file.attrs["simulation_parameters"]) == ["viscosity", "seed"]
        assert list(file["dimensions"].attrs["spatial_dims"]) == ["x", "y"]
        np.testing.assert_allclose(file["dimensions/x"], np.arange(16) / 8)
        field = file["t0_fields/vorticity"]
        assert (field.shape, field.dtype) == ((1, 4, 16, 16), np.float32)
        assert field.attrs["dim_varying"].tolist() == [True, True]
        assert field.attrs["sample_varying"]
        assert field.attrs["time_varying"]
        assert list(file["t0_fields"].attrs["field_names"]) == ["vorticity"]
        assert len(file["t1_fields"].attrs["field_names"]) == 0
        wall = file["boundary_conditions/y_periodic"]
        assert wall.attrs["bc_type"] == "PERIODIC"
        assert (wall["mask"].dtype, wall["mask"].shape) == (np.bool_, (16,))


# Mistakes


def test_existing_files_are_kept_without_force(checkpoint, start, tmp_path):
    out = tmp_path / "p.hdf5"
    out.with_suffix(".gif").write_text("mine")
    with pytest.raises(InputError, match=r"p\.gif: exists; give --force"):
        predict(checkpoint, start, out=out, device="cpu")
    assert names(tmp_path) == ["p.gif", "start.npy"]
    assert out.with_suffix(".gif").read_text() == "mine"
    predict(checkpoint, start, steps=1, out=out, force=True, device="cpu")
    with Image.open(out.with_suffix(".gif")) as film:
        assert film.n_frames == 4


def test_an_array_of_several_trajectories_is_numbered_as_in_a_training(checkpoint, start, tmp_path):
    frames = np.load(start)
    np.save(tmp_path / "several.npy", np.stack([frames[::-1], frames]))
    options = {"steps": 2, "device": "cpu"}
    files = predict(checkpoint, start, out=tmp_path / "one.hdf5", **options)
    again = predict(checkpoint, tmp_path / "several.npy", out=tmp_path / "several.hdf5", index=1, **options)
    found = [open_trajectories(file).read(0, 0, 2) for file in (files[0], again[0])]
    torch.testing.assert_close(*found, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"index is 2, but .* has 2 trajectories, from 0 on"):
        predict(checkpoint, tmp_path / "several.npy", out=tmp_path / "no.hdf5", index=2, **options)


def test_fields_of_files_that_name_them_otherwise_are_named(checkpoint, frames, start, tmp_path):
    arrays = {"u": frames.numpy()[None].transpose(0, 2, 3, 1), "t": 0.1 * np.arange(5)[None]}
    write_mat_v5(tmp_path / "authors.mat", arrays)
    options = {"steps": 2, "device": "cpu"}
    with pytest.raises(InputError, match=r"trained on the fields \['vorticity'\], but .* holds \['u'\]"):
        predict(checkpoint, tmp_path / "authors.mat", out=tmp_path / "no.hdf5", **options)
    with pytest.raises(InputError, match=r"has the fields \['u'\]; \['vorticity', 'p'\] are not as many names"):
        predict(checkpoint, tmp_path / "authors.mat", out=tmp_path / "no.hdf5", fields=["vorticity", "p"], **options)
    files = predict(checkpoint, tmp_path / "authors.mat", out=tmp_path / "a.hdf5", fields=["vorticity"], **options)
    again = predict(checkpoint, start, out=tmp_path / "b.hdf5", **options)
    found = [open_trajectories(file).read(0, 0, 5) for file in (files[0], again[0])]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 16, 16)), r"bad\.npy: has 2 frames, but the network needs 3"),
        (np.zeros((16, 16)), r"bad\.npy: holds an array of float64 of the shape \(16, 16\), but .*fno needs"),
        (
            np.zeros((3, 2, 1, 16, 16)),
            r"shape \(3, 2, 1, 16, 16\), but .*needs numbers \(time, 1 fields, 2 grid axes\)",
        ),
        (np.zeros((3, 2, 16, 16)), "has 2 frames, but the network needs 3"),
        (np.zeros((3, 16, 16), dtype=complex), "array of complex128"),
        (np.full((3, 16, 16), np.nan), "values that are not finite"),
        (np.array([{}, {}, {}]), "not a NumPy array that can be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(checkpoint, tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        predict(checkpoint, tmp_path / "bad.npy", out=tmp_path / "p.hdf5", device="cpu")
    assert names(tmp_path) == ["bad.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"index": 1}, "index is 1, but .* holds one trajectory"),
        ({"start": 3}, "has 5 frames, but the network needs 3, from frame 3 on"),
        ({"start": -1}, "from frame -1 on"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
    ],
)
def test_numbers_out_of_range_are_refused(checkpoint, start, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        predict(checkpoint, start, out=tmp_path / "p.hdf5", **{"device": "cpu"} | arguments)
    assert names(tmp_path) == ["start.npy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fields": ("pressure",)},
            r"fno: trained on the fields \['vorticity'\], but .*hdf5 holds \['pressure'\]",
        ),
        ({"dt": 0.2}, "fno: trained on frames 0.1 s apart, but those of .*hdf5 are 0.2 s apart"),
    ],
)
def test_trajectories_of_another_kind_are_refused_with_both_named(checkpoint, tmp_path, changes, message):
    other = dataclasses.replace(DESCRIPTION, **changes)
    times = [i * other.dt for i in range(4)]
    write_well(tmp_path / "other.hdf5", torch.randn(4, 1, 16, 16), times, (2.0, 2.0), other, {})
    with pytest.raises(InputError, match=message):
        predict(checkpoint, tmp_path / "other.hdf5", out=tmp_path / "p.hdf5", device="cpu")


def test_a_prediction_that_blows_up_names_the_step_and_leaves_nothing(start, tmp_path):
    net = FNO(3, 1, 4, (4, 4), n_layers=1)
    surrogate = network(net)
    with torch.no_grad():
        list(net.parameters())[-2].mul_(1e30)  # the last layer: 1e30 after one step is finite, 1e60 is not
    with pytest.raises(InputError, match="not finite from step 2 on; ask for at most 1 steps"):
        predict(save(surrogate, tmp_path / "net"), start, out=tmp_path / "p.hdf5", device="cpu")
    surrogate.output_std.fill_(math.inf)
    with pytest.raises(InputError, match="not finite from step 1 on; check the units"):
        predict(save(surrogate, tmp_path / "net"), start, out=tmp_path / "p.hdf5", device="cpu")
    assert names(tmp_path) == ["net", "start.npy"]


def test_a_full_disk_leaves_nothing(checkpoint, start, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(InputError, match="is the disk full"):
        predict(checkpoint, start, out=tmp_path / "p.hdf5", device="cpu")
    assert names(tmp_path) == ["start.npy"]


def test_the_program_does_it_and_reports_mistakes_in_a_line(checkpoint, start, tmp_path, capsys):
    arguments = [
        "predict",
        str(checkpoint),
        "--input",
        str(start),
        "--steps",
        "2",
        "--out",
        str(tmp_path / "p.hdf5"),
    ]
    assert main(arguments) == 0
    assert str(tmp_path / "p.gif") in capsys.readouterr().out
    assert open_trajectories(tmp_path / "p.hdf5").n_times == 5
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "exists; give --force" in error
    assert error.count("\n") == 1
    np.save(tmp_path / "short.npy", np.zeros((1, 16, 16)))
    assert (
        main(
            [
                "predict",
                str(checkpoint),
                "--input",
                str(tmp_path / "short.npy"),
                "--out",
                str(tmp_path / "q.h5"),
            ]
        )
        == 2
    )
    assert "has 1 frames, but the network needs 3" in capsys.readouterr().err
    assert main(["predict", str(start), "--input", str(start)]) == 2
    assert "start.npy" in capsys.readouterr().err
