import numpy as np
import pytest
import torch
from fastmri.data.transforms import UnetDataTransform
from fastmri.models import Unet as FastMRIUnet

from sciml_monarch import InputError
from sciml_monarch.mri.fourier import fft2c, ifft2c
from sciml_monarch.mri.norm_unet import NormUNet
from sciml_monarch.mri.unet import UNet, UNet2d
from tests.helpers import randn, relative_error


def scan(b=2, coils=3, shape=(24, 30), n_sets=1, seed=0):
    """Random k-space of every third column and more in the middle, the mask of each sample its own, and maps."""
    ny, nx = shape
    columns = torch.arange(nx)
    mask = torch.stack([((columns + i) % 3 == 0) | ((columns - nx // 2).abs() < 2 + i) for i in range(b)])
    mask = mask[:, None, None]
    kspace = torch.where(mask, randn(b, coils, ny, nx, dtype=torch.complex64, seed=seed), 0)
    maps = randn(b, n_sets, coils, ny, nx, dtype=torch.complex64, seed=seed + 1)
    return kspace, mask, maps / maps.abs().square().sum(2, keepdim=True).sqrt()


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("shape", [(64, 64), (213, 45), (33, 50)], ids=str)
@pytest.mark.parametrize(("channels", "n_pools"), [(4, 4), (3, 2), (2, 1)])
def test_core_is_fastmris_network(shape, channels, n_pools):
    theirs = FastMRIUnet(2, 3, channels, n_pools)
    ours = UNet2d(2, 3, channels, n_pools)
    ours.load_state_dict(theirs.state_dict())
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    x = torch.randn(2, 2, *shape)
    assert relative_error(ours(x), theirs(x)) < 1e-5


def test_published_parameter_count():
    assert n_parameters(UNet2d(2, 2, 32, 4)) == n_parameters(FastMRIUnet(2, 2, 32, 4)) == 7_756_418
    assert n_parameters(UNet()) == 7_756_418
    assert n_parameters(UNet(magnitude=True)) == n_parameters(FastMRIUnet(1, 1, 32, 4))


@pytest.mark.parametrize("blocks", [2, 4])
def test_monarch_matrices_in_place_of_the_convolutions_on_single_points(blocks):
    net, dense = UNet(channels=8, n_pools=2, blocks=blocks), UNet(channels=8, n_pools=2)
    assert "blocks" not in dense.config
    kspace, mask, maps = scan(1, 2, (16, 20))
    image = net(kspace, mask, maps)
    again = UNet(**net.config)
    again.load_state_dict(net.state_dict())
    assert relative_error(again(kspace, mask, maps), image) == 0
    image.abs().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    # from 2c channels to 4 points of c: min(n, m) (n + m) / blocks weights; the last layer has two outputs
    up = sum(8 * c**2 - 2 * c * 6 * c // blocks for c in (8, 16))
    last = 0 if blocks > 2 else 8 * 2 - 2 * (8 // 2 + 1)
    assert n_parameters(dense) - n_parameters(net) == up + last


def test_monarch_upsampling_is_a_transposed_convolution():
    up = UNet2d(1, 1, 4, 1, blocks=2).up_transpose_conv[0].layers[0]
    weight = up.linear.to_linear().weight.detach()  # (4 c', c), points of the new grid the last
    conv = torch.nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(weight.T.reshape(8, 4, 2, 2))
        x = torch.randn(2, 8, 3, 5)
        torch.testing.assert_close(up(x), conv(x), rtol=1e-5, atol=1e-6)


def test_more_blocks_than_channels_are_named():
    with pytest.raises(InputError, match="16 blocks do not fit in_features = 8"):
        UNet(channels=4, n_pools=1, blocks=16)


def test_dropout_acts_in_training_only():
    net = UNet2d(1, 1, 4, 2, dropout=0.5)
    x = torch.randn(1, 1, 16, 16)
    assert not torch.equal(net(x), net(x))
    net.eval()
    torch.testing.assert_close(net(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("shape", [(7, 9), (213, 45), (320, 368), (1, 40), (16, 16)], ids=str)
def test_any_size_also_fully_sampled(shape, magnitude):
    kspace, mask, maps = scan(1, 2, shape)
    net = UNet(channels=2, magnitude=magnitude)
    for m in (mask, torch.ones_like(mask)):
        y = net(kspace, m, maps)
        assert y.shape == (1, 1, *shape)
        assert torch.isfinite(torch.view_as_real(y) if y.is_complex() else y).all()
        assert y.is_complex() is not net.is_magnitude


@pytest.mark.parametrize("shape", [(128, 60), (96, 45)], ids=str)
@pytest.mark.parametrize("crop", [(64, 40), (64, 64), (96, 45)], ids=str)
def test_magnitudes_go_through_the_pipeline_of_fastmri(shape, crop):
    """Also with fewer columns than the crop has: fastMRI takes a square of them."""
    torch.manual_seed(1)
    theirs = FastMRIUnet(1, 1, 4, 3)
    net = UNet(channels=4, n_pools=3, magnitude=True, crop=crop)
    net.unet.load_state_dict(theirs.state_dict())
    kspace, mask, _ = scan(2, 3, shape)
    kspace = 1e-5 * kspace  # the scale of fastMRI's files
    kspace[1, :, shape[0] // 2, shape[1] // 2] = 0.1  # an image with a peak beyond six standard deviations
    kspace[1] = fft2c(torch.where(torch.arange(shape[1]) == shape[1] // 2, 30.0, 1.0) * ifft2c(kspace[1]))
    mask = torch.ones_like(mask)  # that has filled all points
    transform = UnetDataTransform("multicoil")
    ours = net(kspace, mask)
    (h, w) = crop if crop[1] <= shape[1] else (shape[1], shape[1])
    h = min(h, shape[0])
    for i in range(2):
        attributes = {"recon_size": crop, "max": 1.0}
        sample = transform(kspace[i].numpy(), np.ones(shape[1]), None, attributes, "name", 0)
        assert sample.image.shape == (h, w)
        expected = theirs(sample.image[None, None])[0, 0] * sample.std + sample.mean
        top, left = (shape[0] - h) // 2, (shape[1] - w) // 2
        part = ours[i, 0, top : top + h, left : left + w]
        assert relative_error(part, expected) < 1e-5
        zero_filled = ifft2c(kspace[i]).abs().square().sum(0).sqrt()
        outside = torch.ones(shape, dtype=torch.bool)
        outside[top : top + h, left : left + w] = False
        torch.testing.assert_close(ours[i, 0][outside], zero_filled[outside], rtol=1e-5, atol=1e-9)
    clamped = transform(kspace[1].numpy(), np.ones(shape[1]), None, {"recon_size": crop}, "name", 0).image
    assert clamped.max() == 6, "the test must reach fastMRI's clamp"


def test_complex_images_are_zero_filled_sense_through_the_network():
    """Each set by itself; the standardisation is undone behind the network."""
    kspace, mask, maps = scan(2, 3, n_sets=2)
    net = UNet(channels=3, n_pools=2)
    zero_filled = (maps.conj() * ifft2c(kspace)[:, None]).sum(2)
    ours = net(kspace, mask, maps)
    assert ours.shape == (2, 2, 24, 30)
    for i in range(2):
        for s in range(2):
            planes = torch.view_as_real(zero_filled[i, s]).movedim(-1, 0)
            mean, std = planes.mean((1, 2), keepdim=True), planes.std((1, 2), keepdim=True)
            expected = net.unet(((planes - mean) / std)[None])[0] * std + mean
            assert relative_error(ours[i, s], torch.complex(*expected)) < 1e-5


@pytest.mark.parametrize("magnitude", [False, True])
def test_a_batch_is_its_samples_and_scale_passes_through(magnitude):
    kspace, mask, maps = scan()
    kspace[1] *= 50
    net = UNet(channels=3, n_pools=2, magnitude=magnitude)
    together = net(kspace, mask, maps)
    for i in range(2):
        assert relative_error(together[i], net(kspace[i : i + 1], mask[i : i + 1], maps[i : i + 1])[0]) < 1e-5
    assert relative_error(net(3e-3 * kspace, mask, maps), 3e-3 * together) < 1e-5


@pytest.mark.parametrize("magnitude", [False, True])
def test_zero_kspace_gives_zero_with_finite_gradients(magnitude):
    kspace, mask, maps = scan()
    kspace[1] = 0
    kspace.requires_grad_()
    net = UNet(channels=3, n_pools=2, magnitude=magnitude)
    y = net(kspace, mask, maps)
    assert (y[1] == 0).all()
    y.abs().sum().backward()
    assert torch.isfinite(torch.view_as_real(kspace.grad)).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_norm_unet_equals_fastmris():
    from fastmri.models.varnet import NormUnet

    theirs, ours = NormUnet(3, 2), NormUNet(3, 2)
    ours.load_state_dict(theirs.state_dict())
    x = randn(2, 41, 37, dtype=torch.complex64)
    expected = torch.view_as_complex(theirs(torch.view_as_real(x)[:, None]))[:, 0]
    assert relative_error(ours(x), expected) < 1e-5


def test_network_is_rebuilt_from_its_config():
    net = UNet(channels=2, n_pools=2, magnitude=True, crop=(8, 10))
    again = UNet(**net.config)
    again.load_state_dict(net.state_dict())
    kspace, mask, _ = scan()
    torch.testing.assert_close(again(kspace, mask), net(kspace, mask), rtol=0, atol=0)


def test_network_compiles_and_exports():
    kspace, mask, maps = scan()
    net = UNet(channels=2, n_pools=2)
    expected = net(kspace, mask, maps)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(kspace, mask, maps), expected) < 1e-5
    exported = torch.export.export(net, (kspace, mask, maps)).module()
    assert relative_error(exported(kspace, mask, maps), expected) < 1e-5


def test_mistakes_end_in_one_line():
    kspace, mask, maps = scan()
    with pytest.raises(InputError, match="needs coil maps"):
        UNet(channels=2)(kspace, mask)
    with pytest.raises(InputError, match="does not fit"):
        UNet(channels=2)(kspace, mask[..., :-1], maps)
    with pytest.raises(InputError, match="n_pools is 0"):
        UNet(channels=2, n_pools=0)
    with pytest.raises(InputError, match="channels is 0"):
        UNet(channels=0)
    with pytest.raises(InputError, match="two positive numbers"):
        UNet(channels=2, magnitude=True, crop=(0, 5))
