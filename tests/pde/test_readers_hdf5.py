import h5py
import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde import synthetic
from sciml_monarch.pde.readers import open_pairs, open_trajectories
from sciml_monarch.pde.synthetic import WellField, travelling_waves
from tests.pde.wave_files import GRID, WAVES, N, T, two_shards, write_scalar_well


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
        two_shards(tmp_path)
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
