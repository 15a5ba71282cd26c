import math

import pytest
import torch

from sciml_monarch.monarch.kernels import linear
from sciml_monarch.monarch.kernels.backend import use_backend
from sciml_monarch.monarch.kernels.linear import monarch_linear, reference
from sciml_monarch.monarch.kernels.linear_configs import Plan, Sizes, fits
from sciml_monarch.monarch.kernels.linear_plans import alternatives, candidates, choose
from tests.helpers import TOLERANCE, let_the_compiler_learn_torch, needs_triton, relative_error
from tests.monarch.kernels.linear_products import BATCHED, DEVICE, REGROUPED, SHAPES, errors, results, tensors


def kernels(sizes, plan=None):
    def run(*inputs):
        with use_backend("triton"):
            return monarch_linear(*inputs, out_features=sizes.n_out, plan=plan)

    return run


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
