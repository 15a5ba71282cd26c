import pytest
import torch

from sciml_monarch.monarch import MonarchTransform
from sciml_monarch.monarch.kernels import transform as operator
from sciml_monarch.monarch.kernels import transform_blocked as blocked
from sciml_monarch.monarch.kernels.backend import use_backend
from sciml_monarch.monarch.kernels.transform_configs import (
    FactorTile,
    GradientTile,
    StagesTile,
    candidates,
    choose,
    choose_gradient,
    gradient_candidates,
)
from sciml_monarch.monarch.parts import inverse_permutation
from tests.helpers import needs_triton, randn, relative_error

BACKENDS = ["torch", pytest.param("triton", marks=needs_triton)]
DEVICE = {"torch": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
EXACT = 2e-6 if torch.cuda.is_available() else 1e-6  # three TF32 products make one; the interpreter has float32
CASES = [
    # kind, n, blocks, inverse, dtype of x, shape, axis
    ("dft", 20, None, False, torch.complex64, (2, 20), -1),
    ("dft", 20, 5, True, torch.complex64, (3, 20, 9), -2),
    ("dft", 45, None, False, torch.complex64, (2, 45, 3), 1),
    ("dft", 21, 3, True, torch.float32, (17, 21), -1),
    ("dft", 12, None, False, torch.float32, (12, 1), 0),
    ("dct", 36, None, False, torch.float32, (2, 36), -1),
    ("dct", 18, None, True, torch.complex64, (2, 18, 10), -2),
    ("dst", 30, None, True, torch.float32, (1, 30, 8), 1),
    ("hadamard", 32, None, False, torch.complex64, (3, 32), -1),
    ("block_dct", 24, 3, True, torch.float32, (2, 24), -1),
    ("haar", 24, None, False, torch.float32, (24, 19), 0),
]
IDS = [f"{case[0]}-{case[1]}-{str(case[4])[6:]}" for case in CASES]


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory is full of NaN: what is not written, or read beyond its end, shows."""
    new_empty = torch.Tensor.new_empty

    def poisoned_empty(self, *arguments, **options):
        x = new_empty(self, *arguments, **options)
        return x.fill_(float("nan")) if x.is_floating_point() or x.is_complex() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned_empty)


def learned(kind, n, blocks=None, inverse=False, device="cpu"):
    transform = MonarchTransform(n, kind, inverse, centered=kind == "dft", blocks=blocks)
    with torch.no_grad():
        for i, w in enumerate(transform.parameters()):
            w += 0.3 * w.std() * randn(*w.shape, dtype=w.dtype, seed=i)
    return transform.to(device)


def results(transform, x, axis, adjoint):
    """The transform and the gradients of the input and of the factors, for a weighted sum of the results."""
    x = x.detach().requires_grad_()
    y = (transform.adjoint if adjoint else transform)(x, axis)
    weights = randn(*y.shape, dtype=torch.complex128 if y.is_complex() else torch.float64, seed=5).to(y)
    return y, *torch.autograd.grad((y * weights).real.sum(), (x, *transform.parameters()))


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "n", "blocks", "inverse", "dtype", "shape", "axis"), CASES, ids=IDS)
def test_equals_float64(kind, n, blocks, inverse, dtype, shape, axis, backend, adjoint, poisoned):
    transform = learned(kind, n, blocks, inverse, DEVICE[backend])
    x = randn(*shape, dtype=dtype).to(DEVICE[backend])
    with use_backend(backend):
        actual = results(transform, x, axis, adjoint)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = results(transform.double(), x.to(wide), axis, adjoint)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype in (torch.float32, torch.complex64)
        assert a.is_complex() == b.is_complex()
        assert relative_error(a, b) < EXACT


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_operator_and_not_the_reference_serves(monkeypatch, backend):
    """Else the tests above would compare the reference with itself."""
    called = []
    monkeypatch.setattr(operator, "_reference", lambda *a: called.append(1))
    x = randn(2, 20, dtype=torch.complex64).to(DEVICE[backend])
    with use_backend(backend):
        assert learned("dft", 20, device=DEVICE[backend])(x).shape == x.shape
    assert not called


@pytest.mark.parametrize("change", ["transposed", "sliced", "conjugate", "unaligned", "expanded"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_memory_layout(backend, change):
    transform = learned("dft", 20, device=DEVICE[backend])

    def draw(*shape):
        return randn(*shape, dtype=torch.complex64).to(DEVICE[backend])

    x = {
        "transposed": lambda: draw(3, 4, 20).transpose(0, 1),
        "sliced": lambda: draw(4, 6, 40)[:, ::2, ::2],
        "conjugate": lambda: draw(4, 3, 20).conj(),
        "unaligned": lambda: draw(1 + 4 * 3 * 20)[1:].view(4, 3, 20),
        "expanded": lambda: draw(20).expand(4, 3, 20),
    }[change]()
    with use_backend(backend):
        y = transform(x)
    assert relative_error(y, transform.double()(x.to(torch.complex128))) < EXACT


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch(backend):
    transform = learned("dft", 20, device=DEVICE[backend])
    for shape, axis in (((0, 20), -1), ((3, 20, 0), 1)):
        with use_backend(backend):
            y, *gradients = results(transform, randn(*shape, dtype=torch.complex64).to(DEVICE[backend]), axis, False)
        assert y.shape == shape
        assert all(float(g.abs().sum()) == 0 for g in gradients)


@pytest.mark.parametrize(("outer", "inner"), [(700, 1), (2, 700), (300, 3)])
def test_blocks_of_lines_join(outer, inner):
    transform = learned("dft", 12)
    x = randn(outer, 12, inner, dtype=torch.complex64)
    assert outer * inner > 2 * blocked.N_LINES
    actual = results(transform, x, 1, False)
    expected = results(transform.double(), x.to(torch.complex128), 1, False)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < EXACT


def lines_of(transform, inner, n_lines=37):
    """Arguments of the kernels, for lines of which the last tile is not full."""
    x = torch.view_as_real(randn(n_lines, transform.n, inner, dtype=torch.complex64)).to(transform.w1.device)
    place_out = None if transform.permutation_out is None else inverse_permutation(transform.permutation_out)
    return x, transform.w1.detach(), transform.w2.detach(), transform.permutation_in, place_out


@needs_triton
@pytest.mark.parametrize("inner", [1, 8])
@pytest.mark.parametrize(
    "tile",
    [
        StagesTile(16, 16, 8, 4, 1),
        StagesTile(16, 16, 16, 8, 1),
        FactorTile(1, 16, 16, 16, 2, 1),
        FactorTile(4, 16, 16, 32, 4, 2),
        FactorTile(8, 32, 16, 16, 4, 1),
    ],
    ids=str,
)
def test_tiles(tile, inner, poisoned):
    """Sizes of which no power of two is a multiple: 11 blocks of 3 points, 3 blocks of 11."""
    from sciml_monarch.monarch.kernels import transform_triton

    transform = learned("dft", 33, 11, device=DEVICE["triton"])
    lines = lines_of(transform, inner, 3 if inner > 1 else 19)
    for adjoint in (False, True):
        actual = transform_triton.apply(*lines, 2, adjoint, tile)
        expected = operator._reference_of_lines(*(v.double() if v is not None and v.is_floating_point() else v
                                                  for v in lines), 2, adjoint)  # fmt: skip
        assert relative_error(actual, expected) < EXACT


@needs_triton
@pytest.mark.parametrize("tile", [GradientTile(1, 16, 16, 2, 2, 1), GradientTile(4, 32, 32, 64, 4, 1)], ids=str)
@pytest.mark.parametrize("inner", [1, 8])
def test_tiles_of_gradients(tile, inner, poisoned):
    from sciml_monarch.monarch.kernels import transform_triton

    transform = learned("dft", 33, 11, device=DEVICE["triton"])
    u, *rest = lines_of(transform, inner, 9)
    v = randn(*u.shape, dtype=torch.float32, seed=3).to(u)
    h = transform_triton.first_factor(u, *rest, False)
    g = transform_triton.first_factor(v, *rest, True)
    actual = transform_triton.gradients(u, h, v, g, *rest, tile)
    expected = blocked.gradients(u.double(), v.double(), *(w.double() for w in rest[:2]), *rest[2:], False)[1:]
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < EXACT


@pytest.mark.cuda
@pytest.mark.parametrize(("k", "q"), [(16, 16), (20, 16), (23, 16), (31, 12), (32, 20)])
def test_every_tile_on_a_gpu(k, q):
    from triton.runtime.errors import OutOfResources

    from sciml_monarch.monarch.kernels import transform_triton

    transform = learned("dft", k * q, k, device="cuda")
    runs = 0
    for inner in (1, 40):
        lines = lines_of(transform, inner, 5 if inner > 1 else 37)
        expected = blocked.apply(*(None if v is None else v.cpu() for v in lines), 2, False)
        for tile in candidates(k, q):
            try:
                actual = transform_triton.apply(*lines, 2, False, tile)
            except OutOfResources:
                assert isinstance(tile, StagesTile)  # more shared memory than there is; never chosen
                continue
            runs += 1
            assert relative_error(actual.cpu(), expected) < EXACT
    assert runs


@needs_triton
def test_a_prime_number_of_points_is_one_dense_block():
    """Whose gradient is cut into more tiles than the last axis of a grid has programs, at some size."""
    transform = learned("dft", 37, 1, device=DEVICE["triton"])
    x = randn(3, 37, dtype=torch.complex64).to(DEVICE["triton"])
    with use_backend("triton"):
        actual = results(transform, x, -1, False)
    expected = results(transform.double(), x.to(torch.complex128), -1, False)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < EXACT


@pytest.mark.cuda
def test_arrays_of_more_than_two_to_the_31_numbers():
    """Offsets along a line need 64 bits too; about 30 GB."""
    inner = 150_000_000
    transform = learned("hadamard", 16, device="cuda")
    x = torch.randn(16, inner, device="cuda")
    with use_backend("triton"), torch.no_grad():
        y = transform(x, 0)[:, -64:].clone()
    with use_backend("torch"), torch.no_grad():
        assert relative_error(y, transform.double()(x[:, -64:].double(), 0)) < EXACT


def test_what_is_chosen_is_among_the_candidates():
    for k, q in ((8, 8), (16, 16), (20, 16), (23, 16), (31, 12), (32, 20), (71, 3)):
        assert choose(4800, k, q, 1, "tf32x3") in candidates(k, q)
        for blocks, rows, columns in ((k, q, q), (q, k, k)):
            assert choose_gradient(4800, blocks, rows, columns) in gradient_candidates(blocks, rows, columns)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("adjoint", [False, True])
def test_opcheck(backend, adjoint):
    x, w1, w2, place_in, place_out = lines_of(learned("dct", 12, inverse=True, device=DEVICE[backend]), 1, 3)
    inputs = (*(v.clone().requires_grad_() for v in (x, w1, w2)), place_in, place_out, 2, adjoint)
    with use_backend(backend):
        torch.library.opcheck(torch.ops.sciml_monarch.transform.default, inputs)
        inputs = (x, torch.ones_like(x), w1, w2, place_in, place_out, adjoint)
        torch.library.opcheck(torch.ops.sciml_monarch.transform_gradients.default, inputs)


@pytest.mark.parametrize("kind", ["dft", "dct", "hadamard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_second_derivatives(kind, dtype):
    transform = learned(kind, 8)

    def second(transform, x):
        x = x.detach().requires_grad_()
        variables = x, *transform.parameters()
        first = torch.autograd.grad(transform(x).abs().pow(3).sum(), variables, create_graph=True)
        return torch.autograd.grad(sum(v.abs().pow(3).sum() for v in first), variables)

    x = randn(2, 8, dtype=dtype)
    actual = second(transform, x)
    expected = second(transform.double(), x.to(torch.complex128 if dtype.is_complex else torch.float64))
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["dct", "dft", "hadamard"])
def test_factors_that_are_applied_several_times_have_the_gradients_of_once_more(kind, backend):
    """Where gradients can be differentiated again, inputs that depend on the factors count once too."""
    transform = MonarchTransform(16, kind, learnable=True).to(DEVICE[backend])
    with torch.no_grad():
        for k, factor in enumerate(transform.parameters()):
            factor.add_(0.3 * randn(*factor.shape, seed=k).to(factor))
    x = randn(3, 16).to(DEVICE[backend], torch.float32)

    def gradients(create_graph):
        loss = transform(transform(transform(x))).abs().square().sum()
        return torch.autograd.grad(loss, list(transform.parameters()), create_graph=create_graph)

    with use_backend(backend):
        for kept, usual in zip(gradients(True), gradients(False), strict=True):
            assert relative_error(kept, usual) < 20 * EXACT


def test_batches_of_arrays_and_of_factors():
    transform, names = learned("dft", 12), ("w1", "w2")
    x = randn(3, 2, 12, dtype=torch.complex64)
    torch.testing.assert_close(torch.vmap(transform, in_dims=1, out_dims=1)(x), transform(x))
    stacked = [torch.stack([w, 2 * w]) for w in transform.parameters()]

    def call(w1, w2):
        return torch.func.functional_call(transform, dict(zip(names, (w1, w2), strict=True)), (x,))

    y = torch.vmap(call)(*stacked)
    torch.testing.assert_close(y, torch.stack([transform(x), 4 * transform(x)]))


def test_forward_mode_derivatives():
    transform = learned("dft", 12)
    x = randn(2, 12, dtype=torch.complex64)
    _, tangent = torch.func.jvp(transform, (x,), (2 * x,))
    torch.testing.assert_close(tangent, 2 * transform(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_whole_and_follows_the_backend(backend):
    torch.compiler.reset()
    transform = learned("dft", 20, device=DEVICE[backend])
    x = randn(2, 20, 3, dtype=torch.complex64).to(DEVICE[backend])
    compiled = torch.compile(transform, fullgraph=True, backend="aot_eager")
    with use_backend("torch"):
        expected = results(transform, x, 1, False)
    with use_backend(backend):
        y = compiled(x.requires_grad_(), 1)
        weights = randn(*y.shape, dtype=torch.complex128, seed=5).to(y)
        found = y, *torch.autograd.grad((y * weights).real.sum(), (x, *transform.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@needs_triton
def test_where_triton_cannot_run_the_user_is_told():
    with use_backend("triton"), pytest.raises(ValueError, match=r"cannot take a torch\.float64 tensor"):
        MonarchTransform(12, dtype=torch.float64)(randn(2, 12, dtype=torch.complex128))
