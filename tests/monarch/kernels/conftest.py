"""What tests of kernels share."""

import pytest
import torch

from tests.helpers import let_the_compiler_learn_torch


@pytest.fixture
def poisoned(monkeypatch):
    """What a kernel does not write is not a number."""
    let_the_compiler_learn_torch()

    def with_nan(make):
        return lambda *a, **k: make(*a, **k).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", with_nan(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", with_nan(torch.empty_like))


@pytest.fixture
def precision():
    """Sets the precision of float32 products for a test."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)
