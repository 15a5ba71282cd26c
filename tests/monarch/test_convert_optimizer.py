import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from sciml_monarch import InputError
from sciml_monarch.monarch import Factors, MonarchLinear, carry_over, densify, project, sparsify, to_dense
from sciml_monarch.monarch.convert_optimizer import to_factors, to_matrix
from sciml_monarch.monarch.shapes import inner_width
from sciml_monarch.monarch.sub_blocks import align, join, join_matrix, split, split_matrix
from tests.helpers import randn, relative_error
from tests.monarch.layers import Conv1D

# outputs, inputs, blocks, rank; the sub-blocks of the third have unequal ranks
SHAPES = [(8, 12, 2, 2), (8, 12, 4, None), (12, 12, 4, None), (18, 8, (2, 3), 1), (10, 16, (4, 2), 3)]


def factors_of(m, n, blocks, rank):
    k, l = (blocks, blocks) if isinstance(blocks, int) else blocks
    q = inner_width(m, n, k, l, rank)
    return Factors(randn(k, q, n // k, seed=1), randn(l, m // l, k * q // l, seed=2))


@pytest.mark.parametrize(("m", "n", "blocks", "rank"), SHAPES)
def test_sub_blocks_are_those_of_the_matrix(m, n, blocks, rank):
    factors = factors_of(m, n, blocks, rank)
    u, v = split(factors)
    matrix = to_dense(factors)
    k, l = len(factors.w1), len(factors.w2)
    torch.testing.assert_close(u.mT @ v, split_matrix(matrix, k, l))
    assert torch.equal(join_matrix(split_matrix(matrix, k, l), m, n), matrix)
    again = join(split(factors), factors.w1.shape[1])
    assert all(map(torch.equal, again, factors))


@pytest.mark.parametrize(("m", "n", "blocks", "rank"), SHAPES)
def test_alignment_undoes_a_rotation_and_keeps_the_matrix(m, n, blocks, rank):
    reference, _ = project(randn(m, n), blocks, rank)
    u, v = split(reference)
    flips = torch.where(randn(*u.shape[:3], seed=4) > 0, 1.0, -1.0)[..., None].double()
    turned = join(type(split(reference))(u * flips, v * flips), reference.w1.shape[1])
    aligned = align(turned, reference)
    for a, b in zip(aligned, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    moved = Factors(*(w + 0.3 * randn(*w.shape, seed=7) for w in turned))
    aligned = align(moved, reference)
    torch.testing.assert_close(to_dense(aligned), to_dense(moved), rtol=1e-9, atol=1e-9)

    def distance(factors):
        return sum(float((a - b).square().sum()) for a, b in zip(factors, reference, strict=True))

    assert distance(aligned) <= distance(moved)


@pytest.mark.parametrize(("m", "n", "blocks", "rank"), SHAPES)
def test_first_moments_of_factors_follow_the_chain_rule(m, n, blocks, rank):
    factors = Factors(*(w.requires_grad_() for w in factors_of(m, n, blocks, rank)))
    gradient = randn(m, n, seed=3)
    expected = torch.autograd.grad((gradient * to_dense(factors)).sum(), factors)
    moments = to_factors(gradient, Factors(*(w.detach() for w in factors)), squares=False)
    for a, b in zip(moments, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("m", "n", "blocks", "rank"), SHAPES)
def test_first_moment_of_a_matrix_is_the_smallest_that_explains_those_of_the_factors(m, n, blocks, rank):
    factors = factors_of(m, n, blocks, rank)
    n_1 = factors.w1.numel()
    jacobian = torch.stack(
        [
            torch.cat([w.flatten() for w in to_factors(e, factors, False)])
            for e in torch.eye(m * n).double().view(-1, m, n)
        ],
        1,
    )
    for moments in (
        to_factors(randn(m, n, seed=3), factors, False),
        Factors(*(randn(*w.shape, seed=5) for w in factors)),
    ):
        values = torch.cat([w.flatten() for w in moments])
        assert torch.equal(values[:n_1].view_as(factors.w1), moments.w1)
        expected = (torch.linalg.pinv(jacobian, rtol=1e-6) @ values).view(m, n)
        torch.testing.assert_close(to_matrix(moments, factors, (m, n), False), expected, rtol=1e-6, atol=1e-7)


def test_first_moment_of_a_low_rank_takes_no_square_bases(monkeypatch):
    """Of a sub-block of 96 x 80 and rank 2 only the two directions that the factors see are decomposed."""
    shapes, svd = [], torch.linalg.svd

    def seen(matrix, full_matrices=True):
        found = svd(matrix, full_matrices=full_matrices)
        shapes.extend(tuple(f.shape[-2:]) for f in (found[0], found[2]))
        return found

    monkeypatch.setattr(torch.linalg, "svd", seen)
    factors = factors_of(96, 80, 1, 2)
    gradient = to_matrix(to_factors(randn(96, 80), factors, False), factors, (96, 80), False)
    assert max(min(shape) for shape in shapes) == 2
    # of rank 4 at most: what neither factor sees is zero
    assert (torch.linalg.svdvals(gradient) > 1e-9).sum() == 4


def test_directions_that_the_factors_hardly_see_are_not_blown_up():
    factors = Factors(
        torch.ones(1, 2, 2) * torch.tensor([[1.0], [1e-6]]), torch.ones(1, 2, 2) * torch.tensor([1.0, 1e-6])
    )
    noise = Factors(randn(1, 2, 2).float(), randn(1, 2, 2, seed=1).float())
    assert to_matrix(noise, factors, (2, 2), False).abs().max() < 3


@pytest.mark.parametrize(("m", "n", "blocks", "rank"), SHAPES)
def test_second_moments_add_as_those_of_independent_gradients(m, n, blocks, rank):
    factors = factors_of(m, n, blocks, rank)
    variance = randn(m, n, seed=3).square()
    moments = to_factors(variance, factors, squares=True)
    gradients = randn(4000, m, n, seed=6) * variance.sqrt()
    samples = [to_factors(g, factors, squares=False) for g in gradients[:1500]]
    for i in range(2):
        assert relative_error(torch.stack([s[i] for s in samples]).square().mean(0), moments[i]) < 0.15
    back = to_matrix(moments, factors, (m, n), squares=True)
    assert (back > 0).all()
    assert float(variance.min()) <= float(back.min())
    assert float(back.max()) <= float(variance.max())
    uniform = torch.full((m, n), 0.7, dtype=torch.float64)
    torch.testing.assert_close(to_matrix(to_factors(uniform, factors, True), factors, (m, n), True), uniform)


def test_entries_that_no_factor_sees_get_the_mean():
    factors = Factors(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0], [0.0]]]))
    moments = Factors(torch.tensor([[[2.0, 5.0]]]), torch.tensor([[[2.0], [5.0]]]))
    v = to_matrix(moments, factors, (2, 2), squares=True)
    torch.testing.assert_close(v, torch.tensor([[2.0, 5.0], [5.0, 4.0]]))
    assert torch.equal(to_matrix(moments, Factors(*(0 * w for w in factors)), (2, 2), True), torch.zeros(2, 2))


