import multiprocessing
import os
import pickle
import sys
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde import synthetic
from sciml_monarch.pde.formats.mat_v5 import list_variables, stream
from sciml_monarch.pde.formats.sample_major import SampleMajor
from sciml_monarch.pde.readers import open_pairs, open_trajectories
from sciml_monarch.pde.synthetic import WellField, travelling_waves

N, T, GRID = 5, 7, (8, 6)
WAVES = travelling_waves(N, T, GRID)
REAL = Path(__file__).resolve().parents[2] / "../shared/data/pde"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/pde is not on this machine")


def write_scalar_well(path, values=WAVES, times=None, name="vorticity", **attributes):
    times = range(values.shape[1]) if times is None else times
    fields = {name: WellField(values, unit="1/s")}
    return synthetic.write_well(path, fields, values.shape[2:], times, len(values), attributes)


FORMATS = {
    "well": lambda folder: write_scalar_well(folder / "a.hdf5"),
    "mat_v5": lambda folder: synthetic.write_mat_v5(folder / "a.mat", {"u": np.moveaxis(WAVES, 1, -1)}),
    "mat_v5_compressed": lambda folder: synthetic.write_mat_v5(
        folder / "a.mat", {"a": WAVES[:, 0], "u": np.moveaxis(WAVES, 1, -1)}, compressed=True
    ),
    "mat_v73": lambda folder: synthetic.write_mat_v73(folder / "a.mat", {"u": np.moveaxis(WAVES, 1, -1)}),
    "mat_v73_chunked": lambda folder: synthetic.write_mat_v73(
        folder / "a.mat", {"u": np.moveaxis(WAVES, 1, -1)}, chunks=(2, 3, 8, 2)
    ),
    "pdebench_tensor": lambda folder: synthetic.write_pdebench(folder / "a.hdf5", {"tensor": WAVES}),
    "pdebench_groups": lambda folder: synthetic.write_pdebench_groups(folder / "a.h5", WAVES[..., None]),
    "npy": lambda folder: _save_npy(folder / "a.npy", WAVES),
    "folder": lambda folder: _two_shards(folder),
    "neuralop_in_2d": lambda folder: synthetic.write_neuralop_burgers(folder / "a.pt", WAVES),
}


def _save_npy(path, values):
    np.save(path, values)
    return path


def _two_shards(folder):
    write_scalar_well(folder / "shard_0000.hdf5", WAVES[:3])
    write_scalar_well(folder / "shard_0001.hdf5", WAVES[3:])
    return folder


@pytest.fixture(params=FORMATS)
def source(request, tmp_path):
    opened = open_trajectories(FORMATS[request.param](tmp_path))
    yield opened
    opened.close()


class TestEveryFormat:
    def test_sizes(self, source):
        assert (source.n_trajectories, source.n_times, source.grid) == (N, T, GRID)
        assert len(source.fields) == len(source.units) == 1
        assert len(source.times) == T
        assert len(source.lengths) == 2

    def test_reads_the_window_that_was_written(self, source):
        for index in (0, 3, N - 1):
            window = source.read(index, 2, 6)
            assert window.dtype == torch.float32
            np.testing.assert_array_equal(window.numpy(), WAVES[index, 2:6, None])

    def test_last_frame_of_last_trajectory(self, source):
        np.testing.assert_array_equal(source.read(N - 1, T - 1, T).numpy(), WAVES[-1:, -1:])

    @pytest.mark.parametrize("stride", [2, 3])
    def test_stride(self, source, stride):
        expected = WAVES[1, :3, None, ::stride, ::stride]
        np.testing.assert_array_equal(source.read(1, 0, 3, stride).numpy(), expected)

    @pytest.mark.parametrize(
        "window", [(N, 0, 1), (-1, 0, 1), (0, 0, T + 1), (0, -1, 2), (0, 3, 3), (0, 4, 2)], ids=str
    )
    def test_out_of_range(self, source, window):
        with pytest.raises(IndexError, match=r"trajectory"):
            source.read(*window)

    def test_stride_zero_is_refused(self, source):
        with pytest.raises(InputError, match=r"stride 0"):
            source.read(0, 0, 1, 0)

    def test_pickles_without_handles(self, source):
        before = source.read(2, 0, 4)  # opens handles, which must not travel
        packed = pickle.dumps(source)
        assert len(packed) < 5000
        copy = pickle.loads(packed)
        assert torch.equal(copy.read(2, 0, 4), before)
        copy.close()

    def test_reads_again_after_close(self, source):
        before = source.read(0, 0, 2)
        source.close()
        assert torch.equal(source.read(0, 0, 2), before)

    def test_forked_worker(self, source):
        _check_worker(source, "fork")


