"""Periodic padding against PyTorch's."""

import pytest
import torch
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sciml_monarch.errors import InputError
from sciml_monarch.pde.padding import periodic_pad

CASES = [((5,), (2,)), ((4, 6), (1, 1)), ((4, 6), (3, 0)), ((3, 4), (3, 4)), ((3, 4, 5), (1, 2, 1))]


def reference(x, reach):
    return pad(x, [r for r in reversed(reach) for _ in range(2)], mode="circular")


@pytest.mark.parametrize(("grid", "reach"), CASES)
@pytest.mark.parametrize("strided", [False, True])
def test_equals_torchs_with_its_gradients(grid, reach, strided):
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    x = (x.transpose(1, -1).contiguous().transpose(1, -1) if strided else x).requires_grad_()
    out, wanted = periodic_pad(x, reach), reference(x, reach)
    assert torch.equal(out, wanted)
    gradient = torch.randn_like(out)
    kept = gradient.clone()
    found, expected = (torch.autograd.grad(y, x, gradient)[0] for y in (out, wanted))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(gradient, kept)  # which others may still read
    assert torch.autograd.gradgradcheck(lambda y: periodic_pad(y, reach).square(), x)


class Moved(TorchDispatchMode):
    """Bytes of the tensors that operations read and write, views left out."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        is_view = any(
            argument.alias_info and not argument.alias_info.is_write for argument in operation._schema.returns
        )
        if not is_view and "empty" not in str(operation):
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return found


def test_it_moves_a_fraction_of_what_torchs_moves():
    x = torch.randn(2, 4, 32, 32, requires_grad=True)
    moved = []
    for padded in (periodic_pad, reference):
        with Moved() as counted:
            torch.autograd.grad(padded(x, (1, 1)).sum(), x)
        moved.append(counted.bytes)
    assert moved[0] < 0.3 * moved[1]


def test_nothing_to_add_leaves_the_field():
    x = torch.randn(1, 1, 3, 3, requires_grad=True)
    periodic_pad(x, (0, 0)).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x)


@pytest.mark.parametrize("reach", [(1,), (4, 1), (-1, 1)])
def test_reaches_that_do_not_fit_are_refused(reach):
    with pytest.raises(InputError, match="cannot be continued periodically"):
        periodic_pad(torch.zeros(1, 1, 3, 3), reach)


def test_compiles_whole_with_the_same_gradient():
    def loss(x):
        return periodic_pad(x, (1, 2)).sin().sum()

    x, y = (torch.linspace(0, 1, 12).reshape(1, 1, 3, 4).requires_grad_() for _ in range(2))
    torch.compile(loss, fullgraph=True)(x).backward()
    loss(y).backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_transforms_and_forward_mode_see_through_it(transform):
    x = torch.linspace(0, 1, 12, dtype=torch.float64).reshape(1, 1, 3, 4)

    def result(padded):
        if transform == "grad":
            return torch.func.grad(lambda y: padded(y, (1, 2)).sin().sum())(x)
        if transform == "vmap":
            return torch.func.vmap(lambda y: padded(y, (1, 2)))(x[None])
        return torch.func.jvp(lambda y: padded(y, (1, 2)).sin(), (x,), (x.cos(),))[1]

    torch.testing.assert_close(result(periodic_pad), result(reference), rtol=1e-14, atol=1e-14)
