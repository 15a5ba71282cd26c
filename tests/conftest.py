"""Every test starts from the same seed and without compiled code of the one before."""

import pytest
import torch

torch.set_num_threads(1)  # the suite runs in parallel processes


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


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