def test_padding_has_no_moments():
    layer = MonarchLinear(13, 10, blocks=4, dtype=torch.float64)
    gradient = randn(10, 13)
    factors = Factors(*(w.detach() for w in layer.factors))
    moments = to_factors(gradient, factors, False)
    loss = (layer(torch.eye(13).double()).mT * gradient).sum()
    for a, b in zip(moments, torch.autograd.grad(loss, layer.factors), strict=True):
        torch.testing.assert_close(a, b)
    back = to_matrix(moments, factors, (10, 13), False)
    for a, b in zip(to_factors(back, factors, False), moments, strict=True):
        torch.testing.assert_close(a, b)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=2e-2, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=3e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=3e-3, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=2e-3, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
}


def net_of(blocks=None, rank=None):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Unflatten(-1, (32, 1)), nn.Conv1d(32, 16, 1))
    net.append(nn.Flatten()).append(nn.Tanh()).append(Conv1D(16, 16))
    if blocks:
        sparsify(net, blocks, rank, init="random", head=True)
    return net


def batches(n):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(16, 16, generator=generator) / 4
    for _ in range(n):
        x = torch.randn(32, 16, generator=generator)
        yield x, torch.tanh(x @ target)


def train(net, optimizer, data):
    losses = []
    for x, y in data:
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", ["sparse to dense", "dense to sparse"])
def test_every_state_comes_along_in_shape_and_place(way, name):
    net = net_of(4 if way == "sparse to dense" else None)
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, batches(3))
    bias = net[0].bias
    of_bias = copy.deepcopy(dict(optimizer.state[bias]))
    with carry_over(net, optimizer):
        report = densify(net) if way == "sparse to dense" else sparsify(net, 4, head=True)
    assert len(report.converted) == 3
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]
    assert set(optimizer.state) == set(net.parameters())
    assert net[0].bias is bias
    assert str(optimizer.state[bias]) == str(of_bias)
    other = copy.deepcopy(net)
    reference = OPTIMIZERS[name](other.parameters())
    train(other, reference, batches(1))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        state, expected = optimizer.state[p], reference.state[q]
        assert state.keys() == expected.keys()
        for key, value in state.items():
            assert (value.shape, value.dtype) == (expected[key].shape, expected[key].dtype)
            assert torch.isfinite(value).all()
            if key == "step":
                assert value == 3
            elif key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"):
                assert (value >= 0).all()
                assert value.max() > 0
    train(net, optimizer, batches(2))


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("way", ["sparse to dense", "dense to sparse"])
def test_training_goes_on_without_a_jump(way, name):
    """The losses after the switch are at most those of the run without one, and below those after a reset."""
    sparse = way == "sparse to dense"
    net = net_of(2, 4) if sparse else net_of()
    optimizer = OPTIMIZERS[name](net.parameters())
    data = list(batches(410))
    train(net, optimizer, data[:400])

    def after(reset):
        own = copy.deepcopy((net, optimizer))
        with carry_over(own[0], own[1], reset=reset):
            densify(own[0]) if sparse else sparsify(own[0], 2, rank=8, head=True)  # full rank: the same function
        torch.testing.assert_close(own[0](data[0][0]), net(data[0][0]), rtol=1e-3, atol=1e-4)
        return torch.tensor(train(*own, data[400:]))

    carried, reset = after(False), after(True)
    unswitched = torch.tensor(train(net, optimizer, data[400:]))
    assert ((carried - unswitched) / unswitched).max() < 0.1
    assert carried[1:4].mean() < reset[1:4].mean()
    if name == "RMSprop":  # whose first steps after a reset are the largest
        assert reset[1] > 1.5 * unswitched[1]


