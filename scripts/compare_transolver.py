"""Transolver on this package's Navier-Stokes set, in its authors' recipe: a peer to compare with.

    git clone https://github.com/thuml/Transolver
    python scripts/compare_transolver.py --code Transolver/PDE-Solving-StandardBenchmark --out runs/transolver

The network is the authors' public code (H. Wu et al., ICML 2024), which is not part of this package and needs timm and
einops; recipe and sizes are those of its ``exp_ns.py`` and ``scripts/Transolver_NS.sh``: single steps from true frames,
ten a trajectory, relative L2 summed over them, two trajectories a batch, AdamW with one cycle of the rate, fields as
they are. The ten steps of a trajectory do not depend on each other and run as one batch: the same loss. To have as
many epochs as a given time allows, it can be compiled and run in bfloat16. The test, the roll-out of the last
trajectories of the set, is used once, at the end. A training that was stopped goes on.
"""

import importlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.pde import n_parameters, relative_l2
from sciml_monarch.pde.readers import open_trajectories
from sciml_monarch.provenance import provenance

N_TRAIN, N_TEST, N_HISTORY, N_STEPS = 1000, 200, 10, 10
BATCH, RATE, DECAY = 2, 1e-3, 1e-5  # trajectories a batch
SIZES: dict[str, Any] = {
    "space_dim": 2,
    "n_layers": 8,
    "n_hidden": 256,
    "n_head": 8,
    "mlp_ratio": 1,
    "out_dim": 1,
    "slice_num": 32,
    "unified_pos": 1,
    "ref": 8,
}
Precision = Literal["32", "bf16"]
LAST = "last.ckpt"
SECONDS_A_CHECKPOINT = 60.0


def network(code: Path, grid: tuple[int, int]) -> nn.Module:
    """The authors' network for structured grids.

    Raises:
        InputError: It is not in the folder, or cannot be imported.
    """
    sys.path.insert(0, str(code.resolve()))
    try:
        module = importlib.import_module("model.Transolver_Structured_Mesh_2D")
    except ImportError as error:
        raise InputError(f"Transolver's code cannot be imported from {code}: {error}") from None
    finally:
        sys.path.pop(0)
    made: nn.Module = module.Model(fun_dim=N_HISTORY, H=grid[0], W=grid[1], **SIZES)
    return made


