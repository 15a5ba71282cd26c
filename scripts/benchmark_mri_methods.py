"""What ``benchmark_mri.py`` times: reconstructions of one slice, by this package and by others."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sciml_monarch.mri.base import Recon
from sciml_monarch.mri.classical import cg_sense, l1_wavelet, zero_filled_sense
from sciml_monarch.mri.coil_simulation import simulate_maps
from sciml_monarch.mri.espirit import espirit
from sciml_monarch.mri.fourier import fft2c, ifft2c
from sciml_monarch.mri.ista import MonarchISTA
from sciml_monarch.mri.linops import SenseOperator
from sciml_monarch.mri.masks import EquispacedFractionMask
from sciml_monarch.mri.modl import MoDL, MonarchMoDL
from sciml_monarch.mri.phantom import phantom
from sciml_monarch.mri.sense import MonarchSENSE
from sciml_monarch.mri.transforms import MonarchFourier2d
from sciml_monarch.mri.unet import UNet
from sciml_monarch.mri.varnet import VarNet

OURS = "sciml-monarch"
N_CG, L1_WEIGHT = 30, 1e-3
ACCELERATION, CENTER = 4, 0.08
_N_COMPARED = 100_000  # entries of a gradient, spread over all layers


@dataclass(frozen=True)
class Scene:
    """A slice: undersampled k-space ``(1, coil, y, x)``, mask ``(1, 1, 1, x)``, maps ``(1, 1, coil, y, x)``."""

    kspace: Tensor
    mask: Tensor
    maps: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Scene":
        """The same on a device, in a complex dtype."""
        return Scene(self.kspace.to(device, dtype), self.mask.to(device), self.maps.to(device, dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """Points of k-space, ``(y, x)``."""
        return self.kspace.shape[-2], self.kspace.shape[-1]

    def place(self, net: nn.Module) -> Any:
        """A network on the device and in the precision of the scene; typed loosely, since peers are untyped."""
        return net.to(self.kspace.device, self.kspace.real.dtype).eval()


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks: those of the papers, or small ones to try the program with."""

    n_cascades: int = 12
    channels: int = 18
    sens_channels: int = 8
    unet_channels: int = 32
    n_pools: int = 4
    n_iterations: int = 10
    n_steps: int = 20

    def varnet(self) -> dict[str, Any]:
        """Arguments of our VarNet."""
        return dict(
            n_cascades=self.n_cascades, channels=self.channels, n_pools=self.n_pools, sens_channels=self.sens_channels
        )


SMALL = Sizes(n_cascades=2, channels=4, sens_channels=4, unet_channels=4, n_pools=2, n_iterations=2, n_steps=3)


class Job(NamedTuple):
    """Something to time.

    Attributes:
        run: One reconstruction, or one training step without the optimiser's.
        result: What is compared with the reference, after a run; ``None``: what ``run`` returns.
        net: The network, whose parameters are counted.
    """

    run: Callable[[], Any]
    result: Callable[[Any], Tensor] | None = None
    net: nn.Module | None = None


Build = Callable[[Scene, Sizes], Job]


class Method(NamedTuple):
    """A row of the table.

    Attributes:
        name: What is computed.
        package: Who computes it.
        build: Prepares it; not timed.
        exact: What computes the reference, given the scene in double precision.
        same_as: Name and package of the row that is the reference, if that has run: it has the same weights.
        modules: What must be importable.
    """

    name: str
    package: str
    build: Build
    exact: Build | None = None
    same_as: tuple[str, str] | None = None
    modules: tuple[str, ...] = ()


class UnavailableError(Exception):
    """What a method needs is not on this machine."""