def test_second_moments_are_never_below_the_square_of_the_first():
    for net, convert in ((net_of(), lambda net: sparsify(net, 4, head=True)), (net_of(4), densify)):
        optimizer = torch.optim.Adam(net.parameters())
        train(net, optimizer, [next(batches(1))] * 6)  # the same gradient, nearly
        with carry_over(net, optimizer):
            convert(net)
        for state in (state for p, state in optimizer.state.items() if p.ndim > 1):
            mean, square = state["exp_avg"] / (1 - 0.9**6), state["exp_avg_sq"] / (1 - 0.999**6)
            assert (square >= mean.square() * (1 - 1e-4)).all()


def test_groups_rates_and_schedules_stay():
    net = net_of()
    groups = [
        {"params": [net[0].weight, net[0].bias], "lr": 1e-3, "weight_decay": 0.1},
        {"params": [p for i in (3, 6) for p in net[i].parameters()], "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = StepLR(optimizer, 1, 0.5)
    train(net, optimizer, batches(2))
    with carry_over(net, optimizer):
        sparsify(net, 4, head=True)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    first, second = ([id(p) for p in g["params"]] for g in optimizer.param_groups)
    assert first == [id(p) for p in net[0].parameters()]
    assert second == [id(p) for i in (3, 6) for p in net[i].parameters()]
    train(net, optimizer, batches(1))
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [5e-4, 5e-3]
    before = net[0].w1.detach().clone()
    train(net, optimizer, batches(1))
    assert not torch.equal(before, net[0].w1)


def test_weights_without_state_or_group_stay_so():
    net = net_of()
    net[3].weight.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
    with carry_over(net, optimizer):
        sparsify(net, 4, head=True)
    assert not optimizer.state
    trained = [id(p) for p in net.parameters() if p.requires_grad]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == trained
    assert id(net[3].linear.w1) not in trained
    train(net, optimizer, batches(1))


@pytest.mark.parametrize("kind", [torch.optim.Adamax, torch.optim.Adafactor])
def test_states_that_are_unknown_or_of_other_shapes_start_anew(kind):
    net = net_of()
    optimizer = kind(net.parameters())
    train(net, optimizer, batches(2))
    with carry_over(net, optimizer):
        sparsify(net, 4, head=True)
    assert set(optimizer.state) == {net[0].bias, net[3].linear.bias, net[6].linear.bias}
    train(net, optimizer, batches(2))
    assert optimizer.state[net[0].w1]["step"] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: torch.optim.LBFGS(net.parameters()), "LBFGS cannot go on when layers are replaced"),
        (lambda net: torch.optim.Muon([net[0].weight]), "Muon cannot go on when layers are replaced"),
    ],
)
def test_optimizers_that_cannot_follow_are_refused(make, message):
    net = net_of()
    optimizer = make(net)
    with pytest.raises(InputError, match=message), carry_over(net, optimizer):
        sparsify(net, 4)
    assert isinstance(net[0], nn.Linear)


def test_names_in_groups_follow():
    net = nn.ModuleDict({"net": net_of()})
    own = net["net"]
    named = list(net.named_parameters())
    optimizer = torch.optim.Adam([{"params": named[:1]}, {"params": named[1:]}])
    names = [group["param_names"] for group in optimizer.param_groups]
    before = [list(n) for n in names]
    for convert in (lambda: sparsify(own, 4, head=True), lambda: densify(own)):
        with carry_over(net, optimizer):
            convert()
        of_parameters = {p: name for name, p in net.named_parameters()}
        for group in optimizer.param_groups:
            assert group["param_names"] == [of_parameters[p] for p in group["params"]]
    assert [group["param_names"] for group in optimizer.param_groups] == before


def test_factors_in_different_groups_are_refused():
    net = net_of(4)
    optimizer = torch.optim.Adam([{"params": [net[0].w1]}, {"params": [net[0].w2]}])
    with pytest.raises(InputError, match="layer '0': of its 2 weights 1 are in a group"), carry_over(net, optimizer):
        densify(net)


def test_a_failed_conversion_leaves_the_optimizer():
    net = net_of()
    optimizer = torch.optim.Adam(net.parameters())
    with pytest.raises(InputError, match="blocks 0"), carry_over(net, optimizer):
        sparsify(net, 0)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]
