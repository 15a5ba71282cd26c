"""Training in memory: the best network is kept, stages go on from it, augmentation is a scan that could have been."""

import dataclasses

import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.mri import (
    DensityCompensation,
    MoDL,
    MonarchISTA,
    MonarchSENSE,
    MonarchVarNet,
    SenseOperator,
    UNet,
    VarNet,
)
from sciml_monarch.mri.base import magnitude
from sciml_monarch.mri.few_slices import (
    Recipe,
    Slices,
    augmented,
    fit_slices,
    reconstruct_slices,
    score_images,
    score_slices,
)
from tests.helpers import relative_error
from tests.mri.scenes import scan


def slices(n=3, shape=(24, 24), seed=0):
    kspace, _, maps, image = scan(*shape, batch=n, keep=2.0, seed=seed)
    return Slices(kspace, maps, magnitude(image))


@pytest.fixture
def mask():
    return scan(24, 24, batch=1, keep=0.4, two_d=True)[1]


def test_the_best_network_on_validation_slices_is_kept(mask):
    train, validation = slices(), slices(2, seed=1)
    net = MonarchSENSE((24, 24))
    fit = fit_slices(net, train, validation, mask, Recipe(n_steps=20, learning_rate=0.3, n_validations=20))
    assert fit.best_psnr == max(value for _, value in fit.history)
    assert score_slices(net, validation, mask)["psnr"] == pytest.approx(fit.best_psnr, abs=1e-4)
    assert fit.history[-1][1] < fit.best_psnr  # at such a rate it only gets worse: early stopping has something to do


def test_training_helps_and_is_reproducible(mask):
    train, validation = slices(), slices(2, seed=1)
    recipe = Recipe(n_steps=15, learning_rate=3e-3, n_validations=5)
    found = []
    for _ in range(2):
        net = MonarchISTA(n_steps=4)
        before = score_slices(net, validation, mask)["psnr"]
        found.append(fit_slices(net, train, validation, mask, recipe, seed=4).history)
        assert score_slices(net, validation, mask)["psnr"] > before + 0.1
    assert found[0] == found[1]


def test_a_later_stage_starts_from_the_best_of_the_earlier(mask):
    train, validation = slices(), slices(2, seed=1)
    net = MonarchISTA(n_steps=3, n_cascades=1, channels=4)
    refining = [p.clone() for p in net.stages()[1]]
    recipe = Recipe(n_steps=8, learning_rate=1e-3, unlock=(1.0,), n_validations=4)
    fit_slices(net, train, validation, mask, recipe)  # the second stage has no steps
    assert all(torch.equal(a, b) for a, b in zip(refining, net.stages()[1], strict=True))
    fit_slices(net, train, validation, mask, dataclasses.replace(recipe, unlock=(0.5,), learning_rate=1e-2))
    assert not all(torch.equal(a, b) for a, b in zip(refining, net.stages()[1], strict=True))


@pytest.mark.parametrize("shape", [(24, 24), (24, 18)])
def test_augmented_slices_are_scans_of_their_own_images(shape):
    whole = slices(3, shape)
    torch.manual_seed(3)
    results = [augmented(whole) for _ in range(8)]
    for found in results:
        everything = torch.ones(1, 1, 1, shape[1], dtype=torch.bool)
        image = magnitude(SenseOperator(found.maps, everything).adjoint(found.kspace))
        assert relative_error(image, found.target) < 1e-5  # coils moved with the object
        assert relative_error(found.target.sort().values.sum(), whole.target.sum()) < 1e-5
    assert len({round(float(f.target[0, 3, 4]), 5) for f in results}) > 4


def test_scores_are_of_the_volume(mask):
    whole = slices(5)
    net = MonarchSENSE((24, 24))
    images = reconstruct_slices(net, whole, mask, batch_size=2)
    together = score_images(images, whole.target)
    assert together == pytest.approx(score_slices(net, whole, mask), rel=1e-5)
    error = (images - whole.target).double().square().mean()
    expected = 20 * torch.log10(whole.target.max().double() / error.sqrt())
    assert together["psnr"] == pytest.approx(float(expected), abs=1e-5)


