import pickle

import lightning as L
import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.pde import synthetic
from sciml_monarch.pde.data import TrajectoryData
from sciml_monarch.pde.synthetic import WellField
from sciml_monarch.pde.windows import ChannelMoments
from tests.pde import wave_data
from tests.pde.real_data import REAL, real_data
from tests.pde.wave_data import GRID, WAVES, N, T, both_ways, trajectory_data

path = wave_data.path  # a fixture; imported by its name, it would be unused to Ruff


def identify(history):
    """Which trajectories and first frames a batch of histories holds."""
    flat = WAVES.reshape(N * T, -1)
    found = [int(np.flatnonzero((flat == frame.numpy().ravel()).all(1))[0]) for frame in history[:, 0]]
    return [divmod(i, T) for i in found]


def order(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return [window for history, _ in loader for window in identify(history)]


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
