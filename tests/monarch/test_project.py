import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml_monarch.monarch import Factors, init, project, to_dense
from tests.helpers import TOLERANCE, randn, relative_error
from tests.monarch.strategies import factors, matrices

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)


def tail_energy(matrix, k, l, ranks):
    """Sums the squared singular values beyond the ranks, sub-block by sub-block."""
    p = matrix.shape[1] // k
    return sum(
        float((torch.linalg.svdvals(matrix[j::l, kk * p : (kk + 1) * p])[ranks(j, kk) :] ** 2).sum())
        for j in range(l)
        for kk in range(k)
    )


@PROPERTY
@given(matrices())
def test_error_is_the_tail_of_the_singular_values(case):
    matrix, (k, l), rank = case
    f, error = project(matrix, (k, l), rank)
    torch.testing.assert_close((to_dense(f) - matrix).norm(), error, rtol=1e-9, atol=1e-12)
    q = f.w1.shape[1]
    if rank is not None:
        assert q == l * rank
    expected = tail_energy(matrix, k, l, lambda j, kk: sum((kk * q + i) % l == j for i in range(q)))
    assert float(error) ** 2 == pytest.approx(expected, rel=1e-9, abs=1e-20)


@PROPERTY
@given(matrices())
def test_idempotent(case):
    matrix, blocks, rank = case
    dense = to_dense(project(matrix, blocks, rank)[0])
    again, error = project(dense, blocks, rank)
    torch.testing.assert_close(to_dense(again), dense, rtol=1e-10, atol=1e-10)
    assert float(error) < 1e-10 * float(matrix.norm())


@PROPERTY
@given(factors(), st.data())
def test_a_monarch_matrix_is_its_own_projection(f, data):
    (k, _, p), (l, s, _) = f.w1.shape, f.w2.shape
    rank = data.draw(st.integers(1, min(p, s)))
    q = l * rank
    f = Factors(randn(k, q, p, dtype=f.w1.dtype), randn(l, s, k * rank, dtype=f.w1.dtype, seed=1))
    found, error = project(to_dense(f), (k, l), rank)
    assert float(error) < 1e-10 * float(to_dense(f).norm())
    torch.testing.assert_close(to_dense(found), to_dense(f), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=6, derandomize=True)
@given(matrices())
def test_never_beaten_by_gradient_descent_from_20_starts(case):
    matrix, blocks, rank = case
    f, error = project(matrix, blocks, rank)
    optimum = float(error) ** 2
    w1 = randn(20, *f.w1.shape, dtype=matrix.dtype, seed=5).requires_grad_()
    w2 = randn(20, *f.w2.shape, dtype=matrix.dtype, seed=6).requires_grad_()
    adam = torch.optim.Adam([w1, w2], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 400)
    losses = torch.empty(0)
    for _ in range(400):
        adam.zero_grad()
        losses = (to_dense(Factors(w1, w2)) - matrix).abs().square().sum((-2, -1))
        losses.sum().backward()
        adam.step()
        schedule.step()
    scale, best = float(matrix.norm()) ** 2, float(losses.detach().min())
    assert best >= optimum - 1e-9 * scale
    # The search is a fair rival: its best start comes close.
    assert best <= optimum + 0.02 * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(("m", "n", "blocks"), [(24, 24, 4), (24, 36, (3, 4)), (40, 12, (6, 5)), (7, 13, None)])
def test_full_rank_gives_back_any_matrix(m, n, blocks, dtype):
    matrix = randn(m, n, dtype=dtype)
    k, l = blocks if isinstance(blocks, tuple) else (4, 4) if blocks else (13, 1)
    f, error = project(matrix, blocks, rank=min(n // k, m // l))
    assert relative_error(to_dense(f), matrix) < 1e-6
    assert float(error) == 0


def test_error_falls_with_the_rank():
    matrix = randn(64, 64)
    errors = [float(project(matrix, 4, rank)[1]) for rank in range(1, 17)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.5 * float(matrix.norm())
    assert errors[-1] == 0


def test_paper_rank_halves_the_parameters():
    f, _ = project(randn(256, 256), 4)
    assert f.w1.numel() + f.w2.numel() == 256 * 256 // 2
    assert f.w1.shape == (4, 64, 64)


def test_unequal_ranks_where_the_width_is_no_multiple_of_the_blocks():
    # q = 3 dealt over l = 4: sub-blocks of rank 0 and 1.
    matrix = randn(12, 12)
    f, error = project(matrix, 4)
    assert f.w1.shape == (4, 3, 3)
    assert float(error) ** 2 == pytest.approx(
        tail_energy(matrix, 4, 4, lambda j, kk: sum((kk * 3 + i) % 4 == j for i in range(3)))
    )


def test_batched_is_one_by_one():
    matrix = randn(2, 3, 12, 20, dtype=torch.complex128)
    f, error = project(matrix, (5, 3), 2)
    assert error.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            single, single_error = project(matrix[i, j], (5, 3), 2)
            torch.testing.assert_close(to_dense(f)[i, j], to_dense(single))
            torch.testing.assert_close(error[i, j], single_error)


def test_finds_the_fourier_transform_only_behind_its_permutation():
    for n in (24, 64, 320):
        dft = init.dft(n, dtype=torch.float64)
        matrix = torch.fft.fft(torch.eye(n, dtype=torch.complex128), norm="ortho")
        _, error = project(matrix[:, dft.permutation_in])
        assert float(error) < 1e-12 * n
        _, error = project(matrix)
        assert float(error) > 0.5 * float(matrix.norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_decomposed_in_float32(dtype):
    matrix = randn(16, 16, dtype=dtype)
    f, error = project(matrix, 4, rank=4)
    assert f.w1.dtype == dtype
    assert error.dtype == torch.float32
    assert relative_error(to_dense(f), matrix) < TOLERANCE[dtype]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="5 blocks do not divide 12 columns"):
        project(randn(10, 12), 5)
    with pytest.raises(ValueError, match=r"rank 4 is outside 1\.\.3"):
        project(randn(12, 12), 4, rank=4)
    with pytest.raises(ValueError, match=r"two axes, but got shape \(12,\)"):
        project(randn(12))
