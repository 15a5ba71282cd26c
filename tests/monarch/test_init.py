import math

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from torch.autograd import gradcheck

from sciml_monarch.monarch import init, n_params, to_dense
from tests.helpers import randn, relative_error

DOUBLE = torch.float64


def distance(parts, expected):
    """Largest entry of the difference between the matrix of the parts and the expected one."""
    return float((init.dense(parts) - torch.as_tensor(expected)).abs().max())


def product(pair):
    return init.dense(pair[1]) @ init.dense(pair[0])


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_dft_with_every_number_of_blocks(inverse, centered):
    for n in (24, 45, 64):
        index = np.arange(n) - (n // 2 if centered else 0)
        sign = 1 if inverse else -1
        expected = np.exp(sign * 2j * math.pi / n * (np.outer(index, index) % n)) / math.sqrt(n)
        for k in (k for k in range(1, n + 1) if n % k == 0):
            parts = init.dft(n, inverse=inverse, centered=centered, blocks=k, dtype=DOUBLE)
            assert parts.factors.w1.shape == (k, n // k, n // k)
            assert distance(parts, expected) < 1e-12


def test_every_block_of_the_dft_is_unitary():
    for n in (20, 45, 320):
        for w in init.dft(n, centered=True, dtype=DOUBLE).factors:
            eye = torch.eye(w.shape[-1], dtype=w.dtype).expand_as(w)
            torch.testing.assert_close(w @ w.mH, eye, rtol=0, atol=1e-13)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("make", "reference"), [(init.dct, scipy.fft.dct), (init.dst, scipy.fft.dst)], ids=["dct", "dst"]
)
def test_dct_and_dst_against_scipy(make, reference, inverse):
    for n in [*range(1, 65), 96, 100, 127, 372]:
        expected = reference(np.eye(n), type=3 if inverse else 2, norm="ortho", axis=0)
        assert distance(make(n, inverse=inverse, dtype=DOUBLE), expected) < 1e-12
    for blocks in (1, 2, 3, 12):
        expected = reference(np.eye(12), type=3 if inverse else 2, norm="ortho", axis=0)
        assert distance(make(12, inverse=inverse, blocks=blocks, dtype=DOUBLE), expected) < 1e-12


def test_hadamard_against_scipy():
    for n in (1, 2, 4, 8, 32, 64, 512):
        expected = scipy.linalg.hadamard(n) / math.sqrt(n)
        assert distance(init.hadamard(n, dtype=DOUBLE), expected) < 1e-12
    assert distance(init.hadamard(16, blocks=2, dtype=DOUBLE), scipy.linalg.hadamard(16) / 4) < 1e-12
    assert init.hadamard(16).permutation_in is None


@pytest.mark.parametrize(("n", "size"), [(512, 8), (64, 8), (12, 6), (35, 7), (10, 5), (9, 3), (22, 2), (4, 4)])
def test_block_dct_against_scipy(n, size):
    block = scipy.fft.dct(np.eye(size), norm="ortho", axis=0)
    expected = np.kron(np.eye(n // size), block)
    assert distance(init.block_dct(n, dtype=DOUBLE), expected) < 1e-12
    assert distance(init.block_dct(n, inverse=True, dtype=DOUBLE), expected.T) < 1e-12
    assert distance(init.block_dct(n, blocks=n // size, dtype=DOUBLE), expected) < 1e-12


def test_block_dct_takes_few_parameters():
    assert n_params(init.block_dct(512).factors) == 16 * 32 * 32 + 32 * 16 * 16


def test_haar_is_two_levels_of_sums_and_differences():
    n = 24
    x = randn(3, n)
    low, high = (x[:, ::2] + x[:, 1::2]) / math.sqrt(2), (x[:, ::2] - x[:, 1::2]) / math.sqrt(2)
    lower, higher = (low[:, ::2] + low[:, 1::2]) / math.sqrt(2), (low[:, ::2] - low[:, 1::2]) / math.sqrt(2)
    forward, backward = init.haar(n, dtype=DOUBLE), init.haar(n, inverse=True, dtype=DOUBLE)
    expected = torch.cat([lower, higher, high], -1)
    torch.testing.assert_close(init.apply(forward, x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(init.apply(backward, expected), x, rtol=0, atol=1e-12)


def test_identity_of_any_blocks():
    for n in (1, 7, 12, 36):
        divisors = [i for i in range(1, n + 1) if n % i == 0]
        for k in divisors:
            for l in divisors:
                assert torch.equal(to_dense(init.identity(n, (k, l))), torch.eye(n))
    assert init.identity(12).w1.shape == (4, 3, 3)
    assert init.identity(12, dtype=DOUBLE).w1.dtype == DOUBLE


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize(("m", "n", "blocks", "rank"), [(128, 96, 4, None), (96, 240, (8, 3), 2), (64, 64, None, None)])
def test_random_has_the_variance_asked_for(m, n, blocks, rank, dtype):
    generator = torch.Generator().manual_seed(0)
    x = 3 * randn(50, n, dtype=dtype)
    gain = 0.7
    variances = [
        (x @ to_dense(init.random(m, n, blocks, rank, generator=generator, gain=gain, dtype=dtype)).mT)
        .abs()
        .square()
        .mean()
        for _ in range(40)
    ]
    assert float(torch.stack(variances).mean()) == pytest.approx(gain**2 * 9, rel=0.06)


def test_random_follows_its_generator():
    first, second = (init.random(8, 8, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.w1, second.w1)
    assert torch.equal(first.w2, second.w2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_circulant_and_toeplitz_against_scipy(dtype):
    for n in [*range(1, 26), 64, 127]:
        c, r = randn(n, dtype=dtype), randn(n, dtype=dtype, seed=1)
        circulant, toeplitz = init.circulant(c), init.toeplitz(c, r)
        expected = (
            torch.as_tensor(scipy.linalg.circulant(c.numpy())),
            torch.as_tensor(scipy.linalg.toeplitz(c.numpy(), r.numpy())),
        )
        for pair, dense in zip((circulant, toeplitz), expected, strict=True):
            assert float((product(pair) - dense).abs().max()) < 1e-12 * n
            x = randn(3, n, dtype=dtype, seed=2)
            y = init.apply(pair[1], init.apply(pair[0], x))
            torch.testing.assert_close(y, (x @ dense.mT).to(y.dtype), rtol=0, atol=1e-12 * n)


def test_toeplitz_reads_and_writes_only_n_points():
    first, second = init.toeplitz(randn(12), randn(12))
    assert first.factors.w1.shape[0] * first.factors.w1.shape[2] == 12
    assert second.factors.w2.shape[0] * second.factors.w2.shape[1] == 12
    full = init.dft(24, dtype=DOUBLE).factors
    assert n_params(first.factors) < n_params(full)
    assert n_params(second.factors) < n_params(full)


def test_toeplitz_of_real_column_and_complex_row():
    c, r = randn(6), randn(6, dtype=torch.complex128)
    expected = scipy.linalg.toeplitz(c.numpy(), r.numpy())
    assert float((product(init.toeplitz(c, r)) - torch.as_tensor(expected)).abs().max()) < 1e-12


def test_gradients_flow_to_the_entries_of_circulant_and_toeplitz():
    c, r, x = randn(6).requires_grad_(), randn(6, seed=1).requires_grad_(), randn(6, seed=2)

    def filtered(pair):
        return torch.view_as_real(init.apply(pair[1], init.apply(pair[0], x)))

    assert gradcheck(lambda c: filtered(init.circulant(c)), (c,))
    assert gradcheck(lambda c, r: filtered(init.toeplitz(c, r)), (c, r))


def test_dtype_means_a_precision_and_follows_the_default():
    for dtype, expected in (
        (None, torch.complex64),
        (torch.float32, torch.complex64),
        (torch.complex64, torch.complex64),
        (torch.float64, torch.complex128),
        (torch.complex128, torch.complex128),
    ):
        assert init.dft(8, dtype=dtype).factors.w1.dtype == expected
    assert init.hadamard(8, dtype=torch.complex128).factors.w1.dtype == torch.float64
    torch.set_default_dtype(torch.float64)
    try:
        assert init.dft(8).factors.w1.dtype == torch.complex128
        assert init.haar(8).factors.w1.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_rounded_from_double():
    exact, single = init.dft(97, dtype=DOUBLE), init.dft(97, dtype=torch.float32)
    assert torch.equal(exact.factors.w2.to(torch.complex64), single.factors.w2)
    assert relative_error(init.dense(single), init.dense(exact)) < 1e-7


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="power of two, but got n = 24"):
        init.hadamard(24)
    with pytest.raises(ValueError, match="divisible by 4, but got n = 10"):
        init.haar(10)
    with pytest.raises(ValueError, match="n = 11 has none"):
        init.block_dct(11)
    with pytest.raises(ValueError, match="take a number of blocks that divides 4"):
        init.block_dct(32, blocks=8)
    with pytest.raises(ValueError, match="5 blocks do not divide 12"):
        init.dft(12, blocks=5)
    with pytest.raises(ValueError, match="at least 1, but got 0"):
        init.dct(0)
    with pytest.raises(ValueError, match="one length, but got 3 and 4"):
        init.toeplitz(randn(3), randn(4))
    with pytest.raises(ValueError, match=r"c must be one row .* shape \(2, 3\)"):
        init.circulant(randn(2, 3))
