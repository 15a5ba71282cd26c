"""Reconstructions on disk: what is written is read back, by others too, and nothing is half-written."""

import gzip
import math

import h5py
import nibabel
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from sciml_monarch import InputError, __version__
from sciml_monarch.mri.io import (
    ComplexImage,
    Provenance,
    read_complex_image,
    read_reconstruction,
    write_mosaic,
    write_reconstruction,
)
from sciml_monarch.mri.nifti import read_nifti, write_nifti

PROVENANCE = Provenance(
    "CG-SENSE", "file1.h5", acceleration=4.0, acquisition="AXT2", voxel_size=(5.0, 0.7, 0.6), data_consistency=0.01
)


def volume(shape=(3, 10, 12)):
    return torch.rand(shape)


def complex_image():
    image = torch.randn(3, 2, 20, 12, dtype=torch.complex64)
    maps = torch.randn(3, 2, 4, 20, 12, dtype=torch.complex64)
    return ComplexImage(image, torch.rand(1, 12) < 0.5, maps)


# HDF5


def test_a_reconstruction_comes_back_as_it_was_written(tmp_path):
    written = volume()
    path = write_reconstruction(tmp_path / "new/file1.h5", written.double(), PROVENANCE)
    found = read_reconstruction(path)
    assert found.volume.dtype == torch.float32
    torch.testing.assert_close(found.volume, written, rtol=0, atol=0)
    assert found.attributes == {
        "method": "CG-SENSE",
        "source": "file1.h5",
        "network": "",
        "settings": "",
        "acceleration": 4.0,
        "acquisition": "AXT2",
        "data_consistency": 0.01,
        "software": f"sciml-monarch {__version__}",
    }
    with h5py.File(path) as file:  # as fastMRI's evaluation reads it
        assert file["reconstruction"].dtype == np.float32
        np.testing.assert_array_equal(file["reconstruction"][()], written)
        np.testing.assert_array_equal(file.attrs["voxel_size"], (5.0, 0.7, 0.6))
    assert [p.name for p in path.parent.iterdir()] == ["file1.h5"]


def test_the_complex_image_is_kept_if_given(tmp_path):
    stored = complex_image()
    path = write_reconstruction(tmp_path / "a.h5", volume(), PROVENANCE, stored)
    found = read_complex_image(path)
    assert found is not None
    for key in ("image", "mask", "maps"):
        assert torch.equal(getattr(found, key), getattr(stored, key)), key
    assert found.mask.dtype == torch.bool
    assert read_complex_image(write_reconstruction(tmp_path / "b.h5", volume(), PROVENANCE)) is None
    conjugate = ComplexImage(stored.image.conj(), stored.mask, stored.maps)
    again = read_complex_image(write_reconstruction(tmp_path / "a.h5", volume(), PROVENANCE, conjugate))
    assert again is not None
    assert torch.equal(again.image, stored.image.conj())
    with pytest.raises(InputError, match=r"a mask \(1, 11\)"):
        ComplexImage(stored.image, stored.mask[:, :11], stored.maps)
    with pytest.raises(InputError, match="do not fit"):
        ComplexImage(stored.image[:2], stored.mask, stored.maps)


def test_volumes_that_others_wrote_are_read(tmp_path):
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["reconstruction"] = (volume().numpy() * (3 + 4j)).astype(np.complex64)
        file.attrs["method"] = np.bytes_(b"BART")
        file.attrs["list"] = [1, 2]
    found = read_reconstruction(path)
    assert found.volume.dtype == torch.float32
    assert found.volume.max() > 1  # the magnitude, not the real part
    assert found.attributes == {"method": "BART"}


