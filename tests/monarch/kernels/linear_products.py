"""Sizes and inputs of Monarch linear layers, and how far their output and gradients are off."""

import math

import torch

from sciml_monarch.monarch.kernels.linear_configs import Sizes
from tests.helpers import randn, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# k, q, p, l, s, n_in, n_out
REGROUPED = Sizes(2, 32, 20, 2, 40, 32, 39, 77)  # runs of 16, padded on both sides
BATCHED = Sizes(8, 8, 8, 8, 9, 8, 61, 70)
SHAPES = [
    REGROUPED,
    BATCHED,
    Sizes(4, 64, 16, 4, 20, 64, 64, 80),  # nothing is cut off
    Sizes(3, 20, 9, 2, 5, 30, 26, 9),  # k != l, inner sizes that no block divides
    Sizes(3, 22, 9, 3, 7, 22, 26, 20),  # runs of different lengths
    Sizes(3, 40, 5, 1, 11, 120, 15, 11),
    Sizes(1, 6, 7, 3, 4, 2, 7, 12),
    Sizes(5, 3, 40, 5, 70, 3, 199, 347),  # low rank
]


def tensors(sizes, n_tokens, dtype=torch.float32, seed=0):
    """Input, factors, bias, and gradient of the output."""
    k, q, p, l, s, r, n_in, n_out = sizes
    shapes = [(n_tokens, n_in), (k, q, p), (l, s, r), (n_out,), (n_tokens, n_out)]
    scales = [1, 1 / math.sqrt(p), 1 / math.sqrt(r), 1, 1]
    return [
        (randn(*shape, seed=seed + i) * scale).to(dtype).to(DEVICE)
        for i, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    ]


def results(function, inputs, dy):
    """Output and the gradients of all inputs."""
    inputs = [v.detach().requires_grad_() for v in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy)]


def errors(actual, expected):
    return [relative_error(a.cpu(), e.cpu()) for a, e in zip(actual, expected, strict=True)]
