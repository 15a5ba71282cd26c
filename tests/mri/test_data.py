from collections import Counter
from dataclasses import dataclass

import h5py
import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.mri.base import magnitude, rss
from sciml_monarch.mri.batches import Acquisition, acceleration, sampling
from sciml_monarch.mri.classical import zero_filled_sense
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.data import Loader, MRIData, spread
from sciml_monarch.mri.description import Description
from sciml_monarch.mri.formats.base import Scan, center_crop
from sciml_monarch.mri.masks import EquispacedFractionMask, Mask, PoissonMask, RandomMask, seed_of
from sciml_monarch.mri.readers import open_scans
from sciml_monarch.mri.sampler import ShapeBatches
from sciml_monarch.mri.volumes import Undersampling
from sciml_monarch.mri.writing import write_npy, write_skmtea
from tests.mri.scans import make_scan, write_scan

MASK = RandomMask((3.0,), (0.125,))
FILE = CoilMaps(source="file")


def data(folder, **options):
    return MRIData(folder / "train", folder / "val", **{"mask": MASK, "maps": FILE, **options})


def epoch(loader, number=0):
    loader.sampler.set_epoch(number)
    return list(loader)


def places(batches):
    return [(name, int(i)) for batch in batches for name, i in zip(batch.name, batch.index, strict=True)]


def test_a_batch_is_what_the_files_hold_undersampled(scan_folder):
    batches = epoch(data(scan_folder, batch_size=2).train_dataloader())
    assert sorted(places(batches)) == [(f"train_{v}", i) for v in range(3) for i in range(3)]
    for batch in batches:
        b, _, ny, nx = batch.kspace.shape
        assert b <= 2
        assert batch.kspace.dtype == batch.maps.dtype == torch.complex64
        assert batch.mask.shape == (b, 1, 1, nx)
        assert batch.mask.dtype == torch.bool
        assert batch.maps.shape == (b, 1, 4, ny, nx)
        assert batch.target.shape == (b, nx, nx)
        for i, (name, index) in enumerate(places([batch])):
            scan = open_scans(scan_folder / "train" / f"{name}.h5")[0]
            full, mask = scan.kspace(index), batch.mask[i, 0]
            assert torch.equal(batch.kspace[i], full.where(mask, torch.zeros(())))
            assert 0.15 < mask.float().mean() < 0.7
            assert torch.equal(batch.target[i], scan.target(index))
            assert torch.equal(batch.maps[i], scan.maps(index))
            highest = max(float(scan.target(j).max()) for j in range(3))
            assert batch.maximum[i] == pytest.approx(highest, rel=1e-6)


def test_slices_of_other_shape_or_coils_never_share_a_batch(tmp_path):
    for i, (nx, n_coils) in enumerate([(32, 4), (28, 4), (32, 3), (32, 4)]):
        scan = make_scan(2, (48, nx), n_coils, seed=i)
        write_scan(tmp_path / f"{i}.h5", scan, crop=(24, 24))
    batches = epoch(MRIData(tmp_path, mask=MASK, batch_size=3).train_dataloader())
    assert sorted(len(b.name) for b in batches) == [1, 2, 2, 3]
    assert sorted({tuple(b.kspace.shape[1:]) for b in batches}) == [(3, 48, 32), (4, 48, 28), (4, 48, 32)]
    assert len(places(batches)) == len(set(places(batches))) == 8


