import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.mri.fourier import fft2c, ifft2c
from sciml_monarch.mri.modl import MoDL, MonarchMoDL, ResidualCNN
from tests.helpers import randn, relative_error

SMALL = dict(n_iterations=3, n_cg=8, n_layers=3, channels=4)


def scan(shape=(24, 20), coils=4, n_sets=1, dtype=torch.complex64, seed=0, scale=1e-4):
    """An image that the maps explain, scanned with another mask for each of two samples, and noise."""
    ny, nx = shape
    columns = torch.arange(nx)
    mask = torch.stack([((columns + i) % 3 == 0) | ((columns - nx // 2).abs() < 2 + i) for i in range(2)])
    mask = mask[:, None, None]
    maps = randn(2, n_sets, coils, ny, nx, dtype=dtype, seed=seed)
    maps = maps / maps.abs().square().sum((1, 2), keepdim=True).sqrt()
    image = randn(2, n_sets, ny, nx, dtype=dtype, seed=seed + 1)
    kspace = fft2c((maps * image[:, :, None]).sum(1)) + 0.01 * randn(2, coils, ny, nx, dtype=dtype, seed=seed + 2)
    return scale * torch.where(mask, kspace, 0), mask, maps


def dense_operator(maps, mask, shape):
    """``mask . F . S`` of one sample as a matrix, column by column."""
    n_sets = maps.shape[0]
    n = n_sets * shape[0] * shape[1]
    images = torch.eye(n, dtype=maps.dtype).view(n, n_sets, *shape)
    kspace = torch.where(mask, fft2c((maps * images[:, :, None]).sum(1)), 0)
    return kspace.flatten(1).T


def perturb(parameters, scale=0.05):
    with torch.no_grad():
        for p in parameters:
            p.add_(scale * torch.randn_like(p))


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts():
    cnn = (2 * 64 * 9 + 64) + 3 * (64 * 64 * 9 + 64) + (64 * 2 * 9 + 2)  # five layers of the paper
    assert n_parameters(ResidualCNN(5, 64)) == cnn
    assert n_parameters(MoDL()) == cnn + 1
    assert n_parameters(MoDL(shared=False)) == 10 * (cnn + 1)
    pair = 2 * (16 * (4 + 4) + 20 * (4 + 5))  # complex blocks of the two axes
    assert n_parameters(MonarchMoDL((16, 20))) == cnn + 1 + pair
    assert n_parameters(MonarchMoDL((16, 20), spectral_filter=True)) == cnn + 1 + 256 + 2 * pair
    assert n_parameters(MonarchMoDL((16, 20), shared=False, spectral_filter=True)) == 10 * (cnn + 1 + 256) + 2 * pair


@pytest.mark.parametrize("n_sets", [1, 2])
def test_equals_the_papers_equations_with_dense_matrices(n_sets):
    """x <- (A^H A + w)^-1 (A^H y + w D(x)) solved by factorisation, in double precision."""
    shape = (8, 4)
    kspace, mask, maps = scan(shape, n_sets=n_sets, dtype=torch.complex128)
    net = MoDL(n_iterations=3, n_cg=150, n_layers=3, channels=4, shared=False).double()
    perturb(net.parameters(), 0.1)
    y = net(kspace, mask, maps)
    assert y.shape == (2, n_sets, *shape)
    for i in range(2):
        a = dense_operator(maps[i], mask[i], shape)
        scale = ifft2c(kspace[i]).abs().square().sum(0).sqrt().max()
        rhs = a.mH @ (kspace[i] / scale).flatten()
        x = rhs
        for denoiser, log_weight in zip(net.denoisers, net.log_weight, strict=True):
            z = denoiser(x.view(1, n_sets, *shape)).flatten()
            weight = log_weight.exp()
            x = torch.linalg.solve(a.mH @ a + weight * torch.eye(len(x), dtype=x.dtype), rhs + weight * z)
        assert relative_error(y[i], scale * x.view(n_sets, *shape)) < 1e-9


def test_gradients_are_those_of_the_dense_solution():
    shape = (8, 4)
    kspace, mask, maps = scan(shape, dtype=torch.complex128)
    net = MoDL(n_iterations=2, n_cg=100, n_layers=2, channels=3).double()
    perturb(net.parameters(), 0.1)
    target = 1e-4 * randn(1, 1, *shape, dtype=torch.complex128, seed=7)

    def reference(k):
        a = dense_operator(maps[0], mask[0], shape)
        scale = ifft2c(k).abs().square().sum(1).sqrt().max()
        rhs = a.mH @ (k / scale).flatten()
        x, weight = rhs, net.log_weight[0].exp()
        for _ in range(2):
            z = net.denoisers[0](x.view(1, 1, *shape)).flatten()
            x = torch.linalg.solve(a.mH @ a + weight * torch.eye(len(x), dtype=x.dtype), rhs + weight * z)
        return scale * x.view(1, 1, *shape)

    found = []
    for f in (lambda k: net(k, mask[:1], maps[:1]), reference):
        k = kspace[:1].clone().requires_grad_()
        loss = 1e8 * (f(k) - target).abs().square().sum()
        found.append(torch.autograd.grad(loss, [k, *net.parameters()]))
    for ours, expected in zip(*found, strict=True):
        assert relative_error(ours, expected) < 1e-8


def test_a_fresh_network_is_iterated_regularised_sense():
    """Its denoiser is the identity, so the iterations go to the least-squares solution and not past it."""
    kspace, mask, maps = scan()
    images = randn(2, 1, 24, 20, dtype=torch.complex64)
    torch.testing.assert_close(ResidualCNN(3, 4)(images), images, rtol=0, atol=0)

    def residual(n):
        y = MoDL(n_iterations=n, n_cg=20, n_layers=2, channels=2)(kspace, mask, maps).detach()
        encoded = torch.where(mask, fft2c((maps * y[:, :, None]).sum(1)), 0)
        return float((encoded - kspace).norm() / kspace.norm())

    residuals = [residual(n) for n in (1, 3, 10)]
    assert residuals[0] > 1.2 * residuals[1] > 1.2 * residuals[2]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("spectral_filter", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex64, 1e-5), (torch.complex128, 1e-12)], ids=str)
def test_fresh_monarch_form_equals_the_network_with_all_gradients(shared, spectral_filter, dtype, tolerance):
    torch.manual_seed(1)  # with others a ReLU is zero to rounding: in single precision its gradient is of either side
    kspace, mask, maps = scan(n_sets=2, dtype=dtype)
    net = MoDL(**SMALL, shared=shared).to(kspace.real.dtype)
    perturb(net.parameters())
    monarch = net.to_monarch((24, 20), spectral_filter)
    outputs, gradients = [], []
    for each in (net, monarch):
        x = kspace.clone().requires_grad_()
        y = each(x, mask, maps)
        (1e8 * y.abs().square().sum()).backward()
        outputs.append(y)
        gradients.append(x.grad)
    assert relative_error(outputs[1], outputs[0]) < tolerance
    assert relative_error(gradients[1], gradients[0]) < tolerance
    theirs = dict(monarch.named_parameters())
    total = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    for name, p in net.named_parameters():
        assert (theirs[name].grad - p.grad).norm() < tolerance * total, name
    assert all(p.grad.abs().sum() > 0 for p in monarch.start.parameters())
    assert all(p.grad.abs().sum() > 0 for p in monarch.filters.parameters())


def test_spectral_filter_with_a_frozen_transform_is_a_filter_by_fft():
    """Outputs and gradients, also of the gains, against the same network with the FFT for a transform."""

    class Fourier(torch.nn.Module):
        def forward(self, image):
            return fft2c(image)

        def inverse(self, kspace):
            return ifft2c(kspace)

    kspace, mask, maps = scan()
    net = MonarchMoDL((24, 20), **SMALL, spectral_filter=True)
    perturb([*net.denoisers.parameters(), *net.filters.parameters()], 0.1)
    exact = MonarchMoDL(**net.config)
    exact.load_state_dict(net.state_dict())
    exact.start = exact.filter_transform = Fourier()
    outputs = [each(kspace, mask, maps) for each in (net, exact)]
    without = MoDL(**SMALL)
    without.load_state_dict({k: v for k, v in net.state_dict().items() if k in without.state_dict()})
    assert relative_error(outputs[1], outputs[0]) < 1e-5
    assert relative_error(without(kspace, mask, maps), outputs[0]) > 1e-3
    for y in outputs:
        (1e8 * y.abs().square().sum()).backward()
    theirs = dict(exact.named_parameters())
    for name, p in net.named_parameters():
        if name in theirs:
            assert relative_error(theirs[name].grad, p.grad) < 1e-4, name


def test_filter_is_hermitian_whatever_its_transform_learned():
    net = MonarchMoDL((24, 20), **SMALL, spectral_filter=True)
    perturb([*net.transform_parameters(), *net.filters.parameters()], 0.2)
    a, b = (randn(1, 1, 24, 20, dtype=torch.complex64, seed=s) for s in (5, 6))
    fa, fb = (net.filters[0](v, net.filter_transform) for v in (a, b))
    left, right = torch.vdot(a.flatten(), fb.flatten()), torch.vdot(fa.flatten(), b.flatten())
    assert (left - right).abs() < 1e-6 * fa.norm() * b.norm()


def test_data_consistency_stays_exact_while_transforms_learn():
    """An image that explains fully sampled data stays a fixed point of the iteration: A has the true transform."""
    _, _, maps = scan()
    image = randn(2, 1, 24, 20, dtype=torch.complex64, seed=8)
    kspace, mask = fft2c((maps * image[:, :, None]).sum(1)), torch.ones(1, 1, 1, 20, dtype=torch.bool)
    net = MonarchMoDL((24, 20), n_iterations=8, n_cg=10, n_layers=2, channels=2)
    perturb(net.start.parameters(), 0.3)
    assert relative_error(net.start.inverse(kspace), ifft2c(kspace)) > 0.3
    assert relative_error(net(kspace, mask, maps), image) < 1e-5


@pytest.mark.parametrize("make", [MoDL, lambda **k: MonarchMoDL((24, 20), **k, spectral_filter=True)])
def test_a_batch_is_its_samples_and_scale_passes_through(make):
    kspace, mask, maps = scan(n_sets=2)
    kspace[1] *= 50
    net = make(**SMALL)
    perturb(net.parameters(), 0.03)
    together = net(kspace, mask, maps)
    for i in range(2):
        assert relative_error(together[i], net(kspace[i : i + 1], mask[i : i + 1], maps[i : i + 1])[0]) < 1e-5
    assert relative_error(net(1e4 * kspace, mask, maps), 1e4 * together) < 1e-5


@pytest.mark.parametrize("shape", [(7, 9), (213, 45), (320, 368)], ids=str)
def test_any_size_also_fully_sampled(shape):
    kspace, mask, maps = scan(shape, coils=2)
    net = MoDL(n_iterations=1, n_cg=2, n_layers=2, channels=2)
    assert net(kspace, mask, maps).shape == (2, 1, *shape)
    mask_2d = torch.ones(1, 1, *shape, dtype=torch.bool)
    assert torch.isfinite(torch.view_as_real(net(kspace, mask_2d, maps))).all()


@pytest.mark.parametrize("make", [MoDL, lambda **k: MonarchMoDL((24, 20), **k, spectral_filter=True)])
def test_zero_kspace_gives_zero_with_finite_gradients(make):
    kspace, mask, maps = scan()
    kspace[1] = 0
    net = make(**SMALL)
    y = net(kspace, mask, maps)
    assert (y[1] == 0).all()
    y.abs().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_other_sizes_fall_back_to_the_exact_transform_and_say_so():
    net = MoDL(**SMALL)
    perturb(net.parameters())
    monarch = net.to_monarch((32, 32))
    perturb(monarch.transform_parameters())
    kspace, mask, maps = scan()
    with pytest.warns(UserWarning, match="exact"):
        assert relative_error(monarch(kspace, mask, maps), net(kspace, mask, maps)) < 1e-5


def test_stages_of_training_hold_every_parameter_once():
    net = MonarchMoDL((24, 20), **SMALL, spectral_filter=True)
    first, last = net.stages()
    assert {id(p) for p in last} == {id(p) for p in net.transform_parameters()}
    assert sorted(map(id, first + last)) == sorted(map(id, net.parameters()))


@pytest.mark.parametrize(
    "make",
    [lambda: MoDL(**SMALL, shared=False), lambda: MonarchMoDL((24, 20), **SMALL, spectral_filter=True)],
    ids=["MoDL", "MonarchMoDL"],
)
def test_network_is_rebuilt_from_its_config(make):
    net = make()
    perturb(net.parameters())
    again = type(net)(**net.config)
    again.load_state_dict(net.state_dict())
    kspace, mask, maps = scan()
    torch.testing.assert_close(again(kspace, mask, maps), net(kspace, mask, maps), rtol=0, atol=0)
    assert not any(t.is_complex() for t in net.state_dict().values())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does it
def test_network_compiles_with_its_gradients():
    kspace, mask, maps = scan()
    net = MonarchMoDL((24, 20), n_iterations=1, n_cg=3, n_layers=2, channels=2, spectral_filter=True)
    perturb(net.parameters())
    torch._dynamo.reset()
    gradients = []
    for f in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        loss = 1e8 * f(kspace, mask, maps).abs().square().sum()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    assert relative_error(gradients[1], gradients[0]) < 1e-5


def test_learns_on_few_slices():
    """A denoiser of smooth images: the error falls below that of the fresh network."""
    y, x = torch.arange(24)[:, None] / 24, torch.arange(20)[None] / 20
    image = (torch.sin(6 * y) * torch.cos(5 * x) + 1j * (y - x).cos()).to(torch.complex64).expand(2, 1, 24, 20)
    _, mask, maps = scan()
    noise = 0.2 * randn(2, 4, 24, 20, dtype=torch.complex64, seed=3)
    kspace = torch.where(mask, fft2c((maps * image[:, :, None]).sum(1)) + noise, 0)
    net = MoDL(n_iterations=3, n_cg=6, n_layers=3, channels=8)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    errors = []
    for _ in range(40):
        loss = (net(kspace, mask, maps) - image).abs().square().mean()
        errors.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert errors[-1] < 0.5 * errors[0]


def test_mistakes_end_in_one_line():
    kspace, mask, maps = scan()
    with pytest.raises(InputError, match="needs coil maps"):
        MoDL(**SMALL)(kspace, mask)
    with pytest.raises(InputError, match="do not fit"):
        MoDL(**SMALL)(kspace, mask, maps[..., 1:])
    for wrong in ("n_iterations", "n_cg", "n_layers"):
        with pytest.raises(InputError, match=f"{wrong} 0"):
            MonarchMoDL((24, 20), **{**SMALL, wrong: 0})
