import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from sciml_monarch.monarch import Factors, adjoint, multiply, n_params, to_dense
from sciml_monarch.monarch.functional import select_columns, select_rows
from tests.helpers import TOLERANCE, adjoint_mismatch, randn, relative_error
from tests.monarch.strategies import factors

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)


def by_loops(f: Factors) -> torch.Tensor:
    """Multiplies the factors out entry by entry, from the definition."""
    (k, q, p), (l, s, r) = f.w1.shape, f.w2.shape
    dense = f.w1.new_zeros(s * l, k * p)
    for inner in range(k * q):
        block, row = divmod(inner, q)  # the inner coordinate as (k, q) ...
        column, out = divmod(inner, l)  # ... and as (r, l)
        dense[out::l, block * p : (block + 1) * p] += torch.outer(f.w2[out, :, column], f.w1[block, row])
    assert r * l == k * q
    return dense


@PROPERTY
@given(factors())
def test_dense_matrix_is_the_definition(f):
    torch.testing.assert_close(to_dense(f), by_loops(f), rtol=1e-12, atol=1e-12)


@PROPERTY
@given(factors(), st.booleans())
def test_multiply_is_the_dense_product(f, complex_input):
    n = f.w1.shape[0] * f.w1.shape[2]
    x = randn(2, 3, n, dtype=torch.complex128 if complex_input else torch.float64)
    dtype = torch.promote_types(x.dtype, f.w1.dtype)
    expected = x.to(dtype) @ to_dense(f).to(dtype).mT
    y = multiply(f, x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@PROPERTY
@given(factors(), st.floats(-3, 3))
def test_multiply_is_linear(f, scale):
    n = f.w1.shape[0] * f.w1.shape[2]
    x, y = randn(n, dtype=f.w1.dtype, seed=2), randn(n, dtype=f.w1.dtype, seed=3)
    combined = multiply(f, x + scale * y)
    torch.testing.assert_close(combined, multiply(f, x) + scale * multiply(f, y), rtol=1e-11, atol=1e-11)


@PROPERTY
@given(factors(), st.booleans())
def test_adjoint_identity(f, complex_input):
    dense = to_dense(f)
    dtype = torch.complex128 if complex_input else torch.float64
    x, y = randn(4, dense.shape[1], dtype=dtype, seed=2), randn(4, dense.shape[0], dtype=dtype, seed=3)
    assert adjoint_mismatch(y, multiply(f, x), x, adjoint(f, y)) < 1e-12
    wide = torch.promote_types(dtype, dense.dtype)
    torch.testing.assert_close(adjoint(f, y), y.to(wide) @ dense.conj().to(wide), rtol=1e-12, atol=1e-12)


@PROPERTY
@given(factors(), st.data())
def test_rows_and_columns_are_those_of_the_dense_matrix(f, data):
    dense = to_dense(f)
    rows, columns = (
        torch.tensor(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6))) for size in dense.shape
    )
    torch.testing.assert_close(select_rows(f, rows), dense[rows], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(select_columns(f, columns), dense[:, columns], rtol=1e-12, atol=1e-12)


@PROPERTY
@given(factors(batch=(3,)))
def test_batched_factors_are_broadcast(f):
    singles = [Factors(f.w1[i], f.w2[i]) for i in range(3)]
    dense = to_dense(f)
    m, n = dense.shape[-2:]
    x, y = randn(2, 3, n, dtype=f.w1.dtype), randn(m, dtype=f.w1.dtype)
    for i, single in enumerate(singles):
        torch.testing.assert_close(dense[i], to_dense(single), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(multiply(f, x)[:, i], multiply(single, x[:, i]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(adjoint(f, y)[i], adjoint(single, y), rtol=1e-12, atol=1e-12)


def test_unbatched_product_is_one_bmm_per_factor():
    f = Factors(randn(4, 6, 5), randn(3, 2, 8))
    with torch.profiler.profile() as profile:
        multiply(f, randn(7, 20))
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::bmm") == 2


def test_n_params_counts_reals():
    real = Factors(randn(2, 3, 4), randn(3, 5, 2))
    assert n_params(real) == 2 * 3 * 4 + 3 * 5 * 2
    assert n_params(Factors(*(w.to(torch.complex64) for w in real))) == 2 * n_params(real)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("function", [multiply, adjoint])
def test_gradients(function, dtype):
    w1, w2, x = randn(2, 3, 2, dtype=dtype), randn(3, 2, 2, dtype=dtype, seed=1), randn(2, 4, dtype=dtype)
    if function is adjoint:
        x = randn(2, 6, dtype=dtype)
    inputs = tuple(t.requires_grad_() for t in (w1, w2, x))
    assert gradcheck(lambda a, b, v: function(Factors(a, b), v), inputs)
    assert gradgradcheck(lambda a, b, v: function(Factors(a, b), v), inputs)


@pytest.mark.parametrize("select", [select_rows, select_columns])
def test_gradients_of_selected_rows_and_columns(select):
    index = torch.tensor([0, 3, 3, 1])
    inputs = (randn(2, 3, 2).requires_grad_(), randn(3, 2, 2, seed=1).requires_grad_())
    assert gradcheck(lambda a, b: select(Factors(a, b), index), inputs)
    assert gradgradcheck(lambda a, b: select(Factors(a, b), index), inputs)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_precision(dtype):
    wide = torch.complex128 if dtype.is_complex else torch.float64
    f = Factors(randn(8, 16, 32, dtype=dtype) / 32**0.5, randn(8, 24, 16, dtype=dtype, seed=1) / 4)
    x, y = randn(5, 256, dtype=dtype, seed=2), randn(5, 192, dtype=dtype, seed=3)
    exact = Factors(*(w.to(wide) for w in f))
    assert multiply(f, x).dtype == dtype
    assert relative_error(multiply(f, x), multiply(exact, x.to(wide))) < TOLERANCE[dtype]
    assert relative_error(adjoint(f, y), adjoint(exact, y.to(wide))) < TOLERANCE[dtype]
    assert relative_error(to_dense(f), to_dense(exact)) < TOLERANCE[dtype]


@pytest.mark.parametrize("function", [multiply, adjoint])
def test_compiles_whole(function):
    torch.compiler.reset()
    f = Factors(randn(3, 4, 2), randn(4, 2, 3))
    x = randn(5, 6 if function is multiply else 8)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(f, x), function(f, x))


def test_wrong_shapes_are_named():
    f = Factors(randn(2, 3, 4), randn(3, 5, 2))
    with pytest.raises(ValueError, match=r"\(7,\) must have 8 entries, as many as the matrix has columns"):
        multiply(f, randn(7))
    with pytest.raises(ValueError, match=r"\(2, 8\) must have 15 entries, as many as the matrix has rows"):
        adjoint(f, randn(2, 8))
    with pytest.raises(ValueError, match=r"k \* q = 2 \* 3 = 6 outputs, but w2 has l \* r = 3 \* 3 = 9"):
        to_dense(Factors(randn(2, 3, 4), randn(3, 5, 3)))
    with pytest.raises(ValueError, match="factors need three axes"):
        multiply(Factors(randn(3, 4), randn(3, 5, 2)), randn(8))
