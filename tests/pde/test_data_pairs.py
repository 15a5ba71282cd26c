import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde import synthetic
from sciml_monarch.pde.data import Loader, PairData
from sciml_monarch.pde.synthetic import travelling_waves
from tests.pde.real_data import REAL, real_data
from tests.pde.wave_data import GRID, WAVES, both_ways


class TestPairData:
    @pytest.fixture
    def paths(self, tmp_path):
        fine = travelling_waves(10, 2, (16, 16))
        train = synthetic.write_neuralop_darcy(tmp_path / "train.pt", WAVES[:, 0] > 0, WAVES[:, 1])
        other = synthetic.write_neuralop_darcy(tmp_path / "test_16.pt", fine[:, 0] > 0, fine[:, 1])
        return train, other

    @both_ways
    def test_batches(self, paths, preload):
        data = PairData(paths[0], paths, n_train=7, n_val=3, n_test=5, batch_size=4, loader=Loader(preload=preload))
        inputs, targets = (torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True))
        assert inputs.shape == targets.shape == (7, 1, 1, *GRID)
        first = torch.tensor(WAVES[:7, 1])
        matches = (targets[:, 0] == first[:, None].transpose(0, 1)).flatten(2).all(-1)
        assert matches.sum(0).tolist() == [1] * 7
        for row, pair in enumerate(matches.int().argmax(1).tolist()):
            np.testing.assert_array_equal(inputs[row, 0, 0].numpy(), WAVES[pair, 0] > 0)
        (val,) = data.val_dataloader()
        np.testing.assert_array_equal(val[1][:, 0, 0].numpy(), WAVES[-3:, 1])
        coarse, fine = data.test_dataloader()
        assert torch.cat([t for _, t in coarse]).shape == (5, 1, 1, *GRID)
        assert torch.cat([t for _, t in fine]).shape == (5, 1, 1, 16, 16)

    def test_statistics_and_description(self, paths):
        data = PairData(*paths[:1], paths[1:], n_train=7, loader=Loader(stride=2))
        mean, std = data.statistics()
        assert mean.item() == pytest.approx((WAVES[:7, 0, ::2, ::2] > 0).mean(), abs=1e-6)
        assert std.item() == pytest.approx((WAVES[:7, 0, ::2, ::2] > 0).std(), abs=1e-6)
        mean, std = data.target_statistics()
        assert std.item() == pytest.approx(WAVES[:7, 1, ::2, ::2].std(), abs=1e-6)
        description = data.description
        assert (description.fields, description.grid, description.lengths) == (("y",), (4, 4), (1.0, 1.0))
        assert (description.dt, description.n_history, description.n_steps) == (0.0, 1, 1)
        assert description.attributes["input_fields"] == "x"

    def test_errors(self, paths, tmp_path):
        with pytest.raises(InputError, match=r"n_train 11 \+ n_val 2 = 13 pairs.*has 12"):
            PairData(paths[0], [], n_train=11, n_val=2).setup()
        with pytest.raises(InputError, match=r"n_test 11: .*test_16\.pt has 10 pairs"):
            PairData(paths[0], paths[1:], n_train=1, n_test=11).setup()
        with pytest.raises(InputError, match=r"test_paths is empty"):
            PairData(paths[0], [], n_train=1).test_dataloader()
        with pytest.raises(InputError, match=r"n_train 0: there are no pairs"):
            PairData(paths[0], [], n_train=0).train_dataloader()
        with pytest.raises(InputError, match=r"pairs have none"):
            PairData(paths[0], [], n_train=1, loader=Loader(windows="all"))
        with pytest.raises(InputError, match="known_frames and field select parts of trajectories"):
            PairData(paths[0], [], n_train=1, loader=Loader(known_frames=3))
        burgers = synthetic.write_neuralop_burgers(tmp_path / "b.pt", travelling_waves(3, 4, (8,)))
        with pytest.raises(InputError, match=r"train\.pt has .* on 2 axes, .*b\.pt has .* on 1"):
            PairData(paths[0], [burgers], n_train=1).setup()

    @real_data
    def test_real_darcy_at_two_resolutions(self):
        tests = [REAL / "darcy_test_16.pt", REAL / "darcy_test_32.pt"]
        data = PairData(REAL / "darcy_train_16.pt", tests, n_train=900, n_val=100, loader=Loader(preload=True))
        assert sum(len(inputs) for inputs, _ in data.train_dataloader()) == 900
        shapes = [next(iter(loader))[1].shape for loader in data.test_dataloader()]
        assert shapes == [(20, 1, 1, 16, 16), (20, 1, 1, 32, 32)]