def test_order_and_masks_depend_on_seed_and_epoch_alone(scan_folder):
    def run(number, **loader):
        batches = epoch(data(scan_folder, loader=Loader(**loader)).train_dataloader(), number)
        return places(batches), {p: b.mask for p, b in zip(places(batches), batches, strict=True)}

    first, again, next_epoch, other = run(0), run(0), run(1), run(0, seed=1)
    assert first[0] == again[0]
    assert first[0] != next_epoch[0]
    assert first[0] != other[0]
    assert all(torch.equal(first[1][p], again[1][p]) for p in first[1])
    assert any(not torch.equal(first[1][p], next_epoch[1][p]) for p in first[1])
    assert any(not torch.equal(first[1][p], other[1][p]) for p in first[1])
    masks = [first[1]["train_0", i] for i in range(3)]
    assert not (torch.equal(masks[0], masks[1]) and torch.equal(masks[1], masks[2]))


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_workers_change_nothing(scan_folder):
    def run(n_workers):
        loader = data(scan_folder, loader=Loader(n_workers=n_workers)).train_dataloader()
        return [*epoch(loader, 0), *epoch(loader, 1)]

    alone, helped = run(0), run(2)
    assert places(alone) == places(helped)
    assert all(torch.equal(a.kspace, b.kspace) for a, b in zip(alone, helped, strict=True))


def test_validation_masks_are_those_of_fastmri_for_the_name_of_the_file(scan_folder):
    source = data(scan_folder)
    for batch in [
        *source.val_dataloader(),
        *epoch(data(scan_folder, loader=Loader(fixed_mask=True)).train_dataloader()),
    ]:
        expected = MASK(batch.kspace.shape[-2:], seed_of(f"{batch.name[0]}.h5"))
        assert torch.equal(batch.mask[0, 0], expected)
    assert places(source.val_dataloader()) == [("val_0", 0), ("val_0", 1), ("val_1", 0), ("val_1", 1)]


def test_columns_that_were_not_encoded_are_never_sampled(tmp_path):
    scan = make_scan(1, (32, 32))
    scan.kspace[..., :4] = scan.kspace[..., 28:] = 0
    write_scan(tmp_path / "padded.h5", scan, padding=(4, 28))
    read = open_scans(tmp_path / "padded.h5")[0]
    assert read.padding == (4, 28)
    full = sampling(read, None, 0)
    assert full[0].tolist() == [4 <= i < 28 for i in range(32)]
    assert acceleration(full, read.acquired) == 1.0
    batch = next(iter(MRIData(tmp_path, mask=MASK).train_dataloader()))
    assert not batch.mask[..., :4].any()
    assert not batch.mask[..., 28:].any()
    assert batch.mask.any()


def test_targets(scan_folder):
    name = scan_folder / "val" / "val_0.h5"
    scan = open_scans(name)[0]
    kspace, full = scan.kspace(1), torch.ones(1, 32, dtype=torch.bool)
    found = {}
    for target in ("reference", "rss", "sense"):
        found[target] = Acquisition(MASK, None, FILE, target, 0, True).reference(scan, 1)
    assert torch.equal(found["reference"], scan.target(1))
    torch.testing.assert_close(found["rss"], center_crop(rss(kspace[None])[0], (32, 32)))
    sense = magnitude(zero_filled_sense(kspace[None], full[None, None], scan.maps(1)[None]))[0]
    torch.testing.assert_close(found["sense"], center_crop(sense, (32, 32)))
    assert not torch.equal(found["sense"], found["rss"])
    rows = list(MRIData(scan_folder / "val", mask=MASK, maps=FILE, target="sense").train_dataloader())
    peaks = {n: max(float(b.target.max()) for b in rows if b.name[0] == n) for n in ("val_0", "val_1")}
    assert all(float(b.maximum) == pytest.approx(peaks[b.name[0]], rel=0.02) for b in rows)


class Reads:
    """Counts what is read of scans."""

    def __init__(self, monkeypatch):
        self.counts = Counter()
        for kind in ("kspace", "target", "maps"):
            original = getattr(Scan, kind)

            def read(scan, index, kind=kind, original=original):
                self.counts[kind] += 1
                return original(scan, index)

            monkeypatch.setattr(Scan, kind, read)


