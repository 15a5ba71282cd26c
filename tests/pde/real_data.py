"""Published data beside the checkout, which not every machine has."""

from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[2] / "../shared/data/pde"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/pde is not on this machine")
