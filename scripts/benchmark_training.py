"""Time of a training epoch: ``python scripts/benchmark_training.py --data data/navier_stokes_1e-5``.

FNO and MonarchFNO at the size of the FNO paper's example, with and without the CUDA graph, in one run.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from sciml_monarch.files import replacing
from sciml_monarch.pde import FNO, MonarchFNO, Operator
from sciml_monarch.pde.data import Loader, TrajectoryData
from sciml_monarch.pde.task import PDETask
from sciml_monarch.provenance import provenance
from sciml_monarch.training import fit

# network, precision, CUDA graph, torch.compile
CASES = (
    ("FNO", "32", True, False),
    ("FNO", "32", False, False),
    ("FNO", "bf16-mixed", True, False),
    ("MonarchFNO", "32", True, False),
    ("MonarchFNO", "32", False, False),
    ("MonarchFNO", "bf16-mixed", True, False),
    ("MonarchFNO", "32", True, True),
    ("MonarchFNO", "bf16-mixed", True, True),
)


class EpochTimer(L.Callback):
    """Seconds of each epoch's batches, waited for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock when the device is idle."""
        self._wait(pl_module)
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock when the device has finished."""
        self._wait(pl_module)
        self.seconds.append(time.perf_counter() - self._start)

    def _wait(self, module: L.LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)


def make(name: str, n_history: int, grid: tuple[int, ...], width: int, n_modes: int) -> Operator:
    """The FNO paper's example, or its Monarch form."""
    modes = [n_modes] * len(grid)
    if name == "FNO":
        return FNO(n_history, 1, width, modes)
    return MonarchFNO(n_history, 1, width, modes, grid)


def benchmark(
    data: Path,
    out: Path = Path("results/benchmark_training.json"),
    n_train: int = 1000,
    n_epochs: int = 6,
    n_warm_up: int = 2,
    width: int = 20,
    n_modes: int = 24,
    device: str = "auto",
) -> None:
    """Trains each network for some epochs and reports the median time of an epoch after the first ones.

    Args:
        data: Trajectories of at least 20 frames.
        out: JSON file for the results.
        n_train: Trajectories of an epoch; 1,000 are 50 batches of 20.
        n_epochs: Epochs that are run.
        n_warm_up: Of these, the first ones that are not counted.
        width: Channels.
        n_modes: Frequencies per axis.
        device: Lightning's accelerator: auto, cpu, cuda.
    """
    cuda = torch.cuda.is_available() and device != "cpu"
    rows: list[dict[str, Any]] = []
    for name, precision, graph, compiled in CASES:
        if (graph or compiled) and not cuda:
            continue
        L.seed_everything(0, verbose=False)
        source = TrajectoryData(data, n_train, 0, 0, 10, 10, 20, Loader(preload=True, drop_last=True))
        net = make(name, 10, source.description.grid, width, n_modes)
        task = PDETask(net, cuda_graph=graph, compile_net=compiled)
        timer = EpochTimer()
        options = {
            "accelerator": device,
            "devices": 1,
            "max_epochs": n_epochs,
            "precision": precision,
            "callbacks": [timer],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 50,
        }
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            trainer = fit(task, source, Path(folder), monitor=None, trainer_options=options)
        seconds = timer.seconds[n_warm_up:]
        rows.append(
            {
                "method": name,
                "precision": precision,
                "cuda_graph": graph,
                "compile_net": compiled,
                "seconds_per_epoch": statistics.median(seconds),
                "slowest": max(seconds),
                "batches": n_train // 20,
                "loss_after": trainer.callback_metrics["train/loss"].item(),
                "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
                **provenance(torch.device("cuda" if cuda else "cpu")),
            }
        )
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("benchmark_training", lambda: call(benchmark, sys.argv[1:])))
