"""What the few-slice tables of MRI compare: networks with their recipes, cells, splits, masks and tests.

:mod:`reproduce_mri` runs it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from json_lines import read_rows as read_rows  # for the programs too

from sciml_monarch.mri.base import Recon, magnitude
from sciml_monarch.mri.classical import zero_filled_sense
from sciml_monarch.mri.espirit import espirit
from sciml_monarch.mri.few_slices import Recipe, Slices, score_images
from sciml_monarch.mri.ista import MonarchISTA
from sciml_monarch.mri.masks import EquispacedFractionMask, PoissonMask
from sciml_monarch.mri.modl import MoDL
from sciml_monarch.mri.sense import DensityCompensation, MonarchSENSE
from sciml_monarch.mri.unet import UNet
from sciml_monarch.mri.varnet import MonarchVarNet, VarNet

CALIBRATION = 24
N_COILS = 8
NOISE = 0.01
GAP = 3  # slices between those for validation and those for training
N_STEPS = 60  # chosen by validation slices, untrained: with 30, training did not catch up on equispaced masks
BLOCKS = (4, 8, 16)
OTHER_MASKS = (101, 102, 103)
CENTER = {2: 0.08, 4: 0.08, 8: 0.04}  # fastMRI's shares of fully sampled columns


class Cell(NamedTuple):
    """One training: what on, and with which seed."""

    table: str
    network: str
    head: int  # tested on; also the seed
    mask: str
    acceleration: int
    n_slices: int


class Gated(torch.nn.Module):
    """A module with a learned factor in front, zero at first; it learns as fast as MonarchISTA's steps."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.gate = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies both."""
        return 16 * self.gate * self.module(x)


class Residual(Gated):
    """The same, added to what the module is given: nothing changes at first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies all three."""
        return x + super().forward(x)


def start_at_zero(net: Any) -> Any:
    """Lets a VarNet begin at the zero-filled image, which the published start does not."""
    for cascade in net.cascades:
        cascade.model = Gated(cascade.model)
    return net


def residual_unet(net: Any) -> Any:
    """Lets a U-Net learn what is missing in the zero-filled image, where fastMRI's has to paint all of it anew."""
    net.unet = Residual(net.unet)
    return net


def varnet() -> VarNet:
    """Six cascades of small U-Nets, given maps, complex combination: 720 thousand parameters."""
    return VarNet(6, 8, 3, estimate_maps=False, combine_coils=True)


class Network(NamedTuple):
    """A network of a table.

    Attributes:
        make: Builds it for images of a shape.
        recipe: How it is trained; :data:`RATES` are tried for it on validation slices.
        more: Times as many steps with ``MANY`` slices and more.
        n_slices: Trained on so many only; empty: all of the table.
    """

    make: Callable[[tuple[int, int]], Recon]
    recipe: Recipe
    more: int = 1
    n_slices: tuple[int, ...] = ()


