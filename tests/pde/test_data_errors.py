import h5py
import numpy as np
import pytest

from sciml_monarch.errors import InputError
from sciml_monarch.pde import synthetic
from sciml_monarch.pde.data import Loader
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.pde.synthetic import WellField
from sciml_monarch.pde.windows import Windows
from tests.pde import wave_data
from tests.pde.wave_data import GRID, WAVES, N, T, trajectory_data

path = wave_data.path  # a fixture; imported by its name, it would be unused to Ruff


class TestErrors:
    def test_overlap(self, path):
        with pytest.raises(
            InputError,
            match=r"n_train 8 \+ n_val 2 \+ n_test 3 = 13 .*a\.hdf5 "
            "has 12.*overlap",
        ):
            trajectory_data(path, n_train=8).setup()

    @pytest.mark.parametrize("steps", [{"n_steps": 7}, {"test_steps": 7}, {"val_steps": 7}], ids=str)
    def test_too_few_times(self, path, steps):
        with pytest.raises(
            InputError,
            match=r"n_history 3 \+ 7 steps of roll-out need 10 "
            r"times.*a\.hdf5 has 9",
        ):
            trajectory_data(path, **steps).setup()

    def test_test_steps_matter_only_with_a_test_part(self, path):
        trajectory_data(path, n_test=0, test_steps=7).setup()
        trajectory_data(path, n_val=0, n_test=0, val_steps=7).setup()
        trajectory_data(path, n_val=0, val_steps=7, test_steps=2).setup()
        data = trajectory_data(path, n_steps=6)
        data.setup()
        assert next(iter(data.train_dataloader()))[1].shape[1] == 6

    def test_stride(self, path):
        with pytest.raises(InputError, match=r"stride 3 does not divide the grid \(8, 8\)"):
            trajectory_data(path, stride=3).setup()

    def test_uneven_times(self, tmp_path):
        times = np.arange(T) ** 1.5
        path = synthetic.write_well(tmp_path / "a.hdf5", {"w": WellField(WAVES)}, GRID, times, N)
        with pytest.raises(InputError, match=r"a\.hdf5: the times are not evenly spaced"):
            trajectory_data(path).setup()

    def test_times_rounded_to_float32_are_even(self, tmp_path):
        path = synthetic.write_well(tmp_path / "a.hdf5", {"w": WellField(WAVES)}, GRID, 0.1 * np.arange(T), N)
        assert trajectory_data(path).description.dt == 0.1

    def test_unknown_field(self, path):
        with pytest.raises(InputError, match=r"'pressure'.*vorticity"):
            trajectory_data(path, field="pressure").setup()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"n_train": -1},
            {"n_history": 0},
            {"n_steps": 0},
            {"batch_size": 0},
            {"n_workers": -1},
            {"stride": 0},
        ],
        ids=str,
    )
    def test_numbers_out_of_range(self, path, wrong):
        name, value = next(iter(wrong.items()))
        with pytest.raises(InputError, match=rf"{name} {value}: must be"):
            trajectory_data(path, **wrong)

    def test_loader_options(self):
        with pytest.raises(InputError, match=r"windows 'some'"):
            Loader(windows="some")
        with pytest.raises(InputError, match=r"set n_workers 0"):
            Loader(preload=True, n_workers=2)
        with pytest.raises(InputError, match=r"preload 'gpu': must be true, false or 'device'"):
            Loader(preload="gpu")
        with pytest.raises(InputError, match=r"test_steps 0: must be 1"):
            Loader(test_steps=0)
        with pytest.raises(InputError, match=r"val_steps 0: must be 1"):
            Loader(val_steps=0)

    def test_empty_parts(self, path):
        data = trajectory_data(path, n_train=0, n_val=0, n_test=0)
        assert data.val_dataloader() == []
        for part in (data.train_dataloader, data.test_dataloader, data.statistics):
            with pytest.raises(InputError, match=r"n_(train|test) 0: there are no trajectories"):
                part()

    def test_damaged_file_is_found_at_setup(self, path):
        with h5py.File(path, "r+") as file:
            file["t0_fields/vorticity"][0, 0, 1, 1] = np.nan
        with pytest.raises(InputError, match=r"nan in trajectory 0 at time index 0"):
            trajectory_data(path).setup()

    def test_window_out_of_range(self, path):
        windows = Windows(open_trajectories(path), range(2), 3, 2)
        assert windows[1][0].shape == (3, 1, *GRID)
        for index in (2, -1):
            with pytest.raises(IndexError, match=f"window {index} of 2"):
                windows[index]