def single_steps(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Windows and the frame behind each.

    Args:
        frames: ``(b, time, *grid)``.

    Returns:
        ``(b * n, points, n_history)`` and ``(b * n, points, 1)``, ``n = time - n_history``.
    """
    windows = frames.flatten(2).unfold(1, N_HISTORY + 1, 1).flatten(0, 1)  # (b * n, points, n_history + 1)
    return windows[..., :-1], windows[..., -1:]


def loss(net: nn.Module, frames: Tensor) -> Tensor:
    """Relative L2 of each single step, summed."""
    history, target = single_steps(frames)
    return relative_l2(_apply(net, history).float(), target).sum()


@torch.no_grad()
def roll_out(net: nn.Module, frames: Tensor) -> Tensor:
    """Frames that follow the first ones of ``(b, time, *grid)``, each from those before, ``(b, n_steps, *grid)``."""
    history = frames[:, :N_HISTORY].flatten(2).mT
    for _ in range(N_STEPS):
        history = torch.cat([history, _apply(net, history[..., -N_HISTORY:]).float()], -1)
    return history[..., N_HISTORY:].mT.unflatten(2, frames.shape[2:])


def _apply(net: nn.Module, history: Tensor) -> Tensor:
    places = history.new_empty(len(history), history.shape[1], 2)  # not read: places are distances to fixed points
    found: Tensor = net(places, fx=history)
    return found


class Training:
    """The peer's training, which can stop and go on.

    Args:
        net: The network.
        frames: Trajectories to train on ``(b, time, *grid)``.
        epochs: Of the whole training.
        precision: "32" with TF32 in products, or "bf16".
        compiled: Whether ``torch.compile`` makes the network faster.
        seed: Of the order of batches.
    """

    def __init__(
        self, net: nn.Module, frames: Tensor, epochs: int, precision: Precision, compiled: bool, seed: int
    ) -> None:
        self.net, self.frames, self.epochs, self.precision, self.seed = net, frames, epochs, precision, seed
        self.compiled = compiled
        if compiled:
            net.compile()
        self.n_train = len(frames)
        steps = self.n_train // BATCH
        self.optimizer = AdamW(net.parameters(), RATE, weight_decay=DECAY, fused=frames.is_cuda)
        self.schedule = OneCycleLR(self.optimizer, RATE, epochs=epochs, steps_per_epoch=steps)
        self.epoch, self.seconds = 0, 0.0
        self.epoch_seconds: list[float] = []
        self.losses: list[float] = []

    def run(self, deadline: float, checkpoint: Path) -> None:
        """Trains until the last epoch, or one before ``time.monotonic()`` is at the deadline; writes checkpoints."""
        written = time.monotonic()
        while self.epoch < self.epochs:
            start = time.monotonic()
            self.losses.append(self._train_epoch())
            self.epoch += 1
            now = time.monotonic()
            self.seconds += now - start
            self.epoch_seconds.append(now - start)
            late = now + 1.2 * (now - start) > deadline
            if late or self.epoch == self.epochs or now - written > SECONDS_A_CHECKPOINT:
                with replacing(checkpoint) as temporary:
                    torch.save(self.state_dict(), temporary)
                written = now
            if late:
                return

    def _train_epoch(self) -> float:
        self.net.train()
        device = self.frames.device
        order = torch.randperm(len(self.frames), generator=torch.Generator().manual_seed(self.seed + self.epoch))
        total = torch.zeros((), device=device)
        for batch in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            with self.casting():
                value = loss(self.net, self.frames[batch.to(device)])
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()
            self.schedule.step()
            total += value.detach()
        return total.item() / (len(self.frames) * N_STEPS)

    @contextmanager
    def casting(self) -> Iterator[None]:
        """Computes in the training's precision."""
        with torch.autocast(self.frames.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def state_dict(self) -> dict[str, Any]:
        """What the training goes on from."""
        parts = {name: getattr(self, name).state_dict() for name in ("net", "optimizer", "schedule")}
        numbers = ("epoch", "epochs", "seconds", "epoch_seconds", "losses", "precision", "compiled", "seed", "n_train")
        return parts | {name: getattr(self, name) for name in numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from it.

        Raises:
            InputError: It is of another training.
        """
        for name in ("epochs", "precision", "compiled", "seed", "n_train"):
            if state[name] != getattr(self, name):
                raise InputError(f"the checkpoint has {name} {state[name]}, not {getattr(self, name)}")
        for name in ("net", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("epoch", "seconds", "epoch_seconds", "losses"):
            setattr(self, name, state[name])


def run(
    code: Path,
    data: Path = Path("data/navier_stokes_1e-5"),
    out: Path = Path("runs/transolver"),
    epochs: int = 500,
    precision: Precision = "32",
    compiled: bool = False,
    seed: int = 0,
    n_train: int = N_TRAIN,
    n_test: int = N_TEST,
    time_limit: float = float("inf"),
    device: str = "auto",
) -> None:
    """Trains it, or goes on; tests it after the last epoch; writes ``row.json``.

    Args:
        code: Folder of the authors' programs, with ``model/Transolver_Structured_Mesh_2D.py``.
        data: Data set of ``reproduce_navier_stokes.py``.
        out: Folder of checkpoint and row.
        epochs: Of the whole training.
        precision: "32" with TF32 in products, as convolutions have it by default, or "bf16".
        compiled: Whether ``torch.compile`` makes its training faster.
        seed: Of weights and order of batches.
        n_train: Trajectories to train on, the first of the set.
        n_test: Trajectories to test on, the last.
        time_limit: Seconds after which it stops.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: The code or the data cannot be read, or the checkpoint is of another training.
    """
    end, where = time.monotonic() + time_limit, choose_device(device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    source = open_trajectories(data)
    if n_train + n_test > source.n_trajectories:
        raise InputError(
            f"{data} has {source.n_trajectories} trajectories, not {n_train} to train on and {n_test} more"
        )
    torch.manual_seed(seed)
    net = network(code, tuple(source.grid)).to(where)  # type: ignore[arg-type]
    frames = torch.stack([source.read(row, 0, N_HISTORY + N_STEPS)[:, 0] for row in range(n_train)]).to(where)
    training = Training(net, frames, epochs, precision, compiled, seed)
    out.mkdir(parents=True, exist_ok=True)
    if (out / LAST).is_file():
        training.load_state_dict(torch.load(out / LAST, map_location=where, weights_only=True))
    training.run(end, out / LAST)
    row = {
        "network": "Transolver",
        "n_parameters": n_parameters(net),
        "n_train": n_train,
        "n_test": n_test,
        "epochs": epochs,
        "epochs_done": training.epoch,
        "precision": precision,
        "compiled": compiled,
        "seed": seed,
        "train_seconds": training.seconds,
        "epoch_seconds": statistics.median(training.epoch_seconds) if training.epoch_seconds else None,
        "train_loss": training.losses,
        **provenance(where),
    }
    if training.epoch == epochs:
        row["relative_l2"] = test(training, source, n_test)
    with replacing(out / "row.json") as temporary:
        temporary.write_text(json.dumps(row))
    print({name: value for name, value in row.items() if name != "train_loss"})


def test(training: Training, source: Any, n_test: int) -> float:
    """Mean relative L2 error of the whole roll-outs of the last trajectories."""
    training.net.eval()
    errors = []
    for first in range(source.n_trajectories - n_test, source.n_trajectories, 20):
        rows = range(first, min(first + 20, source.n_trajectories))
        frames = torch.stack([source.read(row, 0, N_HISTORY + N_STEPS)[:, 0] for row in rows])
        with training.casting():
            found = roll_out(training.net, frames.to(training.frames.device)).cpu()
        errors.append(relative_l2(found, frames[:, N_HISTORY:]))
    return torch.cat(errors).mean().item()


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("compare_transolver", lambda: call(run, sys.argv[1:])))