MANY = 20
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
CNN = Recipe(n_steps=400, cuda_graph=True)
SPARSE = Recipe(n_steps=160, cuda_graph=True)
LINEAR = Recipe(n_steps=300, augment=True, cuda_graph=True)
NETWORKS: dict[str, dict[str, Network]] = {
    "linear": {
        "density compensation": Network(DensityCompensation, LINEAR),
        "MonarchSENSE": Network(MonarchSENSE, LINEAR),
        "U-Net": Network(lambda shape: UNet(), LINEAR),
    },
    "linear_more": {
        "MonarchSENSE, pair a coil": Network(lambda shape: MonarchSENSE(shape, n_coils=N_COILS), LINEAR),
        "U-Net, residual": Network(lambda shape: residual_unet(UNet()), LINEAR),
    },
    "unrolled": {
        "VarNet": Network(lambda shape: varnet(), CNN, 2, (1, 100)),
        "VarNet, zero start": Network(lambda shape: start_at_zero(varnet()), CNN, 2),
        "VarNet on images": Network(lambda shape: MonarchISTA(0, n_cascades=6, channels=8), CNN, 2),
        "MoDL": Network(lambda shape: MoDL(5, n_cg=8), CNN, 2),
        "MonarchVarNet, free pair": Network(
            lambda shape: start_at_zero(MonarchVarNet(shape, 6, 8, 3, estimate_maps=False, combine_coils=True)),
            CNN,
            2,
            (1, 100),
        ),
        "MonarchISTA, transform frozen": Network(
            lambda shape: frozen(MonarchISTA(N_STEPS, BLOCKS)), SPARSE, 1, (1, 100)
        ),
        "MonarchISTA, blocks of 8": Network(lambda shape: MonarchISTA(N_STEPS), SPARSE, 1, (1, 100)),
        "MonarchISTA": Network(lambda shape: MonarchISTA(N_STEPS, BLOCKS), SPARSE),
        "MonarchISTA, growing": Network(
            lambda shape: MonarchISTA(N_STEPS, BLOCKS, n_cascades=6, channels=8), replace(CNN, unlock=(0.4,)), 2
        ),
    },
}
CELLS = {
    **{name: [("poisson", r, n) for r in (2, 3, 4) for n in (1, 2, 3, 5)] for name in ("linear", "linear_more")},
    "unrolled": [(k, r, n) for n in (1, 100, 5, 20, 2) for k in ("equispaced", "poisson") for r in (4, 8)],
    # at 2x only for the real slices
    "real": [(k, 2, 100) for k in ("equispaced", "poisson")],
}
# learning rates are chosen here, one for each network and split, by validation slices
TUNED_ON = {"linear": ("poisson", 3, 2), "linear_more": ("poisson", 3, 2), "unrolled": ("poisson", 4, 5)}
REAL_TABLE = ("MonarchISTA, growing", "MonarchISTA", "MoDL", "VarNet on images")


def tuned_table(table: str) -> str:
    """The table whose networks and learning rates a table takes."""
    return "unrolled" if table == "real" else table


def network_of(cell: Cell) -> Network:
    """What a cell trains."""
    return NETWORKS[tuned_table(cell.table)][cell.network]


def recipe_of(cell: Cell, rate: float | None = None, n_steps: int | None = None) -> Recipe:
    """How a cell trains: with more steps where there are many slices; ``rate`` and ``n_steps`` override."""
    network = network_of(cell)
    recipe = network.recipe
    return replace(
        recipe,
        n_steps=n_steps or recipe.n_steps * (network.more if cell.n_slices >= MANY else 1),
        learning_rate=rate or recipe.learning_rate,
    )


def frozen(net: MonarchISTA) -> MonarchISTA:
    """Keeps the sparsifying transform at the DCT."""
    for parameter in net.transform_parameters():
        parameter.requires_grad_(False)
    return net


def cells(table: str) -> list[Cell]:
    """All trainings of a table, those first that all others are compared with."""
    networks = NETWORKS[tuned_table(table)]
    return [
        Cell(table, name, head, kind, acceleration, n)
        for kind, acceleration, n in CELLS[table]
        for head in range(3)
        for name, network in networks.items()
        if (table != "real" or name in REAL_TABLE) and (not network.n_slices or n in network.n_slices)
    ]


def tuning_cells(table: str) -> list[Cell]:
    """The trainings by which learning rates are chosen; only their validation slices are looked at.

    Each split has its own: the rate for a test head is chosen without it.
    """
    if table not in TUNED_ON:
        return []
    return [Cell(table, name, head, *TUNED_ON[table]) for head in range(3) for name in NETWORKS[table]]


