import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.mri import coils
from sciml_monarch.mri.coil_cache import MapCache, content_key
from sciml_monarch.mri.coils import CoilMaps, sigpy_espirit
from sciml_monarch.mri.espirit import espirit
from tests.helpers import randn
from tests.mri.phantoms import phantom, real_kspace


class FakeScan:
    path = Path("brain.h5")

    def __init__(self, maps=None):
        self._maps = maps

    def maps(self, index):
        return self._maps


def columns(n, n_center):
    mask = torch.arange(n)[None] % 3 == 0
    mask[:, n // 2 - n_center // 2 : n // 2 - n_center // 2 + n_center] = True
    return mask


def test_coil_maps_take_the_sampled_centre():
    kspace, _, _ = phantom((48, 60), 6)
    mask = columns(60, 13)
    masked = torch.where(mask, kspace[0], 0)
    maps = CoilMaps()(FakeScan(), 0, masked, mask)
    assert maps.shape == (1, 6, 48, 60)
    assert torch.equal(maps, espirit(kspace, (24, 13))[0])
    whole = CoilMaps(crop=0.8, n_sets=2)(FakeScan(), 0, kspace[0], torch.ones(48, 60, dtype=torch.bool))
    assert torch.equal(whole, espirit(kspace, 24, crop=0.8, n_sets=2)[0])
    square = CoilMaps("sigpy")(FakeScan(), 0, masked, mask)
    assert torch.equal(square, sigpy_espirit(kspace, 13)[0])
    assert torch.equal(CoilMaps(calibration=(20, 12))(FakeScan(), 0, masked, mask), espirit(kspace, (20, 12))[0])


def test_coil_maps_from_the_scan():
    kspace, maps, _ = phantom((20, 24), 3)
    mask = torch.ones(1, 24, dtype=torch.bool)
    two = torch.stack((maps, 0 * maps))
    assert torch.equal(CoilMaps("file")(FakeScan(two), 0, kspace[0], mask), two[:1])
    assert torch.equal(CoilMaps("file", n_sets=2)(FakeScan(two), 0, kspace[0], mask), two)
    for given, message in (
        (None, "brain.h5, slice 4: the scan brings no coil maps"),
        (maps[None, :2], r"\(1, 2, 20, 24\) do not match k-space \(3, 20, 24\)"),
        (maps[None, ..., :-1], r"\(1, 3, 20, 23\) do not match"),
        (torch.full_like(maps[None], torch.nan), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            CoilMaps("file")(FakeScan(given), 4, kspace[0], mask)


def test_a_centre_that_is_too_small_is_named(tmp_path):
    kspace, _, _ = phantom((48, 60), 4)
    for cache in (None, tmp_path):
        with pytest.raises(InputError, match=r"brain.h5, slice 2: .*48 x 4, is smaller than the 6 x 6 kernel"):
            CoilMaps(cache=cache)(FakeScan(), 2, kspace[0], columns(60, 4))
        with pytest.raises(InputError, match="24 x 24 reaches beyond the fully sampled centre of the mask, 48 x 13"):
            CoilMaps(calibration=24, cache=cache)(FakeScan(), 0, kspace[0], columns(60, 13))
        with pytest.raises(InputError, match="is zero in its 24 x 13 calibration region"):
            CoilMaps(cache=cache)(FakeScan(), 0, 0 * kspace[0], columns(60, 13))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pulseq_brain_16ch", None])
def test_maps_that_do_not_cover_the_object_are_said_and_useless_ones_refused(name, tmp_path):
    kspace = phantom((96, 80), 8)[0][0] if name is None else real_kspace(name)[0]
    nx = kspace.shape[-1]
    mask = columns(nx, 8)
    masked = torch.where(mask, kspace, 0)
    for how in (CoilMaps(), CoilMaps(cache=tmp_path)):
        message = (
            r"brain\.h5, slice 3: ESPIRiT's coil maps cover \d+% of the object; sample more of the centre of k-space"
        )
        with pytest.raises(InputError, match=rf"{message} \(its calibration region is 24 x 8 points\), lower crop"):
            how(FakeScan(), 3, masked, mask)
    assert not list(tmp_path.rglob("*.maps"))
    n_center = 9 if name is None else 10
    mask = columns(nx, n_center)
    masked = torch.where(mask, kspace, 0)
    for how in (CoilMaps(), CoilMaps(cache=tmp_path), CoilMaps(cache=tmp_path)):  # kept maps are warned of too
        with pytest.warns(UserWarning, match=r"^brain\.h5: ESPIRiT's coil maps cover less than [6-9]0% of the object"):
            maps = how(FakeScan(), 0, masked, mask)
    assert 0.5 <= coils.coverage(masked, maps, (24, n_center)) < 0.9
    CoilMaps(kernel=4, crop=0.8)(FakeScan(), 0, masked, mask)  # what the warning advises
    full = CoilMaps()(FakeScan(), 0, kspace, torch.ones(1, nx, dtype=torch.bool))
    assert coils.coverage(kspace, full, (24, 24)) > 0.97


def test_coverage_is_the_share_of_the_object():
    kspace, _, image = phantom((96, 160), 4)
    maps = torch.ones(1, 4, 96, 160)
    assert coils.coverage(kspace[0], maps, (24, 24)) == 1.0
    left = maps.clone()
    left[..., 80:] = 0
    assert coils.coverage(kspace[0], left, (24, 24)) == pytest.approx(0.5, abs=0.05)
    assert coils.coverage(kspace[0], 1.0 * (image.abs() == 0).expand(1, 4, -1, -1), (24, 24)) < 0.2
    assert coils.coverage(kspace[0], torch.cat([0 * maps, maps]), (24, 24)) == 1.0
    assert coils.coverage(kspace[0], 0 * maps, (24, 24)) == 0.0


def test_a_slice_of_noise_has_no_object_to_cover():
    for n_coils in (2, 8):
        noise = randn(n_coils, 96, 80, dtype=torch.complex64)
        assert coils.coverage(noise, torch.zeros(1, n_coils, 96, 80), (24, 12)) is None
        CoilMaps()(FakeScan(), 0, noise, columns(80, 12))


def test_cached_maps_are_found_by_content(tmp_path, monkeypatch):
    kspace, _, _ = phantom((48, 60), 4)
    kspace, mask = kspace[0], torch.ones(1, 60, dtype=torch.bool)
    how = CoilMaps(cache=tmp_path / "maps")
    calls = []
    monkeypatch.setattr(coils, "espirit", lambda *a, **k: calls.append(a) or espirit(*a, **k))
    first = how(FakeScan(), 0, kspace, mask)
    assert torch.equal(how(FakeScan(), 5, kspace.clone(), columns(60, 30)), first)  # same centre, other scan and mask
    assert len(calls) == 1
    outside = kspace.clone()
    outside[..., 0, 0] += 1  # not a point that maps depend on
    assert torch.equal(how(FakeScan(), 0, outside, mask), first)
    assert len(calls) == 1
    inside = kspace.clone()
    inside[..., 24, 30] *= 1.01
    changes = ({"crop": 0.9}, {"kernel": 5}, {"threshold": 0.03}, {"n_sets": 2}, {"soft": True}, {"calibration": 20})
    for other in (*(replace(how, **change) for change in changes), how):
        other(FakeScan(), 0, inside if other is how else kspace, mask)
    assert len(calls) == 1 + len(changes) + 1
    monkeypatch.setattr(coils, "version", lambda: "another")
    how(FakeScan(), 0, kspace, mask)
    assert len(calls) == 3 + len(changes)


def test_damaged_cache_entries_are_computed_anew(tmp_path):
    kspace, _, _ = phantom((32, 32), 3)
    kspace, mask = kspace[0], torch.ones(1, 32, dtype=torch.bool)
    how = CoilMaps(cache=tmp_path)
    expected = how(FakeScan(), 0, kspace, mask)
    (path,) = tmp_path.rglob("*.maps")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    for damaged in (b"", whole[:20], whole[:-8], bytes(flipped), b"x" * len(whole)):
        path.write_bytes(damaged)
        assert torch.equal(how(FakeScan(), 0, kspace, mask), expected)
        assert path.read_bytes() == whole
    assert list(tmp_path.rglob("*.maps")) == [path]
    assert not list(tmp_path.rglob(".*"))  # no temporary files


def test_a_cache_of_another_shape_or_in_an_impossible_place(tmp_path):
    cache = MapCache(tmp_path)
    maps = randn(1, 2, 4, 4, dtype=torch.complex64)
    key = content_key(maps, "options")
    assert cache.get(key, (1, 2, 4, 4)) is None
    cache.put(key, maps)
    assert torch.equal(cache.get(key, (1, 2, 4, 4)), maps)
    assert cache.get(key, (1, 2, 4, 5)) is None
    assert key != content_key(maps, "other options") != content_key(maps.conj(), "other options")
    assert content_key(maps.mH, "") == content_key(maps.mH.resolve_conj().contiguous(), "")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        MapCache(tmp_path / "file").put(key, maps)


def read_maps(arguments):
    how, kspace, mask = pickle.loads(arguments)
    return how(FakeScan(), 0, torch.from_numpy(kspace), torch.from_numpy(mask)).numpy()


@pytest.mark.slow
def test_many_processes_share_a_cache(tmp_path):
    kspace, _, _ = phantom((32, 32), 3)
    how = CoilMaps(cache=tmp_path)
    arguments = pickle.dumps((how, kspace[0].numpy(), np.ones((1, 32), dtype=bool)))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(read_maps, [arguments] * 12))
    assert all(np.array_equal(result, results[0]) for result in results)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1
