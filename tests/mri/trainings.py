"""Small trainings of reconstruction networks."""

import torch

from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.data import MRIData
from sciml_monarch.mri.ista import MonarchISTA
from sciml_monarch.mri.masks import RandomMask
from sciml_monarch.training import fit

CPU = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
MASK = RandomMask((3.0,), (0.125,))
FILE = CoilMaps(source="file")


def data(folder, **options):
    return MRIData(folder / "train", folder / "val", **{"mask": MASK, "maps": FILE, "batch_size": 2, **options})


def ista(**options):
    torch.manual_seed(1)
    return MonarchISTA(**{"n_steps": 2, "block": 4, **options})


def train(task, source, out, **options):
    resume = options.pop("resume", False)
    return fit(task, source, out, resume=resume, trainer_options=CPU | {"max_epochs": 2} | options)
