"""Data efficiency of MRI networks: the tables of results/mri_few_slices.

Three steps; the second needs no package but torch and NumPy and runs on any number of GPUs:

    python scripts/reproduce_mri.py prepare --heads pydeface mni152 colin27 --real DIR --out data/mri_few_slices.npz
    python scripts/reproduce_mri.py train data/mri_few_slices.npz --table unrolled --out runs/unrolled.jsonl
    python scripts/reproduce_mri.py classical data/mri_few_slices.npz --table unrolled --out runs/classical.jsonl

Heads are split: two to train and validate on, the third to test on, each in turn; run i tests on head i with seed i.
Everything is semi-synthetic but the slices of ``--real``, on which networks are tested that never saw real data. Coil
maps are ESPIRiT's from a separate noisy calibration scan of 24 x 24 points, the same for every method. ``train`` and
``classical`` append to their files and leave out what is there: an interrupted run goes on.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.multiprocessing as mp

from sciml_monarch.mri.base import Recon, magnitude
from sciml_monarch.mri.classical import cg_sense, l1_wavelet, zero_filled_sense
from sciml_monarch.mri.espirit import espirit
from sciml_monarch.mri.few_slices import Recipe, Slices, fit_slices, reconstruct_slices, score_images
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
N_STEPS = 30
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


def start_at_zero(net: Any) -> Any:
    """Lets a VarNet begin at the zero-filled image, which the published start does not."""
    for cascade in net.cascades:
        cascade.model = Gated(cascade.model)
    return net


def varnet() -> VarNet:
    """Six cascades of small U-Nets, given maps, complex combination: 720 thousand parameters."""
    return VarNet(6, 8, 3, estimate_maps=False, combine_coils=True)


CNN = Recipe(n_steps=400)
LINEAR = Recipe(n_steps=300, augment=True)
NETWORKS: dict[str, dict[str, tuple[Callable[[tuple[int, int]], Recon], Recipe]]] = {
    "linear": {
        "density compensation": (DensityCompensation, LINEAR),
        "MonarchSENSE": (MonarchSENSE, LINEAR),
        "U-Net": (lambda shape: UNet(), LINEAR),
    },
    "unrolled": {
        "VarNet": (lambda shape: varnet(), CNN),
        "VarNet, zero start": (lambda shape: start_at_zero(varnet()), CNN),
        "VarNet on images": (lambda shape: MonarchISTA(0, n_cascades=6, channels=8), CNN),
        "MoDL": (lambda shape: MoDL(5, n_cg=8), CNN),
        "MonarchVarNet, free pair": (
            lambda shape: start_at_zero(MonarchVarNet(shape, 6, 8, 3, estimate_maps=False, combine_coils=True)),
            CNN,
        ),
        "MonarchISTA, transform frozen": (lambda shape: frozen(MonarchISTA(N_STEPS)), Recipe(n_steps=160)),
        "MonarchISTA": (lambda shape: MonarchISTA(N_STEPS), Recipe(n_steps=160)),
        "MonarchISTA, growing": (
            lambda shape: MonarchISTA(N_STEPS, n_cascades=6, channels=8),
            Recipe(n_steps=400, unlock=(0.4,)),
        ),
    },
}
CELLS = {
    "linear": [("poisson", r, n) for r in (2, 3, 4) for n in (1, 2, 3, 5)],
    "unrolled": [(k, r, n) for n in (1, 100, 5, 20, 2) for k in ("equispaced", "poisson") for r in (4, 8)],
    # at 2x only for the real slices
    "real": [(k, 2, 100) for k in ("equispaced", "poisson")],
}
REAL_TABLE = ("MonarchISTA, growing", "MonarchISTA", "MoDL", "VarNet, zero start")


def frozen(net: MonarchISTA) -> MonarchISTA:
    """Keeps the sparsifying transform at the DCT."""
    for parameter in net.transform_parameters():
        parameter.requires_grad_(False)
    return net


def cells(table: str) -> list[Cell]:
    """All trainings of a table, those first that all others are compared with."""
    networks = NETWORKS["unrolled"] if table == "real" else NETWORKS[table]
    names = [n for n in networks if table != "real" or n in REAL_TABLE]
    return [Cell(table, name, head, *c) for c in CELLS[table] for head in range(3) for name in names]


def prepare(arguments: argparse.Namespace) -> None:
    """Writes slices of the heads and the real k-space into one file."""
    from sciml_monarch.mri.anatomy import choose_slices, onto_grid, open_anatomy

    content = {}
    for head in arguments.heads:
        anatomy = onto_grid(choose_slices(open_anatomy(head), arguments.n_slices), tuple(arguments.shape))
        content[f"head/{Path(head).name.split('.')[0]}"] = (anatomy.volume * 255).round().byte().numpy()
    for name in ("pulseq_brain_16ch", "iraki_brain_16ch"):
        if arguments.real:
            content[f"real/{name}"] = np.load(arguments.real / f"{name}.npy")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **content)
    print(f"{arguments.out}: {', '.join(f'{k} {v.shape}' for k, v in content.items())}")


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


def _tests(test: Slices, real: dict[str, Slices], cell: Cell) -> Iterator[tuple[str, Slices, torch.Tensor]]:
    """Name, slices and mask of everything that a cell is tested on."""
    shape = (test.target.shape[-2], test.target.shape[-1])
    yield "same", test, make_mask(cell.mask, cell.acceleration, shape, 0)
    for seed in OTHER_MASKS:
        yield "other", test, make_mask(cell.mask, cell.acceleration, shape, seed)
    for name, slices in real.items() if cell.table in ("unrolled", "real") else ():
        shape = (slices.target.shape[-2], slices.target.shape[-1])
        for seed in OTHER_MASKS:
            yield name, slices, make_mask(cell.mask, cell.acceleration, shape, seed)


def _scores(reconstruct: Callable[[Slices, torch.Tensor], torch.Tensor], tests: Any) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {}
    for name, slices, mask in tests:
        found.setdefault(name, []).append(score_images(reconstruct(slices, mask), slices.target))
    return {name: {k: float(np.mean([s[k] for s in many])) for k in many[0]} for name, many in found.items()}


def _recipe(cell: Cell, n_steps: int | None) -> Recipe:
    recipe = NETWORKS["unrolled" if cell.table == "real" else cell.table][cell.network][1]
    return replace(recipe, n_steps=n_steps) if n_steps else recipe


def train_cell(
    cell: Cell, heads: list[Slices], real: dict[str, Slices], device: str, n_steps: int | None, keep: Path | None
) -> dict[str, Any]:
    """Trains one network and tests it; returns a row."""
    train, validation, test = (part.to(device) for part in split(heads, cell.head, cell.n_slices))
    shape = (test.target.shape[-2], test.target.shape[-1])
    mask = make_mask(cell.mask, cell.acceleration, shape, 0).to(device)
    make, _ = NETWORKS["unrolled" if cell.table == "real" else cell.table][cell.network]
    recipe = _recipe(cell, n_steps)
    torch.manual_seed(cell.head)
    net = make(shape).to(device)
    fit = fit_slices(net, train, validation, mask, recipe, cell.head)
    if keep and cell.network == "MonarchISTA, growing" and cell.n_slices == 100 and cell.head == 2:
        keep.mkdir(parents=True, exist_ok=True)
        content = {"config": net.config, "state_dict": {k: v.cpu() for k, v in net.state_dict().items()}}
        torch.save(content, keep / f"{cell.mask}_{cell.acceleration}x.pt")
    scores = _scores(
        lambda s, m: reconstruct_slices(net, s, m).cpu(),
        [
            (name, s.to(device), m.to(device))
            for name, s, m in _tests(test, real, cell)
            if cell.network != "MonarchVarNet, free pair" or name in ("same", "other")  # it serves one size
        ],
    )
    return cell._asdict() | {
        "n_parameters": sum(p.numel() for p in net.parameters()),
        "n_steps": recipe.n_steps,
        "best_step": fit.best_step,
        "validation_psnr": fit.best_psnr,
        "train_seconds": fit.seconds,
        "history": [(step, round(value, 2)) for step, value in fit.history],
        "scores": scores,
    }


def _worker(jobs: Any, rows: Any, file: Path, device: str, n_steps: int | None, keep: Path | None) -> None:
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # for every network alike
    heads, real = torch.load(file, weights_only=False, mmap=True)  # one copy for all workers
    while (cell := jobs.get()) is not None:
        try:
            rows.put(train_cell(cell, heads, real, device, n_steps, keep))
        except Exception as error:
            rows.put(cell._asdict() | {"error": repr(error)})


def _done(file: Path) -> set[tuple[Any, ...]]:
    """What a file has, with the number of steps; a last line that was cut off counts as not done."""
    found = set()
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.add((*(row[k] for k in Cell._fields), row.get("n_steps")))
    return found


def train(arguments: argparse.Namespace) -> None:
    """Trains what the output does not have yet, several networks at once, until the time is up."""
    start = time.monotonic()
    done = _done(arguments.out)
    todo = [
        c for table in arguments.table for c in cells(table) if (*c, _recipe(c, arguments.n_steps).n_steps) not in done
    ]
    if arguments.only:
        todo = [c for c in todo if c.network in arguments.only]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    simulated = arguments.out.with_suffix(".scans")
    heads, real = build(arguments.data, device)
    torch.save((heads, real), simulated)
    print(f"{len(todo)} trainings; scans made in {time.monotonic() - start:.0f} s", flush=True)
    context = mp.get_context("spawn")
    jobs, rows = context.Queue(), context.Queue()
    for cell in todo:
        jobs.put(cell)
    n_devices = torch.cuda.device_count() if device == "cuda" else 1
    workers = []
    for i in range(arguments.workers):
        jobs.put(None)
        where = f"cuda:{i % n_devices}" if device == "cuda" else "cpu"
        workers.append(
            context.Process(
                target=_worker,
                args=(jobs, rows, simulated, where, arguments.n_steps, arguments.keep),
                daemon=True,
            )
        )
    for worker in workers:
        worker.start()
    hardware = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    try:
        with arguments.out.open("a") as file:
            for number in range(len(todo)):
                while (
                    rows.empty()
                    and time.monotonic() - start < arguments.time_limit
                    and any(w.is_alive() for w in workers)
                ):
                    time.sleep(0.2)
                if rows.empty():
                    print(f"{number} of {len(todo)} done in {time.monotonic() - start:.0f} s; run again for the others")
                    break
                row = rows.get()
                if "error" in row:
                    print(row, flush=True)
                    continue
                file.write(json.dumps(row | {"device": hardware, "torch": torch.__version__}) + "\n")
                file.flush()
    finally:
        for worker in workers:
            worker.terminate()
        simulated.unlink()


def _classical(method: Callable[..., torch.Tensor], slices: Slices, mask: torch.Tensor, **setting: Any) -> torch.Tensor:
    return magnitude(method(slices.undersampled(mask), mask, slices.maps, **setting))


def classical(arguments: argparse.Namespace) -> None:
    """Zero-filled SENSE, and CG-SENSE and L1-wavelet with the setting that is best on the validation slices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    heads, real = build(arguments.data, device)
    settings: dict[str, list[partial[torch.Tensor]]] = {
        "zero-filled SENSE": [partial(_classical, zero_filled_sense)],
        "CG-SENSE": [
            partial(_classical, cg_sense, n_iterations=i, regularization=r)
            for i in (1, 2, 3, 5, 8, 12, 20, 30, 50)
            for r in (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
        ],
    }
    settings["L1-wavelet"] = [
        partial(_classical, l1_wavelet, regularization=w, n_iterations=i)
        for i in (2, 4, 8, 15, 30, 60)
        for w in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    ]
    if arguments.only:
        settings = {name: choices for name, choices in settings.items() if name in arguments.only}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = _done(arguments.out)
    with arguments.out.open("a") as file:
        for table in arguments.table:
            for kind, acceleration in dict.fromkeys(c[:2] for c in CELLS[table]):
                for head in range(3):
                    _, validation, test = (part.to(device) for part in split(heads, head, 1))
                    shape = (test.target.shape[-2], test.target.shape[-1])
                    mask = make_mask(kind, acceleration, shape, 0).to(device)
                    for name, choices in settings.items():
                        cell = Cell(table, name, head, kind, acceleration, 0)
                        if (*cell, None) in done:
                            continue
                        found = [score_images(c(validation, mask), validation.target)["psnr"] for c in choices]
                        best = int(np.argmax(found)) if len(choices) > 1 else 0
                        row = {"setting": choices[best].keywords, "validation_psnr": max(found)}
                        scores = _scores(
                            choices[best], [(n, s.to(device), m.to(device)) for n, s, m in _tests(test, real, cell)]
                        )
                        file.write(json.dumps(cell._asdict() | row | {"scores": scores}) + "\n")
                        file.flush()
                        print(cell, row, scores["same"], flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    step = steps.add_parser("prepare", help="slices of heads and real k-space into one file")
    step.add_argument("--heads", nargs=3, required=True, help="names or files of three heads")
    step.add_argument("--real", type=Path, help="folder of real k-space")
    step.add_argument("--n_slices", type=int, default=64, help="of each head")
    step.add_argument("--shape", type=int, nargs=2, default=(256, 256))
    step.add_argument("--out", type=Path, required=True)
    step.set_defaults(run=prepare)
    for name, run in (("train", train), ("classical", classical)):
        step = steps.add_parser(name)
        step.add_argument("data", type=Path, help="what prepare wrote")
        step.add_argument("--table", nargs="+", choices=list(CELLS), required=True)
        step.add_argument("--out", type=Path, required=True, help="a row a line")
        step.add_argument("--only", nargs="+", help="networks or methods")
        step.set_defaults(run=run)
        if name == "train":
            step.add_argument("--workers", type=int, default=1, help="trainings at once")
            step.add_argument("--time_limit", type=float, default=float("inf"), help="in seconds")
            step.add_argument("--keep", type=Path, help="folder for networks of 100 slices, tested on the third head")
            step.add_argument("--n_steps", type=int, help="instead of the recipes', for a try")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
