"""What runs every kernel for tools that watch memory leaves none out."""

import pytest

from tests.helpers import needs_triton
from tests.monarch.kernels.test_compiled import KERNELS


@pytest.mark.slow
@needs_triton
def test_every_kernel_is_run(monkeypatch):
    from tests.monarch.kernels.compile_launches import KERNEL_NAMES, MODULES
    from tests.monarch.kernels.launch_all import run

    launched = set()

    class Spied:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            launched.add(self.name)
            return self.kernel[grid]

    for module in MODULES:
        for name, kernel in list(vars(module).items()):
            if name.endswith(KERNEL_NAMES) and hasattr(kernel, "run"):
                monkeypatch.setattr(module, name, Spied(name, kernel))
    assert run() > 0
    assert KERNELS - launched == set()
