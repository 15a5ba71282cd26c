"""MonarchISTA: starts as FISTA in an orthonormal transform, stays exact where it must, learns."""

import math

import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.mri import MonarchISTA, SenseOperator, zero_filled_sense
from sciml_monarch.mri.base import intensity
from sciml_monarch.mri.ista import MEAN_THRESHOLD, THRESHOLD
from sciml_monarch.mri.sparsity import BlockSparsity, block_matrix
from tests.helpers import randn, relative_error
from tests.mri.scenes import scan


def dense_prox(image, threshold, block, start, shift):
    """The proximal map by loops over blocks, for one set and sizes that the block divides."""
    w = block_matrix(block, start).to(image.dtype)
    moved = image.roll(shift, dims=(-2, -1))
    result = torch.zeros_like(moved)
    for y in range(0, image.shape[-2], block):
        for x in range(0, image.shape[-1], block):
            c = w @ moved[..., y : y + block, x : x + block] @ w.T
            c = c * (1 - threshold / c.abs()).clamp(min=0)
            result[..., y : y + block, x : x + block] = w.T @ c @ w
    return result.roll((-shift[0], -shift[1]), dims=(-2, -1))


@pytest.mark.parametrize("start", ["dct", "haar"])
@pytest.mark.parametrize("block", [4, 8])
def test_block_matrix_is_orthonormal_and_constant_first(block, start):
    w = block_matrix(block, start)
    assert relative_error(w @ w.T, torch.eye(block, dtype=torch.float64)) < 1e-14
    assert relative_error(w[0], torch.full((block,), block**-0.5, dtype=torch.float64)) < 1e-14


def test_block_matrices_are_the_transforms_of_the_library():
    from scipy.fft import dct

    from sciml_monarch.monarch import MonarchTransform

    eye = torch.eye(8, dtype=torch.float64)
    assert relative_error(block_matrix(8, "dct"), torch.from_numpy(dct(eye.numpy(), norm="ortho", axis=0))) < 1e-14
    x = randn(3, 40)
    blocks = (x.unflatten(-1, (5, 8)) @ block_matrix(8, "dct").T).flatten(-2)
    assert relative_error(MonarchTransform(40, "block_dct").double()(x), blocks) < 1e-12


@pytest.mark.parametrize("freedom", ["tied", "free", "coupled"])
@pytest.mark.parametrize("shift", [(0, 0), (3, 5)])
@pytest.mark.parametrize("start", ["dct", "haar"])
def test_thresholding_is_the_proximal_map(start, shift, freedom):
    image = randn(2, 1, 24, 16, dtype=torch.complex64)
    sparsity = BlockSparsity(8, start, (24, 16), freedom)
    threshold = randn(8, 8, dtype=torch.float32).abs()
    found = image - sparsity.clipped(image, threshold, shift)
    assert relative_error(found, dense_prox(image, threshold, 8, start, shift)) < 1e-5


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_shrinkage_takes_less_of_long_coefficients_at_higher_powers(power):
    """With blocks of one coefficient that is not the mean: t (t / |c|)^(power - 1) of those longer than t."""
    image = torch.tensor([[0.05, 0.2], [0.9, 3.0]])
    coefficients = torch.polar(image, torch.tensor(0.7))[None, None]
    threshold = 0.2
    sparsity = BlockSparsity(2)
    # an image whose blocks have these coefficients at one place each
    basis = sparsity.w1[0][0][1].outer(sparsity.w1[1][0][1])
    blocks = torch.einsum("bskl,ij->bskilj", coefficients, basis.to(coefficients.dtype)).reshape(1, 1, 4, 4)
    found = sparsity.clipped(blocks, torch.full((2, 2), threshold), power=power)
    taken = torch.where(image > threshold, threshold * (threshold / image) ** (power - 1), image)
    expected = torch.polar(taken, torch.tensor(0.7))[None, None]
    expected = torch.einsum("bskl,ij->bskilj", expected, basis.to(expected.dtype)).reshape(1, 1, 4, 4)
    assert relative_error(found, expected) < 1e-6


