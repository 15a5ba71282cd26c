"""The data set job: what it writes; interruptions, full disks and mistakes leave nothing half-done."""

import errno
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde import shards as shards_module
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.pde.shards import Shard
from sciml_monarch.pde.simulate import simulate
from sciml_monarch.pde.solvers.navier_stokes import NavierStokesSolver, simulate_navier_stokes
from sciml_monarch.pde.solvers.random_field import gaussian_random_field
from sciml_monarch.pde.solvers.vorticity import to_grid, to_spectrum
from tests.helpers import relative_error

SMALL = {
    "n_trajectories": 5,
    "viscosity": 1e-3,
    "final_time": 0.4,
    "interval": 0.2,
    "simulation_resolution": 16,
    "resolution": 8,
    "seed": 3,
    "shard_size": 4,
    "chunk": 2,
    "device": "cpu",
}


def contents(folder):
    """Every data set of every shard, by file and name."""
    found = {}
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item, path=path, found=found: (
                    found.update({(path.name, name): item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
    return found


def assert_equal_bits(one, other):
    assert one.keys() == other.keys()
    for key, values in one.items():
        assert np.array_equal(values, other[key]), key


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    simulate(folder, **SMALL)
    return folder


def test_the_shards_follow_the_layout_of_the_well(whole):
    assert files(whole) == ["shard_0000.hdf5", "shard_0001.hdf5"]
    with h5py.File(whole / "shard_0000.hdf5") as file:
        assert file.attrs["dataset_name"] == "navier_stokes_viscosity_0.001"
        assert file.attrs["grid_type"] == "cartesian"
        assert file.attrs["n_spatial_dims"] == 2
        assert file.attrs["n_trajectories"] == 4
        parameters = list(file.attrs["simulation_parameters"])
        assert {"viscosity", "forcing", "simulation_resolution", "resolution", "seed", "step"} <= set(parameters)
        assert all(name in file.attrs for name in parameters)
        assert file.attrs["viscosity"] == 1e-3
        assert list(file["dimensions"].attrs["spatial_dims"]) == ["x", "y"]
        assert file["dimensions/time"][:].tolist() == pytest.approx([0.2, 0.4])
        assert not file["dimensions/time"].attrs["sample_varying"]
        for dim in ("x", "y"):
            assert file[f"dimensions/{dim}"][:].tolist() == [i / 8 for i in range(8)]
            boundary = file[f"boundary_conditions/{dim}_periodic"]
            assert boundary.attrs["bc_type"] == "PERIODIC"
            assert list(boundary.attrs["associated_dims"]) == [dim]
            assert boundary["mask"].shape == (8,)
            assert boundary["mask"].dtype == bool
        assert file["scalars/viscosity"][()] == 1e-3
        assert list(file["scalars"].attrs["field_names"]) == ["viscosity"]
        field = file["t0_fields/vorticity"]
        assert field.shape == (4, 2, 8, 8)
        assert field.dtype == np.float32
        assert field.chunks == (1, 2, 8, 8)
        assert field.attrs["units"] == "1/s"
        assert list(field.attrs["dim_varying"]) == [True, True]
        assert field.attrs["sample_varying"]
        assert field.attrs["time_varying"]
        assert list(file["t0_fields"].attrs["field_names"]) == ["vorticity"]
        for empty in ("t1_fields", "t2_fields"):
            assert len(file[empty]) == 0
            assert len(file[empty].attrs["field_names"]) == 0
        assert file["seeds"][:].tolist() == [0, 1, 2, 3]
        assert file["complete"][:].all()
        assert (file["dt"][:] > 0).all()
    with h5py.File(whole / "shard_0001.hdf5") as file:
        assert file.attrs["n_trajectories"] == 1
        assert file.attrs["first_trajectory"] == 4
        assert file["seeds"][:].tolist() == [4]


def test_the_fields_are_those_of_the_solver(whole):
    starts = gaussian_random_field(16, [(3, i) for i in range(5)])
    expected = simulate_navier_stokes(starts, 1e-3, [0.2, 0.4], resolution=8)
    found = contents(whole)
    written = np.concatenate([found[name, "t0_fields/vorticity"] for name in files(whole)])
    torch.testing.assert_close(torch.from_numpy(written), expected, rtol=0, atol=1e-6)


def test_the_reader_opens_the_folder(whole):
    readers = pytest.importorskip("sciml_monarch.pde.readers")
    trajectories = readers.open_trajectories(whole)
    assert trajectories.n_trajectories == 5
    assert trajectories.fields == ("vorticity",)
    assert trajectories.units == ("1/s",)
    assert trajectories.times == pytest.approx((0.2, 0.4))
    assert trajectories.lengths == pytest.approx((1.0, 1.0))
    assert trajectories.attributes["viscosity"] == 1e-3
    trajectories.close()


def test_the_start_can_be_kept(tmp_path):
    simulate(tmp_path, **{**SMALL, "n_trajectories": 1, "include_start": True, "resolution": 16})
    found = contents(tmp_path)
    assert found["shard_0000.hdf5", "dimensions/time"].tolist() == pytest.approx([0.0, 0.2, 0.4])
    start = to_grid(to_spectrum(gaussian_random_field(16, [(3, 0)]), 5), 16)  # the modes within the 2/3 rule
    frames = torch.from_numpy(found["shard_0000.hdf5", "t0_fields/vorticity"])
    assert relative_error(frames[0, 0], start[0]) < 1e-6
    assert relative_error(frames[0, 1], start[0]) > 1e-3


def test_an_interrupted_run_resumes_without_repeating_and_gives_the_same_bits(whole, tmp_path, monkeypatch):
    run, calls = NavierStokesSolver.run, []

    def interrupted(self, vorticity, *arguments, **options):
        calls.append(options["first_trajectory"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, vorticity, *arguments, **options)

    monkeypatch.setattr(NavierStokesSolver, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, **SMALL)
    assert files(tmp_path) == ["shard_0000.hdf5.partial"]
    simulate(tmp_path, **SMALL)
    assert calls == [0, 2, 2, 4]  # trajectories 0 and 1 were not computed again
    assert_equal_bits(contents(tmp_path), contents(whole))
    simulate(tmp_path, **SMALL)
    assert calls == [0, 2, 2, 4]  # and nothing when all is there


KILLED = """
import os, signal, sys
from pathlib import Path
import h5py
from sciml_monarch.pde import shards, simulate
lay_out, n_writes = h5py.Dataset.__setitem__, 0

def kill_while_writing(self, rows, values):
    global n_writes
    n_writes += self.name == "/t0_fields/vorticity"
    if n_writes == 2:
        lay_out(self, slice(rows.start, rows.start + 1), values[:1])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    lay_out(self, rows, values)

h5py.Dataset.__setitem__ = kill_while_writing
simulate.simulate(Path(sys.argv[1]), **OPTIONS)
"""


def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path):
    script = KILLED.replace("OPTIONS", repr(SMALL))
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()
    assert files(tmp_path) == ["shard_0000.hdf5.partial"]
    with h5py.File(tmp_path / "shard_0000.hdf5.partial") as file:
        assert file["complete"][:].tolist() == [True, True, False, False]
    simulate(tmp_path, **SMALL)
    assert_equal_bits(contents(tmp_path), contents(whole))


def test_a_run_stopped_just_before_a_file_gets_its_name_is_finished(whole, tmp_path):
    content = (whole / "shard_0000.hdf5").read_bytes()
    (tmp_path / "shard_0000.hdf5.partial").write_bytes(content)
    simulate(tmp_path, **SMALL)
    assert files(tmp_path) == files(whole)
    assert_equal_bits(contents(tmp_path), contents(whole))


def test_a_damaged_partial_file_is_computed_again(whole, tmp_path):
    (tmp_path / "shard_0000.hdf5.partial").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40))
    simulate(tmp_path, **SMALL)
    assert_equal_bits(contents(tmp_path), contents(whole))


@pytest.mark.parametrize(
    ("option", "value"),
    [("viscosity", 2e-3), ("seed", 4), ("final_time", 0.6), ("step", 0.01), ("include_start", True)],
)
def test_another_configuration_is_refused_by_name(whole, option, value):
    with pytest.raises(InputError, match=rf"shard_0000\.hdf5 was made with {option}=.*{value}"):
        simulate(whole, **{**SMALL, option: value})


def test_a_data_set_of_another_size_is_refused(whole):
    with pytest.raises(InputError, match="n_trajectories_total=5, not 6"):
        simulate(whole, **{**SMALL, "n_trajectories": 6})


def test_damaged_and_foreign_files_are_named(whole, tmp_path):
    content = (whole / "shard_0000.hdf5").read_bytes()
    (tmp_path / "shard_0000.hdf5").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"shard_0000\.hdf5 is damaged"):
        simulate(tmp_path, **SMALL)
    with h5py.File(tmp_path / "shard_0000.hdf5", "w") as file:
        file["u"] = np.zeros(3)
    with pytest.raises(InputError, match="not made by this simulation"):
        simulate(tmp_path, **SMALL)


