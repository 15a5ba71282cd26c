import pytest
import scipy.fft
import scipy.linalg
import torch
from torch.autograd import gradcheck, gradgradcheck

from sciml_monarch.monarch import MonarchTransform
from tests.helpers import TOLERANCE, adjoint_mismatch, randn, relative_error

KINDS = ["dft", "dct", "dst", "hadamard", "block_dct", "haar"]
SIZES = [*range(2, 65), 96, 100, 127, 128, 256, 320, 368, 372, 512, 640, 1024]
ODD_SIZES = [7, 9, 45, 213, 320, 368, 372, 373, 640]


def perturbed(transform, scale=0.1):
    """Moves every factor away from the exact transform, as learning does."""
    with torch.no_grad():
        for i, w in enumerate(transform.parameters()):
            w += scale * w.std() * randn(*w.shape, dtype=w.dtype, seed=i)
    return transform


def fourier_matrix(n, inverse, centered):
    eye = torch.eye(n, dtype=torch.complex128)
    fft = torch.fft.ifft if inverse else torch.fft.fft
    if not centered:
        return fft(eye, norm="ortho")
    shifted = fft(torch.fft.ifftshift(eye, dim=0), dim=0, norm="ortho")
    return torch.fft.fftshift(shifted, dim=0)


@pytest.mark.parametrize("n", SIZES)
def test_equals_the_fft(n):
    for inverse in (False, True):
        for centered in (False, True):
            transform = MonarchTransform(n, inverse=inverse, centered=centered, dtype=torch.complex128)
            difference = transform.to_dense() - fourier_matrix(n, inverse, centered)
            assert float(difference.detach().abs().max()) < 1e-12


