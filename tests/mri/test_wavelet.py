"""The wavelet transform: PyWavelets' coefficients, an isometry, and its adjoint."""

import numpy as np
import pytest
import pywt
import torch

from sciml_monarch.mri.wavelet import wavelet, wavelet_adjoint
from tests.helpers import randn, relative_error

SHAPES = [(32, 32), (64, 48), (41, 30), (15, 14), (9, 5), (128, 20)]


@pytest.mark.parametrize("shape", SHAPES)
def test_coefficients_are_those_of_pywavelets(shape):
    image = randn(*shape)
    found = wavelet(image)
    expected = pywt.wavedecn(image.numpy(), "db4", mode="zero", level=len(found.details))
    assert relative_error(found.smooth, torch.from_numpy(expected[0])) < 1e-12
    assert len(found.details) == min(pywt.dwt_max_level(n, "db4") for n in shape)
    for ours, theirs in zip(found.details, expected[1:], strict=True):
        for band, name in zip(ours, ("ad", "da", "dd"), strict=True):
            assert relative_error(band, torch.from_numpy(theirs[name])) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_isometry_and_inverse(shape, dtype):
    image = randn(2, 3, *shape, dtype=dtype)
    found = wavelet(image)
    energy = sum(float(c.abs().square().sum()) for c in (found.smooth, *found.details))
    assert energy == pytest.approx(float(image.abs().square().sum()), rel=1e-12)
    assert relative_error(wavelet_adjoint(found), image) < 1e-12


def test_adjoint_of_any_coefficients():
    image = randn(2, 41, 30, dtype=torch.complex128)
    forward = wavelet(image)
    other = forward._replace(
        smooth=randn(*forward.smooth.shape, dtype=torch.complex128, seed=2),
        details=[randn(*d.shape, dtype=torch.complex128, seed=3) for d in forward.details],
    )
    pairs = zip((forward.smooth, *forward.details), (other.smooth, *other.details), strict=True)
    left = sum(torch.vdot(b.flatten(), a.flatten()) for a, b in pairs)
    right = torch.vdot(wavelet_adjoint(other).flatten(), image.flatten())
    assert abs(left - right) < 1e-10 * abs(left)


def test_soft_threshold():
    found = wavelet(randn(32, 32, dtype=torch.complex128))
    shrunk = found.soft_threshold(0.5)
    for before, after in zip((found.smooth, *found.details), (shrunk.smooth, *shrunk.details), strict=True):
        expected = np.maximum(before.abs().numpy() - 0.5, 0)
        assert np.allclose(after.abs().numpy(), expected)
        assert torch.allclose(after * before.abs(), before * after.abs())