def test_blocks_of_several_sizes_share_the_work():
    kspace, mask, maps, _ = scan(32, 24)
    single = MonarchISTA(n_steps=3, block=8).eval()
    with torch.no_grad():
        expected = single(kspace, mask, maps)
        both = MonarchISTA(n_steps=3, block=(4, 8)).eval()
        assert relative_error(both(kspace, mask, maps), expected) > 1e-4
        both.share[:, 1] += 10.0  # all to the second
        shifts = both._shifts(1, 1)
        assert shifts == single._shifts(1, 0)
        assert relative_error(both(kspace, mask, maps), expected) < 1e-6
    net = MonarchISTA(n_steps=2, block=(4, 8))
    net(kspace, mask, maps).abs().sum().backward()
    learned = [p for p in net.parameters() if p.numel()]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learned)
    assert net.config["block"] == [4, 8]
    assert {id(p) for p in net.transform_parameters()} == {id(p) for s in net.sparsity for p in s.parameters()}


def test_sets_share_a_magnitude_and_any_size_is_served():
    sparsity = BlockSparsity(8)
    image = randn(1, 2, 19, 13, dtype=torch.complex64)
    everything = sparsity.clipped(image, torch.full((8, 8), 1e6), (2, 7))
    assert relative_error(everything, image) < 1e-6
    turned = image * torch.polar(torch.tensor(1.0), torch.tensor(0.7))
    threshold = torch.full((8, 8), 0.4)
    phase = torch.polar(torch.tensor(1.0), torch.tensor(0.7))
    assert relative_error(sparsity.clipped(turned, threshold), phase * sparsity.clipped(image, threshold)) < 1e-6
    swapped = sparsity.clipped(image.flip(1), threshold).flip(1)
    assert relative_error(swapped, sparsity.clipped(image, threshold)) < 1e-6


def test_gradient_is_finite_where_the_image_is_zero():
    image = torch.zeros(1, 1, 16, 16, dtype=torch.complex64, requires_grad=True)
    threshold = torch.full((8, 8), 0.1, requires_grad=True)
    BlockSparsity(8).clipped(image, threshold).abs().sum().backward()
    assert torch.isfinite(torch.view_as_real(image.grad)).all()
    assert torch.isfinite(threshold.grad).all()


@pytest.mark.parametrize("freedom", ["free", "coupled"])
def test_blocks_of_another_size_are_exact_and_say_so(freedom):
    sparsity = BlockSparsity(8, "dct", (24, 16), freedom)
    with torch.no_grad():
        for p in sparsity.parameters():
            p += 0.3 * randn(*p.shape, dtype=torch.float32)
    threshold = torch.full((8, 8), 0.4)
    for size in ((32, 40), (22, 13)):  # the second has as many blocks
        image = randn(1, 1, *size, dtype=torch.complex64)
        with pytest.warns(UserWarning, match="exact dct"):
            found = sparsity.clipped(image, threshold)
        assert relative_error(found, BlockSparsity(8).clipped(image, threshold)) < 1e-6


def test_starts_as_fista():
    """Four steps with one shift each, written out with dense blocks."""
    kspace, mask, maps, _ = scan(32, 24, dtype=torch.complex64)
    net = MonarchISTA(n_steps=4, n_shifts=1).eval()
    scale = intensity(kspace)
    operator = SenseOperator(maps, mask)
    threshold = torch.full((8, 8), THRESHOLD)
    threshold[0, 0] = MEAN_THRESHOLD
    b = operator.adjoint(kspace / scale)
    x = z = b
    t = 1.0
    for k in range(4):
        (shift,) = net._shifts(k, 0)
        new = dense_prox(z - (operator.normal(z) - b), threshold, 8, "dct", shift)
        after = (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum = (t - 1) / after if k < 3 else 0.0
        x, z, t = new, new + momentum * (new - x), after
    with torch.no_grad():
        assert relative_error(net(kspace, mask, maps), x * scale) < 1e-5


def test_shifts_spread_over_the_block_and_are_random_in_training():
    net = MonarchISTA(n_steps=20, n_shifts=4)
    net.eval()
    used = {shift for k in range(20) for shift in net._shifts(k, 0)}
    assert len(used) >= 40
    assert net._shifts(3, 0) == net._shifts(3, 0)
    net.train()
    assert len({tuple(net._shifts(0, 0)) for _ in range(50)}) > 20


def test_refinement_starts_with_nothing_and_then_learns():
    kspace, mask, maps, image = scan(32, 24)
    torch.manual_seed(0)
    net = MonarchISTA(n_steps=3, n_cascades=2, channels=4).eval()
    plain = MonarchISTA(n_steps=3).eval()
    with torch.no_grad():
        assert relative_error(net(kspace, mask, maps), plain(kspace, mask, maps)) == 0
    sparse, refining = net.stages()
    assert {id(p) for p in [*sparse, *refining]} == {id(p) for p in net.parameters()}
    assert len(sparse) + len(refining) == len(list(net.parameters()))
    optimizer = torch.optim.Adam(refining, 1e-3)
    losses = []
    for _ in range(15):
        loss = (net(kspace, mask, maps) - image).abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("two_d", [False, True])
def test_a_consistent_image_is_a_fixed_point_whatever_transform_and_steps_are(two_d):
    """Physics stays exact: nothing that learns can pull an image away from data that it agrees with."""
    kspace, mask, maps, image = scan(32, 24, keep=2.0, two_d=two_d)
    net = MonarchISTA(n_steps=4, block=(4, 8), n_cascades=2, channels=4).eval()
    with torch.no_grad():
        for threshold in net.threshold:
            threshold.fill_(-10.0)  # nothing is clipped
        net.step += 0.02 * randn(4, dtype=torch.float32)
        net.momentum += 0.02 * randn(4, dtype=torch.float32)
        net.refine_step += 0.02
        for p in net.sparsity.parameters():
            p += 0.3 * randn(*p.shape, dtype=torch.float32)
        assert relative_error(net(kspace, mask, maps), image) < 1e-5


def test_maps_of_any_scale():
    kspace, mask, maps, _ = scan(32, 24)
    net = MonarchISTA(n_steps=8).eval()
    loud = 3 * maps
    with torch.no_grad():
        image = net(kspace, mask, loud)
    expected = SenseOperator(loud, mask).forward(image)
    assert relative_error(expected, kspace) < 0.2  # it converges instead of running away


def test_compiles_and_exports_in_use():
    kspace, mask, maps, _ = scan(20, 28)
    net = MonarchISTA(n_steps=2, n_cascades=1, channels=4).eval()
    with torch.no_grad():
        expected = net(kspace, mask, maps)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)(kspace, mask, maps)
        assert relative_error(compiled, expected) < 1e-5
        exported = torch.export.export(net, (kspace, mask, maps)).module()
        assert relative_error(exported(kspace, mask, maps), expected) < 1e-5