@pytest.mark.parametrize("form", ["folder", "mat_v5"])
def test_spawned_worker(tmp_path, form):
    """A spawned process takes seconds: HDF5 handles and temporary copies stand for all."""
    source = open_trajectories(FORMATS[form](tmp_path))
    _check_worker(source, "spawn")
    source.close()


def _check_worker(source, method):
    source.read(0, 0, 1)  # the parent's handle is open when the worker starts
    with multiprocessing.get_context(method).Pool(1) as pool:
        sums = pool.starmap(_sum, [(source, index) for index in range(N)])
    assert sums == pytest.approx([float(np.abs(WAVES[index]).sum()) for index in range(N)], rel=1e-4)


def _sum(source, index):
    return float(source.read(index, 0, T).abs().sum())


class TestWell:
    def test_metadata(self, tmp_path):
        path = write_scalar_well(tmp_path / "a.hdf5", times=0.5 * np.arange(T), viscosity=1e-5, seed=3, solver="etd")
        source = open_trajectories(str(path))
        assert source.fields == ("vorticity",)
        assert source.units == ("1/s",)
        assert source.lengths == (1.0, 1.0)
        assert source.times == tuple(0.5 * np.arange(T))
        assert source.attributes["viscosity"] == 1e-5
        assert source.attributes["seed"] == 3
        assert source.attributes["solver"] == "etd"

    @pytest.fixture
    def mixed(self, tmp_path):
        """Every kind of field that The Well knows, with axes left out."""
        random = np.random.default_rng(0).normal
        arrays = {
            "density": random(size=(N, T, *GRID)),
            "mask": random(size=(N, *GRID)),
            "ramp": random(size=(T, GRID[0])),
            "velocity": random(size=(N, T, *GRID, 2)),
            "wind": random(size=(*GRID, 2)),
            "stress": random(size=(N, T, *GRID, 2, 2)),
            "flat": random(size=(N, T, *GRID, 4)),
        }
        fields = {
            "density": WellField(arrays["density"]),
            "mask": WellField(arrays["mask"], time_varying=False),
            "ramp": WellField(arrays["ramp"], sample_varying=False, dim_varying=(True, False)),
            "velocity": WellField(arrays["velocity"], order=1, unit="m/s"),
            "wind": WellField(arrays["wind"], order=1, sample_varying=False, time_varying=False),
            "stress": WellField(arrays["stress"], order=2),
            "flat": WellField(arrays["flat"], order=2),
        }
        return synthetic.write_well(tmp_path / "a.h5", fields, GRID, range(T), N), arrays

    def test_all_orders_and_missing_axes(self, mixed):
        path, arrays = mixed
        source = open_trajectories(path)
        assert source.fields == (
            *("density", "mask", "ramp", "velocity_x", "velocity_y", "wind_x", "wind_y"),
            *("stress_xx", "stress_xy", "stress_yx", "stress_yy", "flat_xx", "flat_xy", "flat_yx", "flat_yy"),
        )
        assert source.units[3:5] == ("m/s", "m/s")
        window = dict(zip(source.fields, source.read(2, 1, 5, stride=2).transpose(0, 1).numpy(), strict=True))
        for name, expected in {
            "density": arrays["density"][2, 1:5],
            "mask": arrays["mask"][2][None].repeat(4, 0),
            "ramp": arrays["ramp"][1:5, :, None].repeat(GRID[1], 2),
            "velocity_y": arrays["velocity"][2, 1:5, ..., 1],
            "wind_x": arrays["wind"][None, ..., 0].repeat(4, 0),
            "stress_xy": arrays["stress"][2, 1:5, ..., 0, 1],
            "flat_yx": arrays["flat"][2, 1:5, ..., 2],
        }.items():
            np.testing.assert_allclose(window[name], expected[:, ::2, ::2], rtol=1e-6, err_msg=name)

    @pytest.mark.parametrize(
        ("field", "fields"),
        [
            ("density", ("density",)),
            ("velocity", ("velocity_x", "velocity_y")),
            ("velocity_y", ("velocity_y",)),
            ("stress_yx", ("stress_yx",)),
        ],
    )
    def test_one_field(self, mixed, field, fields):
        everything, source = open_trajectories(mixed[0]), open_trajectories(mixed[0], field)
        assert source.fields == fields
        channels = [everything.fields.index(name) for name in fields]
        assert torch.equal(source.read(1, 0, 3), everything.read(1, 0, 3)[:, channels])

    def test_unknown_field_lists_the_available(self, mixed):
        with pytest.raises(InputError, match=r"a\.h5.*'pressure'.*density, mask, ramp, velocity_x"):
            open_trajectories(mixed[0], "pressure")

    def test_shape_against_flags(self, tmp_path):
        fields = {"vorticity": WellField(WAVES, time_varying=False)}
        path = synthetic.write_well(tmp_path / "a.hdf5", fields, GRID, range(T), N)
        with pytest.raises(InputError, match=r"t0_fields/vorticity.*\(5, 7, 8, 6\), expected \(5, 8, 6\)"):
            open_trajectories(path)

    @pytest.mark.parametrize("key", ["t0_fields/vorticity", "dimensions", "dimensions/time", "dimensions/y"])
    def test_missing_parts(self, tmp_path, key):
        path = write_scalar_well(tmp_path / "a.hdf5")
        with h5py.File(path, "r+") as file:
            del file[key]
        with pytest.raises(InputError, match=rf"a\.hdf5: expected .*{key.split('/')[0]}.*the file holds: "):
            open_trajectories(path)

    def test_unfinished_trajectory(self, tmp_path):
        path = write_scalar_well(tmp_path / "a.hdf5")
        with h5py.File(path, "r+") as file:
            file["complete"] = np.arange(N) != 3
        with pytest.raises(InputError, match=r"complete.*number 3.*resume"):
            open_trajectories(path)


