import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.mri.coils import sigpy_espirit
from sciml_monarch.mri.espirit import _power_iteration, central, espirit, kernel_covariance, soft_weight
from sciml_monarch.mri.fourier import ifft2c
from tests.helpers import randn, relative_error
from tests.mri.phantoms import phantom, real_kspace


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


def test_central_keeps_the_origin():
    kspace = torch.zeros(9, 12)
    kspace[4, 6] = 1
    for window in ((4, 4), (5, 5), (9, 12), (3, 8)):
        block = central(kspace, window)
        assert block.shape == window
        assert block[window[0] // 2, window[1] // 2] == 1
