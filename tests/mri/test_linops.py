"""The SENSE operator and the learned Fourier pair: exact, and adjoint to rounding, also after learning."""

import warnings

import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.mri.fourier import centering_phases, fft2c, ifft2c
from sciml_monarch.mri.linops import SenseOperator
from sciml_monarch.mri.transforms import MonarchFourier2d
from tests.helpers import adjoint_mismatch, randn, relative_error
from tests.mri.scenes import coil_maps, scan

SIZES = (7, 9, 45, 213, 320, 368, 372, 373, 640)
LIMIT = {torch.complex64: 1e-6, torch.complex128: 1e-12}


def perturbed(module, scale, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    return module


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (5, 12)])
def test_fourier_is_centered_and_unitary(shape):
    x = randn(2, *shape, dtype=torch.complex128)
    assert relative_error(ifft2c(fft2c(x)), x) < 1e-14
    assert relative_error(fft2c(x).norm(), x.norm()) < 1e-14
    point = torch.zeros(shape, dtype=torch.complex128)
    point[shape[0] // 2, shape[1] // 2] = 1
    assert (
        relative_error(fft2c(point), torch.full(shape, (shape[0] * shape[1]) ** -0.5, dtype=torch.float64) + 0j) < 1e-14
    )


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (373, 640), (320, 213)])
def test_centring_by_phases_is_the_centred_transform(shape):
    x = randn(*shape, dtype=torch.complex128)
    before, after = centering_phases(shape, x.device, x.dtype)
    assert relative_error(after * torch.fft.fft2(before * x, norm="ortho"), fft2c(x)) < 1e-13


@pytest.mark.parametrize("learned", [None, 0.0, 0.05])
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("shape", [(n, 12) if i % 2 else (12, n) for i, n in enumerate(SIZES)] + [(320, 45), (45, 320)])
def test_dot_product(shape, dtype, learned):
    ny, nx = shape
    maps = coil_maps(3, ny, nx, n_sets=2, dtype=dtype)
    mask = torch.rand(1, 1, ny, nx, generator=torch.Generator().manual_seed(ny)) < 0.5
    transform = None if learned is None else MonarchFourier2d((ny, nx))
    if transform is not None:
        transform = perturbed(transform.to(dtype.to_real()), learned)
    operator = SenseOperator(maps, mask, transform)
    x, y = randn(1, 2, ny, nx, dtype=dtype), randn(1, 3, ny, nx, dtype=dtype, seed=1)
    with torch.no_grad():
        ax, ahy = operator.forward(x), operator.adjoint(y)
        assert adjoint_mismatch(y, ax, x, ahy) <= LIMIT[dtype]
        assert relative_error(operator.normal(x), operator.adjoint(ax)) <= LIMIT[dtype]


@pytest.mark.parametrize("n", SIZES)
def test_fresh_monarch_pair_is_the_fourier_transform(n):
    transform = MonarchFourier2d((12, n))
    x = randn(2, 12, n, dtype=torch.complex64)
    with torch.no_grad():
        assert relative_error(transform.inverse(x), ifft2c(x)) < 5e-6
        assert relative_error(transform(x), fft2c(x)) < 5e-6
    assert transform.deviation() < 1e-6


def test_sense_operator_is_what_its_definition_says():
    _, mask, maps, image = scan(n_sets=2, two_d=True, dtype=torch.complex128)
    expected = fft2c((maps * image[:, :, None]).sum(1)) * mask
    assert relative_error(SenseOperator(maps, mask).forward(image), expected) < 1e-13
    kspace = randn(*expected.shape, dtype=torch.complex128)
    back = (maps.conj() * ifft2c(kspace * mask)[:, None]).sum(2)
    assert relative_error(SenseOperator(maps, mask).adjoint(kspace), back) < 1e-13


@pytest.mark.parametrize("two_d", [False, True])
@pytest.mark.parametrize("n_sets", [1, 2])
def test_normal_operator_is_the_adjoint_of_the_forward_one(n_sets, two_d):
    _, mask, maps, image = scan(21, 18, n_sets=n_sets, two_d=two_d, dtype=torch.complex128)
    operator = SenseOperator(maps, mask)
    assert relative_error(operator.normal(image), operator.adjoint(operator.forward(image))) < 1e-13


def test_bound_of_the_normal_operator():
    _, mask, maps, image = scan(12, 10, n_sets=2, two_d=True, dtype=torch.complex128)
    assert SenseOperator(maps, mask).bound.flatten().tolist() == pytest.approx([1.0, 1.0])
    operator = SenseOperator(3 * maps[:1], mask[:1])
    x = image[:1]
    for _ in range(200):
        x = operator.normal(x / x.norm())
    assert 1 < x.norm() <= operator.bound.item() * (1 + 1e-9) == pytest.approx(9.0)


def test_unsampled_points_are_zero_without_a_sign():
    _, mask, maps, image = scan()
    left_out = SenseOperator(maps, mask).forward(-image)[~mask.expand(2, 4, 32, 28)]
    assert not torch.view_as_real(left_out).signbit().any()


def test_a_pair_for_each_coil():
    transform = perturbed(MonarchFourier2d((8, 6), n_coils=3), 0.1)
    y = randn(2, 3, 8, 6, dtype=torch.complex64)
    with torch.no_grad():
        whole = transform.inverse(y)
        for c in range(3):
            alone = MonarchFourier2d((8, 6))
            alone.rows[0].load_state_dict(transform.rows[c].state_dict())
            alone.columns[0].load_state_dict(transform.columns[c].state_dict())
            assert relative_error(whole[:, c], alone.inverse(y[:, c])) < 1e-6
    with pytest.raises(InputError, match="2 coils, but the network has transforms for 3"):
        transform.inverse(y[:, :2])
    with pytest.raises(InputError, match="2 coils, but the network has transforms for 3"):
        transform.inverse(y[:, :2].repeat(1, 1, 2, 2))  # also where both axes fall back


def test_axis_of_another_size_is_exact_and_says_so():
    transform = perturbed(MonarchFourier2d((8, 6)), 0.3)
    y = randn(8, 10, dtype=torch.complex64)
    with pytest.warns(UserWarning, match="10 points on axis -1 where the learned transform has 6"), torch.no_grad():
        found = transform.inverse(y)
    rows = transform.rows[0](y, -2)
    expected = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(rows, -1), norm="ortho"), -1)
    assert relative_error(found, expected) < 1e-6
    x = randn(8, 10, dtype=torch.complex64, seed=1)
    with pytest.warns(UserWarning, match="exact"):
        forward = transform(x)
    assert adjoint_mismatch(x, found, y, forward) < 1e-6


def test_frozen_pair_of_the_right_size_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MonarchFourier2d((8, 6), learnable=False).inverse(randn(8, 6, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("maps", "mask", "message"),
    [
        (torch.ones(2, 4, 8, 8), torch.ones(1, 1, 8, 8), "maps are"),
        (torch.ones(1, 1, 4, 8, 8) + 0j, torch.ones(1, 1, 1, 9).bool(), "does not fit maps"),
    ],
)
def test_bad_shapes(maps, mask, message):
    with pytest.raises(InputError, match=message):
        SenseOperator(maps, mask)
