"""Metrics against fastMRI's and scikit-image's, against filters written out, and where they degenerate."""

import math

import numpy as np
import pytest
import torch
from fastmri import evaluate as oracle
from fastmri.losses import SSIMLoss
from scipy.ndimage import correlate
from skimage.metrics import structural_similarity

from sciml_monarch import InputError
from sciml_monarch.mri.fourier import fft2c
from sciml_monarch.mri.metrics import (
    data_consistency,
    hfen,
    nmse,
    psnr,
    residual_energy,
    ssim,
    ssim_map,
    ssim_per_slice,
)


def volumes(scale=1.0, shape=(3, 33, 40), dtype=np.float32):
    """A smooth bright disc with detail, slices of different brightness, and a noisy copy that is cut at zero."""
    generator = np.random.default_rng(5)
    y, x = np.meshgrid(np.linspace(-1, 1, shape[1]), np.linspace(-1, 1, shape[2]), indexing="ij")
    disc = (np.hypot(y, x) < 0.8) * (1 + 0.4 * np.sin(9 * x + 4 * y))
    target = disc * np.linspace(0.3, 1, shape[0])[:, None, None]
    prediction = np.abs(target + 0.05 * generator.standard_normal(shape))
    return (scale * target).astype(dtype), (scale * prediction).astype(dtype)


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e6])
@pytest.mark.parametrize("maximum", [None, 1.7])
def test_scores_are_those_of_fastmri(scale, maximum):
    target, prediction = volumes(scale)
    peak = None if maximum is None else maximum * scale
    assert nmse(target, prediction) == pytest.approx(float(oracle.nmse(target, prediction)), rel=1e-6)
    assert psnr(target, prediction, peak) == pytest.approx(float(oracle.psnr(target, prediction, peak)), abs=1e-6)
    assert ssim(target, prediction, peak) == pytest.approx(oracle.ssim(target, prediction, peak).item(), abs=1e-6)


def test_scores_in_double_precision_agree_to_rounding():
    target, prediction = volumes(dtype=np.float64)
    assert ssim(target, prediction) == pytest.approx(oracle.ssim(target, prediction).item(), abs=1e-13)
    _, picture = structural_similarity(target[1], prediction[1], data_range=target.max(), full=True)
    ours = ssim_map(*(torch.from_numpy(v[1:2]) for v in (target, prediction)), torch.tensor([target.max()]))
    np.testing.assert_allclose(ours[0], picture[3:-3, 3:-3], atol=1e-12)


def test_the_range_is_that_of_the_volume_and_not_of_the_slice():
    target, prediction = volumes()
    by_slice = np.mean([ssim(t[None], p[None]) for t, p in zip(target, prediction, strict=True)])
    assert abs(ssim(target, prediction) - by_slice) > 0.005
    assert ssim(target, prediction) == pytest.approx(
        np.mean([ssim(t[None], p[None], target.max()) for t, p in zip(target, prediction, strict=True)])
    )


def test_tensors_arrays_and_read_only_big_endian_arrays_score_the_same():
    target, prediction = volumes()
    foreign = prediction.astype(">f4")
    foreign.flags.writeable = False
    for metric in (nmse, psnr, ssim, hfen):
        expected = metric(target, prediction)
        assert metric(torch.from_numpy(target), torch.from_numpy(prediction)) == expected
        assert metric(target, foreign) == expected


def test_batched_ssim_is_fastmris_loss_gradients_included():
    target, prediction = (torch.from_numpy(v) for v in volumes())
    maximum = torch.tensor([1.4, 0.7, 0.2])
    ours, theirs = (prediction.clone().requires_grad_() for _ in range(2))
    loss = 1 - ssim_per_slice(target, ours, maximum).mean()
    reference = SSIMLoss()(target[:, None], theirs[:, None], maximum)
    torch.testing.assert_close(loss, reference, rtol=0, atol=1e-6)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-7)
    each = ssim_per_slice(target, prediction, maximum)
    assert each.shape == (3,)
    torch.testing.assert_close(ssim_per_slice(target[1:2], prediction[1:2], maximum[1:2]), each[1:2])


def test_float32_ssim_does_not_underflow_at_the_scale_of_scanners():
    target, prediction = (torch.from_numpy(v) for v in volumes())
    maximum = target.max().expand(3)
    small = ssim_per_slice(target * 1e-12, prediction * 1e-12, maximum * 1e-12)
    torch.testing.assert_close(small, ssim_per_slice(target, prediction, maximum), rtol=1e-5, atol=1e-5)


def test_hfen_is_the_relative_norm_of_the_filtered_error():
    target, prediction = volumes(dtype=np.float64)
    at = np.arange(-7, 8)
    y, x = np.meshgrid(at, at, indexing="ij")
    gaussian = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    kernel = (x**2 + y**2 - 2 * 1.5**2) * gaussian / (1.5**4 * gaussian.sum())
    kernel -= kernel.mean()
    filtered = [np.stack([correlate(s, kernel, mode="constant") for s in v]) for v in (target, prediction)]
    expected = np.linalg.norm(filtered[1] - filtered[0]) / np.linalg.norm(filtered[0])
    assert hfen(target, prediction) == pytest.approx(expected, rel=1e-10)
    assert hfen(target, 1.1 * target) == pytest.approx(0.1, rel=1e-10)


