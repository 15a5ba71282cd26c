"""Training in memory: the best network is kept, stages go on from it, augmentation is a scan that could have been."""

import dataclasses

import pytest
import torch

from sciml_monarch.mri import MonarchISTA, MonarchSENSE, SenseOperator
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
