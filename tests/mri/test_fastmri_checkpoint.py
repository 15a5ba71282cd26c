import numpy as np
import pytest
import torch
from fastmri.data.transforms import UnetDataTransform
from fastmri.models import Unet as FastMRIUnet
from fastmri.models import VarNet as FastMRIVarNet

from sciml_monarch import InputError
from sciml_monarch.mri.fastmri_checkpoint import load_fastmri_checkpoint
from sciml_monarch.mri.unet import UNet
from sciml_monarch.mri.varnet import VarNet
from tests.helpers import randn, relative_error


def scan(shape=(72, 52)):
    column = torch.arange(shape[1])
    mask = ((column % 4 == 0) | ((column - shape[1] // 2 + 0.5).abs() < 4))[None, None, None]
    return 1e-5 * torch.where(mask, randn(1, 4, *shape, dtype=torch.complex64), 0), mask


def lightning(state, prefix):
    """What a checkpoint of fastMRI's modules holds beside the network."""
    state = {f"{prefix}.{k}": v for k, v in state.items()} | {"loss.w": torch.ones(1, 1, 7, 7) / 49}
    return {"epoch": 49, "state_dict": state, "hyper_parameters": {"lr": 3e-4}, "optimizer_states": []}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("crop", [(48, 40), (320, 320), None], ids=str)
def test_unet_through_the_whole_pipeline_of_fastmri(tmp_path, wrapped, crop):
    reference = FastMRIUnet(1, 1, chans=6, num_pool_layers=3, drop_prob=0.0).eval()
    state = reference.state_dict()
    torch.save(lightning(state, "unet") if wrapped else state, tmp_path / "unet.pt")
    net = load_fastmri_checkpoint(tmp_path / "unet.pt", crop=crop)
    assert isinstance(net, UNet)
    assert not net.training
    assert net.is_magnitude
    assert (net.config["channels"], net.config["n_pools"]) == (6, 3)
    kspace, mask = scan()
    size = (52, 52) if crop == (320, 320) else (crop or (72, 52))  # fastMRI: fewer columns than the crop: a square
    attributes = {"recon_size": crop or size, "max": 1.0}
    sample = UnetDataTransform("multicoil")(kspace[0].numpy(), np.ones(52), None, attributes, "name", 0)
    with torch.no_grad():
        expected = reference(sample.image[None, None])[0, 0] * sample.std + sample.mean
        ours = net(kspace, mask)
    top, left = (72 - size[0]) // 2, (52 - size[1]) // 2
    assert relative_error(ours[0, 0, top : top + size[0], left : left + size[1]], expected) < 1e-5


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("pools", [(2, 2), (3, 2)], ids=str)
def test_varnet(tmp_path, wrapped, pools):
    reference = FastMRIVarNet(num_cascades=11, sens_chans=2, sens_pools=pools[1], chans=3, pools=pools[0]).eval()
    with torch.no_grad():
        for i, cascade in enumerate(reference.cascades):
            cascade.dc_weight.fill_(0.3 + 0.1 * i)
    state = reference.state_dict()
    torch.save(lightning(state, "varnet") if wrapped else state, tmp_path / "varnet.pt")
    net = load_fastmri_checkpoint(tmp_path / "varnet.pt")
    assert isinstance(net, VarNet)
    assert not net.training
    assert net.config["n_cascades"] == 11
    kspace, mask = scan()
    with torch.no_grad():
        expected = reference(torch.view_as_real(kspace), mask[..., None])
        assert relative_error(net(kspace, mask)[:, 0], expected) < 1e-5
        assert relative_error(net.to_monarch((72, 52))(kspace, mask)[:, 0], expected) < 1e-5


def test_published_networks_are_recognised(tmp_path):
    """The shapes of the leaderboard files, without their values."""
    torch.save(
        FastMRIVarNet(num_cascades=12, pools=4, chans=18, sens_pools=4, sens_chans=8).state_dict(), tmp_path / "a"
    )
    net = load_fastmri_checkpoint(tmp_path / "a")
    assert net.config == VarNet().config
    assert sum(p.numel() for p in net.parameters()) == 29_936_966


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    torch.save(FastMRIUnet(1, 1, 4, 2).state_dict(), tmp_path / "unet.pt")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_fastmri_checkpoint(tmp_path / "unet.pt")
    assert torch.equal(torch.rand(3), expected)


class Unknown:
    """Something that a safe reader must not build."""


def test_anything_else_ends_in_one_line(tmp_path):
    unet, varnet = FastMRIUnet(1, 1, 4, 2).state_dict(), FastMRIVarNet(2, 2, 2, 3, 2).state_dict()
    damaged = {k: v for k, v in varnet.items() if k != "cascades.1.dc_weight"}
    reshaped = {**unet, "conv.layers.0.weight": torch.zeros(3, 3, 3, 3)}
    headless = {k: v for k, v in unet.items() if not k.startswith("up_conv.1.1.")}
    contents = {
        "a list": ([1, 2], "holds no state dict"),
        "empty": ({}, "holds no state dict"),
        "no tensors": ({"state_dict": {"a": 1}}, "holds no state dict"),
        "another network": ({"fc.weight": torch.ones(2)}, "neither a U-Net nor a VarNet of fastMRI; it begins with fc"),
        "objects": ({"state_dict": unet, "callbacks": Unknown()}, "save the entry 'state_dict' alone"),
        "two channels": (FastMRIUnet(2, 2, 4, 2).state_dict(), "2 channels in and 2 out"),
        "missing": (damaged, "dc_weight"),
        "other shape": (reshaped, "conv.layers.0.weight"),
        "no head": (headless, "up_conv.1.1.weight.* is missing"),
        "surplus": ({**unet, "surplus": torch.ones(1)}, "surplus"),
    }
    for name, (content, message) in contents.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=message) as error:
            load_fastmri_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        load_fastmri_checkpoint(tmp_path / "absent.pt")
    (tmp_path / "text").write_text("not a checkpoint")
    with pytest.raises(InputError, match="not a file of tensors"):
        load_fastmri_checkpoint(tmp_path / "text")
    whole = (tmp_path / "surplus").read_bytes()
    (tmp_path / "truncated").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a file of tensors"):
        load_fastmri_checkpoint(tmp_path / "truncated")
