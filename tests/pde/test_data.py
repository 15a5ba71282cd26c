import pickle
from pathlib import Path

import h5py
import lightning as L
import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde import synthetic
from sciml_monarch.pde.data import Loader, PairData, TrajectoryData
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.pde.synthetic import WellField, travelling_waves
from sciml_monarch.pde.windows import ChannelMoments, Windows

N, T, GRID = 12, 9, (8, 8)
WAVES = travelling_waves(N, T, GRID)
REAL = Path(__file__).resolve().parents[2] / "../shared/data/pde"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/pde is not on this machine")


@pytest.fixture
def path(tmp_path):
    fields = {"vorticity": WellField(WAVES, unit="1/s")}
    return synthetic.write_well(tmp_path / "a.hdf5", fields, GRID, 0.5 * np.arange(T), N, {"viscosity": 1e-3})


def trajectory_data(path, n_train=6, n_val=2, n_test=3, n_history=3, n_steps=2, batch_size=4, **loader):
    return TrajectoryData(path, n_train, n_val, n_test, n_history, n_steps, batch_size, Loader(**loader))


def identify(history):
    """Which trajectories and first frames a batch of histories holds."""
    flat = WAVES.reshape(N * T, -1)
    found = [int(np.flatnonzero((flat == frame.numpy().ravel()).all(1))[0]) for frame in history[:, 0]]
    return [divmod(i, T) for i in found]