@pytest.mark.parametrize("target", ["reference", "rss", "sense"])
@pytest.mark.parametrize("stored", [None, 2e-5, "big", float("nan"), True])
def test_the_maximum_of_a_volume_is_cheap(tmp_path, monkeypatch, target, stored):
    scan = make_scan(6, (32, 32))
    write_scan(tmp_path / "a.h5", scan, with_maps=True)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs.pop("max", None)
        if stored is not None:
            file.attrs["max"] = stored
    for slices in (None, (1, 3)):
        part = MRIData(tmp_path, mask=MASK, maps=FILE, target=target, loader=Loader(slices=slices)).part("train")
        reads = Reads(monkeypatch)
        batches = [part[0, [0]] for _ in range(3)]
        monkeypatch.undo()
        own = {"reference": {"kspace": 3, "target": 3, "maps": 3}, "rss": {"kspace": 6, "maps": 3}}
        expected = Counter(own.get(target, {"kspace": 6, "maps": 6}))
        expected.update({} if stored == 2e-5 else {"target": 6})  # one pass over the images, whatever the target
        assert reads.counts == expected
        peak = 2e-5 if stored == 2e-5 else float(scan.target.max())
        assert all(batch.maximum.item() == pytest.approx(peak, rel=1e-6) for batch in batches)


def test_the_maximum_of_a_volume_without_images_is_that_of_all_its_slices(tmp_path, monkeypatch):
    scan = make_scan(4, (32, 32))
    scan.kspace[2] *= 3
    kspace = scan.kspace.clone()
    kspace[3] = 0  # a damaged slice that is left out of the training does not matter
    write_npy(tmp_path / "raw.npy", kspace)
    part = MRIData(tmp_path, mask=MASK, loader=Loader(slices=(0, 1))).part("train")
    reads = Reads(monkeypatch)
    for _ in range(2):
        batch = part[0, [0]]
        assert batch.maximum.item() == pytest.approx(float(rss(scan.kspace[2:3]).max()), rel=1e-6)
    assert reads.counts["kspace"] == 2 + 2 + 4


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_maxima_found_by_a_worker_are_known_to_all(scan_folder):
    source = data(scan_folder, loader=Loader(n_workers=2))
    part = source.part("train")
    epoch(source.train_dataloader())
    expected = [max(float(scan.target(i).max()) for i in range(scan.n_slices)) for scan in part.scans]
    torch.testing.assert_close(part.maxima, torch.tensor(expected, dtype=torch.float64))


def test_poisson_masks_of_a_zero_filled_scan_have_the_acceleration_of_what_was_acquired(tmp_path):
    """SKM-TEA's shape, an eighth: 52 x 20 of 64 x 40 were acquired."""
    scan = make_scan(2, (64, 40))
    acquired = torch.zeros(64, 40, dtype=torch.bool)
    acquired[6:58, 10:30] = True
    kspace = torch.where(acquired, scan.kspace, 0)
    stored = {f"poisson_{r:.1f}x": PoissonMask(r, 6)((52, 20), 0) for r in (4.0, 8.0)}
    stored["odd_2.0x"] = stored["poisson_8.0x"]
    target = torch.ones(2, 1, 1, 64, 40, dtype=torch.complex64)
    write_skmtea(tmp_path / "knee.h5", kspace[:, None], scan.maps, target, stored)
    (read,) = open_scans(tmp_path / "knee.h5")
    assert read.acquired == (6, 58, 10, 30)
    for how in (Undersampling(PoissonMask(6.0, 6), None), Undersampling(None, "poisson_8.0x")):
        pattern = how.pattern(read)
        nominal = 6.0 if how.mask else 8.0
        assert not (pattern & ~acquired).any()
        assert acceleration(pattern, read.acquired) == pytest.approx(nominal, rel=0.02)
        assert int(pattern.sum()) == pytest.approx(52 * 20 / nominal, rel=0.02)
        assert how.nominal(read, pattern) == nominal
    wrong = Undersampling(None, "odd_2.0x")  # a name that does not hold is not believed
    assert wrong.nominal(read, wrong.pattern(read)) == pytest.approx(8.0, rel=0.02)
    columns = Undersampling(EquispacedFractionMask((4.0,), (0.1,)), None).pattern(read)
    whole = EquispacedFractionMask((4.0,), (0.1,))((64, 40), seed_of("knee.h5"))
    assert torch.equal(columns, whole & acquired)
    full = sampling(read, None, 0)
    assert torch.equal(full, acquired)
    assert acceleration(full, read.acquired) == 1.0
    source = MRIData(tmp_path, mask=PoissonMask(6.0, 6), maps=FILE)
    batch = next(iter(source.train_dataloader()))
    assert batch.mask.shape == (1, 1, 64, 40)
    assert source.description.acceleration == pytest.approx(6.0, rel=0.02)