def test_too_little_space_is_noticed_before_the_run(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(shards_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"0.00 GB free, the data set needs 0.00 GB more"):
        simulate(tmp_path, **SMALL)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
    ],
)
def test_a_full_disk_gives_one_line_and_leaves_a_state_to_resume_from(whole, tmp_path, monkeypatch, error):
    write = h5py.Dataset.__setitem__

    def full(self, rows, values):
        if self.name == "/t0_fields/vorticity" and rows.start == 2:
            raise error
        write(self, rows, values)

    with monkeypatch.context() as context:
        context.setattr(h5py.Dataset, "__setitem__", full)
        with pytest.raises(InputError, match=r"no space left for .*shard_0000.hdf5: .*resumes") as caught:
            simulate(tmp_path, **SMALL)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == ["shard_0000.hdf5.partial"]
    simulate(tmp_path, **SMALL)
    assert_equal_bits(contents(tmp_path), contents(whole))


def test_a_disk_that_is_full_from_the_start_leaves_nothing(tmp_path, monkeypatch):
    def full(self, file):
        file.create_group("dimensions")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Shard, "_lay_out", full)
    with pytest.raises(InputError, match="no space left"):
        simulate(tmp_path, **SMALL)
    assert files(tmp_path) == []


def test_values_that_are_not_finite_are_never_written(whole, tmp_path, monkeypatch):
    run = NavierStokesSolver.run

    def broken(self, *arguments, **options):
        solution = run(self, *arguments, **options)
        solution.vorticity[1, 0, 0, 0] = math.nan
        return solution

    monkeypatch.setattr(NavierStokesSolver, "run", broken)
    with pytest.raises(InputError, match="trajectories 0 to 1 are not finite"):
        simulate(tmp_path, **SMALL)
    with h5py.File(tmp_path / "shard_0000.hdf5.partial") as file:
        assert not file["complete"][:].any()


