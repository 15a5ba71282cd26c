"""MonarchSENSE and density compensation: exact at the start, linear, and of the published size."""

import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.mri import DensityCompensation, MonarchSENSE, zero_filled_sense
from tests.helpers import randn, relative_error
from tests.mri.scenes import scan


def gradients(function, *inputs):
    image = function(*inputs)
    wanted = randn(*image.shape, dtype=torch.complex128, seed=5).to(image)
    return image, torch.autograd.grad((image - wanted).abs().square().sum(), inputs)


def test_number_of_parameters_is_the_published_one():
    assert sum(p.numel() for p in MonarchSENSE((512, 160)).parameters()) == 57_472
    assert sum(p.numel() for p in MonarchSENSE((512, 160), n_coils=3).parameters()) == 3 * 57_472


@pytest.mark.parametrize("n_coils", [None, 4])
@pytest.mark.parametrize("shape", [(32, 28), (9, 13)])
def test_frozen_equals_zero_filled_sense_with_gradients(shape, n_coils):
    kspace, mask, maps, _ = scan(*shape, n_sets=2)
    inputs = kspace.requires_grad_(), maps.requires_grad_()
    net = MonarchSENSE(shape, n_coils, learnable=False)
    ours = gradients(lambda k, s: net(k, mask, s), *inputs)
    exact = gradients(lambda k, s: zero_filled_sense(k, mask, s), *inputs)
    assert relative_error(ours[0], exact[0]) < 1e-5
    for mine, theirs in zip(ours[1], exact[1], strict=True):
        assert relative_error(mine, theirs) < 1e-5
    assert not any(p.requires_grad for p in net.parameters())


def test_learning_lowers_the_error_and_leaves_the_scale_alone():
    kspace, mask, maps, image = scan(keep=0.3, two_d=True)
    net = MonarchSENSE((32, 28))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = (net(kspace, mask, maps) - image).abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        assert relative_error(net(1e-5 * kspace, mask, maps), 1e-5 * net(kspace, mask, maps)) < 1e-5
    assert len(net.transform_parameters()) == len(list(net.parameters())) == 4


def test_density_weights():
    kspace, mask, maps, _ = scan()
    net = DensityCompensation((32, 28))
    assert relative_error(net(kspace, mask, maps), zero_filled_sense(kspace, mask, maps)) < 1e-6
    with torch.no_grad():
        net.log_weight.fill_(1.0)
    assert relative_error(net(kspace, mask, maps), torch.e * zero_filled_sense(kspace, mask, maps)) < 1e-6
    with pytest.raises(InputError, match=r"\(32, 30\) points, but .* learned for \(32, 28\)"):
        net(*scan(32, 30)[:3])


def test_other_coils_or_no_maps_are_refused():
    kspace, mask, maps, _ = scan()
    with pytest.raises(InputError, match="4 coils, but the network has transforms for 8"):
        MonarchSENSE((32, 28), n_coils=8)(kspace, mask, maps)
    with pytest.raises(InputError, match="needs coil maps"):
        MonarchSENSE((32, 28))(kspace, mask)