def test_volumes_are_called_after_the_acceleration_that_their_mask_drew(tmp_path):
    scan = make_scan(1, (16, 160))
    how = Undersampling(EquispacedFractionMask((3.0, 4.0), (0.1, 0.08)), None)
    found = Counter()
    for i in range(8):
        write_scan(tmp_path / f"{i}.h5", scan)
        (read,) = open_scans(tmp_path / f"{i}.h5")
        pattern = how.pattern(read)
        found[how.nominal(read, pattern)] += 1
        assert how.nominal(read, pattern) == round(acceleration(pattern))
    assert set(found) == {3.0, 4.0}


def test_the_reference_falls_back_to_rss_where_the_file_has_none(tmp_path):
    scan = make_scan(2, (32, 32))
    write_npy(tmp_path / "raw.npy", scan.kspace)
    batch = next(iter(MRIData(tmp_path / "raw.npy", mask=MASK).train_dataloader()))
    torch.testing.assert_close(batch.target, rss(scan.kspace[batch.index]))
    assert batch.maximum.item() == pytest.approx(float(rss(scan.kspace).max()), rel=1e-5)


def test_masks_of_the_file(tmp_path):
    scan = make_scan(2, (32, 24))
    poisson = torch.rand(32, 24) < 0.4
    poisson[12:20, 8:16] = True
    write_skmtea(
        tmp_path / "knee.h5",
        scan.kspace[:, None],
        scan.maps,
        (scan.target[:, None, None] * (1 + 0j)).new_zeros(2, 1, 1, 32, 24) + 1e-5,
        {"poisson_2.0x": poisson},
    )
    source = MRIData(tmp_path, maps=FILE, loader=Loader(file_mask="poisson_2.0x"))
    batch = next(iter(source.train_dataloader()))
    assert torch.equal(batch.mask[0, 0], poisson)
    assert source.description.mask == {"file_mask": "poisson_2.0x"}
    assert source.description.acceleration == pytest.approx(32 * 24 / int(poisson.sum()))
    with pytest.raises(InputError, match=r"holds no mask 'poisson_9\.0x'; its masks: poisson_2\.0x"):
        next(iter(MRIData(tmp_path, loader=Loader(file_mask="poisson_9.0x")).train_dataloader()))


def test_an_undersampled_scan_keeps_its_pattern_and_cannot_be_trained_on_without_an_image(scan_folder):
    with pytest.raises(InputError, match=r"test_0\.h5: is undersampled and holds no image"):
        next(iter(MRIData(scan_folder / "test", mask=MASK).train_dataloader()))
    scan = open_scans(scan_folder / "test" / "test_0.h5")[0]
    assert torch.equal(sampling(scan, MASK, 0), scan.mask)


@dataclass(frozen=True)
class Wide(Mask):
    """A mask of a fixed width, as one from a file."""

    width: int = 20

    def __call__(self, shape, seed):
        return torch.ones(1, self.width, dtype=torch.bool)


def test_a_mask_of_another_width_is_refused(scan_folder):
    with pytest.raises(InputError, match=r"a mask of \(1, 20\) points does not fit k-space of 48 x"):
        next(iter(data(scan_folder, mask=Wide()).train_dataloader()))


