import pytest
import torch
from torch import nn

from sciml_monarch.errors import InputError
from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.kernels import linear
from sciml_monarch.monarch.kernels.backend import is_replayed, replayed, use_backend
from sciml_monarch.monarch.kernels.linear import monarch_linear, reference
from sciml_monarch.monarch.kernels.linear_configs import Sizes
from sciml_monarch.monarch.kernels.linear_plans import dense_pays, measured_faster
from tests.helpers import TOLERANCE, needs_triton, randn, relative_error
from tests.monarch.kernels.linear_products import BATCHED, DEVICE, REGROUPED, SHAPES, errors, results, tensors


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
