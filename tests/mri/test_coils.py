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
from sciml_monarch.mri.coil_simulation import simulate_maps
from sciml_monarch.mri.coils import CoilMaps, sigpy_espirit
from sciml_monarch.mri.espirit import _power_iteration, central, espirit, kernel_covariance, soft_weight
from sciml_monarch.mri.fourier import fft2c, ifft2c
from tests.helpers import randn, relative_error

REAL = Path(__file__).resolve().parents[2] / "../shared/data/mri"


def real_kspace(name):
    path = REAL / f"{name}.npy"
    if not path.exists():
        pytest.skip(f"the measured k-space {name}.npy is not beside the checkout")
    return torch.from_numpy(np.load(path))[None]


def phantom(shape, n_coils, noise=1e-3, seed=0):
    """K-space of ellipses with simulated maps, and the maps and object."""
    y, x = (((torch.arange(n) - n // 2) / (n / 2)) for n in shape)
    y, x = y[:, None], x[None, :]
    image = ((y / 0.8) ** 2 + (x / 0.7) ** 2 < 1).float() + 0.5 * (((y - 0.2) / 0.3) ** 2 + (x / 0.2) ** 2 < 1)
    image = image * torch.exp(1j * (0.8 * y + 0.5 * x * y))
    maps = simulate_maps(shape, n_coils, seed)
    kspace = fft2c(maps * image)
    kspace = kspace + noise * kspace.abs().max() * 1e-2 * randn(*kspace.shape, dtype=torch.complex64, seed=seed)
    return kspace[None].to(torch.complex64), maps, image


def compare(kspace, **options):
    ours, reference = espirit(kspace, **options)[:, 0], sigpy_espirit(kspace, **options)[:, 0]
    inside = reference.abs().sum(1) > 0
    here = ours.abs().sum(1) > 0
    # a pixel whose eigenvalue equals `crop` to rounding may fall on either side
    assert (inside != here).float().mean() < 1e-3
    difference = (ours - reference).abs().amax(1)[inside & here]
    assert inside.float().mean() > 0.2
    return difference


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pulseq_brain_16ch", {}),
        ("pulseq_phantom_16ch", {"calibration": 18, "kernel": 5, "crop": 0.8}),
        ("iraki_brain_16ch", {"crop": 0.9}),
    ],
)
def test_measured_data_gives_the_maps_of_sigpy(name, options):
    assert compare(real_kspace(name), **options).max() < 1e-3


@pytest.mark.parametrize(
    ("shape", "n_coils", "options"),
    [
        ((64, 64), 8, {}),
        ((65, 48), 12, {}),
        ((49, 81), 15, {"calibration": 21, "kernel": 5}),
        ((40, 64), 8, {"calibration": 16, "kernel": 4, "threshold": 0.05, "crop": 0.9}),
        ((48, 48), 8, {"calibration": 16, "kernel": 4, "n_iterations": 2, "crop": 0.5}),
        ((48, 48), 8, {"calibration": 16, "kernel": 4, "n_iterations": 7}),
        ((48, 40), 8, {"calibration": 16, "kernel": 4, "n_iterations": 30, "crop": 0.7}),
    ],
)
def test_phantoms_give_the_maps_of_sigpy(shape, n_coils, options):
    kspace, _, _ = phantom(shape, n_coils)
    assert compare(kspace, **options).max() < 1e-3


def test_maps_are_those_that_were_simulated():
    kspace, maps, image = phantom((96, 80), 10, noise=1e-4)
    found = espirit(kspace, crop=0.9)[0, 0]
    inside = (found.abs().sum(0) > 0) & (image.abs() > 0)
    assert inside.float().mean() > 0.4
    maps = maps * maps[:1].conj() / maps[:1].abs()
    error = (found - maps).abs().amax(0)[inside]
    assert error.median() < 0.01
    assert (error < 0.05).float().mean() > 0.98


def test_maps_are_normalised_and_the_first_coil_is_real():
    kspace, _, _ = phantom((64, 60), 8)
    for n_sets in (1, 2):
        maps = espirit(kspace, n_sets=n_sets, crop=0.9)
        assert maps.shape == (1, n_sets, 8, 64, 60)
        assert maps.dtype == torch.complex64
        energy = maps.abs().square().sum(2)
        assert torch.allclose(energy, (energy > 0.5).float(), atol=1e-5)
        assert maps[:, :, 0].imag.abs().max() < 1e-5
        assert maps[:, :, 0].real.min() > -1e-5


def test_a_batch_is_its_items_and_scale_does_not_matter():
    a, b = (phantom((48, 56), 6, seed=seed)[0] for seed in (0, 1))
    together = espirit(torch.cat((a, 1e-6 * b)))
    assert relative_error(together[0], espirit(a)[0]) < 1e-5
    assert relative_error(together[1], espirit(b)[0]) < 1e-4


def test_two_sets_where_the_object_folds_over():
    """A field of view that is too small: two spots with other sensitivities fall on one pixel."""
    kspace, _, _ = phantom((96, 96), 8, noise=1e-4)
    folded = kspace[..., ::2, :]  # half the field of view along y
    one, two = espirit(folded, calibration=(24, 24)), espirit(folded, calibration=(24, 24), n_sets=2)
    assert torch.equal(one[:, 0], two[:, 0])
    both = two.abs().sum(2)[0] > 0
    assert both[1].float().mean() > 0.1  # the folded area
    overlap = (two[:, 0] * two[:, 1].conj()).sum(1).abs()
    assert overlap.max() < 1e-4

    def residual(maps):
        coil_images = ifft2c(folded)[:, None]
        image = (maps.conj() * coil_images).sum(2, keepdim=True)
        return relative_error((maps * image).sum(1), coil_images[:, 0])

    assert residual(two) < 0.25 * residual(one)
    assert residual(two) < 0.1


def test_squaring_gives_the_steps_of_a_power_iteration():
    matrices = randn(200, 6, 6, dtype=torch.complex64)
    matrices = matrices @ matrices.mH / 40
    values = torch.linalg.eigvalsh(matrices.to(torch.complex128))
    vector, value = _power_iteration(matrices, torch.ones(200, 6, 1, dtype=torch.complex64), 4000)
    assert torch.allclose(value[:, 0, 0].double(), values[:, -1], rtol=1e-4)
    slow = torch.ones(200, 6, 1, dtype=torch.complex128)
    for n in range(1, 101):
        slow = matrices.to(torch.complex128) @ slow
        norm = slow.norm(dim=1, keepdim=True)
        slow = slow / norm
        if n in (1, 2, 3, 10, 64, 99, 100):
            vector, value = _power_iteration(matrices, torch.ones(200, 6, 1, dtype=torch.complex64), n)
            assert relative_error(vector.to(torch.complex128), slow) < 2e-5, n
            if n > 1:  # the first norm is that of ones, not of a unit vector
                assert relative_error(value, norm) < 1e-5, n


def test_kernel_covariance_is_the_sum_over_kernels_of_sigpy():
    """Against its definition: the autocorrelation of the kept right singular vectors."""
    block = randn(1, 3, 9, 11, dtype=torch.complex64)
    for k, threshold in ((3, 0.3), (5, 0.3)):  # more rows than columns, and fewer
        lags = kernel_covariance(block, k, threshold)[0]
        patches = block[0].unfold(1, k, 1).unfold(2, k, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3 * k * k)
        _, s, vh = torch.linalg.svd(patches.to(torch.complex128), full_matrices=False)
        kernels = vh[s > threshold * s[0]].reshape(-1, 3, k, k)
        assert 0 < len(kernels) < len(s)
        expected = torch.zeros(3, 3, 2 * k - 1, 2 * k - 1, dtype=torch.complex128)
        for jy in range(k):
            for jx in range(k):
                for ly in range(k):
                    for lx in range(k):
                        product = torch.einsum("nc,nd->cd", kernels[..., jy, jx], kernels[..., ly, lx].conj())
                        expected[..., jy - ly + k - 1, jx - lx + k - 1] += product / k**2
        assert relative_error(lags, expected) < 1e-5


def test_soft_maps_fade_and_keep_the_directions():
    kspace, _, _ = phantom((64, 64), 8)
    hard, soft = espirit(kspace, crop=0.9)[0, 0], espirit(kspace, crop=0.9, soft=True)[0, 0]
    weight = soft.abs().square().sum(0).sqrt()
    assert ((weight > 0.1) & (weight < 0.9)).any()
    assert weight.max() <= 1 + 1e-5
    inside = hard.abs().sum(0) > 0
    assert relative_error(soft[:, inside], hard[:, inside] * weight[inside]) < 1e-5
    values = torch.tensor([0.0, 0.64, 0.81, 1.0])
    assert torch.allclose(soft_weight(values, 0.9), torch.tensor([0.0, 0.0, 0.5, 1.0]), atol=1e-6)
    assert (soft_weight(torch.linspace(0, 1, 50), 0.7).diff() >= 0).all()


def test_precision_of_products_is_a_matter_of_espirit_alone():
    kspace, _, _ = phantom((48, 48), 6)
    expected = espirit(kspace)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(espirit(kspace), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda k: k.fill_(0), {}, "k-space 0 of the batch is zero"),
        (lambda k: k[0, 2, 3, 4].fill_(float("nan")), {}, "k-space 0 of the batch holds NaN"),
        (lambda k: k[0, 2, 3, 4].fill_(float("inf")), {}, "NaN or infinity"),
        (lambda k: None, {"calibration": 41}, "41 x 41 does not lie between the kernel, 6 x 6, and k-space, 40 x 44"),
        (lambda k: None, {"calibration": (24, 5)}, "24 x 5"),
        (lambda k: None, {"crop": 1.5}, "crop=1.5"),
        (lambda k: None, {"threshold": 1.0}, "threshold=1.0"),
        (lambda k: None, {"n_sets": 5}, "n_sets=5 must lie between 1 and the 4 coils"),
        (lambda k: None, {"n_iterations": 0}, "n_iterations=0"),
    ],
)
@pytest.mark.parametrize("estimate", [espirit, sigpy_espirit])
def test_bad_input_is_named(estimate, change, options, message):
    kspace, _, _ = phantom((40, 44), 4)
    change(kspace)
    with pytest.raises(InputError, match=message):
        estimate(kspace, **options)


