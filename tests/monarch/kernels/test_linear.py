import math

import pytest
import torch
from torch import nn

from sciml_monarch.errors import InputError
from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.kernels import linear
from sciml_monarch.monarch.kernels.backend import is_replayed, replayed, use_backend
from sciml_monarch.monarch.kernels.linear import monarch_linear, reference
from sciml_monarch.monarch.kernels.linear_configs import Plan, Sizes, fits
from sciml_monarch.monarch.kernels.linear_plans import (
    alternatives,
    candidates,
    choose,
    dense_pays,
    measured_faster,
)
from tests.helpers import TOLERANCE, let_the_compiler_learn_torch, needs_triton, randn, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# k, q, p, l, s, n_in, n_out
REGROUPED = Sizes(2, 32, 20, 2, 40, 32, 39, 77)  # runs of 16, padded on both sides
BATCHED = Sizes(8, 8, 8, 8, 9, 8, 61, 70)
SHAPES = [
    REGROUPED,
    BATCHED,
    Sizes(4, 64, 16, 4, 20, 64, 64, 80),  # nothing is cut off
    Sizes(3, 20, 9, 2, 5, 30, 26, 9),  # k != l, inner sizes that no block divides
    Sizes(3, 22, 9, 3, 7, 22, 26, 20),  # runs of different lengths
    Sizes(3, 40, 5, 1, 11, 120, 15, 11),
    Sizes(1, 6, 7, 3, 4, 2, 7, 12),
    Sizes(5, 3, 40, 5, 70, 3, 199, 347),  # low rank
]


def tensors(sizes, n_tokens, dtype=torch.float32, seed=0):
    """Input, factors, bias, and gradient of the output."""
    k, q, p, l, s, r, n_in, n_out = sizes
    shapes = [(n_tokens, n_in), (k, q, p), (l, s, r), (n_out,), (n_tokens, n_out)]
    scales = [1, 1 / math.sqrt(p), 1 / math.sqrt(r), 1, 1]
    return [
        (randn(*shape, seed=seed + i) * scale).to(dtype).to(DEVICE)
        for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    ]


