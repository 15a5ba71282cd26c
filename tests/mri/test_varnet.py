import pytest
import torch
from fastmri.models import VarNet as FastMRIVarNet
from fastmri.models.varnet import SensitivityModel

from sciml_monarch import InputError
from sciml_monarch.mri.fourier import fft2c, ifft2c
from sciml_monarch.mri.sensitivity import SensitivityNet, calibration_mask
from sciml_monarch.mri.varnet import MonarchVarNet, VarNet
from tests.helpers import randn, relative_error

SMALL = dict(n_cascades=3, channels=3, n_pools=2, sens_channels=2)


def columns(nx, n_low, offset=0, step=4):
    """Every fourth column and the ``n_low`` central ones, ``(1, 1, 1, x)``."""
    x = torch.arange(nx)
    first = (nx - n_low + 1) // 2
    return (((x + offset) % step == 0) | ((x >= first) & (x < first + n_low)))[None, None, None]


def scan(shape=(40, 36), coils=3, n_sets=1, seed=0):
    """Two samples with calibration regions of different widths, and maps of unit sum of squares."""
    ny, nx = shape
    mask = torch.cat([columns(nx, 4), columns(nx, 8, offset=1)])
    kspace = torch.where(mask, randn(2, coils, ny, nx, dtype=torch.complex64, seed=seed), 0)
    maps = randn(2, n_sets, coils, ny, nx, dtype=torch.complex64, seed=seed + 1)
    return 1e-5 * kspace, mask, maps / maps.abs().square().sum(2, keepdim=True).sqrt()


def theirs(net, kspace, mask, n_low=None):
    """fastMRI's network on one sample."""
    return net(torch.view_as_real(kspace[None]), mask[None, ..., None], n_low)[0]


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


def perturb(parameters, scale=0.05):
    with torch.no_grad():
        for p in parameters:
            p.add_(scale * torch.randn_like(p))


def test_published_parameter_count_and_no_shared_denoisers():
    net = VarNet()
    assert n_parameters(net) == 29_936_966
    assert n_parameters(VarNet(n_cascades=5)) - n_parameters(VarNet(n_cascades=4)) == n_parameters(net.cascades[0])
    denoisers = {id(p) for cascade in net.cascades for p in cascade.parameters()}
    assert len(denoisers) == sum(len(list(cascade.parameters())) for cascade in net.cascades)
    given = VarNet(estimate_maps=False)
    assert n_parameters(given) == sum(n_parameters(c) for c in net.cascades)


@pytest.mark.parametrize("shape", [(40, 36), (33, 45), (64, 50)], ids=str)
def test_outputs_are_fastmris(shape):
    reference = FastMRIVarNet(3, 2, 2, 3, 3)
    net = VarNet(3, 3, [3, 2], 2)
    assert list(net.state_dict()) == list(reference.state_dict())
    with torch.no_grad():
        for i, cascade in enumerate(reference.cascades):
            cascade.dc_weight.fill_(0.5 + 0.2 * i)
    net.load_state_dict(reference.state_dict())
    kspace, mask, _ = scan(shape)
    together = net(kspace, mask)
    assert together.shape == (2, 1, *shape)
    for i in range(2):
        expected = theirs(reference, kspace[i], mask[i])
        assert relative_error(together[i, 0], expected) < 1e-5
        assert relative_error(net(kspace[i : i + 1], mask[i : i + 1])[0, 0], expected) < 1e-5


def test_gradients_are_fastmris():
    reference = FastMRIVarNet(2, 2, 2, 3, 2)
    net = VarNet(2, 3, 2, 2)
    net.load_state_dict(reference.state_dict())
    kspace, mask, _ = scan()
    net(kspace[:1], mask[:1]).square().sum().mul(1e10).backward()
    theirs(reference, kspace[0], mask[0]).square().sum().mul(1e10).backward()
    for ours, expected in zip(net.parameters(), reference.parameters(), strict=True):
        assert (ours.grad - expected.grad).norm() <= 1e-4 * expected.grad.norm() + 1e-6


