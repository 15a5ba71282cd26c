"""What networks are converted from, and what is said of it."""

from itertools import pairwise

import torch
from torch import nn

TOKENS = torch.randint(24, (3, 7), generator=torch.Generator().manual_seed(1))


def mlp(*sizes):
    layers = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.GELU())]
    return nn.Sequential(*layers[:-1])


def notes(report):
    return {row.layer: row.note for row in report.rows}