@pytest.mark.parametrize("inverse", [False, True])
def test_other_kinds_equal_scipy(inverse):
    eye = torch.eye(24, dtype=torch.float64)
    expected = {
        "dct": (
            24,
            scipy.fft.idct(eye, norm="ortho", axis=0) if inverse else scipy.fft.dct(eye, norm="ortho", axis=0),
        ),
        "dst": (
            24,
            scipy.fft.idst(eye, norm="ortho", axis=0) if inverse else scipy.fft.dst(eye, norm="ortho", axis=0),
        ),
        "hadamard": (32, scipy.linalg.hadamard(32) / 32**0.5),
    }
    for kind, (n, matrix) in expected.items():
        dense = MonarchTransform(n, kind, inverse, dtype=torch.float64).to_dense()
        assert dense.dtype == torch.float64
        torch.testing.assert_close(dense, torch.as_tensor(matrix), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_undoes_and_adjoint_is_inverse_at_the_start(kind):
    n = 32
    forward = MonarchTransform(n, kind, dtype=torch.float64)
    backward = MonarchTransform(n, kind, inverse=True, dtype=torch.float64)
    x = randn(3, n, dtype=torch.complex128)
    torch.testing.assert_close(backward(forward(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(forward.adjoint(forward(x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_adjoint_and_thin_agree_with_the_dense_matrix_while_learning(kind, inverse):
    n = 32 if kind == "hadamard" else 24
    transform = perturbed(MonarchTransform(n, kind, inverse, dtype=torch.float64))
    dense = transform.to_dense()
    assert dense.is_complex() == (kind == "dft")
    index = torch.tensor([0, 3, n - 1, -2, -n, 3])
    torch.testing.assert_close(transform.thin(index), dense[index], rtol=0, atol=1e-12)
    torch.testing.assert_close(transform.thin_columns(index), dense[:, index], rtol=0, atol=1e-12)
    wide = dense.to(torch.complex128)
    for dtype in (torch.float64, torch.complex128):
        x = randn(2, 3, n, dtype=dtype)
        expected, expected_adjoint = x.to(wide.dtype) @ wide.mT, x.to(wide.dtype) @ wide.conj()
        if dtype == torch.float64 and kind != "dft":
            expected, expected_adjoint = expected.real, expected_adjoint.real
        torch.testing.assert_close(transform(x), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(transform.adjoint(x), expected_adjoint, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 7, 31, 45, 128])
def test_thin_of_primes_and_odd_sizes(n):
    transform = perturbed(MonarchTransform(n, dtype=torch.float64))
    index = torch.arange(-(n // 2), (n + 1) // 2)
    torch.testing.assert_close(transform.thin(index), transform.to_dense()[index], rtol=0, atol=1e-12)
    columns = transform.thin_columns(index)
    torch.testing.assert_close(columns, transform.to_dense()[:, index], rtol=0, atol=1e-12)


def test_thin_planes_are_real():
    transform = MonarchTransform(12)
    for planes in (transform.thin_planes(torch.arange(5)), transform.thin_columns_planes(torch.arange(5))):
        assert [p.dtype for p in planes] == [torch.float32, torch.float32]
    assert MonarchTransform(12, "dct").thin_planes(torch.arange(5))[1] is None


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("n", ODD_SIZES)
def test_adjoint_at_the_start_and_while_learning(n, centered):
    for dtype, tolerance in ((torch.complex64, 1e-6), (torch.complex128, 1e-12)):
        transform = MonarchTransform(n, centered=centered, dtype=dtype)
        for scale in (0.0, 0.3):
            perturbed(transform, scale)
            x, y = randn(4, n, dtype=dtype), randn(4, n, dtype=dtype, seed=1)
            assert adjoint_mismatch(y, transform(x), x, transform.adjoint(y)) < tolerance


@pytest.mark.parametrize("kind", KINDS[1:])
def test_adjoint_of_the_real_kinds(kind):
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.complex64, 1e-6), (torch.complex128, 1e-12)):
        transform = perturbed(MonarchTransform(32, kind, dtype=dtype))
        x, y = randn(4, 32, dtype=dtype), randn(4, 32, dtype=dtype, seed=1)
        assert adjoint_mismatch(y, transform(x), x, transform.adjoint(y)) < tolerance


def test_any_axis():
    transform = perturbed(MonarchTransform(12))
    x = randn(12, 5, 12, 3, dtype=torch.complex64)
    for dim in (0, 2, -2, -4):
        expected = transform(x.movedim(dim, -1)).movedim(-1, dim)
        torch.testing.assert_close(transform(x, dim=dim), expected)
        expected = transform.adjoint(x.movedim(dim, -1)).movedim(-1, dim)
        torch.testing.assert_close(transform.adjoint(x, dim=dim), expected)
    y, z = (MonarchTransform(n, centered=True) for n in (5, 3))
    image = randn(2, 5, 3, dtype=torch.complex64)
    expected = torch.fft.fftn(torch.fft.ifftshift(image, dim=(-2, -1)), dim=(-2, -1), norm="ortho")
    torch.testing.assert_close(z(y(image, dim=-2)), torch.fft.fftshift(expected, dim=(-2, -1)))


def test_parameters_are_real_few_and_follow_learnable():
    pair = torch.nn.ModuleList([MonarchTransform(512), MonarchTransform(160)])
    assert sum(p.numel() for p in pair.parameters()) == 57_472
    for kind in KINDS:
        for learnable in (True, False):
            transform = MonarchTransform(32, kind, learnable=learnable)
            assert [p.is_complex() for p in transform.parameters()] == [False, False]
            assert all(p.requires_grad == learnable for p in transform.parameters())
            assert set(transform.state_dict()) == {"w1", "w2"}


def test_state_dict_round_trip():
    first = perturbed(MonarchTransform(24, learnable=False))
    second = MonarchTransform(24, learnable=False)
    x = randn(2, 24, dtype=torch.complex64)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    transform = MonarchTransform(8, kind, dtype=torch.float64)
    names = list(dict(transform.named_parameters()))
    x = randn(2, 8, dtype=torch.complex128).requires_grad_()

    def call(x, *weights):
        return torch.func.functional_call(transform, dict(zip(names, weights, strict=True)), (x,))

    inputs = (x, *(w.detach().clone().requires_grad_() for w in transform.parameters()))
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_gradients_through_thin_are_those_of_the_dense_matrix():
    transform = perturbed(MonarchTransform(24, dtype=torch.float64))
    index, x = torch.tensor([0, 1, 2, -2, -1]), randn(24, dtype=torch.complex128)
    for thin, dense in (
        (lambda: transform.thin(index) @ x, lambda: (transform.to_dense() @ x)[index]),
        (lambda: transform.thin_columns(index) @ x[:5], lambda: transform.to_dense()[:, index] @ x[:5]),
    ):
        grads = [torch.autograd.grad(f().abs().pow(3).sum(), list(transform.parameters())) for f in (thin, dense)]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_precision(dtype):
    """Half precision rounds the factors only; the arithmetic stays in float32."""
    x = randn(3, 320, dtype=torch.complex128)
    transform = MonarchTransform(320, centered=True, dtype=dtype)
    y = transform(x.to(torch.complex64 if TOLERANCE[dtype] > 1e-11 else torch.complex128))
    assert y.dtype == (torch.complex128 if TOLERANCE[dtype] < 1e-11 else torch.complex64)
    exact = torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(x, dim=-1), norm="ortho"), dim=-1)
    assert relative_error(y, exact) < TOLERANCE[dtype]
    if dtype in (torch.float32, torch.complex64):
        assert relative_error(y, exact) < 4e-7


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_modules_compute_in_float32(kind):
    for dtype in (torch.bfloat16, torch.float16):
        transform = MonarchTransform(16, kind).to(dtype)
        x = randn(2, 16, dtype=dtype)
        expected = MonarchTransform(16, kind)(x)
        for y in (transform(x), transform(x.float()), transform.adjoint(x), transform.thin(torch.arange(3))):
            assert y.dtype == (torch.complex64 if kind == "dft" else torch.float32)
        assert relative_error(transform(x), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_leaves_the_arithmetic_alone(kind):
    transform = MonarchTransform(32, kind)
    x, index = randn(4, 32, dtype=torch.float32), torch.arange(3)
    expected = transform(x), transform.adjoint(x), transform.thin(index), transform.thin_columns(index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = transform(x), transform.adjoint(x), transform.thin(index), transform.thin_columns(index)
        assert transform.to_dense().dtype == expected[0].dtype
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def test_dtype_means_a_precision_and_follows_the_default():
    for dtype, expected in ((torch.complex64, torch.float32), (torch.complex128, torch.float64)):
        assert MonarchTransform(8, dtype=dtype).w1.dtype == expected
    torch.set_default_dtype(torch.float64)
    try:
        transform = MonarchTransform(45)
    finally:
        torch.set_default_dtype(torch.float32)
    assert transform.w1.dtype == torch.float64
    difference = transform.to_dense() - fourier_matrix(45, False, False)
    assert float(difference.detach().abs().max()) < 1e-12


def test_built_on_the_device_asked_for():
    assert MonarchTransform(8, device="meta").w1.device.type == "meta"
    with torch.device("meta"):
        transform = MonarchTransform(8)
    assert {t.device.type for t in (transform.w1, transform.w2, transform.permutation_in)} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("kind", ["dft", "dct", "haar"])
def test_compiles_whole(kind, dtype):
    torch.compiler.reset()
    transform = perturbed(MonarchTransform(24, kind))
    x = randn(3, 24, dtype=dtype)
    for function in (transform, transform.adjoint):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x))
        grads = [torch.autograd.grad(f(x).abs().sum(), transform.w1)[0] for f in (compiled, function)]
        torch.testing.assert_close(*grads)


def test_thin_planes_compile_whole():
    torch.compiler.reset()
    transform = MonarchTransform(24)
    index = torch.tensor([0, 1, -1])
    for function in (transform.thin_planes, transform.thin_columns_planes):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(index), function(index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("kind", ["dft", "dct", "haar"])
def test_exports_with_any_batch(kind, dtype):
    transform = MonarchTransform(24, kind)
    batch = torch.export.Dim("batch")
    program = torch.export.export(transform, (randn(3, 24, dtype=dtype),), dynamic_shapes=({0: batch},))
    x = randn(5, 24, dtype=dtype)
    torch.testing.assert_close(program.module()(x), transform(x))


def test_repr_names_the_transform():
    assert repr(MonarchTransform(6, "dct", inverse=True)) == (
        "MonarchTransform(6, kind='dct', inverse=True, centered=False, learnable=True, "
        "w1=(3, 2, 2, 2), w2=(2, 3, 3, 2))"
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match='only the kind "dft" can be centered, not "dct"'):
        MonarchTransform(8, "dct", centered=True)
    with pytest.raises(ValueError, match=r"axis -1 of an input of shape \(2, 9\) must have n = 8 entries"):
        MonarchTransform(8)(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"axis 3 of an input of shape \(2, 8\)"):
        MonarchTransform(8).adjoint(torch.zeros(2, 8), dim=3)
    with pytest.raises(ValueError, match="kind 'fft' is none of"):
        MonarchTransform(8, "fft")
    with pytest.raises(ValueError, match=r"real or complex dtype, but got torch\.int64"):
        MonarchTransform(8, dtype=torch.int64)
    with pytest.raises(ValueError, match="power of two, but got n = 12"):
        MonarchTransform(12, "hadamard")
    with pytest.raises(ValueError, match="at least 1, but got 0"):
        MonarchTransform(0)


@pytest.mark.parametrize("kind", ["dft", "dct", "haar"])
def test_a_fresh_transform_is_exact_after_conversion_to_double(kind):
    exact = MonarchTransform(24, kind, dtype=torch.float64).to_dense()
    for transform in (MonarchTransform(24, kind), MonarchTransform(24, kind).bfloat16()):
        assert relative_error(transform.to_dense(), exact) > 1e-9
        assert relative_error(transform.double().to_dense(), exact) < 1e-14
        assert relative_error(transform.float().double().to_dense(), exact) < 1e-14


def test_conversion_to_double_keeps_what_was_learned():
    transform = MonarchTransform(24)
    with torch.no_grad():
        transform.w1[0, 0, 0, 0] += 1e-3
    learned = transform.w1.detach().clone()
    assert torch.equal(transform.double().w1, learned.double())