class TestFolder:
    def test_numbers_through_and_keeps_what_is_common(self, tmp_path):
        for number, part in enumerate((WAVES[:1], WAVES[1:4], WAVES[4:])):
            write_scalar_well(tmp_path / f"shard_{number:04d}.hdf5", part, viscosity=1e-3, seed=number)
        (tmp_path / "shard_0003.hdf5.partial").write_bytes(b"half")
        (tmp_path / "notes.txt").write_text("not data")
        source = open_trajectories(tmp_path)
        assert source.n_trajectories == N
        assert source.attributes["viscosity"] == 1e-3
        assert "seed" not in source.attributes
        for index in (4, 0, 3, 1, 2):
            np.testing.assert_array_equal(source.read(index, 0, T).numpy(), WAVES[index, :, None])

    def test_more_shards_than_are_kept_open(self, tmp_path):
        waves = travelling_waves(20, 2, (4, 4))
        for number in range(20):
            write_scalar_well(tmp_path / f"shard_{number:04d}.hdf5", waves[number : number + 1])
        source = open_trajectories(tmp_path)
        for _ in range(2):
            for index in range(20):
                np.testing.assert_array_equal(source.read(index, 0, 2).numpy(), waves[index, :, None])
        open_files = [shard for shard in source._shards if shard._hdf5._file is not None]
        assert len(open_files) == 16

    @pytest.mark.parametrize(
        ("what", "other", "values"),
        [
            ("grid", {"values": travelling_waves(2, T, (8, 8))}, r"\(8, 6\).*\(8, 8\)"),
            ("times", {"times": np.arange(T) * 2.0}, r"7 from 0\.0 to 6\.0.*7 from 0\.0 to 12\.0"),
            ("times", {"values": WAVES[:, :4]}, r"7 from 0\.0 to 6\.0.*\(0\.0, 1\.0, 2\.0, 3\.0\)"),
            ("fields", {"name": "pressure"}, r"\('vorticity',\).*\('pressure',\)"),
        ],
        ids=["grid", "times", "number of times", "fields"],
    )
    def test_differing_files_are_both_named(self, tmp_path, what, other, values):
        write_scalar_well(tmp_path / "a.hdf5")
        write_scalar_well(tmp_path / "b.hdf5", **other)
        with pytest.raises(InputError, match=f"same {what}.*a.hdf5 has.*b.hdf5 has") as error:
            open_trajectories(tmp_path)
        error.match(values)

    def test_error_in_a_shard_names_its_file_and_trajectory(self, tmp_path):
        _two_shards(tmp_path)
        with h5py.File(tmp_path / "shard_0001.hdf5", "r+") as file:
            file["t0_fields/vorticity"][1, 2] = np.nan
        source = open_trajectories(tmp_path)
        with pytest.raises(InputError, match=r"shard_0001\.hdf5.*nan in trajectory 1 at time index 2"):
            source.read(4, 0, T)

    def test_only_partial_files(self, tmp_path):
        (tmp_path / "shard_0000.hdf5.partial").write_bytes(b"half")
        with pytest.raises(InputError, match=r"only unfinished ones: shard_0000\.hdf5\.partial.*resume"):
            open_trajectories(tmp_path)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"no complete .hdf5 or .h5 file.*nothing"):
            open_trajectories(tmp_path)