def build(file: Path, device: torch.device | str) -> tuple[list[Slices], dict[str, Slices]]:
    """Simulates the scans of the heads, and takes the real ones, with coil maps from their calibration regions."""
    from sciml_monarch.mri.coil_simulation import simulate_maps
    from sciml_monarch.mri.semisynthetic import semi_synthetic

    bundle = np.load(file)
    heads: list[Slices] = []
    real: dict[str, Slices] = {}
    for key in bundle.files:
        kind, name = key.split("/")
        if kind == "head":
            volume = torch.from_numpy(bundle[key]).float() / 255
            maps = simulate_maps((volume.shape[1], volume.shape[2]), N_COILS, len(heads))
            scan = semi_synthetic(volume, maps, NOISE, seed=len(heads))
            kspace = torch.stack([scan.kspace(i) for i in range(len(scan))])
            heads.append(Slices(kspace, _maps(kspace, device), volume))
        else:
            kspace = torch.from_numpy(bundle[key])[None]
            maps = _maps(kspace, device)
            # what all methods that know the maps would show of the fully sampled scan
            whole = zero_filled_sense(kspace, torch.ones(1, 1, 1, kspace.shape[-1], dtype=torch.bool), maps)
            real[name] = Slices(kspace, maps, magnitude(whole))
    return heads, real


def _maps(kspace: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    return torch.cat([espirit(part.to(device), CALIBRATION, n_iterations=50).cpu() for part in kspace.split(4)])


def make_mask(kind: str, acceleration: int, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """A sampling pattern ``(1, 1, 1|y, x)``."""
    if kind == "poisson":
        pattern = PoissonMask(acceleration, round(CALIBRATION * shape[0] / 256))(shape, seed)
    else:
        pattern = EquispacedFractionMask((acceleration,), (CENTER[acceleration],))(shape, seed)
    return pattern[None, None]


def split(heads: list[Slices], test: int, n_slices: int) -> tuple[Slices, Slices, Slices]:
    """Slices to train on, to validate on (both of the two other heads, alternating) and to test on."""
    others = [head for i, head in enumerate(heads) if i != test]
    n = len(others[0])
    for_validation = [n // 3, 2 * n // 3]
    # neighbours of a validation slice look like it: early stopping would not notice that they are learned by heart
    free = [i for i in range(n) if min(abs(i - v) for v in for_validation) > GAP]
    order = np.random.default_rng(test).permutation(free)
    chosen = [(i % 2, int(order[i // 2])) for i in range(n_slices)]
    train = _joined([others[h].select(slice(i, i + 1)) for h, i in chosen])
    validation = _joined([head.select(slice(i, i + 1)) for head in others for i in for_validation])
    return train, validation, heads[test].select(slice(2, None, max(1, n // 10)))


def _joined(parts: list[Slices]) -> Slices:
    return Slices(*(torch.cat([getattr(p, name) for p in parts]) for name in ("kspace", "maps", "target")))


def tests_of(test: Slices, real: dict[str, Slices], cell: Cell) -> Iterator[tuple[str, Slices, torch.Tensor]]:
    """Name, slices and mask of everything that a cell is tested on."""
    shape = (test.target.shape[-2], test.target.shape[-1])
    yield "same", test, make_mask(cell.mask, cell.acceleration, shape, 0)
    for seed in OTHER_MASKS:
        yield "other", test, make_mask(cell.mask, cell.acceleration, shape, seed)
    for name, slices in real.items() if cell.table in ("unrolled", "real") else ():
        shape = (slices.target.shape[-2], slices.target.shape[-1])
        for seed in OTHER_MASKS:
            yield name, slices, make_mask(cell.mask, cell.acceleration, shape, seed)


def scores_of(reconstruct: Callable[[Slices, torch.Tensor], torch.Tensor], tests: Any) -> dict[str, Any]:
    """Mean NMSE, PSNR and SSIM of each of :func:`tests_of`, over its masks."""
    found: dict[str, list[dict[str, float]]] = {}
    for name, slices, mask in tests:
        found.setdefault(name, []).append(score_images(reconstruct(slices, mask), slices.target))
    return {name: {k: float(np.mean([s[k] for s in many])) for k in many[0]} for name, many in found.items()}


def done_in(file: Path) -> set[tuple[Any, ...]]:
    """Cells, steps and rates of a file, which need not be there yet."""
    rows = read_rows(file) if file.exists() else []
    return {(*(row[k] for k in Cell._fields), row.get("n_steps"), row.get("learning_rate")) for row in rows}