def make_scene(shape: tuple[int, int], n_coils: int) -> Scene:
    """An artificial head behind simulated coils, undersampled fourfold, with noise."""
    image = phantom((1, *shape))[0]
    y, x = (torch.linspace(-1, 1, n) for n in shape)
    maps = simulate_maps(shape, n_coils, 0)
    kspace = fft2c(maps * image * torch.polar(torch.ones(()), y[:, None] + 0.5 * x))
    noise = torch.randn(kspace.shape, dtype=kspace.dtype, generator=torch.Generator().manual_seed(0))
    mask = EquispacedFractionMask((ACCELERATION,), (CENTER,))(shape, 0)[None, None]
    return Scene((kspace + 0.005 * noise)[None].where(mask, 0), mask, maps[None, None])


# Ours


def _forward(net: nn.Module, scene: Scene, *given: Tensor) -> Job:
    net = scene.place(net)
    return Job(torch.no_grad()(lambda: net(*given)), net=net)


def _training(net: nn.Module, scene: Scene, *given: Tensor) -> Job:
    net = scene.place(net)

    def run() -> None:
        torch.manual_seed(0)  # a network that draws something draws it alike in every run
        net.zero_grad()
        net(*given).abs().square().mean().backward()

    def gradient(_: Any) -> Tensor:
        named = sorted((name, p.grad) for name, p in net.named_parameters() if p.grad is not None)
        entries = torch.cat([grad.flatten() for _, grad in named])
        return entries[:: 1 + len(entries) // _N_COMPARED]

    return Job(run, gradient, net)


def _recon(make: Callable[[Scene, Sizes], Recon], train: bool = False) -> Build:
    def build(scene: Scene, sizes: Sizes) -> Job:
        return (_training if train else _forward)(make(scene, sizes), scene, scene.kspace, scene.mask, scene.maps)

    return build


def _call(function: Callable[[Scene], Any]) -> Build:
    return lambda scene, sizes: Job(torch.no_grad()(lambda: function(scene)))


def _monarch_fourier(scene: Scene, sizes: Sizes) -> Job:
    transform = scene.place(MonarchFourier2d(scene.shape))
    return Job(torch.no_grad()(lambda: transform.inverse(scene.kspace)), net=transform)


def _normal(scene: Scene, sizes: Sizes) -> Job:
    operator = SenseOperator(scene.maps, scene.mask)
    image = operator.adjoint(scene.kspace)
    return Job(torch.no_grad()(lambda: operator.normal(image)))


def _normal_by_definition(scene: Scene, sizes: Sizes) -> Job:
    image = (scene.maps.conj() * ifft2c(scene.kspace)[:, None]).sum(2)
    kspace = fft2c((scene.maps * image[:, :, None]).sum(1)).where(scene.mask, 0.0)
    return Job(lambda: (scene.maps.conj() * ifft2c(kspace)[:, None]).sum(2))


def _varnet(scene: Scene, sizes: Sizes) -> VarNet:
    return VarNet(**sizes.varnet())


def _ista(scene: Scene, sizes: Sizes) -> MonarchISTA:
    return MonarchISTA(n_steps=sizes.n_steps)


# Others: imported by name, since most of them have no types and any of them may be absent


def _fastmri_varnet(train: bool) -> Build:
    def build(scene: Scene, sizes: Sizes) -> Job:
        weights = _varnet(scene, sizes).state_dict()  # drawn first, as in the row that is compared with this one
        peer = importlib.import_module("fastmri.models").VarNet(
            sizes.n_cascades, sizes.sens_channels, sizes.n_pools, sizes.channels, sizes.n_pools
        )
        peer.load_state_dict(weights)
        kspace = torch.view_as_real(scene.kspace)
        return (_training if train else _forward)(peer, scene, kspace, scene.mask[..., None])

    return build


def _fastmri_unet(scene: Scene, sizes: Sizes) -> Job:
    """Our U-Net on complex images with fastMRI's layers in it."""
    net = UNet(sizes.unet_channels, sizes.n_pools)
    layers = importlib.import_module("fastmri.models").Unet(2, 2, sizes.unet_channels, sizes.n_pools)
    layers.load_state_dict(net.unet.state_dict())
    net.unet = layers
    return _forward(net, scene, scene.kspace, scene.mask, scene.maps)


def _deepinv_physics(scene: Scene) -> tuple[Any, Tensor]:
    deepinv = importlib.import_module("deepinv")
    mask = scene.mask[0, 0].expand(scene.shape).to(scene.kspace.real.dtype)
    physics = deepinv.physics.MultiCoilMRI(mask=mask, coil_maps=scene.maps[:, 0], device=scene.kspace.device)
    return physics, torch.view_as_real(scene.kspace).movedim(-1, 1).contiguous()


def _deepinv_varnet(train: bool) -> Build:
    def build(scene: Scene, sizes: Sizes) -> Job:
        net = importlib.import_module("deepinv").models.VarNet(num_cascades=sizes.n_cascades, mode="e2e-varnet")
        physics, kspace = _deepinv_physics(scene)
        return (_training if train else _forward)(net, scene, kspace, physics)

    return build


def _deepinv_modl(scene: Scene, sizes: Sizes) -> Job:
    net = importlib.import_module("deepinv").models.MoDL(num_iter=sizes.n_iterations)
    physics, kspace = _deepinv_physics(scene)
    return _forward(net, scene, kspace, physics)


def _deepinv_cg(scene: Scene, sizes: Sizes) -> Job:
    physics, kspace = _deepinv_physics(scene)

    def run() -> Tensor:
        return physics.A_dagger(kspace, solver="CG", max_iter=N_CG, tol=0.0)

    return Job(torch.no_grad()(run), lambda found: torch.complex(found[:, 0], found[:, 1])[:, None])


def _mrpro_cg(scene: Scene, sizes: Sizes) -> Job:
    operators = importlib.import_module("mrpro.operators")
    cg = importlib.import_module("mrpro.algorithms.optimizers").cg
    encoding = operators.FastFourierOp(dim=(-2, -1)) @ operators.SensitivityOp(scene.maps[0, 0][:, None])
    # data of mrpro are (..., coil, z, y, x)
    encoding = scene.mask[0, 0].to(scene.kspace.real.dtype) * encoding
    normal, kspace = encoding.H @ encoding, scene.kspace[0][:, None]

    def run() -> Tensor:
        return cg(normal, encoding.H(kspace), max_iterations=N_CG, tolerance=0.0)[0]

    return Job(torch.no_grad()(run), lambda found: found.reshape(1, 1, *scene.shape))


def _sigpy(app: str, **options: Any) -> Build:
    def build(scene: Scene, sizes: Sizes) -> Job:
        sigpy = importlib.import_module("sigpy")
        mask = scene.mask[0, 0].expand(scene.shape).to(scene.kspace.real.dtype)
        tensors = [t.contiguous() for t in (scene.kspace[0], scene.maps[0, 0], mask)]
        if scene.kspace.is_cuda:
            if not sigpy.config.cupy_enabled:
                raise UnavailableError("sigpy computes on a GPU through CuPy, which is not installed")
            device: Any = sigpy.Device(scene.kspace.device.index or 0)
            arrays = [importlib.import_module("cupy").from_dlpack(t) for t in tensors]
        else:
            device = sigpy.cpu_device
            arrays = [t.numpy() for t in tensors]
        kspace, maps, weights = arrays
        program = getattr(importlib.import_module("sigpy.mri.app"), app)

        def run() -> Any:
            return program(kspace, maps, weights=weights, device=device, show_pbar=False, **options).run()

        def result(found: Any) -> Tensor:
            return torch.from_numpy(sigpy.to_device(found)).reshape(1, 1, *scene.shape)

        return Job(run, result)

    return build


_CG = f"CG-SENSE, {N_CG} iterations"
_EXACT_CG = _call(lambda s: cg_sense(s.kspace, s.mask, s.maps, N_CG))
_VARNET, _VARNET_STEP = "E2E-VarNet, forward", "E2E-VarNet, forward and backward"
_ISTA, _ISTA_STEP = _recon(_ista), _recon(_ista, train=True)
_MODL = _recon(lambda scene, sizes: MoDL(sizes.n_iterations))
_MONARCH_MODL = _recon(lambda scene, sizes: MonarchMoDL(scene.shape, sizes.n_iterations))
_L1 = _call(lambda s: l1_wavelet(s.kspace, s.mask, s.maps, L1_WEIGHT, 30))
_INVERSE = _call(lambda s: ifft2c(s.kspace))

METHODS = (
    Method("centred FFT", OURS, _INVERSE, exact=_INVERSE),
    Method("MonarchFourier2d", OURS, _monarch_fourier, exact=_INVERSE),
    Method("SenseOperator.normal", OURS, _normal, exact=_normal_by_definition),
    Method("ESPIRiT", OURS, _call(lambda s: espirit(s.kspace, min(24, s.shape[0] // 4)))),
    Method(_CG, OURS, _EXACT_CG, exact=_EXACT_CG),
    Method(_CG, "sigpy", _sigpy("SenseRecon", max_iter=N_CG), exact=_EXACT_CG, modules=("sigpy.mri.app",)),
    Method(_CG, "mrpro", _mrpro_cg, exact=_EXACT_CG, modules=("mrpro.operators", "mrpro.algorithms.optimizers")),
    Method(_CG, "deepinv", _deepinv_cg, exact=_EXACT_CG, modules=("deepinv",)),
    Method("L1-wavelet, 30 iterations", OURS, _L1, exact=_L1),
    Method(
        "L1-wavelet, 30 iterations",
        "sigpy",
        _sigpy("L1WaveletRecon", lamda=L1_WEIGHT, max_iter=30),
        modules=("sigpy.mri.app",),
    ),
    Method(
        "MonarchSENSE",
        OURS,
        _recon(lambda s, _: MonarchSENSE(s.shape)),
        exact=_call(lambda s: zero_filled_sense(s.kspace, s.mask, s.maps)),
    ),
    Method("U-Net", "fastmri", _fastmri_unet, modules=("fastmri.models",)),
    Method("U-Net", OURS, _recon(lambda _, z: UNet(z.unet_channels, z.n_pools)), same_as=("U-Net", "fastmri")),
    Method(_VARNET, "fastmri", _fastmri_varnet(train=False), modules=("fastmri.models",)),
    Method(_VARNET, OURS, _recon(_varnet), same_as=(_VARNET, "fastmri")),
    Method(
        "MonarchVarNet, forward",
        OURS,
        _recon(lambda s, z: VarNet(**z.varnet()).to_monarch(s.shape)),
        same_as=(_VARNET, OURS),
    ),
    Method(_VARNET, "deepinv", _deepinv_varnet(train=False), modules=("deepinv",)),
    Method(_VARNET_STEP, "fastmri", _fastmri_varnet(train=True), modules=("fastmri.models",)),
    Method(_VARNET_STEP, OURS, _recon(_varnet, train=True), same_as=(_VARNET_STEP, "fastmri")),
    Method("MoDL, forward", OURS, _MODL, exact=_MODL),
    Method("MonarchMoDL, forward", OURS, _MONARCH_MODL, exact=_MONARCH_MODL),
    Method("MoDL, forward", "deepinv", _deepinv_modl, modules=("deepinv",)),
    Method("MonarchISTA, forward", OURS, _ISTA, exact=_ISTA),
    Method("MonarchISTA, forward and backward", OURS, _ISTA_STEP, exact=_ISTA_STEP),
    Method(_VARNET_STEP, "deepinv", _deepinv_varnet(train=True), modules=("deepinv",)),
)
"""All rows, in an order in which a reference comes before what is compared with it."""