NETWORKS = {
    "density compensation": lambda: DensityCompensation((24, 24)),
    "MonarchSENSE": lambda: MonarchSENSE((24, 24)),
    "U-Net": lambda: UNet(4, 2),
    "VarNet": lambda: VarNet(1, 4, 2, estimate_maps=False, combine_coils=True),
    "MonarchVarNet": lambda: MonarchVarNet((24, 24), 1, 4, 2, estimate_maps=False, combine_coils=True),
    "MoDL": lambda: MoDL(2, n_cg=4, n_layers=3, channels=8),
    "MonarchISTA": lambda: MonarchISTA(4, (4, 8)),
    "MonarchISTA, growing": lambda: MonarchISTA(3, n_cascades=1, channels=4),
    "VarNet on images": lambda: MonarchISTA(0, n_cascades=1, channels=4),
}
GRAPHED = Recipe(n_steps=10, n_validations=5, cuda_graph=True)


def trained(name, recipe, mask, device="cpu"):
    torch.manual_seed(1)
    net = NETWORKS[name]().to(device)
    parts = (part.to(device) for part in (slices(), slices(2, seed=1)))
    return net, fit_slices(net, *parts, mask.to(device), recipe, seed=4)


@pytest.mark.parametrize("name", ["MonarchISTA, growing", "U-Net"])
def test_a_cuda_graph_changes_nothing_on_a_cpu(name, mask):
    recipe = dataclasses.replace(GRAPHED, n_steps=4, n_validations=2, unlock=(0.5,) if "growing" in name else ())
    (net, fit), (other, other_fit) = (
        trained(name, dataclasses.replace(recipe, cuda_graph=graphed), mask) for graphed in (True, False)
    )
    assert fit.history == other_fit.history
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(24, 24), (26, 21)])
def test_shifts_that_are_given_act_like_those_that_are_drawn(shape):
    kspace, mask, maps, _ = scan(*shape, n_sets=2)
    net = MonarchISTA(4, (4, 8)).train()
    found = []
    for given in (False, True):
        torch.manual_seed(5)
        net.drawn = net.draw() if given else None
        image = net(kspace, mask, maps)
        gradients = torch.autograd.grad(image.abs().square().sum(), list(net.parameters()), allow_unused=True)
        found.append([image, *(g for g in gradients if g is not None), torch.get_rng_state()])
    assert len(found[0]) > 5
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.no_grad():  # in use no shift is random
        net.eval()
        given = net(kspace, mask, maps)
        net.drawn = None
        assert torch.equal(given, net(kspace, mask, maps))


def test_networks_draw_only_where_they_say_so(mask):
    batch = slices()
    for name, make in NETWORKS.items():
        net = make().train()
        net.drawn = net.draw()
        assert (net.drawn is not None) == (name in ("MonarchISTA", "MonarchISTA, growing"))
        before = torch.get_rng_state()
        net(batch.undersampled(mask), mask, batch.maps)
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.cuda
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graphed_training_is_the_eager_one(name, augment, mask):
    unlock = (0.4,) if name == "MonarchISTA, growing" else ()
    recipe = dataclasses.replace(GRAPHED, augment=augment, unlock=unlock)
    (_, graphed), (_, eager) = (
        trained(name, dataclasses.replace(recipe, cuda_graph=on), mask, "cuda") for on in (True, False)
    )
    assert [step for step, _ in graphed.history] == [step for step, _ in eager.history]
    assert [v for _, v in graphed.history] == pytest.approx([v for _, v in eager.history], abs=1e-3)
    assert len({v for _, v in graphed.history}) > 1  # it learned


@pytest.mark.cuda
def test_a_graph_refuses_what_is_drawn_on_the_host(mask):
    net = MonarchISTA(2).cuda()
    net.draw = lambda: None
    train = slices().to("cuda")
    with pytest.raises(InputError, match="draws random numbers on the host"):
        fit_slices(net, train, train, mask.cuda(), GRAPHED)
    net.graphable = False
    fit_slices(net, train, train, mask.cuda(), GRAPHED)