def results(function, inputs, dy):
    """Output and the gradients of all inputs."""
    inputs = [v.detach().requires_grad_() for v in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def kernels(sizes, plan=None):
    def run(*inputs):
        with use_backend("triton"):
            return monarch_linear(*inputs, out_features=sizes.n_out, plan=plan)

    return run


def errors(actual, expected):
    return [relative_error(a.cpu(), e.cpu()) for a, e in zip(actual, expected, strict=True)]


def check(sizes, n_tokens, dtype=torch.float32, plan=None, seed=0):
    *inputs, dy = tensors(sizes, n_tokens, dtype, seed)
    exact = results(lambda *a: reference(*a, sizes.n_out), [v.double() for v in inputs], dy.double())
    plain = results(lambda *a: monarch_linear(*a, out_features=sizes.n_out), inputs, dy)
    # backward outside of the choice: kernels and plain torch understand each other's inner vectors
    with use_backend("triton"):
        fast = results(kernels(sizes, plan), inputs, dy)
    for error, usual in zip(errors(fast, exact), errors(plain, exact), strict=True):
        assert error < 2 * usual + 0.1 * TOLERANCE[dtype]


@needs_triton
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("n_tokens", [1, 37])
def test_as_exact_as_torch(sizes, n_tokens):
    check(sizes, n_tokens, seed=n_tokens)


@needs_triton
@pytest.mark.parametrize("sizes", [REGROUPED, BATCHED], ids=["regrouped", "batched"])
def test_as_exact_as_torch_in_half_precision(sizes):
    assert choose(sizes, 37, 2).regrouped == (sizes is REGROUPED)
    check(sizes, 37, torch.float16)  # Triton's interpreter cannot multiply bfloat16


def launched(config):
    """The configuration, without what Triton's interpreter does not look at."""
    return config if DEVICE == "cuda" else config._replace(warps=8, stages=2)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("sizes", [Sizes(2, 32, 20, 2, 40, 32, 39, 77), Sizes(2, 16, 20, 8, 6, 4, 39, 46)], ids=str)
def test_every_candidate(sizes):
    *inputs, dy = tensors(sizes, 17)
    expected = results(lambda *a: reference(*a, sizes.n_out), [v.double() for v in inputs], dy.double())
    chosen = choose(sizes, 17, 4)
    plans = [plan for plan in candidates(sizes, 17, 4) if plan.regrouped == chosen.regrouped]
    # configurations do not act on each other: all of them are run in as few plans as the longest list has entries
    entries = [sorted({launched(plan[i]) for plan in plans if not plan.fused}) for i in range(2, 8)]
    rows = range(max(map(len, entries)))
    mixed = [
        chosen._replace(**dict(zip(Plan._fields[2:], (e[i % len(e)] for e in entries), strict=True))) for i in rows
    ]
    assert len(mixed) > 5
    for plan in mixed + [plan for plan in plans if plan.fused]:
        with use_backend("triton"):
            actual = results(kernels(sizes, plan), inputs, dy)
        assert max(errors(actual, expected)) < 1e-6, plan


@needs_triton
def test_either_order_of_the_inner_vector():
    for sizes in (REGROUPED, BATCHED, SHAPES[4]):
        for regrouped in (False, True):
            check(sizes, 17, plan=choose(sizes, 17, 4, regrouped))


@pytest.mark.parametrize(("n_in", "n_out"), [(768, 768), (1024, 1024), (768, 3072), (3072, 768), (4096, 4096)])
@pytest.mark.parametrize("blocks", [2, 4, 8, 16, 32, 64])
def test_every_candidate_fits_the_chip(n_in, n_out, blocks):
    p, s = n_in // blocks, n_out // blocks
    q = min(p, s)
    sizes = Sizes(blocks, q, p, blocks, s, q, n_in, n_out)
    for itemsize in (2, 4):
        for plan in candidates(sizes, 16384, itemsize):
            assert all(fits(config, itemsize) for config in plan[2:])
            assert Plan.unpack(plan.pack()) == plan


@needs_triton
@pytest.mark.parametrize("sizes", [REGROUPED, BATCHED, SHAPES[4]], ids=["regrouped", "batched", "uneven"])
def test_every_output_is_written_and_nothing_beside_the_inputs_is_read(sizes, monkeypatch):
    *inputs, dy = tensors(sizes, 19)
    expected = results(lambda *a: reference(*a, sizes.n_out), inputs, dy)
    let_the_compiler_learn_torch()
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def embedded(v):  # between numbers that are none, at an address of no alignment
        wide = torch.full((v.numel() + 4099,), math.nan, device=v.device)
        wide[2049 : 2049 + v.numel()] = v.flatten()
        return wide[2049 : 2049 + v.numel()].view(v.shape)

    def poisoned(*args, **kwargs):
        return new_empty(*args, **kwargs).fill_(math.nan)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", poisoned)
        patch.setattr(torch, "empty_like", lambda v: empty_like(v).fill_(math.nan))
        with use_backend("triton"):
            actual = results(kernels(sizes), [embedded(v) for v in inputs], embedded(dy))
    assert max(errors(actual, expected)) < 1e-6


@needs_triton
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("sizes", [REGROUPED, BATCHED], ids=["regrouped", "batched"])
def test_any_layout_of_the_inputs(sizes, backend):
    x, w1, w2, bias, dy = tensors(sizes, 24)
    expected = reference(x, w1, w2, bias, sizes.n_out)
    layouts = {
        "leading axes": x.view(2, 3, 4, -1),
        "one vector": x[0],
        "every other": torch.stack([x, x], 1).flatten(0, 1)[::2],
        "part of a row": torch.cat([x, x], 1)[:, : sizes.n_in],
        "transposed": x.T.contiguous().T,
        "axes exchanged": x.view(4, 6, -1).transpose(0, 1),
        "repeated": x[:1].expand(5, -1),
    }
    for name, given in layouts.items():
        with use_backend(backend):
            y = monarch_linear(given, w1.mT.contiguous().mT, w2, bias, sizes.n_out)
        correct = {"one vector": expected[0], "repeated": expected[:1].expand(5, -1)}.get(name)
        if correct is None:
            correct = expected.view(4, 6, -1).transpose(0, 1) if name == "axes exchanged" else expected
            correct = correct.reshape(*given.shape[:-1], -1)
        assert relative_error(y, correct) < 1e-6, name
    w1, w2, x = (v.requires_grad_() for v in (w1, w2, x))
    with use_backend(backend):  # the gradient of a sum has strides 0, that of a transposed loss is transposed
        for loss in (lambda y: y.sum(), lambda y: (y.T.contiguous().T * dy).sum(), lambda y: (y.T @ dy).trace()):
            actual = torch.autograd.grad(loss(monarch_linear(x, w1, w2, None, sizes.n_out)), (x, w1, w2))
            exact = torch.autograd.grad(loss(reference(x, w1, w2, None, sizes.n_out)), (x, w1, w2))
            assert max(errors(actual, exact)) < 1e-6


@needs_triton
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_no_tokens(backend):
    *inputs, dy = tensors(REGROUPED, 0)
    with use_backend(backend):
        y, *grads = results(lambda *a: monarch_linear(*a, out_features=77), inputs, dy)
        batch = monarch_linear(inputs[0].view(3, 0, 39), *inputs[1:], 77)
    assert y.shape == (0, 77)
    assert batch.shape == (3, 0, 77)
    assert all(g.shape == v.shape and not g.any() for g, v in zip(grads, inputs, strict=True))


@needs_triton
@pytest.mark.parametrize("wanted", range(4))
@pytest.mark.parametrize("sizes", [REGROUPED, BATCHED], ids=["regrouped", "batched"])
def test_gradient_of_one_input_alone(sizes, wanted):
    *inputs, dy = tensors(sizes, 7)
    expected = results(lambda *a: reference(*a, sizes.n_out), inputs, dy)[1 + wanted]
    inputs[wanted].requires_grad_()
    with use_backend("triton"):
        (grad,) = torch.autograd.grad(monarch_linear(*inputs, out_features=sizes.n_out), inputs[wanted], dy)
    assert relative_error(grad, expected) < 1e-6


@needs_triton
@pytest.mark.parametrize("sizes", [REGROUPED, BATCHED], ids=["regrouped", "batched"])
def test_forward_and_backward_may_run_differently(sizes):
    *inputs, dy = tensors(sizes, 7)
    expected = results(lambda *a: reference(*a, sizes.n_out), inputs, dy)
    inputs = [v.requires_grad_() for v in inputs]
    with use_backend("triton"):
        y = monarch_linear(*inputs, out_features=sizes.n_out)
    with use_backend("torch"):
        assert max(errors(torch.autograd.grad(y, inputs, dy), expected[1:])) < 1e-6
    with use_backend("torch"):
        y, _ = linear._op(*inputs, sizes.n_out, [])
    assert relative_error(y, expected[0]) < 1e-6
    with use_backend("triton"):
        assert max(errors(torch.autograd.grad(y, inputs, dy), expected[1:])) < 1e-6


@needs_triton
@pytest.mark.parametrize("sizes", [REGROUPED, BATCHED], ids=["regrouped", "batched"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_operation_is_well_formed(sizes, backend):
    x, w1, w2, bias, dy = tensors(sizes, 5)
    inputs = [v.requires_grad_() for v in (x, w1, w2)]
    with use_backend(backend):
        for b in (bias.requires_grad_(), None):
            torch.library.opcheck(linear._op, (*inputs, b, sizes.n_out, []))
        h = linear._op(*inputs, None, sizes.n_out, [])[1].detach()
        needs = [True, False, True, True]
        args = (dy, x.detach(), h, w1.detach(), w2.detach(), [], needs)
        torch.library.opcheck(linear._backward_op, args)


@needs_triton
def test_compiles_whole():
    torch.compiler.reset()
    layer = MonarchLinear(13, 17, device=DEVICE)
    net = nn.Sequential(nn.LayerNorm(13, device=DEVICE), layer, nn.GELU())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = randn(2, 5, 13, dtype=torch.float32).to(DEVICE)
    for backend in ("torch", "triton", "torch"):  # a compiled network follows the choice
        with use_backend(backend):
            grads = [torch.autograd.grad(f(x).square().sum(), list(net.parameters())) for f in (compiled, net)]
        assert max(errors(*grads)) < 1e-5


@needs_triton
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_autocast_gives_what_the_dense_layer_gives(backend):
    if DEVICE == "cpu" and backend == "triton":
        dtype = torch.float16  # Triton's interpreter cannot multiply bfloat16
    else:
        dtype = torch.bfloat16
    layer = MonarchLinear(39, 29, device=DEVICE)
    dense = nn.Linear(39, 29, device=DEVICE)
    x = randn(4, 39, dtype=torch.float32).to(DEVICE)
    expected = layer(x)
    with torch.autocast(DEVICE, dtype=dtype), use_backend(backend):
        y = layer(x)
        assert y.dtype == dense(x).dtype == dtype
        y.float().square().sum().backward()
    assert relative_error(y, expected) < TOLERANCE[dtype]
    assert layer.w1.grad.dtype == layer.bias.grad.dtype == torch.float32


@pytest.mark.parametrize("n_tokens", [1, 6, 19])
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_plain_torch_is_the_definition(sizes, n_tokens):
    *inputs, dy = tensors(sizes, n_tokens, torch.float64)
    expected = results(lambda *a: reference(*a, sizes.n_out), inputs, dy)
    assert max(errors(results(lambda *a: monarch_linear(*a, out_features=sizes.n_out), inputs, dy), expected)) < 1e-12


def test_plain_torch_differentiates_twice():
    *inputs, _ = tensors(Sizes(2, 2, 3, 2, 2, 2, 5, 3), 2, torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda *a: monarch_linear(*a, out_features=3), [v.requires_grad_() for v in inputs]
    )


@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=needs_triton)])
def test_transforms_of_torch_func_see_through_the_layer(backend):
    *inputs, dy = tensors(SHAPES[4], 3)
    tangents = tuple(torch.ones_like(v) for v in inputs)

    def run(function):
        def loss(w1, x):
            return (function(x, w1, *inputs[2:]) * dy[0]).sum()

        _, tangent = torch.func.jvp(function, tuple(inputs), tangents)
        return tangent, torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(inputs[1], inputs[0])

    n_out = SHAPES[4].n_out
    expected = run(lambda *a: reference(*a, n_out))
    with use_backend(backend):
        found = run(lambda *a: monarch_linear(*a, out_features=n_out))
    assert max(errors(found, expected)) < TOLERANCE[torch.float32]