@pytest.mark.parametrize("n_steps", [0, 3])
def test_scale_and_batch(n_steps):
    kspace, mask, maps, _ = scan(20, 28, n_sets=2, batch=3)
    net = MonarchISTA(n_steps=n_steps, n_cascades=1, channels=4).eval()
    with torch.no_grad():
        whole = net(kspace, mask, maps)
        assert relative_error(net(1e-6 * kspace, mask, maps), 1e-6 * whole) < 1e-4
        for i in range(3):
            alone = net(kspace[i : i + 1], mask[i : i + 1], maps[i : i + 1])
            assert relative_error(alone, whole[i : i + 1]) < 1e-5


def test_empty_slice_gives_zero_and_finite_gradients():
    kspace, mask, maps, _ = scan()
    net = MonarchISTA(n_steps=3, n_cascades=1, channels=4)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.01 * randn(*p.shape, dtype=torch.float32)  # as if it had learned
    image = net(torch.zeros_like(kspace), mask, maps)
    assert image.abs().max() == 0
    image.abs().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_number_of_parameters():
    tied = MonarchISTA(n_steps=20)
    assert sum(p.numel() for p in tied.parameters()) == 20 * (64 + 3) + 2 * 64
    coupled = MonarchISTA(n_steps=20, shape=(320, 368), freedom="coupled")
    several = MonarchISTA(n_steps=20, block=(4, 8))
    assert sum(p.numel() for p in several.parameters()) == 20 * (16 + 64 + 2 + 3) + 2 * (16 + 64)
    extra = 8 * 8 * (40 + 46) + 8 * (40**2 + 46**2)
    assert sum(p.numel() for p in coupled.parameters()) == 20 * 67 + extra


def test_learning_beats_where_it_starts_and_the_zero_filled_image():
    kspace, mask, maps, image = scan(32, 24, keep=0.3)
    kspace = kspace + 0.02 * randn(*kspace.shape, dtype=torch.complex64, seed=3).where(mask, 0)
    net = MonarchISTA(n_steps=6)
    first = relative_error(net.eval()(kspace, mask, maps), image)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    net.train()
    for _ in range(40):
        loss = (net(kspace, mask, maps) - image).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    last = relative_error(net.eval()(kspace, mask, maps), image)
    assert last < 0.9 * first < relative_error(zero_filled_sense(kspace, mask, maps), image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freedom": "free"}, "give the shape"),
        ({"start": "haar", "block": 6}, "power of two"),
        ({"n_shifts": 0}, "n_shifts 0 must be positive"),
        ({"block": []}, "block is empty"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        MonarchISTA(**arguments)