def test_what_cannot_be_a_reconstruction_is_not_written(tmp_path):
    bad = volume()
    bad[1, 2, 3] = math.nan
    for path, values, message in (
        (tmp_path / "a.h5", bad, "slice 1 of the reconstruction is not finite"),
        (tmp_path / "a.txt", volume(), r"a\.txt: a reconstruction is called \.h5"),
        (tmp_path / "a.h5", volume()[0], r"not \(10, 12\)"),
        (tmp_path / "a.h5", volume() + 1j, "a real volume"),
        (tmp_path / "a.h5", volume()[:0], r"not \(0, 10, 12\)"),
    ):
        with pytest.raises(InputError, match=message):
            write_reconstruction(path, values, PROVENANCE)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = write_reconstruction(tmp_path / "a.h5", volume(), PROVENANCE)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError("Can't write data (no space left)")

    monkeypatch.setattr(h5py.Group, "__setitem__", full)
    with pytest.raises(InputError, match=r"a\.h5: cannot write HDF5 there, is the disk full"):
        write_reconstruction(path, volume(), PROVENANCE)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_are_no_reconstruction_are_named(tmp_path):
    good = write_reconstruction(tmp_path / "good.h5", volume((3, 64, 64)), PROVENANCE)
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "kspace.h5", "w") as file:
        file["kspace"] = np.zeros(3)
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        file["reconstruction"] = np.zeros((4, 4))
    for name, message in (
        ("absent.h5", r"absent\.h5: no such file"),
        ("cut.h5", r"cut\.h5: damaged or not HDF5"),
        ("text.h5", r"text\.h5: damaged or not HDF5"),
        ("kspace.h5", r"kspace\.h5: there is no data set 'reconstruction'; there are kspace"),
        ("flat.h5", r"flat\.h5: 'reconstruction' is \(4, 4\) float64, not a volume"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_reconstruction(tmp_path / name)
        assert "\n" not in str(caught.value)


# NIfTI


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_has_the_voxels_in_their_place_and_size(tmp_path, suffix):
    written = volume((3, 10, 12))
    path = write_nifti(tmp_path / f"scan{suffix}", written, (5.0, 0.7, 0.6))
    image = nibabel.load(path)
    array = image.get_fdata()
    assert array.shape == (12, 10, 3)
    assert image.get_data_dtype() == np.float32
    assert array[7, 4, 1] == pytest.approx(written[1, 4, 7].item())
    assert image.header.get_zooms() == pytest.approx((0.6, 0.7, 5.0))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_allclose(image.affine @ [6, 5, 1, 1], [0, 0, 0, 1], atol=1e-5)  # n // 2 is the origin
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-5)
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_nifti_comes_back_in_the_orientation_of_this_package(tmp_path):
    written = volume((3, 10, 12))
    array, size = read_nifti(write_nifti(tmp_path / "a.nii.gz", written, (5.0, 0.7, 0.6)))
    np.testing.assert_array_equal(array, written)
    assert size == pytest.approx((5.0, 0.7, 0.6))
    # The same head stored in another order of axes, and with a trailing axis of length one.
    turned = nibabel.load(tmp_path / "a.nii.gz").as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nibabel.Nifti1Image(turned.get_fdata()[..., None], turned.affine).to_filename(tmp_path / "b.nii")
    again, size = read_nifti(tmp_path / "b.nii")
    np.testing.assert_allclose(again, written, rtol=1e-6)
    assert size == pytest.approx((5.0, 0.7, 0.6))


def test_an_unknown_voxel_size_is_said_to_be_unknown(tmp_path):
    image = nibabel.load(write_nifti(tmp_path / "a.nii", volume(), None))
    assert image.header.get_zooms() == (1, 1, 1)
    assert image.header.get_xyzt_units()[0] == "unknown"


def test_mistakes_with_nifti_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"called \.nii"):
        write_nifti(tmp_path / "a.img", volume(), None)
    with pytest.raises(InputError, match="sizes must be positive"):
        write_nifti(tmp_path / "a.nii", volume(), (1, 0, 1))
    with pytest.raises(InputError, match="real volume"):
        write_nifti(tmp_path / "a.nii", volume()[0], None)
    good = write_nifti(tmp_path / "a.nii.gz", volume(), None)
    content = gzip.decompress(good.read_bytes())
    (tmp_path / "cut.nii").write_bytes(content[:-100])
    (tmp_path / "cut.nii.gz").write_bytes(good.read_bytes()[:-500])
    (tmp_path / "text.nii").write_text("hello")
    nibabel.Nifti1Image(np.zeros((2, 2, 2, 5)), np.eye(4)).to_filename(tmp_path / "film.nii")
    for name in ("absent.nii", "cut.nii", "cut.nii.gz", "text.nii", "film.nii"):
        with pytest.raises(InputError, match=name) as caught:
            read_nifti(tmp_path / name)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    for call in (lambda: write_nifti(tmp_path / "b.nii", volume(), None), lambda: read_nifti(good)):
        with pytest.raises(InputError, match=r"pip install 'sciml-monarch\[mri\]'"):
            call()
    assert not (tmp_path / "b.nii").exists()


# PNG


def test_a_mosaic_shows_the_slices_in_lines_from_the_top_left(tmp_path):
    levels = torch.arange(1, 6).float()[:, None, None].expand(5, 8, 8) / 5
    picture = imread(write_mosaic(tmp_path / "a.png", levels))[..., 0]
    assert picture.shape == (24, 16)  # two columns, three rows
    tiles = picture.reshape(3, 8, 2, 8).transpose(0, 2, 1, 3).reshape(6, 8, 8)
    for tile, level in zip(tiles, [0.2, 0.4, 0.6, 0.8, 1.0, 0.0], strict=True):
        np.testing.assert_allclose(tile, level, atol=0.01)


def test_a_mosaic_of_many_slices_is_thinned_and_stretched_to_square_pixels(tmp_path):
    picture = imread(write_mosaic(tmp_path / "a.png", volume((50, 8, 10)), (5.0, 2.0, 1.0), n_tiles=4))
    assert picture.shape[:2] == (32, 20)  # 2 x 2 tiles of 16 x 10 pixels
    dark = imread(write_mosaic(tmp_path / "b.png", torch.zeros(2, 8, 8)))
    assert dark[..., :3].max() == 0
    broken = torch.full((1, 8, 8), math.nan)
    assert imread(write_mosaic(tmp_path / "c.png", broken))[..., :3].max() == 0
    with pytest.raises(InputError, match="n_tiles is 0"):
        write_mosaic(tmp_path / "d.png", volume(), n_tiles=0)
    with pytest.raises(InputError, match="mosaic needs"):
        write_mosaic(tmp_path / "d.png", volume()[0])