def test_an_unstable_run_names_the_trajectory(tmp_path):
    options = {
        **SMALL,
        "step": 0.2,
        "final_time": 40.0,
        "interval": 20.0,
        "viscosity": 1e-5,
        "resolution": 32,
    }
    options = {**options, "simulation_resolution": 32}
    with pytest.raises(InputError, match=r"trajectory \d is unstable between t = .* try step=0\."):
        simulate(tmp_path, **options)
    assert files(tmp_path) == ["shard_0000.hdf5.partial"]


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("resolution", 7, "resolution 7 must divide simulation_resolution 16"),
        ("resolution", 0, "resolution 0"),
        ("viscosity", 0.0, "viscosity.*0.0"),
        ("viscosity", -1.0, "viscosity.*-1.0"),
        ("n_trajectories", 0, "n_trajectories.*0"),
        ("shard_size", 0, "shard_size.*0"),
        ("chunk", 0, "chunk.*0"),
        ("seed", -1, "seed.*-1"),
        ("final_time", 0.5, "final_time 0.5 s.*interval 0.2 s"),
        ("final_time", -1.0, "-1.0"),
        ("interval", 0.0, "0.0"),
        ("device", "gpu7", "gpu7"),
        ("step", 0.0, "step.*0.0"),
    ],
)
def test_bad_options_are_named_and_leave_nothing(tmp_path, option, value, named):
    with pytest.raises(InputError, match=named) as caught:
        simulate(tmp_path / "out", **{**SMALL, option: value})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out is a file"):
        simulate(tmp_path / "out", **SMALL)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_gpu_that_is_not_there_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=r"device .cuda. cannot be used here"):
        simulate(tmp_path / "out", **{**SMALL, "device": "cuda"})


def test_batches_divide_a_shard_evenly(tmp_path, monkeypatch):
    run, sizes = NavierStokesSolver.run, []

    def counted(self, vorticity, *arguments, **options):
        sizes.append(len(vorticity))
        return run(self, vorticity, *arguments, **options)

    monkeypatch.setattr(NavierStokesSolver, "run", counted)
    monkeypatch.setattr(NavierStokesSolver, "default_chunk", lambda self: 4)
    simulate(tmp_path, **{**SMALL, "n_trajectories": 10, "shard_size": 10, "chunk": None})
    assert sizes == [4, 4, 2]


def test_a_part_of_a_set_is_the_same_as_in_the_whole(tmp_path):
    options = {"viscosity": 1e-3, "final_time": 2.0, "simulation_resolution": 16, "resolution": 16, "chunk": 2}
    simulate(out=tmp_path / "whole", n_trajectories=6, shard_size=2, **options)
    simulate(out=tmp_path / "part", n_trajectories=2, first=4, shard_size=2, **options)
    whole, part = open_trajectories(tmp_path / "whole"), open_trajectories(tmp_path / "part")
    for i in range(2):
        assert torch.equal(part.read(i, 0, 2), whole.read(4 + i, 0, 2))
    with h5py.File(tmp_path / "part/shard_0000.hdf5") as file:
        assert file["seeds"][:].tolist() == [4, 5]
