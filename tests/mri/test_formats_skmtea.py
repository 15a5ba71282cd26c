"""SKM-TEA's format, on files made by h5py alone as its documentation describes them."""

import h5py
import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.mri import writing
from sciml_monarch.mri.base import magnitude
from sciml_monarch.mri.fourier import fft2c, ifft2c
from sciml_monarch.mri.readers import open_scans
from tests.helpers import randn, relative_error

NX, NY, NZ, ECHOES, COILS = 3, 24, 16, 2, 4
ACQUIRED = (20, 8)


@pytest.fixture
def arrays():
    """Hybrid k-space whose SENSE image is the target, zero outside of the acquired part, in the order of the file."""
    maps = randn(NX, NY, NZ, COILS, 1, dtype=torch.complex64, seed=1)
    maps /= maps.abs().square().sum(3, keepdim=True).sqrt()
    image = randn(NX, NY, NZ, ECHOES, 1, dtype=torch.complex64, seed=2)
    coils = (maps[:, :, :, None] * image[..., None, :]).sum(-1)  # (x, y, z, echo, coil)
    kspace = fft2c(coils.permute(0, 3, 4, 1, 2)).permute(0, 3, 4, 1, 2)
    return {"kspace": kspace.numpy(), "maps": maps.numpy(), "target": image.numpy()}


@pytest.fixture
def path(tmp_path, arrays):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "MTR_005.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
        for acceleration in (4, 6):
            file[f"masks/poisson_{float(acceleration)}x"] = rng.random(ACQUIRED) < 1 / acceleration
    return tmp_path / "MTR_005.h5"


def test_echoes_are_scans(path):
    scans = open_scans(path)
    assert [scan.name for scan in scans] == ["MTR_005_echo1", "MTR_005_echo2"]
    assert {scan.acquisition for scan in scans} == {"qDESS echo 1", "qDESS echo 2"}
    for scan in scans:
        assert (scan.n_slices, scan.n_coils, scan.shape, scan.crop) == (NX, COILS, (NY, NZ), (NY, NZ))
        assert scan.mask is scan.voxel_size is None
        assert scan.acquired == (2, 22, 4, 12)


@pytest.mark.parametrize("echo", [0, 1])
def test_values(path, arrays, echo):
    scan = open_scans(path)[echo]
    for x in range(NX):
        np.testing.assert_array_equal(scan.kspace(x).numpy(), arrays["kspace"][x, :, :, echo].transpose(2, 0, 1))
        np.testing.assert_array_equal(scan.maps(x).numpy(), arrays["maps"][x].transpose(3, 2, 0, 1))
        np.testing.assert_allclose(scan.target(x).numpy(), np.abs(arrays["target"][x, :, :, echo, 0]), rtol=1e-6)


def test_sense_image_is_the_target(path):
    """Axes of k-space, maps and target belong together."""
    scan = open_scans(path)[1]
    for x in range(NX):
        image = (scan.maps(x).conj() * ifft2c(scan.kspace(x))).sum(1)
        assert relative_error(magnitude(image[None])[0], scan.target(x)) < 1e-5


def test_masks_stand_in_the_middle(path):
    masks = open_scans(path)[0].masks()
    assert sorted(masks) == ["poisson_4.0x", "poisson_6.0x"]
    with h5py.File(path) as file:
        for name, mask in masks.items():
            assert mask.dtype == torch.bool
            assert mask.shape == (NY, NZ)
            np.testing.assert_array_equal(mask[2:22, 4:12].numpy(), file[f"masks/{name}"][()])
            assert mask.sum() == mask[2:22, 4:12].sum()


def test_masks_of_the_real_size(tmp_path):
    """416 x 80 in 512 x 160: 48 rows and 40 columns of zeros on each side."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("kspace", (1, 512, 160, 1, 1), np.complex64)
        file["masks/poisson_16.0x"] = np.ones((1, 416, 80, 1), dtype=np.uint8)
    scan = open_scans(tmp_path / "a.h5")[0]
    mask = scan.masks()["poisson_16.0x"]
    assert mask[48:464, 40:120].all()
    assert mask.sum() == 416 * 80
    assert scan.acquired == (48, 464, 40, 120)
    assert scan.maps(0) is scan.target(0) is None


def test_two_sets_of_maps(path):
    with h5py.File(path, "a") as file:
        for name in ("maps", "target"):
            values = file[name][()]
            del file[name]
            file[name] = np.concatenate([values, 2 * values], axis=-1)
        expected = np.abs(file["target"][1, :, :, 0, 0]) * 5**0.5
        maps = file["maps"][1, ..., 0].transpose(2, 0, 1)
    scan = open_scans(path)[0]
    np.testing.assert_array_equal(scan.maps(1).numpy(), np.stack([maps, 2 * maps]))
    np.testing.assert_allclose(scan.target(1).numpy(), expected, rtol=1e-5)


def test_written_file_has_the_same_arrays(path, arrays, tmp_path):
    writing.write_skmtea(
        tmp_path / "new.h5",
        [values.transpose(2, 3, 0, 1) for values in arrays["kspace"]],
        [values.transpose(3, 2, 0, 1) for values in arrays["maps"]],
        [values.transpose(2, 3, 0, 1) for values in arrays["target"]],
        {"poisson_4.0x": torch.ones(ACQUIRED, dtype=torch.bool)},
        {"semi_synthetic": True},
    )
    with h5py.File(tmp_path / "new.h5") as file:
        for name, values in arrays.items():
            np.testing.assert_array_equal(file[name][()], values)
        assert file["masks/poisson_4.0x"].shape == ACQUIRED
    assert open_scans(tmp_path / "new.h5")[1].attributes == {"semi_synthetic": True, "echo": 2}


def test_one_slice_is_read_at_a_time(tmp_path, monkeypatch):
    """Nothing of another x or echo is touched."""
    from sciml_monarch.hdf5 import Hdf5File

    kspace = randn(NX, ECHOES, COILS, NY, NZ, dtype=torch.complex64)
    writing.write_skmtea(tmp_path / "a.h5", kspace)
    sizes = []
    original = Hdf5File.read
    monkeypatch.setattr(Hdf5File, "read", lambda *a: sizes.append((values := original(*a)).size) or values)
    open_scans(tmp_path / "a.h5")[1].kspace(2)
    assert sizes == [COILS * NY * NZ]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("kspace", np.zeros((2, 4, 4, 2, 3)), r"'kspace' is \(2, 4, 4, 2, 3\) of float64, expected complex"),
        ("maps", np.zeros((NX, NY, NZ, 3, 1), np.complex64), r"'maps' \(3, 24, 16, 3, 1\) does not fit 'kspace'"),
        ("target", np.zeros((NX, NY, NZ, 2), np.complex64), r"'target' is \(3, 24, 16, 2\) of complex64, expected"),
    ],
)
def test_bad_arrays(path, name, values, message):
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = values
    with pytest.raises(InputError, match=rf"^{path}: .*{message}"):
        open_scans(path)


def test_mask_larger_than_kspace(path):
    with h5py.File(path, "a") as file:
        file["masks/a_large"] = np.ones((NY + 2, NZ))
    with pytest.raises(InputError, match=r"'masks/a_large' \(26, 16\) does not fit into k-space \(24, 16\)"):
        open_scans(path)[0].masks()
