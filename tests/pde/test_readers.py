import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde import synthetic
from sciml_monarch.pde.readers import open_pairs, open_trajectories
from tests.pde.wave_files import GRID, WAVES, N, T, save_npy, two_shards, write_scalar_well

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
    "npy": lambda folder: save_npy(folder / "a.npy", WAVES),
    "folder": lambda folder: two_shards(folder),
    "neuralop_in_2d": lambda folder: synthetic.write_neuralop_burgers(folder / "a.pt", WAVES),
}


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
            open_pairs(save_npy(tmp_path / "a.npy", WAVES))

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
        source = open_trajectories(save_npy(tmp_path / "a.npy", WAVES.astype(np.float64) * 1e300))
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