def order(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return [window for history, _ in loader for window in identify(history)]


both_ways = pytest.mark.parametrize("preload", [False, True], ids=["lazy", "preloaded"])


class TestTrajectoryData:
    @both_ways
    def test_batches(self, path, preload):
        data = trajectory_data(path, preload=preload)
        seen = []
        for history, target in data.train_dataloader():
            assert history.dtype == target.dtype == torch.float32
            assert history.shape == (len(history), 3, 1, *GRID)
            assert target.shape == (len(history), 2, 1, *GRID)
            assert history.is_contiguous()
            for (trajectory, start), h, t in zip(identify(history), history, target, strict=True):
                assert start == 0
                np.testing.assert_array_equal(h[:, 0].numpy(), WAVES[trajectory, :3])
                np.testing.assert_array_equal(t[:, 0].numpy(), WAVES[trajectory, 3:5])
                seen.append(trajectory)
        assert sorted(seen) == [0, 1, 2, 3, 4, 5]

    @both_ways
    def test_parts(self, path, preload):
        data = trajectory_data(path, preload=preload)
        data.setup("fit")
        val = [w for history, _ in data.val_dataloader() for w in identify(history)]
        test = [w for history, _ in data.test_dataloader() for w in identify(history)]
        predict = [w for history, _ in data.predict_dataloader() for w in identify(history)]
        assert val == [(7, 0), (8, 0)]
        assert test == predict == [(9, 0), (10, 0), (11, 0)]

    def test_test_part_does_not_depend_on_n_train(self, path):
        parts = [trajectory_data(path, n_train=n, n_val=v).test_dataloader() for n, v in ((1, 0), (9, 0), (3, 6))]
        histories = [torch.cat([history for history, _ in part]) for part in parts]
        assert torch.equal(histories[0], histories[1])
        assert torch.equal(histories[0], histories[2])

    @both_ways
    def test_all_windows(self, path, preload):
        data = trajectory_data(path, windows="all", preload=preload)
        windows = []
        for history, target in data.train_dataloader():
            for (trajectory, start), h, t in zip(identify(history), history, target, strict=True):
                np.testing.assert_array_equal(h[:, 0].numpy(), WAVES[trajectory, start : start + 3])
                np.testing.assert_array_equal(t[:, 0].numpy(), WAVES[trajectory, start + 3 : start + 5])
                windows.append((trajectory, start))
        assert sorted(windows) == [(i, s) for i in range(6) for s in range(T - 4)]
        assert len(list(data.val_dataloader())) == 1

    @both_ways
    def test_stride_and_longer_test(self, path, preload):
        data = trajectory_data(path, stride=4, test_steps=6, preload=preload)
        history, target = next(iter(data.test_dataloader()))
        assert history.shape == (3, 3, 1, 2, 2)
        np.testing.assert_array_equal(target[:, :, 0].numpy(), WAVES[9:, 3:9, ::4, ::4])
        assert next(iter(data.train_dataloader()))[1].shape[1] == 2
        assert data.description.grid == (2, 2)

    @both_ways
    def test_longer_validation_of_a_network_trained_on_single_steps(self, path, preload):
        data = trajectory_data(path, n_steps=1, val_steps=5, windows="all", preload=preload)
        assert next(iter(data.train_dataloader()))[1].shape[1] == 1
        _, target = next(iter(data.val_dataloader()))
        np.testing.assert_array_equal(target[:, :, 0].numpy(), WAVES[7:9, 3:8])
        # tested on what it is validated on, not on the single steps that it is trained on
        assert next(iter(data.test_dataloader()))[1].shape[1] == data.description.n_test_steps == 5
        asked = trajectory_data(path, n_steps=1, val_steps=5, test_steps=3, windows="all", preload=preload)
        assert next(iter(asked.test_dataloader()))[1].shape[1] == asked.description.n_test_steps == 3
        assert trajectory_data(path, val_steps=1).description.n_test_steps == 2  # not on less than it is trained on

    @both_ways
    @pytest.mark.parametrize("windows", ["first", "all"])
    def test_a_network_that_looks_at_fewer_frames_predicts_those_that_others_do(self, path, windows, preload):
        data = trajectory_data(path, n_history=1, known_frames=3, windows=windows, preload=preload)
        for part, trajectories in ((data.val_dataloader(), slice(7, 9)), (data.test_dataloader(), slice(9, 12))):
            ((history, target),) = part
            np.testing.assert_array_equal(history[:, :, 0].numpy(), WAVES[trajectories, 2:3])
            np.testing.assert_array_equal(target[:, :, 0].numpy(), WAVES[trajectories, 3:5])
        found = []
        for history, target in data.train_dataloader():
            for (trajectory, start), h, t in zip(identify(history), history, target, strict=True):
                np.testing.assert_array_equal(h[:, 0].numpy(), WAVES[trajectory, start : start + 1])
                np.testing.assert_array_equal(t[:, 0].numpy(), WAVES[trajectory, start + 1 : start + 3])
                found.append((trajectory, start))
        starts = range(T - 2) if windows == "all" else [2]
        assert sorted(found) == [(i, s) for i in range(6) for s in starts]
        mean, _ = data.statistics()
        used = WAVES[:6] if windows == "all" else WAVES[:6, 2:5]
        np.testing.assert_allclose(mean.numpy(), [used.mean()], rtol=1e-5, atol=1e-7)
        assert data.description.split["known_frames"] == 3
        assert (data.description.n_steps, data.description.n_test_steps) == (2, 2)

    def test_known_frames_that_do_not_fit(self, path):
        with pytest.raises(InputError, match="known_frames 2: the network sees n_history 3 of them"):
            trajectory_data(path, known_frames=2).setup()
        with pytest.raises(InputError, match=rf"known_frames {T - 1} \+ 2 steps of roll-out need {T + 1} times"):
            trajectory_data(path, known_frames=T - 1).setup()
        options = {"n_val": 0, "n_test": 0, "n_history": 1, "known_frames": T - 1}  # of all windows none needs them
        trajectory_data(path, windows="all", **options).setup()
        with pytest.raises(InputError, match=f"known_frames {T - 1} "):
            trajectory_data(path, **options).setup()

    def test_description(self, path):
        description = trajectory_data(path).description
        assert description.fields == ("vorticity",)
        assert description.units == ("1/s",)
        assert description.grid == GRID
        assert description.lengths == (1.0, 1.0)
        assert description.dt == 0.5
        assert (description.n_history, description.n_steps) == (3, 2)
        assert description.attributes["viscosity"] == 1e-3

    def test_field(self, tmp_path):
        fields = {"a": WellField(WAVES), "v": WellField(np.stack([WAVES, -WAVES], -1), order=1)}
        path = synthetic.write_well(tmp_path / "a.hdf5", fields, GRID, range(T), N)
        assert next(iter(trajectory_data(path).train_dataloader()))[0].shape[2] == 3
        data = trajectory_data(path, field="v")
        assert next(iter(data.train_dataloader()))[0].shape[2] == 2
        assert data.description.fields == ("v_x", "v_y")

    def test_folder(self, tmp_path):
        for number in range(3):
            values = WAVES[4 * number : 4 * number + 4]
            synthetic.write_well(
                tmp_path / f"shard_{number:04d}.hdf5", {"vorticity": WellField(values)}, GRID, range(T), 4
            )
        test = [w for history, _ in trajectory_data(tmp_path).test_dataloader() for w in identify(history)]
        assert test == [(9, 0), (10, 0), (11, 0)]

    @real_data
    def test_real_burgers(self):
        data = TrajectoryData(REAL / "burgers_train_16.pt", 100, 20, 50, n_history=1, n_steps=16, batch_size=50)
        history, target = next(iter(data.train_dataloader()))
        assert history.shape == (50, 1, 1, 16)
        assert target.shape == (50, 16, 1, 16)
        assert data.description.attributes["viscosity"] == pytest.approx(0.01)


class TestOrder:
    @both_ways
    def test_depends_on_seed_and_epoch_alone(self, path, preload):
        loader = trajectory_data(path, preload=preload).train_dataloader()
        epochs = [order(loader, epoch) for epoch in range(4)]
        resumed = trajectory_data(path, preload=preload).train_dataloader()
        torch.manual_seed(99)
        assert [order(resumed, epoch) for epoch in (2, 3, 1)] == [epochs[2], epochs[3], epochs[1]]
        assert len({tuple(epoch) for epoch in epochs}) > 1
        other_seed = trajectory_data(path, preload=preload, seed=10).train_dataloader()
        assert [order(other_seed, epoch) for epoch in range(4)] != epochs

    def test_ranks_share_the_global_batch(self, path):
        single = trajectory_data(path, batch_size=4).train_dataloader()
        single.sampler.set_epoch(1)
        ranks = []
        for rank in range(2):
            data = trajectory_data(path, batch_size=4)
            data.trainer = _Processes(2, rank)
            ranks.append(data.train_dataloader())
            ranks[-1].sampler.set_epoch(1)
        assert [len(history) for history, _ in ranks[0]] == [2, 1]
        for whole, *parts in zip(single, *ranks, strict=True):
            assert sorted(identify(whole[0])) == sorted(w for part in parts for w in identify(part[0]))

    def test_batch_that_the_ranks_cannot_share(self, path):
        data = trajectory_data(path, batch_size=3)
        data.trainer = _Processes(2, 0)
        with pytest.raises(InputError, match=r"batch_size 3 is the batch of all 2 processes.*multiple of 2"):
            data.train_dataloader()

    def test_drop_last(self, path):
        sizes = [len(history) for history, _ in trajectory_data(path, drop_last=True).train_dataloader()]
        assert sizes == [4]
        assert [len(history) for history, _ in trajectory_data(path).train_dataloader()] == [4, 2]
        with pytest.raises(InputError, match=r"drop_last with 6 training samples.*batches of 7"):
            trajectory_data(path, batch_size=7, drop_last=True).train_dataloader()

    def test_worker_processes(self, path):
        lazy, workers = trajectory_data(path), trajectory_data(path, n_workers=2)
        lazy.statistics(), workers.statistics()  # handles are open when the workers are forked
        for (h1, t1), (h2, t2) in zip(lazy.train_dataloader(), workers.train_dataloader(), strict=True):
            assert torch.equal(h1, h2)
            assert torch.equal(t1, t2)

    def test_samples_pickle_small(self, path):
        data = trajectory_data(path)
        next(iter(data.train_dataloader()))
        assert len(pickle.dumps(data.train_dataloader().dataset)) < 5000

    # Lightning advises worker processes on a machine with several cores; a small file does not need them.
    @pytest.mark.filterwarnings("ignore:.*does not have many workers")
    def test_lightning_sets_the_epoch_and_keeps_the_sampler(self, path, tmp_path):
        model = _Recorder()
        trainer = L.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, datamodule=trajectory_data(path, n_val=0))
        reference = trajectory_data(path, n_val=0).train_dataloader()
        assert model.seen == order(reference, 0) + order(reference, 1)