# Where they degenerate


def test_a_perfect_reconstruction():
    target, _ = volumes()
    assert (nmse(target, target), psnr(target, target), hfen(target, target)) == (0, math.inf, 0)
    assert ssim(target, target) == pytest.approx(1, abs=1e-12)


def test_a_constant_target():
    target = np.full((2, 9, 9), 2.0)
    assert nmse(target, target + 1) == pytest.approx(0.25)
    assert psnr(target, target + 1) == pytest.approx(10 * math.log10(4))
    expected = (2 * 2 * 3 + 4e-4) / (4 + 9 + 4e-4)  # no variance: only the means count
    assert ssim(target, target + 1) == pytest.approx(expected, rel=1e-12)


def test_a_target_of_zeros():
    zero, one = np.zeros((2, 9, 9)), np.ones((2, 9, 9))
    assert (nmse(zero, zero), psnr(zero, zero), ssim(zero, zero), hfen(zero, zero)) == (0, math.inf, 1, 0)
    assert (nmse(zero, one), psnr(zero, one), ssim(zero, one), hfen(zero, one)) == (math.inf, -math.inf, 0, math.inf)
    half = np.concatenate([zero[:1], one[:1]])
    assert ssim(zero, half) == 0.5
    image = torch.ones(2, 9, 9, requires_grad=True)
    ssim_per_slice(torch.zeros(2, 9, 9), image * 0, torch.zeros(2)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_makes_the_score_nan(bad):
    target, prediction = volumes()
    broken = prediction.copy()
    broken[1, 4, 5] = bad
    for metric in (nmse, psnr, ssim, hfen):
        assert math.isnan(metric(target, broken))
        assert math.isnan(metric(broken, target))


def test_volumes_that_do_not_fit_are_refused_with_their_shapes():
    target, prediction = volumes()
    for metric in (nmse, psnr, ssim, hfen):
        with pytest.raises(InputError, match=r"\(3, 33, 40\) and \(2, 33, 40\)"):
            metric(target, prediction[:2])
        with pytest.raises(InputError, match="two volumes"):
            metric(target[0], prediction[0])
        with pytest.raises(InputError, match="absolute value"):
            metric(target, prediction.astype(np.complex64))
    with pytest.raises(InputError, match="at least 7 x 7"):
        ssim(target[:, :6], prediction[:, :6])
    for metric in (psnr, ssim):
        with pytest.raises(InputError, match="maximum is -1"):
            metric(target, prediction, -1.0)
    with pytest.raises(InputError, match=r"maxima \(b,\)"):
        ssim_per_slice(torch.ones(2, 9, 9), torch.ones(2, 9, 9), torch.ones(3))


# Data consistency


def scan(n_sets=2):
    image = torch.randn(3, n_sets, 10, 12, dtype=torch.complex64)
    maps = torch.randn(3, n_sets, 4, 10, 12, dtype=torch.complex64)
    mask = torch.rand(1, 1, 1, 12) < 0.5
    kspace = fft2c((maps * image[:, :, None]).sum(1)).masked_fill(~mask, math.nan)  # never looked at
    return image, kspace, mask, maps


def test_an_image_that_explains_the_samples_is_consistent_and_zeros_are_not_at_all():
    image, kspace, mask, maps = scan()
    assert data_consistency(image, kspace, mask, maps) < 1e-6
    assert data_consistency(image * 0, kspace, mask, maps) == pytest.approx(1, abs=1e-6)
    assert data_consistency(image * 1.1, kspace, mask, maps) == pytest.approx(0.1, rel=1e-5)


def test_the_residual_of_a_volume_is_that_of_its_slices_together():
    image, kspace, mask, maps = scan(1)
    image = image * torch.tensor([1.0, 1.2, 0.5])[:, None, None, None]
    full = mask.expand(3, 1, 10, 12)
    each = [residual_energy(image[i : i + 1], kspace[i : i + 1], mask, maps[i : i + 1]) for i in range(3)]
    residual, measured = (torch.cat(v) for v in zip(*each, strict=True))
    torch.testing.assert_close((residual / measured).sqrt(), torch.tensor([0.0, 0.2, 0.5]).double(), atol=1e-6, rtol=0)
    whole = math.sqrt(float(residual.sum() / measured.sum()))
    assert data_consistency(image, kspace, full, maps) == pytest.approx(whole, rel=1e-9)


def test_degenerate_and_misshapen_scans():
    image, kspace, mask, maps = scan()
    nothing = torch.zeros_like(mask)
    assert data_consistency(image, kspace, nothing, maps) == 0
    assert data_consistency(image, torch.zeros_like(kspace), mask, maps) == math.inf
    assert math.isnan(data_consistency(image * math.nan, kspace, mask, maps))
    for arguments in (
        (image[:, :1], kspace, mask, maps),
        (image, kspace[:, :3], mask, maps),
        (image, kspace, mask[..., :5], maps),
        (image[0], kspace, mask, maps),
        (image, kspace[0], mask, maps),
    ):
        with pytest.raises(InputError, match="do not fit"):
            data_consistency(*arguments)
