"""The demo's MRI part: scans are made, a small Monarch network is trained, everything is reconstructed and compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sciml_monarch.mri.evaluate import Evaluation
    from sciml_monarch.mri.volumes import Classical, Settings, Undersampling

HEADS = {"train": 0, "val": 1, "test": 2}
"""Seeds of the phantom: another head, other coils, another phase and other noise in each part."""
WRITTEN = {"mri", "volumes.csv", f"comparison_head_{HEADS['test']}.png"}
CG_ITERATIONS = (3, 5, 8, 12, 20, 30)
L1_ITERATIONS, L1_WEIGHTS = (40, 60, 100), (1e-4, 3e-4, 1e-3, 3e-3)  # stopping early counts as a setting, as in CG


@dataclass(frozen=True)
class MRIProblem:
    """Sizes of the demo's MRI problem.

    Attributes:
        n_train: Slices of the head to train on.
        n_val: Slices of the head that chooses the checkpoint and the settings of the classical methods.
        n_test: Slices of the head that the table is made from; nothing else sees it.
        resolution: Rows and columns of the images.
        n_coils: Coils of the simulated array.
        acceleration: Columns of k-space over measured columns.
        center_fraction: Share of the columns that is fully sampled in the centre, where coil maps come from.
        n_steps: Unrolled steps of the network.
        n_epochs: Epochs of training, a slice a step.
    """

    n_train: int = 8
    n_val: int = 3
    n_test: int = 8
    resolution: int = 160
    n_coils: int = 8
    acceleration: float = 4.0
    center_fraction: float = 0.08
    n_steps: int = 20
    n_epochs: int = 40


def demo_mri(out: Path, problem: MRIProblem, say: Callable[[str], None]) -> "Evaluation":
    """Makes semi-synthetic scans, trains MonarchISTA on one, and compares its reconstructions with the classical ones.

    Everything learned or tuned comes from the first two heads; the third, which the table is made from, is seen by
    nothing else. All methods get the same measurements and the same coil maps, estimated from them.

    Args:
        out: Folder for everything that is written.
        problem: Sizes.
        say: Shows a line of progress.

    Returns:
        Rows and pictures of all methods.
    """
    import lightning as L

    from sciml_monarch.mri import EquispacedFractionMask, MonarchISTA
    from sciml_monarch.mri.coils import CoilMaps
    from sciml_monarch.mri.data import MRIData
    from sciml_monarch.mri.evaluate import evaluate_mri
    from sciml_monarch.mri.reconstruct import reconstruct
    from sciml_monarch.mri.semisynthetic import make_semisynthetic
    from sciml_monarch.mri.task import ReconTask
    from sciml_monarch.mri.volumes import Settings, Undersampling
    from sciml_monarch.optimization import Optimization
    from sciml_monarch.training import BEST, fit

    p, folder = problem, out / "mri"
    say(f"MRI 1/4  Making three semi-synthetic scans, {p.resolution} x {p.resolution}, {p.n_coils} coils")
    scans = {part: folder / "data" / part / f"head_{seed}.h5" for part, seed in HEADS.items()}
    for (part, file), n_slices in zip(scans.items(), (p.n_train, p.n_val, p.n_test), strict=True):
        shape = (p.resolution, p.resolution)
        make_semisynthetic(file, shape=shape, n_slices=n_slices, n_coils=p.n_coils, seed=HEADS[part])

    say(f"MRI 2/4  Training monarch_ista on {p.n_train} slices, {p.n_epochs} epochs")
    mask = EquispacedFractionMask((p.acceleration,), (p.center_fraction,))
    L.seed_everything(0, verbose=False)
    fit(
        ReconTask(MonarchISTA(p.n_steps), Optimization(learning_rate=5e-3), loss="normalized_l1"),
        MRIData(scans["train"], scans["val"], mask=mask, maps=CoilMaps(cache=folder / "maps"), target="sense"),
        folder / "monarch_ista",
        trainer_options={"accelerator": "cpu", "max_epochs": p.n_epochs, "enable_model_summary": False},
    )

    say("MRI 3/4  Choosing the settings of the classical methods on the validation head")
    undersampling = Undersampling(mask, None)
    cg = best_settings("cg_sense", [Settings(n_iterations=n) for n in CG_ITERATIONS], scans["val"], undersampling)
    grid = [Settings(n, w) for w in L1_WEIGHTS for n in L1_ITERATIONS]
    l1 = best_settings("l1_wavelet", grid, scans["val"], undersampling)
    say(f"         CG-SENSE: {cg.n_iterations} iterations; L1-wavelet: {l1.n_iterations}, weight {l1.regularization:g}")

    say(f"MRI 4/4  Reconstructing {p.n_test} slices of an unseen head at acceleration {p.acceleration:g}")
    classical: dict[Classical, Settings] = {"zero_filled_sense": Settings(), "cg_sense": cg, "l1_wavelet": l1}
    for method, settings in classical.items():
        reconstruct(
            [scans["test"]],
            folder / method,
            method=method,
            n_iterations=settings.n_iterations,
            regularization=settings.regularization,
            mask=mask,
            device="cpu",
            nifti=False,
        )
    learned = folder / "reconstructed"
    checkpoint = folder / "monarch_ista" / BEST
    reconstruct([scans["test"]], learned, checkpoint, mask=mask, maps=CoilMaps(), device="cpu", nifti=False)
    return evaluate_mri([*(folder / name for name in classical), learned], scans["test"], out, target_key="truth")


def best_settings(
    method: "Classical", candidates: "Sequence[Settings]", scan: Path, undersampling: "Undersampling"
) -> "Settings":
    """Chooses what a classical method is run with: by the NMSE of a scan that is not the test's.

    Args:
        method: The method.
        candidates: What to choose from.
        scan: Semi-synthetic file with a ``truth``.
        undersampling: Sampling pattern.

    Returns:
        The best candidate.
    """
    from sciml_monarch.mri.matching import Truth
    from sciml_monarch.mri.metrics import nmse
    from sciml_monarch.mri.readers import open_scans
    from sciml_monarch.mri.volumes import choose_method, reconstruct_scan

    truth = Truth(scan.stem, scan, "truth").read()
    device = torch.device("cpu")
    errors = []
    for settings in candidates:
        with open_scans(scan)[0] as opened:
            chosen = choose_method(None, method, None, device, settings)
            volume, *_ = reconstruct_scan(opened, chosen, undersampling, 1, device)
        errors.append(nmse(truth, volume))
    return candidates[errors.index(min(errors))]