class _Processes:
    """The attributes of a trainer that the data modules use."""

    def __init__(self, world_size, global_rank):
        self.world_size, self.global_rank, self.limit_val_batches = world_size, global_rank, 1.0


class _Recorder(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen += identify(batch[0])
        return (self.scale * batch[0]).square().mean()

    def validation_step(self, batch, _):
        raise AssertionError("there is no validation part")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class TestStatistics:
    @both_ways
    def test_first_windows(self, path, preload):
        mean, std = trajectory_data(path, preload=preload).statistics()
        used = WAVES[:6, :5].astype(np.float64)
        assert mean.numpy() == pytest.approx([used.mean()], abs=1e-6)
        assert std.numpy() == pytest.approx([used.std()], rel=1e-6)

    def test_all_windows_count_each_frame_once(self, path):
        mean, std = trajectory_data(path, windows="all").statistics()
        assert mean.numpy() == pytest.approx([WAVES[:6].astype(np.float64).mean()], abs=1e-6)
        assert std.numpy() == pytest.approx([WAVES[:6].astype(np.float64).std()], rel=1e-6)

    def test_per_channel_with_a_constant_and_a_large_mean(self, tmp_path):
        fields = {
            "a": WellField(WAVES),
            "constant": WellField(np.full(GRID, 0.1), sample_varying=False, time_varying=False),
            "far": WellField(WAVES.astype(np.float64) + 1000),
        }
        path = synthetic.write_well(tmp_path / "a.hdf5", fields, GRID, range(T), N)
        mean, std = trajectory_data(path).statistics()
        used = WAVES[:6, :5].astype(np.float64)
        assert mean.tolist() == pytest.approx([used.mean(), 0.1, used.mean() + 1000], rel=1e-5)
        assert std.tolist() == pytest.approx([used.std(), 1.0, used.std()], rel=1e-4)

    def test_are_not_changed_through_the_result(self, path):
        data = trajectory_data(path)
        data.statistics()[0].fill_(7)
        assert data.statistics()[0] != 7

    def test_moments_merge(self):
        values = torch.randn(11, 2, 5, generator=torch.Generator().manual_seed(0)) + 1e4
        moments = ChannelMoments(2)
        for piece in values.split([1, 4, 6]):
            moments.add(piece)
        mean, std = moments.result()
        assert torch.allclose(mean.double(), values.double().mean((0, 2)), rtol=1e-7)
        assert torch.allclose(std.double(), values.double().std((0, 2), correction=0), rtol=1e-6)


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
