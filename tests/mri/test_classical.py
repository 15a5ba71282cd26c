"""Reconstructions without learning: against least squares by dense algebra, sigpy, and the truth."""

import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.mri import SenseOperator, cg_sense, l1_wavelet, rss, zero_filled_rss, zero_filled_sense
from sciml_monarch.mri.base import intensity
from sciml_monarch.mri.classical import sigpy_l1_wavelet
from sciml_monarch.mri.wavelet import wavelet
from tests.helpers import randn, relative_error
from tests.mri.scenes import scan


def test_zero_filled_rss_of_full_data_is_the_image_where_maps_are_normalised():
    kspace, _, _, image = scan(keep=2.0)
    assert relative_error(zero_filled_rss(kspace), image.abs()) < 1e-5
    assert relative_error(rss(kspace), image[:, 0].abs()) < 1e-5


def test_zero_filled_sense_of_full_data_is_the_image():
    kspace, mask, maps, image = scan(keep=2.0)
    assert relative_error(zero_filled_sense(kspace, mask, maps), image) < 1e-5


@pytest.mark.parametrize("regularization", [0.0, 0.1])
def test_cg_sense_is_regularised_least_squares(regularization):
    kspace, mask, maps, _ = scan(10, 9, 4, batch=2, dtype=torch.complex128)
    kspace = kspace + 0.1 * randn(*kspace.shape, dtype=torch.complex128, seed=9).where(mask, 0)
    found = cg_sense(kspace, mask, maps, n_iterations=300, regularization=regularization)
    for i in range(2):
        operator = SenseOperator(maps[i : i + 1], mask[i : i + 1])
        columns = operator.normal(torch.eye(90, dtype=torch.complex128).view(90, 1, 10, 9)).flatten(1).T
        matrix = columns + regularization * torch.eye(90, dtype=torch.float64)
        expected = torch.linalg.solve(matrix, operator.adjoint(kspace[i : i + 1]).flatten())
        assert relative_error(found[i].flatten(), expected) < 1e-6


def test_cg_sense_recovers_a_noiseless_scan():
    kspace, mask, maps, image = scan(keep=0.6, n_coils=6, two_d=True)
    zero_filled = relative_error(zero_filled_sense(kspace, mask, maps), image)
    assert relative_error(cg_sense(kspace, mask, maps, 60), image) < 0.05 * zero_filled


def test_l1_wavelet_converges_to_sigpys():
    kspace, mask, maps, _ = scan(32, 32, keep=0.5, two_d=True)
    ours = l1_wavelet(kspace, mask, maps, 2e-3, 300)
    assert relative_error(ours, sigpy_l1_wavelet(kspace, mask, maps, 2e-3, 300)) < 1e-3
    with pytest.raises(InputError, match="one set of coil maps, not 2"):
        sigpy_l1_wavelet(*scan(n_sets=2)[:3])


def test_l1_wavelet_minimises_its_objective():
    kspace, mask, maps, _ = scan(24, 30, n_sets=2, keep=0.4, two_d=True, dtype=torch.complex128)
    kspace = kspace / intensity(kspace)

    def objective(x):
        misfit = SenseOperator(maps, mask).forward(x) - kspace
        c = wavelet(x)
        return misfit.abs().square().sum() / 2 + 5e-3 * sum(part.abs().sum() for part in (c.smooth, *c.details))

    best = l1_wavelet(kspace, mask, maps, 5e-3, 2000)
    assert objective(best) < objective(l1_wavelet(kspace, mask, maps, 5e-3, 20)) < objective(0 * best)
    for seed in range(5):
        step = 1e-4 * randn(*best.shape, dtype=torch.complex128, seed=seed)
        assert objective(best + step) > objective(best)


@pytest.mark.parametrize("method", [l1_wavelet, sigpy_l1_wavelet])
def test_l1_wavelet_is_zero_where_no_coil_sees(method):
    kspace, mask, maps, _ = scan(32, 32, keep=0.5, two_d=True)
    maps[..., :6] = 0
    image = method(kspace, mask, maps, 1e-3, 5)
    assert image[..., :6].abs().max() == 0
    assert image[..., 6:12].abs().min() > 0


def test_l1_wavelet_follows_the_scale():
    kspace, mask, maps, _ = scan(keep=0.5, two_d=True)
    expected = 1e-5 * l1_wavelet(kspace, mask, maps, 2e-3, 20)
    assert relative_error(l1_wavelet(1e-5 * kspace, mask, maps, 2e-3, 20), expected) < 1e-4


@pytest.mark.parametrize("method", [zero_filled_sense, cg_sense])
def test_what_does_not_fit_is_named(method):
    kspace, mask, maps, _ = scan()
    with pytest.raises(InputError, match=r"mask \(1, 1, 1, 27\) does not fit k-space \(2, 4, 32, 28\)"):
        method(kspace, torch.ones(1, 1, 1, 27).bool(), maps)
    with pytest.raises(InputError, match=r"coil maps .* do not fit k-space"):
        method(kspace, mask, maps[:, :, :3])