class TestMatlab:
    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8"])
    def test_agrees_with_scipy(self, tmp_path, dtype, compressed):
        u = (50 * np.moveaxis(WAVES, 1, -1)).astype(dtype)
        path = synthetic.write_mat_v5(tmp_path / "a.mat", {"note": "text", "a": u[..., 0], "u": u}, compressed)
        reference = scipy.io.loadmat(path)["u"]
        source = open_trajectories(path)
        for index in range(N):
            expected = np.moveaxis(reference[index], -1, 0)[:, None].astype(np.float32)
            np.testing.assert_array_equal(source.read(index, 0, T).numpy(), expected)
        source.close()

    @pytest.mark.parametrize("block_bytes", [1, 100, 997, 10**6])
    def test_any_block_size(self, tmp_path, block_bytes):
        u = np.moveaxis(WAVES, 1, -1)
        path = synthetic.write_mat_v5(tmp_path / "a.mat", {"u": u}, compressed=True)
        blocks = list(stream(path, list_variables(path)["u"], block_bytes))
        assert max(block.nbytes for _, _, block in blocks) <= max(block_bytes, N * 4)
        copy = SampleMajor(N, u[0].size, iter(blocks), path)
        np.testing.assert_array_equal(copy.read(3, 0, u[0].size), u[3].ravel(order="F"))
        copy.close()

    def test_times_and_other_arrays(self, tmp_path):
        arrays = {"a": WAVES[:, 0], "u": np.moveaxis(WAVES, 1, -1), "t": 1.0 + np.arange(T)[None]}
        for path in (
            synthetic.write_mat_v5(tmp_path / "v5.mat", arrays),
            synthetic.write_mat_v73(tmp_path / "v73.mat", arrays),
        ):
            assert open_trajectories(path).times == tuple(1.0 + np.arange(T))

    @pytest.mark.parametrize("shape", [(4, 9, 3), (2, 4, 3, 5, 6)], ids=["1-D", "3-D"])
    @pytest.mark.parametrize("write", [synthetic.write_mat_v5, synthetic.write_mat_v73])
    def test_other_numbers_of_axes(self, tmp_path, write, shape):
        u = np.random.default_rng(0).normal(size=shape)
        source = open_trajectories(write(tmp_path / "a.mat", {"u": u}))
        assert source.grid == shape[1:-1]
        expected = np.moveaxis(u[1], -1, 0)[1:3, None].astype(np.float32)
        np.testing.assert_array_equal(source.read(1, 1, 3).numpy(), expected)
        source.close()

    def test_pairs(self, tmp_path):
        a, u = WAVES[:, 0], WAVES[:, 1]
        for pairs in (
            open_pairs(synthetic.write_mat_v5(tmp_path / "d.mat", {"coeff": a, "sol": u, "Kcoeff": a})),
            open_pairs(synthetic.write_mat_v73(tmp_path / "b.mat", {"a": a, "u": u})),
            open_pairs(synthetic.write_mat_v5(tmp_path / "n.mat", {"in": a, "out": u}), keys=("in", "out")),
        ):
            inputs, targets = pairs.read(3, stride=2)
            np.testing.assert_array_equal(inputs.numpy(), a[3, None, ::2, ::2])
            np.testing.assert_array_equal(targets.numpy(), u[3, None, ::2, ::2])
            pairs.close()

    def test_memory_stays_small(self, tmp_path):
        """80 MiB in the array, 8 MiB in a block, of which two exist, and its transposed copy."""
        u = np.broadcast_to(np.float32(0.5), (100, 64, 64, 50))
        path = synthetic.write_mat_v5(tmp_path / "a.mat", {"u": u}, compressed=True)
        tracemalloc.start()
        try:
            source = open_trajectories(path)
            window = source.read(99, 0, 10)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        source.close()
        assert float(window.min()) == 0.5
        assert peak < 28 * 2**20

    def test_truncated(self, tmp_path):
        path = synthetic.write_mat_v5(tmp_path / "a.mat", {"u": np.moveaxis(WAVES, 1, -1)})
        size = path.stat().st_size
        os.truncate(path, size - 100)
        with pytest.raises(InputError, match=rf"a\.mat.*truncated.*'u' \(5, 8, 6, 7\).*{size}.*{size - 100} bytes"):
            open_trajectories(path)
        os.truncate(path, 100)
        with pytest.raises(InputError, match=r"truncated in its header: 100 bytes"):
            open_trajectories(path)
        os.truncate(path, 131)
        with pytest.raises(InputError, match=r"truncated"):
            open_trajectories(path)

    def test_damaged_inside(self, tmp_path):
        path = synthetic.write_mat_v5(tmp_path / "a.mat", {"u": np.moveaxis(WAVES, 1, -1)}, compressed=True)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.mat: cannot read array 'u'"):
            open_trajectories(path).read(0, 0, 1)

    def test_missing_array(self, tmp_path):
        for path in (
            synthetic.write_mat_v5(tmp_path / "v5.mat", {"w": WAVES, "v": WAVES}),
            synthetic.write_mat_v73(tmp_path / "v73.mat", {"w": WAVES, "v": WAVES}),
        ):
            with pytest.raises(InputError, match=r"expected the array 'u'; the file holds: v, w"):
                open_trajectories(path)
            assert open_trajectories(path, "w").fields == ("w",)
            with pytest.raises(InputError, match=r"'coeff' and 'sol'"):
                open_pairs(path)

    def test_complex_and_text(self, tmp_path):
        path = synthetic.write_mat_v5(tmp_path / "a.mat", {"u": WAVES * 1j})
        with pytest.raises(InputError, match=r"'u' is complex, real numbers were expected"):
            open_trajectories(path)
        path = synthetic.write_mat_v5(tmp_path / "b.mat", {"u": "text"})
        with pytest.raises(InputError, match=r"'u' is no array of numbers"):
            open_trajectories(path)

    def test_without_time(self, tmp_path):
        path = synthetic.write_mat_v5(tmp_path / "a.mat", {"u": WAVES[:, 0, :, 0]})
        with pytest.raises(InputError, match=r"\(5, 8\), expected .*open_pairs"):
            open_trajectories(path)

    def test_full_disk(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        path = synthetic.write_mat_v5(tmp_path / "a.mat", {"u": np.moveaxis(WAVES, 1, -1)})
        source = open_trajectories(path)
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(InputError, match=r"a\.mat: no room in .* set TMPDIR"):
            source.read(0, 0, 1)
        monkeypatch.undo()
        assert source.read(0, 0, 1).shape == (1, 1, *GRID)
        source.close()


class TestPDEBench:
    def test_flow(self, tmp_path):
        fields = {"density": WAVES, "pressure": 2 * WAVES, "Vx": 3 * WAVES, "Vy": 4 * WAVES}
        path = synthetic.write_pdebench(tmp_path / "a.hdf5", fields)
        source = open_trajectories(path)
        assert source.fields == ("density", "pressure", "Vx", "Vy")
        assert source.times == pytest.approx([0.1 * i for i in range(T)])  # one more is stored
        assert source.lengths == (1.0, 1.0)
        assert source.attributes == {"eta": 0.01}
        expected = np.stack([(k + 1) * WAVES[3, 2:5] for k in range(4)], axis=1)
        np.testing.assert_array_equal(source.read(3, 2, 5).numpy(), expected)
        np.testing.assert_array_equal(open_trajectories(path, "Vx").read(3, 2, 5).numpy(), expected[:, 2:3])
        with pytest.raises(InputError, match=r"'Vz'.*density, pressure, Vx, Vy"):
            open_trajectories(path, "Vz")

    def test_flow_with_differing_shapes(self, tmp_path):
        path = synthetic.write_pdebench(tmp_path / "a.hdf5", {"density": WAVES, "pressure": WAVES[:, :3]})
        with pytest.raises(InputError, match=r"'pressure' has .*\(5, 3, 8, 6\).*'density' has \(5, 7, 8, 6\)"):
            open_trajectories(path)

    @pytest.mark.parametrize("trailing", [False, True], ids=["(N,T,X)", "(N,T,X,1)"])
    def test_one_dimension(self, tmp_path, trailing):
        waves = travelling_waves(N, T, (16,))
        path = synthetic.write_pdebench(tmp_path / "a.hdf5", {"tensor": waves[..., None] if trailing else waves})
        if trailing:
            with h5py.File(path, "r+") as file:
                del file["y-coordinate"]
        source = open_trajectories(path)
        assert source.grid == (16,)
        np.testing.assert_array_equal(source.read(4, 1, 3).numpy(), waves[4, 1:3, None])

    def test_without_coordinates(self, tmp_path):
        path = synthetic.write_pdebench(tmp_path / "a.hdf5", {"tensor": WAVES}, coordinates=False)
        source = open_trajectories(path)
        assert source.times == tuple(range(T))
        assert source.lengths == (1.0, 1.0)

    def test_incompressible(self, tmp_path):
        velocity = np.stack([WAVES, -WAVES], axis=-1)
        path = synthetic.write_pdebench_incompressible(tmp_path / "a.h5", velocity, 2 * WAVES[..., None])
        source = open_trajectories(path)
        assert source.fields == ("velocity_x", "velocity_y", "particles")
        assert source.times[1] == 0.005
        expected = np.stack([WAVES[1, :2], -WAVES[1, :2], 2 * WAVES[1, :2]], axis=1)
        np.testing.assert_array_equal(source.read(1, 0, 2).numpy(), expected)
        for field, channels in {"velocity": [0, 1], "velocity_y": [1], "particles": [2]}.items():
            one = open_trajectories(path, field)
            np.testing.assert_array_equal(one.read(1, 0, 2).numpy(), expected[:, channels])
            assert len(one.fields) == len(channels)

    def test_groups_with_channels(self, tmp_path):
        values = np.stack([WAVES, 2 * WAVES], axis=-1)
        path = synthetic.write_pdebench_groups(tmp_path / "a.h5", values)
        source = open_trajectories(path)
        assert source.fields == ("data_0", "data_1")
        assert source.lengths == (5.0, 5.0)
        np.testing.assert_array_equal(source.read(2, 1, 4).numpy(), np.moveaxis(values[2, 1:4], -1, 1))
        one = open_trajectories(path, "data_1")
        np.testing.assert_array_equal(one.read(2, 1, 4).numpy(), 2 * WAVES[2, 1:4, None])
        with pytest.raises(InputError, match=r"'data_2'.*data_0, data_1"):
            open_trajectories(path, "data_2")

    def test_group_of_another_shape(self, tmp_path):
        path = synthetic.write_pdebench_groups(tmp_path / "a.h5", WAVES[..., None])
        with h5py.File(path, "r+") as file:
            del file["0002/data"]
            file["0002/data"] = np.zeros((T, 4, 4, 1))
        with pytest.raises(InputError, match=r"'0002/data' .*\(7, 4, 4, 1\).*'0000/data' has \(7, 8, 6, 1\)"):
            open_trajectories(path).read(2, 0, 1)

    def test_too_few_times(self, tmp_path):
        path = synthetic.write_pdebench(tmp_path / "a.hdf5", {"tensor": WAVES})
        with h5py.File(path, "r+") as file:
            del file["t-coordinate"]
            file["t-coordinate"] = np.arange(3.0)
        with pytest.raises(InputError, match=r"'t-coordinate' has 3 times, expected 7"):
            open_trajectories(path)

    def test_darcy_pairs(self, tmp_path):
        nu, pressure = WAVES[:, 0], WAVES[:, 1]
        path = synthetic.write_pdebench_darcy(tmp_path / "a.hdf5", nu, pressure)
        pairs = open_pairs(path)
        assert (pairs.n_pairs, pairs.grid, pairs.attributes) == (N, GRID, {"beta": 1.0})
        inputs, targets = pairs.read(N - 1)
        np.testing.assert_array_equal(inputs.numpy(), nu[-1:])
        np.testing.assert_array_equal(targets.numpy(), pressure[-1:])
        with pytest.raises(InputError, match=r"these are pairs.*open_pairs"):
            open_trajectories(path)


class TestNeuraloperator:
    def test_burgers(self, tmp_path):
        waves = travelling_waves(N, T, (16,))
        path = synthetic.write_neuralop_burgers(tmp_path / "a.pt", waves, viscosity=0.25)
        source, pairs = open_trajectories(path), open_pairs(path)
        assert source.attributes == pairs.attributes == {"viscosity": 0.25}
        np.testing.assert_array_equal(source.read(4, 2, 5).numpy(), waves[4, 2:5, None])
        inputs, targets = pairs.read(4)
        np.testing.assert_array_equal(inputs.numpy(), waves[4, :1])
        np.testing.assert_array_equal(targets.numpy(), waves[4, -1:])

    def test_darcy(self, tmp_path):
        path = synthetic.write_neuralop_darcy(tmp_path / "a.pt", WAVES[:, 0] > 0, WAVES[:, 1])
        inputs, targets = open_pairs(path).read(2, stride=2)
        np.testing.assert_array_equal(inputs.numpy(), (WAVES[2, :1] > 0)[:, ::2, ::2].astype(np.float32))
        np.testing.assert_array_equal(targets.numpy(), WAVES[2, 1:2, ::2, ::2])
        with pytest.raises(InputError, match=r"no axis of time.*open_pairs"):
            open_trajectories(path)

    def test_pair_out_of_range(self, tmp_path):
        path = synthetic.write_neuralop_darcy(tmp_path / "a.pt", WAVES[:, 0], WAVES[:, 1])
        for index in (N, -1):
            with pytest.raises(IndexError, match=f"pair {index} of {N}"):
                open_pairs(path).read(index)

    def test_nan_in_a_pair(self, tmp_path):
        bad = WAVES[:, 1].copy()
        bad[3, 2, 4] = np.nan
        path = synthetic.write_neuralop_darcy(tmp_path / "a.pt", WAVES[:, 0], bad)
        with pytest.raises(InputError, match=r"'y' holds nan in pair 3, grid point \(2, 4\)"):
            open_pairs(path).read(3, stride=2)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"x": torch.zeros(3, 4, 4)}, "expected the tensor 'y'; the file holds: x"),
            (torch.zeros(3), "holds a Tensor, a dict of tensors was expected"),
            ({"x": torch.zeros(3, 4, 4), "y": torch.zeros(2, 4, 4)}, r"'x' \(3, 4, 4\) and 'y' \(2, 4, 4\)"),
            (
                {"x": torch.zeros(3, 4, dtype=torch.complex64), "y": torch.zeros(3, 4)},
                "expected the tensor 'x'",
            ),
        ],
        ids=["missing", "no dict", "shapes", "complex"],
    )
    def test_wrong_content(self, tmp_path, content, message):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(InputError, match=message):
            open_pairs(tmp_path / "a.pt")

    def test_code_in_the_file_is_not_run(self, tmp_path):
        with (tmp_path / "a.pt").open("wb") as file:
            torch.save({"x": Path("evil")}, file)
        with pytest.raises(InputError, match=r"a\.pt: cannot read the dict of tensors"):
            open_pairs(tmp_path / "a.pt")

    @real_data
    def test_real_darcy(self):
        pairs = open_pairs(REAL / "darcy_train_16.pt")
        content = torch.load(REAL / "darcy_train_16.pt", weights_only=True)
        assert (pairs.n_pairs, pairs.grid) == (1000, (16, 16))
        inputs, targets = pairs.read(999)
        assert torch.equal(inputs, content["x"][999:].float())
        assert torch.equal(targets, content["y"][999:])
        assert open_pairs(REAL / "darcy_test_32.pt").grid == (32, 32)

    @real_data
    def test_real_burgers(self):
        source = open_trajectories(REAL / "burgers_train_16.pt")
        content = torch.load(REAL / "burgers_train_16.pt", weights_only=True)
        assert (source.n_trajectories, source.n_times, source.grid) == (800, 17, (16,))
        assert source.attributes["viscosity"] == pytest.approx(0.01)
        assert torch.equal(source.read(799, 5, 17), content["y"][799, 5:, None].float())
        inputs, targets = open_pairs(REAL / "burgers_test_16.pt").read(0)
        assert not torch.equal(inputs, targets)