@pytest.mark.parametrize("nx", [36, 45, 7])
@pytest.mark.parametrize("n_low", [1, 2, 4, 5])
@pytest.mark.parametrize("step", [3, 7])
def test_calibration_columns_are_fastmris(nx, n_low, step):
    model = SensitivityModel(2, 2)
    for offset in range(step):
        mask = columns(nx, n_low, offset, step)
        if mask[..., : nx // 2].all() or mask[..., nx // 2 :].all():
            continue  # fastMRI's search for a gap finds none
        first, width = model.get_pad_and_num_low_freqs(mask[..., None])
        expected = torch.zeros(nx, dtype=torch.bool)
        expected[int(first) : int(first) + int(width)] = True
        assert torch.equal(calibration_mask(mask)[0, 0, 0], expected)


@pytest.mark.parametrize("shape", [(1, 8), (1, 9), (12, 8), (13, 9), (5, 1)], ids=str)
def test_all_of_a_full_scan_calibrates(shape):
    """Where fastMRI takes a single column. Of an odd number of columns one is left out, as in fastMRI."""
    region = calibration_mask(torch.ones(1, 1, *shape, dtype=torch.bool))
    assert region.sum() == shape[0] * max(shape[1] // 2 * 2, 1)


@pytest.mark.parametrize("shape", [(32, 24), (33, 25)], ids=str)
def test_box_of_two_dimensional_masks(shape):
    ny, nx = shape
    y, x = torch.arange(ny)[:, None], torch.arange(nx)[None, :]
    inside = ((y - ny // 2 + 0.5).abs() < 4) & ((x - nx // 2 + 0.5).abs() < 3)  # 8 rows, 6 columns
    noise = (torch.rand(1, 1, ny, nx) < 0.2) & ~(((y - ny // 2 + 0.5).abs() < 5) & ((x - nx // 2 + 0.5).abs() < 4))
    region = calibration_mask(inside | noise)
    assert region.sum() == 48
    rows = region[0, 0].any(1).nonzero().flatten()
    assert rows.tolist() == list(range(ny // 2 - 4, ny // 2 + 4))
    # columns of odd widths are placed as fastMRI places them
    first = (nx - 6 + 1) // 2
    assert region[0, 0].any(0).nonzero().flatten().tolist() == list(range(first, first + 6))


def test_box_is_the_largest_in_area():
    """A plus of sampled points: the tall bar wins where it has more points."""
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[:, :, 14:18, 14:18] = True
    mask[0, :, 4:28, 15:17] = True
    mask[1, :, 15:17, 2:30] = True
    region = calibration_mask(mask)
    assert [int(r.sum()) for r in region] == [24 * 2, 2 * 28]


def test_a_column_mask_written_out_for_all_rows_is_the_same_mask():
    mask = torch.cat([columns(30, 4), columns(30, 8, offset=1)])
    for ny in (20, 21):
        wide = mask.expand(2, 1, ny, 30)
        assert torch.equal(calibration_mask(wide), calibration_mask(mask).expand_as(wide))
    kspace, mask, _ = scan((24, 36))
    net = VarNet(**SMALL)
    torch.testing.assert_close(net(kspace, mask.expand(2, 1, 24, 36).clone()), net(kspace, mask))


def test_estimated_maps_have_unit_norm_and_see_the_calibration_region_only():
    kspace, mask, _ = scan()
    net = SensitivityNet(2, 2)
    maps = net(kspace, mask)
    torch.testing.assert_close(maps.abs().square().sum(1), torch.ones(2, 40, 36))
    noisy = torch.where(calibration_mask(mask), kspace, 1e-5 * randn(*kspace.shape, dtype=torch.complex64, seed=9))
    torch.testing.assert_close(net(noisy, mask), maps, rtol=0, atol=0)
    assert relative_error(net(1.1 * fft2c(maps), mask), maps) > 0.1


def test_given_maps_any_number_of_sets():
    kspace, mask, maps = scan(n_sets=2)
    net = VarNet(**SMALL, estimate_maps=False)
    y = net(kspace, mask, maps)
    assert y.shape == (2, 1, 40, 36)
    assert net.is_magnitude
    assert net.needs_maps
    # a second set of zeros changes nothing
    empty = torch.stack([maps[:, 0], torch.zeros_like(maps[:, 0])], 1)
    assert relative_error(net(kspace, mask, empty), net(kspace, mask, maps[:, :1])) < 1e-5
    assert relative_error(y, net(kspace, mask, maps[:, :1])) > 1e-3


def test_combined_coils_are_the_sense_image_of_the_refined_kspace():
    _, _, maps = scan()
    image = 1e-5 * randn(2, 1, 40, 36, dtype=torch.complex64, seed=4)
    image = image - image.mean((-2, -1), keepdim=True)
    kspace, mask = fft2c(maps[:, 0] * image), torch.ones(1, 1, 1, 36, dtype=torch.bool)
    net = VarNet(**SMALL, estimate_maps=False, combine_coils=True)
    rss = VarNet(**SMALL, estimate_maps=False)
    assert rss.is_magnitude
    assert not net.is_magnitude
    with torch.no_grad():  # U-Nets that return zero leave of an image its mean: the regulariser of this one is zero
        for cascade in net.cascades:
            cascade.model.unet.up_conv[-1][1].weight.zero_()
            cascade.model.unet.up_conv[-1][1].bias.zero_()
    rss.load_state_dict(net.state_dict())
    assert relative_error(net(kspace, mask, maps), image) < 1e-5
    assert relative_error(rss(kspace, mask, maps), image.abs()) < 1e-5


@pytest.mark.parametrize("estimate_maps", [True, False])
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e5])
def test_output_scales_with_kspace(scale, estimate_maps):
    """Every U-Net standardises its input, so k-space needs no scaling: neither fastMRI's 1e-5 nor 1 is special."""
    kspace, mask, maps = scan()
    net = VarNet(**SMALL, estimate_maps=estimate_maps)
    assert relative_error(net(scale * kspace, mask, maps), scale * net(kspace, mask, maps)) < 1e-5


def test_output_does_not_follow_a_global_phase():
    """The standardisation treats real and imaginary part apart: what holds for scale does not hold for phase."""
    kspace, mask, _ = scan()
    net = VarNet(**SMALL)
    assert relative_error(net(-1j * kspace, mask), net(kspace, mask)) > 1e-3


@pytest.mark.parametrize("shape", [(7, 9), (213, 45), (320, 368)], ids=str)
@pytest.mark.parametrize("two_dimensional", [False, True])
def test_any_size_also_fully_sampled(shape, two_dimensional):
    ny, nx = shape
    for mask in (columns(nx, 3), torch.ones(1, 1, 1, nx, dtype=torch.bool)):
        kspace = torch.where(mask, randn(1, 2, ny, nx, dtype=torch.complex64), 0)
        if two_dimensional:
            mask = mask.expand(1, 1, ny, nx)
        y = VarNet(1, 2, 4, 2)(kspace, mask)
        assert y.shape == (1, 1, ny, nx)
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("make", [VarNet, lambda **k: MonarchVarNet((40, 36), **k)], ids=["VarNet", "MonarchVarNet"])
def test_zero_kspace_gives_zero_with_finite_gradients(make):
    kspace, mask, _ = scan()
    kspace[1] = 0
    kspace[0, 2] = 0  # a coil that failed
    kspace.requires_grad_()
    net = make(**SMALL)
    y = net(kspace, mask)
    assert (y[1] == 0).all()
    y.sum().backward()
    assert torch.isfinite(torch.view_as_real(kspace.grad)).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(40, 36), (21, 45)], ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_fresh_monarch_form_equals_the_network_with_all_gradients(shape, shared, given):
    kspace, mask, maps = scan(shape)
    options = dict(estimate_maps=False, combine_coils=True) if given else {}
    net = VarNet(**SMALL, **options)
    with torch.no_grad():
        for i, cascade in enumerate(net.cascades):
            cascade.dc_weight.fill_(0.4 + 0.3 * i)
    monarch = net.to_monarch(shape, shared)
    outputs, gradients = [], []
    for each in (net, monarch):
        x = kspace.clone().requires_grad_()
        y = each(x, mask, maps)
        y.abs().square().sum().mul(1e10).backward()
        outputs.append(y)
        gradients.append(x.grad)
    assert relative_error(outputs[1], outputs[0]) < 1e-5
    assert relative_error(gradients[1], gradients[0]) < 1e-5
    theirs = dict(monarch.named_parameters())
    total = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    for name, p in net.named_parameters():
        assert (theirs[name].grad - p.grad).norm() < 1e-5 * total, name
    assert all(p.grad.abs().sum() > 0 for p in monarch.transform_parameters())


def test_number_of_transforms():
    shape = (16, 20)
    pair = 2 * (16 * (4 + 4) + 20 * (4 + 5))  # complex blocks of the two axes
    net = VarNet(**SMALL)
    for shared, n in ((False, 3), (True, 1)):
        monarch = net.to_monarch(shape, shared)
        assert sum(p.numel() for p in monarch.transform_parameters()) == n * pair
        assert n_parameters(monarch) == n_parameters(net) + n * pair
        stages = monarch.stages()
        assert [sum(p.numel() for p in stage) for stage in stages] == [n_parameters(net), n * pair]


def test_data_consistency_stays_exact_while_transforms_learn():
    """With denoisers that return zero, a learned transform changes nothing; with others it does."""
    kspace, mask, maps = scan()
    net = MonarchVarNet((40, 36), **SMALL, estimate_maps=False)
    before = net(kspace, mask, maps)
    perturb(net.transform_parameters())
    assert relative_error(net(kspace, mask, maps), before) > 1e-2

    class Nothing(torch.nn.Module):
        def forward(self, images):
            return torch.zeros_like(images)

    for cascade in net.cascades:
        cascade.model = Nothing()
    rss = ifft2c(kspace).abs().square().sum(1, keepdim=True).sqrt()
    assert relative_error(net(kspace, mask, maps), rss) < 1e-5


def test_learned_regulariser_has_a_tied_adjoint():
    """With the identity for a denoiser, the regulariser ``F_t S S^H F_t^H`` is Hermitian whatever was learned."""
    _, mask, maps = scan()
    net = MonarchVarNet((40, 36), n_cascades=1, channels=2, n_pools=1, estimate_maps=False)
    perturb(net.transform_parameters())
    cascade, transform = net.cascades[0], net.transforms[0]
    cascade.model = torch.nn.Identity()

    def regulariser(k):
        return k - cascade(k, k, mask, maps, transform)

    a, b = (randn(2, 3, 40, 36, dtype=torch.complex64, seed=s) for s in (5, 6))
    left, right = torch.vdot(a.flatten(), regulariser(b).flatten()), torch.vdot(regulariser(a).flatten(), b.flatten())
    assert (left - right).abs() < 1e-6 * regulariser(a).norm() * b.norm()


def test_each_cascade_has_its_own_transform():
    kspace, mask, _ = scan()
    net = VarNet(**SMALL).to_monarch((40, 36))
    before = net(kspace, mask)
    perturb(net.transforms[2].parameters())
    changed = net(kspace, mask)
    assert relative_error(changed, before) > 1e-3
    perturb(net.transforms[0].parameters())
    assert relative_error(net(kspace, mask), changed) > 1e-3


def test_other_sizes_fall_back_to_the_exact_transform_and_say_so():
    net = VarNet(**SMALL)
    monarch = net.to_monarch((64, 64))
    perturb(monarch.transform_parameters())
    kspace, mask, _ = scan()
    with pytest.warns(UserWarning, match="exact"):
        assert relative_error(monarch(kspace, mask), net(kspace, mask)) < 1e-5


def test_a_batch_is_its_samples():
    kspace, mask, _ = scan()
    kspace[1] *= 50
    net = MonarchVarNet((40, 36), **SMALL)
    perturb(net.parameters(), 0.02)
    together = net(kspace, mask)
    for i in range(2):
        assert relative_error(together[i], net(kspace[i : i + 1], mask[i : i + 1])[0]) < 1e-5
    one_mask = net(kspace, mask[:1])
    assert relative_error(one_mask[1], net(kspace[1:], mask[:1])[0]) < 1e-5


@pytest.mark.parametrize(
    "net",
    [
        lambda: VarNet(**{**SMALL, "n_pools": [2, 1]}),
        lambda: VarNet(**SMALL, estimate_maps=False, combine_coils=True),
        lambda: MonarchVarNet((40, 36), **SMALL, shared=True),
    ],
    ids=["VarNet", "given maps", "MonarchVarNet"],
)
def test_network_is_rebuilt_from_its_config(net):
    net = net()
    again = type(net)(**net.config)
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    kspace, mask, maps = scan()
    torch.testing.assert_close(again(kspace, mask, maps), net(kspace, mask, maps), rtol=0, atol=0)
    assert not any(t.is_complex() for t in net.state_dict().values())


@pytest.mark.parametrize("make", [VarNet, lambda **k: MonarchVarNet((40, 36), **k)], ids=["VarNet", "MonarchVarNet"])
def test_network_compiles_and_exports(make):
    kspace, mask, _ = scan()
    net = make(n_cascades=1, channels=2, n_pools=1, sens_channels=2)
    expected = net(kspace, mask)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(kspace, mask), expected) < 1e-5
    exported = torch.export.export(net, (kspace, mask)).module()
    assert relative_error(exported(kspace, mask), expected) < 1e-5


def test_runs_under_autocast():
    kspace, mask, _ = scan()
    net = VarNet(**SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(kspace, mask)
    assert y.dtype == torch.float32
    assert relative_error(y, net(kspace, mask)) < 0.1


def test_mistakes_end_in_one_line():
    kspace, mask, maps = scan()
    with pytest.raises(InputError, match="needs coil maps"):
        VarNet(**SMALL, estimate_maps=False)(kspace, mask)
    with pytest.raises(InputError, match="do not fit"):
        VarNet(**SMALL, estimate_maps=False)(kspace, mask, maps[:, :, 1:])
    with pytest.raises(InputError, match="set estimate_maps: false"):
        MonarchVarNet((40, 36), combine_coils=True)
    with pytest.raises(InputError, match="n_cascades is 0"):
        VarNet(n_cascades=0)
    with pytest.raises(InputError, match="one number, or two"):
        VarNet(n_pools=[1, 2, 3])
