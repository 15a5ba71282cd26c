"""A task of somebody else's, and its trainings."""

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sciml_monarch.monarch import MonarchLinear

CPU = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


class Regression(L.LightningModule):
    """A task of somebody else's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
        self.losses, self.kinds = [], []

    def training_step(self, batch, index):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.losses.append(float(loss.detach()))
        self.kinds.append((self.global_step, isinstance(self.net[0], MonarchLinear)))
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def points(n=40, batch_size=4):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.sin(x[:, :3] + x[:, 3:6])), batch_size)


def trainer_of(folder, *callbacks, **options):
    return L.Trainer(
        **CPU | {"max_epochs": 2, "logger": False, "default_root_dir": folder, "num_sanity_val_steps": 0} | options,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )
