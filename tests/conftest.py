"""Every test starts from the same seed and precision and without compiled code of the one before."""

import os

import pytest
import torch

torch.set_num_threads(1)  # the suite runs in parallel processes
if not torch.cuda.is_available():  # Triton kernels then run in its interpreter, which is chosen at their import
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")  # programs that a test calls may have set another


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def vorticity_folder(tmp_path_factory):
    """Ten real trajectories of six frames on 16 x 16 points, as the smoke configurations expect them."""
    from sciml_monarch.pde.simulate import simulate

    folder = tmp_path_factory.mktemp("data") / "smoke"
    simulate(out=folder, n_trajectories=10, viscosity=1e-3, final_time=6.0, simulation_resolution=32, resolution=16)
    return folder


@pytest.fixture(scope="session")
def scan_folder(tmp_path_factory):
    """Tiny semi-synthetic scans in fastMRI's format, as the smoke configurations expect them.

    ``train`` (3 volumes of 3 slices, one with fewer columns), ``val`` (2 of 2) are fully sampled and bring coil maps;
    ``test`` (1 of 2) is undersampled and has no image to compare with.
    """
    from tests.mri.scans import make_scan, write_scan

    folder = tmp_path_factory.mktemp("mri")
    parts = {"train": [(3, 32), (3, 32), (3, 28)], "val": [(2, 32), (2, 32)], "test": [(2, 32)]}
    for part, volumes in parts.items():
        for i, (n_slices, nx) in enumerate(volumes):
            scan = make_scan(n_slices, (48, nx), seed=100 * sorted(parts).index(part) + i)
            file = folder / part / f"{part}_{i}.h5"
            if part == "test":
                columns = torch.arange(nx)
                mask = (columns % 3 == 0) | ((columns - nx // 2).abs() < 5)
                write_scan(file, scan, mask=mask, attributes={"acceleration": 3})
            else:
                write_scan(file, scan, with_maps=True)
    return folder