def test_bad_input_is_named():
    x, w1, w2, bias, _ = tensors(REGROUPED, 3)
    with pytest.raises(InputError, match=r"k \* q == l \* r, but are \(2, 32, 20\) and \(2, 40, 31\)"):
        monarch_linear(x, w1, w2[..., :31])
    with pytest.raises(InputError, match=r"shape \(3, 78\) must have at most 40 entries"):
        monarch_linear(torch.cat([x, x], 1), w1, w2)
    with pytest.raises(InputError, match=r"out_features = 81 is outside 1\.\.80"):
        monarch_linear(x, w1, w2, None, 81)
    with pytest.raises(InputError, match=r"bias of 80 outputs must have the shape \(80,\), but has \(77,\)"):
        monarch_linear(x, w1, w2, bias)
    with use_backend("triton"), pytest.raises(InputError, match=r"cannot take a torch\.float64 tensor"):
        monarch_linear(x.double(), w1.double(), w2.double())


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("n_in", "n_out", "blocks"), [(1024, 1024, 4), (768, 3072, 4), (3072, 768, 8), (1000, 1030, 16), (4096, 4096, 64)]
)
def test_real_sizes_on_the_gpu(n_in, n_out, blocks, dtype):
    p, s = -(-n_in // blocks), -(-n_out // blocks)
    sizes = Sizes(blocks, min(p, s), p, blocks, s, min(p, s), n_in, n_out)
    for n_tokens in (1, 64, 2053):
        check(sizes, n_tokens, dtype)
    plan = choose(sizes, 2053, dtype.itemsize)
    for fused in alternatives(plan, sizes, 2053, dtype.itemsize)["fused"]:
        check(sizes, 2053, dtype, fused)


@pytest.mark.cuda
def test_runs_in_a_cuda_graph():
    layer = MonarchLinear(768, 3072, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(512, 768, device="cuda", dtype=torch.bfloat16)
    with use_backend("triton"):
        for _ in range(2):
            layer(x).sum().backward()
        graph = torch.cuda.CUDAGraph()
        layer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            y = layer(x)
            y.sum().backward()
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, layer(x))


def test_auto_is_for_what_was_measured():
    large = Sizes(k=4, q=1024, p=1024, l=4, s=1024, r=1024, n_in=4096, n_out=4096)
    assert measured_faster(large, 16384, 2)
    two_blocks = large._replace(k=2, q=2048, p=2048, l=2, s=2048, r=2048)
    for sizes, n_tokens, itemsize in (
        (large, 16384, 4),
        (large, 2048, 2),
        (two_blocks, 16384, 2),
        (large._replace(n_in=1024), 16384, 2),
        (large._replace(n_out=1024), 16384, 2),
    ):
        assert not measured_faster(sizes, n_tokens, itemsize)
    wide = Sizes(k=4, q=192, p=192, l=4, s=768, r=192, n_in=768, n_out=3072)
    assert measured_faster(wide, 16384, 2, replayed=True)
    assert not measured_faster(wide, 2048, 2, replayed=True)
    assert not measured_faster(wide, 16384, 4, replayed=True)
    small = wide._replace(s=192, n_out=768)
    assert dense_pays(small, 16384, 2, replayed=True)
    assert not measured_faster(small, 16384, 2, replayed=True)
    assert not dense_pays(small, 16384, 2)
    assert dense_pays(small, 65536, 2)
    assert not dense_pays(small, 2048, 2, replayed=True)
    assert not dense_pays(small, 16384, 4, replayed=True)


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_multiplied_out_is_the_same_with_all_gradients(sizes):
    *inputs, gradient = tensors(sizes, 5, torch.float64)
    found, expected = (
        results(lambda *a, way=way: way(*a, sizes.n_out), inputs, gradient)
        for way in (linear._multiplied_out, reference)
    )
    assert max(errors(found, expected)) < TOLERANCE[torch.float64]


def test_auto_knows_what_is_replayed():
    assert not is_replayed()
    with replayed():
        assert is_replayed()
        with replayed():
            pass
        assert is_replayed()
    assert not is_replayed()