def test_what_sigpy_does_not_have_is_named():
    kspace, _, _ = phantom((40, 44), 4)
    with pytest.raises(InputError, match="square calibration region, not 24 x 20"):
        sigpy_espirit(kspace, (24, 20))
    with pytest.raises(InputError, match="one set of maps"):
        sigpy_espirit(kspace, n_sets=2)
    with pytest.raises(InputError, match=r"must be \(b, coil, y, x\) and complex"):
        espirit(kspace[0])


@pytest.mark.cuda
def test_a_gpu_gives_the_same_maps():
    kspace, _, _ = phantom((128, 96), 12)
    assert relative_error(espirit(kspace.cuda(), n_sets=2).cpu(), espirit(kspace, n_sets=2)) < 1e-3


def residual_and_noise(kspace, maps):
    """||x - S S^H x|| / ||x|| over the coil images x where maps are not zero, and what noise alone would leave."""
    images = ifft2c(kspace)
    expressed = (maps * (maps.conj() * images[:, None]).sum(2, keepdim=True)).sum(1)
    inside = (maps[:, 0].abs().sum(1) > 0).float()
    energy = (images.abs().square().sum(1) * inside).sum()
    left = ((images - expressed).abs().square().sum(1) * inside).sum()
    n = kspace.shape[-1] // 16
    noise = kspace[..., :n, :n].abs().square().mean()  # of a corner of k-space
    return (left / energy).sqrt(), (noise * inside.sum() * (kspace.shape[1] - 1) / energy).sqrt()


def test_measured_brain_is_consistent_with_its_maps():
    """One object seen through the maps explains the 16 measured coil images, up to the noise of the scan."""
    kspace = real_kspace("pulseq_brain_16ch")
    residual, noise = residual_and_noise(kspace, espirit(kspace))
    assert 0.9 * noise < residual < 1.05 * noise
    assert residual_and_noise(kspace, espirit(kspace, crop=0.0))[0] < 0.16
    other, noise = residual_and_noise(kspace, espirit(real_kspace("pulseq_phantom_16ch")))
    assert other > 2 * noise  # the maps of another object do not


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


def test_central_keeps_the_origin():
    kspace = torch.zeros(9, 12)
    kspace[4, 6] = 1
    for window in ((4, 4), (5, 5), (9, 12), (3, 8)):
        block = central(kspace, window)
        assert block.shape == window
        assert block[window[0] // 2, window[1] // 2] == 1
