import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde import synthetic
from sciml_monarch.pde.formats.mat_v5 import list_variables, stream
from sciml_monarch.pde.formats.sample_major import SampleMajor
from sciml_monarch.pde.readers import open_pairs, open_trajectories
from sciml_monarch.pde.synthetic import travelling_waves
from tests.pde.real_data import REAL, real_data
from tests.pde.wave_files import GRID, WAVES, N, T, save_npy


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
        source = open_trajectories(save_npy(tmp_path / "a.npy", WAVES[2]))
        assert source.n_trajectories == 1
        np.testing.assert_array_equal(source.read(0, 3, 5).numpy(), WAVES[2, 3:5, None])

    def test_fortran_order_and_float64(self, tmp_path):
        source = open_trajectories(save_npy(tmp_path / "a.npy", np.asfortranarray(WAVES.astype(np.float64))))
        np.testing.assert_array_equal(source.read(4, 3, 5).numpy(), WAVES[4, 3:5, None])

    @pytest.mark.parametrize(
        "values", [WAVES[0, 0], WAVES[None], WAVES * 1j, np.array(["a"])], ids=lambda v: str(v.dtype)
    )
    def test_other_arrays(self, tmp_path, values):
        with pytest.raises(InputError, match=r"a\.npy.*expected real numbers in \(T, x, y\)"):
            open_trajectories(save_npy(tmp_path / "a.npy", values))

    def test_named_field(self, tmp_path):
        with pytest.raises(InputError, match=r"the field 'u'"):
            open_trajectories(save_npy(tmp_path / "a.npy", WAVES), "u")

    @real_data
    def test_real_sample(self):
        source = open_trajectories(REAL / "fno_navier_stokes_sample.npy")
        assert (source.n_trajectories, source.n_times, source.grid) == (1, 50, (64, 64))
        expected = np.load(REAL / "fno_navier_stokes_sample.npy")[-1, ::4, ::4]
        np.testing.assert_array_equal(source.read(0, 49, 50, stride=4)[0, 0].numpy(), expected)