class TestNumpy:
    def test_one_trajectory(self, tmp_path):
        source = open_trajectories(_save_npy(tmp_path / "a.npy", WAVES[2]))
        assert source.n_trajectories == 1
        np.testing.assert_array_equal(source.read(0, 3, 5).numpy(), WAVES[2, 3:5, None])

    def test_fortran_order_and_float64(self, tmp_path):
        source = open_trajectories(_save_npy(tmp_path / "a.npy", np.asfortranarray(WAVES.astype(np.float64))))
        np.testing.assert_array_equal(source.read(4, 3, 5).numpy(), WAVES[4, 3:5, None])

    @pytest.mark.parametrize(
        "values", [WAVES[0, 0], WAVES[None], WAVES * 1j, np.array(["a"])], ids=lambda v: str(v.dtype)
    )
    def test_other_arrays(self, tmp_path, values):
        with pytest.raises(InputError, match=r"a\.npy.*expected real numbers in \(T, x, y\)"):
            open_trajectories(_save_npy(tmp_path / "a.npy", values))

    def test_named_field(self, tmp_path):
        with pytest.raises(InputError, match=r"the field 'u'"):
            open_trajectories(_save_npy(tmp_path / "a.npy", WAVES), "u")

    @real_data
    def test_real_sample(self):
        source = open_trajectories(REAL / "fno_navier_stokes_sample.npy")
        assert (source.n_trajectories, source.n_times, source.grid) == (1, 50, (64, 64))
        expected = np.load(REAL / "fno_navier_stokes_sample.npy")[-1, ::4, ::4]
        np.testing.assert_array_equal(source.read(0, 49, 50, stride=4)[0, 0].numpy(), expected)


