"""Small trainings of roll-outs, and what they were given."""

import lightning as L
import torch

from sciml_monarch import load
from sciml_monarch.pde import (
    Description,
    MonarchFNO,
)
from sciml_monarch.pde.data import Loader, TrajectoryData
from sciml_monarch.pde.task import Optimization
from sciml_monarch.training import LAST, fit

CPU = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
OPTIMIZATION = Optimization(learning_rate=1e-2)
TWO_FIELDS = Description(("u", "v"), ("m/s", "m/s"), (16,), (1.0,), 0.5, 3, 4)
BUFFERS = {"input_mean", "input_std", "output_mean", "output_std"}


def data(folder, n_steps=3, **options):
    loader = Loader(preload=True, **options)
    return TrajectoryData(folder, 6, 2, 2, n_history=3, n_steps=n_steps, batch_size=2, loader=loader)


def monarch():
    torch.manual_seed(1)
    return MonarchFNO(3, 1, 6, (8, 8), (16, 16), n_layers=2, projection_channels=8)


def train(task, source, out, epochs=2, callbacks=(), **options):
    trainer_options = CPU | {"max_epochs": epochs, "callbacks": list(callbacks)}
    fit(task, source, out, trainer_options=trainer_options, **options)
    return load(out / LAST)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def gradients(loss, net):
    return torch.autograd.grad(loss, list(net.parameters()))


def zero(net):
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    return net


class Watch(L.Callback):
    """Keeps what the loss and the validation are given, and the loss of each batch."""

    def __init__(self, task):
        self.trained, self.validated, self.losses = [], [], []
        self._rollout = task.surrogate.rollout
        task.surrogate.rollout = self._watched
        self._task = task

    def _watched(self, history, n_steps):
        seen = self.trained if self._task.training else self.validated
        seen.append((history.clone(), n_steps))
        return self._rollout(history, n_steps)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses.append(outputs["loss"].item())
