import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sciml_monarch.pde import MonarchFNO, MonarchSpectralConv
from tests.helpers import randn

# what computes, copies or fills; all else allocates, or looks at memory in another way
COMPUTING = {f"aten::{name}" for name in ("bmm", "mm", "copy_", "fill_", "add", "add_", "sub", "sub_", "mul", "mul_")}
COMPUTING |= {f"aten::{name}" for name in ("neg", "sum", "cat", "index_select", "index_add_", "index_put_", "gather")}
COMPUTING |= {f"aten::{name}" for name in ("addmm", "baddbmm", "div", "exp", "pow", "scatter_add_", "where", "zero_")}


def recorded(run):
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    return found.events()


def launches(run):
    """Runs, and returns the names of the operations of ATen for each of which a GPU would begin a kernel."""
    events = [e for e in recorded(run) if e.name in COMPUTING]
    outer = {id(e.cpu_parent) for e in events}
    return [e.name for e in events if id(e) not in outer]


# A GPU takes microseconds for each, whatever its size: more of them would double the time of small fields.
@pytest.mark.parametrize(("learned", "forward", "backward"), [(False, 17, 13), (True, 17, 36)])
def test_a_layer_begins_few_operations(learned, forward, backward):
    layer = MonarchSpectralConv(8, 8, (24, 24), (64, 64), learned, bias=False)
    x = randn(2, 8, 64, 64, dtype=torch.float32).requires_grad_()
    y = layer(x)
    weights = torch.ones_like(y)
    begun = launches(lambda: layer(x))
    assert begun.count("aten::bmm") == 5
    assert len(begun) <= forward, begun
    begun = launches(lambda: y.backward(weights))  # gradients that do not lie as parameters do would be copied
    assert begun.count("aten::bmm") >= 6
    assert len(begun) <= backward, begun


def test_a_network_without_padding_does_not_copy_the_gradients_of_its_fields():
    net = MonarchFNO(1, 1, 4, (8, 8), (16, 16), n_layers=1, learn_transforms=False)
    y = net(randn(2, 1, 16, 16, dtype=torch.float32))
    assert "aten::slice_backward" not in [e.name for e in recorded(lambda: y.sum().backward())]


def test_a_network_composes_the_matrices_of_all_layers_at_once():
    net = MonarchFNO(1, 1, 4, (8, 8), (16, 16))
    assert launches(lambda: net.prepare((16, 16))) == launches(lambda: net.convs[0].prepare())
