"""The demo's PDE part: flows are simulated, and an FNO and a Monarch operator of the same size trained on them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sciml_monarch.pde.evaluate import Evaluation

WRITTEN = {"data", "fno", "monarch_fno"} | {f"{picture}.png" for picture in ("fields", "spectra", "error_growth")}


@dataclass(frozen=True)
class PDEProblem:
    """Sizes of the demo's Navier-Stokes problem.

    Attributes:
        n_train: Trajectories to train on.
        n_val: Trajectories that choose the checkpoint.
        n_test: Trajectories that the table is made from; nothing else sees them.
        viscosity: Kinematic viscosity in m^2/s.
        simulation_resolution: Points per axis of the simulation.
        resolution: Points per axis that are stored and trained on.
        n_history: Frames that the networks know, one a second.
        n_steps: Frames that they predict.
        n_modes: Frequencies per axis.
        width: Channels of the networks.
        n_epochs: Epochs of training.
        batch_size: Trajectories of a batch; chosen, as the rate, on validation trajectories.
        learning_rate: Of both networks.
    """

    n_train: int = 160
    n_val: int = 20
    n_test: int = 20
    viscosity: float = 1e-3
    simulation_resolution: int = 64
    resolution: int = 32
    n_history: int = 10
    n_steps: int = 10
    n_modes: int = 16
    width: int = 16
    n_epochs: int = 20
    batch_size: int = 10
    learning_rate: float = 3e-3


def demo_pde(out: Path, problem: PDEProblem, say: Callable[[str], None]) -> "Evaluation":
    """Simulates Navier-Stokes flows, trains an FNO and a Monarch operator of the same size, and compares them.

    The networks see the same trajectories in the same order from the same seed for the same number of epochs. The
    checkpoint that is best on validation trajectories is tested on trajectories that nothing else has seen.

    Args:
        out: Folder for everything that is written.
        problem: Sizes.
        say: Shows a line of progress.

    Returns:
        Rows and pictures of both networks.
    """
    import lightning as L

    from sciml_monarch.pde import FNO, MonarchFNO, Operator
    from sciml_monarch.pde.data import Loader, TrajectoryData
    from sciml_monarch.pde.evaluate import evaluate
    from sciml_monarch.pde.simulate import simulate
    from sciml_monarch.pde.task import Optimization, PDETask
    from sciml_monarch.training import BEST, fit

    p = problem
    data_folder = out / "data"
    n_total = p.n_train + p.n_val + p.n_test
    say(f"PDE 1/3  Simulating {n_total} Navier-Stokes trajectories, viscosity {p.viscosity:g} m^2/s")
    simulate(
        out=data_folder,
        n_trajectories=n_total,
        viscosity=p.viscosity,
        final_time=float(p.n_history + p.n_steps),
        simulation_resolution=p.simulation_resolution,
        resolution=p.resolution,
    )
    modes, grid = (p.n_modes, p.n_modes), (p.resolution, p.resolution)
    runs: dict[str, Callable[[], Operator]] = {
        "fno": lambda: FNO(p.n_history, 1, p.width, modes),
        "monarch_fno": lambda: MonarchFNO(p.n_history, 1, p.width, modes, grid),
    }
    for number, (name, make) in enumerate(runs.items(), 1):
        say(f"PDE 2/3  Training network {number} of {len(runs)}: {name}, {p.n_epochs} epochs")
        L.seed_everything(0, verbose=False)
        data = TrajectoryData(
            data_folder, p.n_train, p.n_val, p.n_test, p.n_history, p.n_steps, p.batch_size, Loader(preload=True)
        )
        fit(
            PDETask(make(), Optimization(learning_rate=p.learning_rate)),
            data,
            out / name,
            trainer_options={"accelerator": "cpu", "max_epochs": p.n_epochs, "enable_model_summary": False},
        )
    say(f"PDE 3/3  Evaluating on {p.n_test} unseen trajectories")
    return evaluate([out / name / BEST for name in runs], data_folder, out, device="cpu")