def test_parts_are_limited(scan_folder):
    source = data(scan_folder, loader=Loader(n_train=1, n_val=2, slices=(-2, 3)))
    assert places(source.train_dataloader()) == [("train_1", 2)]
    assert places(source.val_dataloader()) == [("val_0", 1), ("val_1", 1)]
    assert spread([(0, i) for i in range(10)], 3) == [(0, 1), (0, 5), (0, 8)]
    with pytest.raises(InputError, match=r"n_train is 99, but .* has 9 slices"):
        data(scan_folder, loader=Loader(n_train=99)).train_dataloader()
    with pytest.raises(InputError, match="leave none"):
        data(scan_folder, loader=Loader(slices=(5, 9))).train_dataloader()


def test_description_says_what_was_trained_on(scan_folder):
    d = data(scan_folder, target="sense").description
    assert d.shapes == ((48, 28), (48, 32))
    assert d.n_coils == (4,)
    assert d.mask["class"] == "RandomMask"
    assert list(d.mask["accelerations"]) == [3.0]
    assert d.maps["source"] == "file"
    assert 1.5 < d.acceleration < 5
    assert (d.n_volumes, d.n_slices, d.acquisitions, d.target) == (3, 9, ("AXT2",), "sense")
    assert Description.from_dict(d.to_dict()) == d


@pytest.mark.parametrize("kind", ["truncated", "text", "no key", "no scans", "absent", "same name"])
def test_damaged_folders_are_named_before_training(kind, scan_folder, tmp_path):
    whole = (scan_folder / "train" / "train_0.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(whole)
    folder, message = tmp_path, "b.h5"
    if kind == "truncated":
        (tmp_path / "b.h5").write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        (tmp_path / "b.h5").write_text("<html>not found</html>")
    elif kind == "no key":
        import h5py

        with h5py.File(tmp_path / "b.h5", "w") as file:
            file["images"] = [1.0]
    elif kind == "no scans":
        folder, message = tmp_path / "empty", "empty"
        folder.mkdir()
    elif kind == "absent":
        folder, message = tmp_path / "nowhere", "nowhere"
    else:
        (tmp_path / "a.hdf5").write_bytes(whole)
        message = "two volumes are called a"
    with pytest.raises(InputError, match=message) as error:
        MRIData(folder, mask=MASK).setup()
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite_are_named(tmp_path):
    scan = make_scan(2, (32, 32))
    scan.kspace[1, 2, 3, 4] = float("nan")
    write_scan(tmp_path / "nan.h5", scan)
    with pytest.raises(InputError, match=r"nan\.h5: .*slice 1 "):
        epoch(MRIData(tmp_path, mask=MASK).train_dataloader())


def test_processes_share_batches():
    keys = ["a"] * 7 + ["b"] * 3
    alone = ShapeBatches(keys, 4, shuffle=True, seed=3)
    two = [ShapeBatches(keys, 4, shuffle=True, seed=3, world_size=2, rank=r) for r in range(2)]
    for sampler in (alone, *two):
        sampler.set_epoch(5)
    whole = [set(batch) for _, batch in alone]
    shares = list(zip(*two, strict=True))
    assert len(alone) == len(two[0]) == len(whole) == 3
    for batch, ((e, first), (_, second)) in zip(whole, shares, strict=True):
        assert e == 5
        assert len(first) == len(second)
        assert set(first) | set(second) == batch
    evaluation = [ShapeBatches(keys, 2, shuffle=False, world_size=2, rank=r) for r in range(2)]
    lists = [[batch for _, batch in sampler] for sampler in evaluation]
    assert len(lists[0]) == len(lists[1]) == len(evaluation[0]) == 3
    assert {i for batches in lists for batch in batches for i in batch} == set(range(10))
    with pytest.raises(InputError, match="use a multiple of 2"):
        ShapeBatches(keys, 3, shuffle=True, world_size=2)


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match="batch_size 0"):
        MRIData(batch_size=0)
    with pytest.raises(InputError, match=r"target sense .* maps is null"):
        MRIData(target="sense")
    with pytest.raises(InputError, match="n_workers -1"):
        Loader(n_workers=-1)
    with pytest.raises(InputError, match="n_train 0"):
        Loader(n_train=0)
    with pytest.raises(InputError, match="set train"):
        MRIData().train_dataloader()
