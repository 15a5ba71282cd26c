"""What every network keeps: only sampled points count, nothing comes of nothing, wrong dtypes are named."""

import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.mri import (
    DensityCompensation,
    MoDL,
    MonarchISTA,
    MonarchMoDL,
    MonarchSENSE,
    MonarchVarNet,
    UNet,
    VarNet,
)
from tests.helpers import randn, relative_error
from tests.mri.scenes import scan

SHAPE = (32, 28)
NETS = {
    "UNet": lambda: UNet(4, 2),
    "UNet of magnitudes": lambda: UNet(4, 2, magnitude=True),
    "VarNet": lambda: VarNet(1, 4, 2, 2),
    "VarNet, given maps": lambda: VarNet(1, 4, 2, estimate_maps=False, combine_coils=True),
    "MonarchVarNet": lambda: MonarchVarNet(SHAPE, 1, 4, 2, 2),
    "MoDL": lambda: MoDL(2, 3, 3, 4),
    "MonarchMoDL": lambda: MonarchMoDL(SHAPE, 2, 3, 3, 4),
    "MonarchSENSE": lambda: MonarchSENSE(SHAPE),
    "DensityCompensation": lambda: DensityCompensation(SHAPE),
    "MonarchISTA": lambda: MonarchISTA(2, n_cascades=1, channels=4),
}


@pytest.fixture(params=NETS)
def net(request):
    """A network as if it had learned: no layer is at its start."""
    torch.manual_seed(0)
    made = NETS[request.param]().eval()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p += 0.02 * randn(*p.shape, dtype=torch.float32, seed=i)
    return made


def test_only_sampled_points_count(net):
    _, mask, maps, _ = scan(*SHAPE)
    everything = randn(2, 4, *SHAPE, dtype=torch.complex64)
    with torch.no_grad():
        assert relative_error(net(everything, mask, maps), net(everything.where(mask, 0), mask, maps)) < 1e-6


def test_an_empty_slice_beside_a_full_one_stays_empty_with_finite_gradients(net):
    kspace, mask, maps, _ = scan(*SHAPE)
    kspace = torch.stack([kspace[0], torch.zeros_like(kspace[0])])
    image = net(kspace, mask, maps)
    assert image[1].abs().max() == 0
    assert image[0].abs().max() > 0
    image.abs().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_dtypes_are_checked(net):
    kspace, mask, maps, _ = scan(*SHAPE)
    with pytest.raises(InputError, match=r"mask of torch.float32; it must be bool"):
        net(kspace, mask.float(), maps)
    with pytest.raises(InputError, match=r"coil maps of torch.float32; they must be complex"):
        net(kspace, mask, maps.real)
    with pytest.raises(InputError, match=r"it must be \(b, coil, y, x\) and complex"):
        net(kspace.real, mask, maps)