class TestDamage:
    @pytest.mark.parametrize("form", ["well", "mat_v73", "pdebench_tensor", "pdebench_groups"])
    @pytest.mark.parametrize("part", [0.5, 0.95])
    def test_truncated_hdf5(self, tmp_path, form, part):
        path = FORMATS[form](tmp_path)
        size = path.stat().st_size
        os.truncate(path, int(part * size))
        with pytest.raises(InputError, match=rf"{path.name}: the HDF5 file is truncated: {int(part * size)} of {size}"):
            open_trajectories(path)

    @pytest.mark.parametrize("form", ["npy", "neuralop_in_2d"])
    def test_truncated_others(self, tmp_path, form):
        path = FORMATS[form](tmp_path)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(InputError, match=rf"{path.name}: cannot read the"):
            open_trajectories(path)

    def test_damaged_chunk(self, tmp_path):
        path = tmp_path / "a.hdf5"
        write_scalar_well(path)
        with h5py.File(path, "r+") as file:
            attributes = dict(file["t0_fields/vorticity"].attrs)
            del file["t0_fields/vorticity"]
            dataset = file.create_dataset("t0_fields/vorticity", data=WAVES, chunks=(1, T, *GRID), compression="gzip")
            dataset.attrs.update(attributes)
            chunk = dataset.id.get_chunk_info(2)
        with path.open("r+b") as raw:
            raw.seek(chunk.byte_offset + 10)
            raw.write(b"\0" * 20)
        source = open_trajectories(path)
        assert source.read(1, 0, T).shape == (T, 1, *GRID)
        with pytest.raises(InputError, match=r"a\.hdf5: cannot read data set '/t0_fields/vorticity'"):
            source.read(2, 0, T)

    @pytest.mark.parametrize("suffix", [".hdf5", ".mat", ".pt", ".npy"])
    @pytest.mark.parametrize("opener", [open_trajectories, open_pairs])
    def test_text_and_empty_files(self, tmp_path, suffix, opener):
        path = tmp_path / f"a{suffix}"
        path.write_text("<!DOCTYPE html>\nnot found, but the download program saved it" * 10)
        with pytest.raises(InputError, match=rf"a\{suffix}: neither HDF5.*<!DOCTYPE"):
            opener(path)
        path.write_bytes(b"")
        with pytest.raises(InputError, match=r"is empty \(0 bytes\)"):
            opener(path)

    @pytest.mark.parametrize("opener", [open_trajectories, open_pairs])
    def test_missing_file(self, tmp_path, opener):
        with pytest.raises(InputError, match=r"none.hdf5: no such file"):
            opener(tmp_path / "none.hdf5")

    def test_pairs_of_a_folder_or_array(self, tmp_path):
        with pytest.raises(InputError, match=r"is a folder"):
            open_pairs(tmp_path)
        with pytest.raises(InputError, match=r"holds no pairs"):
            open_pairs(_save_npy(tmp_path / "a.npy", WAVES))

    def test_unfinished_file(self, tmp_path):
        path = write_scalar_well(tmp_path / "shard.hdf5.partial")
        with pytest.raises(InputError, match=r"has not finished this file"):
            open_trajectories(path)

    def test_unknown_hdf5_lists_its_keys(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["kspace"] = np.zeros(3)
        with pytest.raises(InputError, match=r"none of the known layouts.*keys are: kspace"):
            open_trajectories(tmp_path / "a.h5")
        with pytest.raises(InputError, match=r"'nu'.*kspace"):
            open_pairs(tmp_path / "a.h5")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_values_that_are_not_finite(self, tmp_path, value):
        bad = WAVES.copy()
        bad[3, 4, 6, 2] = value
        source = open_trajectories(write_scalar_well(tmp_path / "a.hdf5", bad, times=0.5 * np.arange(T)))
        assert source.read(3, 0, 4).isfinite().all()
        message = rf"'vorticity' holds {value} in trajectory 3 at time index 4 \(t = 2\), grid point \(6, 2\)"
        with pytest.raises(InputError, match=message):
            source.read(3, 2, 6, stride=2)

    def test_float64_beyond_float32(self, tmp_path):
        source = open_trajectories(_save_npy(tmp_path / "a.npy", WAVES.astype(np.float64) * 1e300))
        with pytest.raises(InputError, match=r"e\+?\d+ in trajectory 0 at time index 0"):
            source.read(0, 0, 1)

    def test_one_line(self, tmp_path):
        path = FORMATS["neuralop_in_2d"](tmp_path)
        os.truncate(path, 100)
        with pytest.raises(InputError) as error:
            open_trajectories(path)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc, as Linux has it")
@pytest.mark.parametrize("form", ["well", "npy"])
def test_windows_of_a_large_file_cost_little_memory(tmp_path, form):
    """200 MiB on disk (never written blocks, so read as zeros); 20 windows of 1 MiB."""
    shape = (40, 20, 256, 256)
    if form == "npy":
        path = tmp_path / "a.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    else:
        path = tmp_path / "a.hdf5"
        write_scalar_well(path)
        with h5py.File(path, "r+") as file:
            attributes = dict(file["t0_fields/vorticity"].attrs)
            for key in ("t0_fields/vorticity", "dimensions/x", "dimensions/y", "dimensions/time"):
                del file[key]
            file["dimensions/x"] = file["dimensions/y"] = np.arange(256) / 256
            file["dimensions/time"] = np.arange(20.0)
            file.attrs["n_trajectories"] = 40
            dataset = file.create_dataset("t0_fields/vorticity", shape, "f4")
            dataset[-1, -1, -1, -1] = 0.0  # the rest is a hole in the file
            dataset.attrs.update(attributes)
    source = open_trajectories(path)
    source.read(0, 0, 4)
    before = _resident_bytes()
    for index in range(40):
        assert float(source.read(index, 8, 12).abs().max()) == 0.0
    assert path.stat().st_size > 200 * 2**20
    assert _resident_bytes() - before < 16 * 2**20
    source.close()


def _resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
