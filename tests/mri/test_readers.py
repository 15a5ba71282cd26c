"""Which format a file has, what is refused, BART and NumPy files, and memory that does not grow."""

import multiprocessing
import os
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sciml_monarch.errors import InputError
from sciml_monarch.mri import writing
from sciml_monarch.mri.readers import list_scans, open_scans
from tests.helpers import randn

S, C, NY, NX = 3, 2, 8, 6
KSPACE = randn(S, C, NY, NX, dtype=torch.complex64)
REAL = Path(__file__).resolve().parents[2] / "../shared/data/mri"


def write_fastmri(path, kspace=KSPACE):
    writing.write_fastmri(path, kspace, crop=(4, 4), voxel_size=(1.0, 1.0, 1.0))
    return path


def write_bart(base, array):
    """The format as BART documents it: sizes in a text, complex64 with the first axis fastest."""
    base.with_name(base.name + ".hdr").write_text(
        "# Dimensions\n" + " ".join(map(str, array.shape)) + " \n# Command\nx\n"
    )
    array.astype(np.complex64).ravel(order="F").tofile(base.with_name(base.name + ".cfl"))


class TestKinds:
    @pytest.mark.parametrize("name", ["a.h5", "a.hdf5", "a.dat"])
    def test_content_not_name(self, tmp_path, name):
        assert open_scans(str(write_fastmri(tmp_path / name)))[0].n_slices == S

    def test_text_with_the_suffix_of_hdf5(self, tmp_path):
        (tmp_path / "a.h5").write_text("<!DOCTYPE html> please log in")
        with pytest.raises(InputError, match=r"a.h5: neither HDF5 .* it starts with .*DOCTYPE.*web page"):
            open_scans(tmp_path / "a.h5")

    def test_empty_file(self, tmp_path):
        (tmp_path / "a.h5").touch()
        with pytest.raises(InputError, match=r"a.h5: the file is empty \(0 bytes\)"):
            open_scans(tmp_path / "a.h5")

    def test_missing_file(self, tmp_path):
        with pytest.raises(InputError, match=r"a.h5: no such file"):
            open_scans(tmp_path / "a.h5")

    def test_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"is a folder.*list_scans"):
            open_scans(tmp_path)

    def test_other_hdf5(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["reconstruction"] = np.zeros(3)
        with pytest.raises(InputError, match=r"a.h5: expected 'kspace' .*; the file holds: reconstruction"):
            open_scans(tmp_path / "a.h5")

    def test_kspace_that_is_a_group(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["kspace/data"] = np.zeros(3)
        with pytest.raises(InputError, match=r"expected 'kspace'"):
            open_scans(tmp_path / "a.h5")


class TestList:
    def test_files_that_may_be_scans(self, tmp_path):
        names = ["b.h5", "a.hdf5", "c.mrd", "d.npy", "e.cfl", "E.H5"]
        for name in [*names, ".hidden.h5", "e.hdr", "e_maps.cfl", "e_maps.hdr", "notes.txt", "f.h5.part"]:
            (tmp_path / name).touch()
        (tmp_path / "folder.h5").mkdir()
        assert [p.name for p in list_scans(tmp_path)] == sorted(names)

    def test_maps_without_their_scan_are_a_scan(self, tmp_path):
        (tmp_path / "my_maps.cfl").touch()
        assert [p.name for p in list_scans(str(tmp_path))] == ["my_maps.cfl"]

    def test_single_file(self, tmp_path):
        path = tmp_path / "anything"
        path.touch()
        assert list_scans(path) == [path]

    def test_bart_base_name(self, tmp_path):
        writing.write_cfl(tmp_path / "scan.1", KSPACE)
        assert list_scans(tmp_path / "scan.1") == [tmp_path / "scan.1.cfl"]

    def test_empty_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"no scan \(.h5, .*\) in this folder; it holds: nothing"):
            list_scans(tmp_path)

    def test_folder_of_other_files(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(InputError, match=r"it holds: notes.txt"):
            list_scans(tmp_path)

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"no such file or folder"):
            list_scans(tmp_path / "x")


class TestBart:
    @pytest.mark.parametrize("name", ["scan.4x", "scan.4x.cfl", "scan.4x.hdr"])
    def test_multislice(self, tmp_path, name):
        array = np.zeros((NY, NX, 1, C, *[1] * 9, S), dtype=np.complex64)
        array[:, :, 0, :, 0, 0, 0, 0, 0, 0, 0, 0, 0] = KSPACE.numpy().transpose(2, 3, 1, 0)
        write_bart(tmp_path / "scan.4x", array)
        (scan,) = open_scans(tmp_path / name)
        assert (scan.name, scan.n_slices, scan.n_coils, scan.shape) == ("scan.4x", S, C, (NY, NX))
        for index in range(S):
            assert torch.equal(scan.kspace(index), KSPACE[index])
        assert scan.maps(0) is None

    @pytest.mark.parametrize("suffixes", [(".CFL", ".HDR"), (".Cfl", ".hdr"), (".cfl", ".HDR")])
    def test_suffixes_in_capitals(self, tmp_path, suffixes):
        maps = randn(S, 1, C, NY, NX, dtype=torch.complex64)
        writing.write_cfl(tmp_path / "a.1", KSPACE, maps)
        for path in sorted(tmp_path.iterdir()):
            path.rename(path.with_suffix(suffixes[path.suffix == ".hdr"]))
        (listed,) = list_scans(tmp_path)
        assert listed.name == f"a.1{suffixes[0]}"
        assert list_scans(tmp_path / "a.1") == [listed]
        for path in (listed, tmp_path / "a.1", tmp_path / f"a.1{suffixes[1]}"):
            (scan,) = open_scans(path)
            assert (scan.name, scan.path) == ("a.1", listed)
            assert torch.equal(scan.kspace(2), KSPACE[2])
            assert torch.equal(scan.maps(1), maps[1])

    def test_hybrid_cut_along_the_readout(self, tmp_path):
        write_bart(tmp_path / "a", KSPACE[0].numpy().transpose(1, 2, 0)[None])  # (1, phase 1, phase 2, coil)
        assert torch.equal(open_scans(tmp_path / "a")[0].kspace(0), KSPACE[0])

    def test_echoes(self, tmp_path):
        echoes = KSPACE.numpy().transpose(2, 3, 1, 0)[:, :, None, :, None, :]  # axis 5: the slices of KSPACE as echoes
        write_bart(tmp_path / "a", echoes)
        scans = open_scans(tmp_path / "a.cfl")
        assert [scan.name for scan in scans] == ["a_echo1", "a_echo2", "a_echo3"]
        assert torch.equal(scans[2].kspace(0), KSPACE[2])

    @pytest.mark.parametrize("n_slices", [1, S])
    def test_maps_beside_it(self, tmp_path, n_slices):
        maps = randn(n_slices, 2, C, NY, NX, dtype=torch.complex64)
        writing.write_cfl(tmp_path / "a", KSPACE, maps)
        if n_slices == S:
            assert list_scans(tmp_path) == [tmp_path / "a.cfl"]
        for index in range(S):
            assert torch.equal(open_scans(tmp_path / "a")[0].maps(index), maps[min(index, n_slices - 1)])

    def test_written_file_is_in_barts_order(self, tmp_path):
        writing.write_cfl(tmp_path / "a.cfl", KSPACE)
        lines = (tmp_path / "a.hdr").read_text().splitlines()
        dims = [int(n) for n in lines[1].split()]
        assert lines[0] == "# Dimensions"
        assert dims == [NY, NX, 1, C, *[1] * 9, S, 1, 1]
        values = np.fromfile(tmp_path / "a.cfl", np.complex64).reshape(dims, order="F")
        np.testing.assert_array_equal(np.squeeze(values).transpose(3, 2, 0, 1), KSPACE.numpy())

    def test_zeros_are_what_was_not_sampled(self, tmp_path):
        kspace = KSPACE.clone()
        kspace[..., 1::2] = 0
        writing.write_cfl(tmp_path / "a", kspace)
        scan = open_scans(tmp_path / "a")[0]
        assert scan.mask.tolist() == [[True, False] * 3]

    def test_slices_sampled_differently(self, tmp_path):
        kspace = KSPACE.clone()
        kspace[0, ..., 1] = 0
        writing.write_cfl(tmp_path / "a", kspace)
        with pytest.raises(InputError, match=r"slice 1 has samples where slice 0 has none.*same sampling mask"):
            open_scans(tmp_path / "a")[0].kspace(1)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((8, 6, 4, 2), r"three-dimensional k-space \(8, 6, 4\); .*bart fft -i -u 4"),
            ((8, 6, 1, 2, 2), r"axis 4 \(sets of maps\) has 2 entries"),
            ((8, 6, 1, 2, 1, 1, 1, 1, 1, 1, 5), r"axis 10 \(time\) has 5 entries.*bart slice 10"),
        ],
    )
    def test_axes_that_cannot_be_read(self, tmp_path, shape, message):
        write_bart(tmp_path / "a", np.ones(shape))
        with pytest.raises(InputError, match=rf"a.cfl: {message}"):
            open_scans(tmp_path / "a.cfl")

    def test_size_that_disagrees(self, tmp_path):
        writing.write_cfl(tmp_path / "a", KSPACE)
        with (tmp_path / "a.cfl").open("r+b") as file:
            file.truncate(100)
        with pytest.raises(InputError, match=r"a.cfl: 100 bytes, but a.hdr says 8 x 6 x 1 x 2 .* = 2304 bytes; copy"):
            open_scans(tmp_path / "a.cfl")

    @pytest.mark.parametrize(
        "text", ["", "# Dimensions\n", "# Dimensions\n8 x 6\n", "# Dimensions\n0 4\n", "8 6 1 2\n"]
    )
    def test_header_that_is_none(self, tmp_path, text):
        writing.write_cfl(tmp_path / "a", KSPACE)
        (tmp_path / "a.hdr").write_text(text)
        with pytest.raises(InputError, match=r"a.hdr: (expected a line '# Dimensions'|cannot read the BART header)"):
            open_scans(tmp_path / "a.cfl")

    @pytest.mark.parametrize("suffix", [".cfl", ".hdr"])
    def test_half_of_the_pair_is_missing(self, tmp_path, suffix):
        writing.write_cfl(tmp_path / "a", KSPACE)
        (tmp_path / f"a{suffix}").unlink()
        with pytest.raises(InputError, match=rf"a{suffix}: no such file"):
            open_scans(tmp_path / "a")

    def test_maps_of_another_scan(self, tmp_path):
        writing.write_cfl(tmp_path / "a", KSPACE, randn(S, 1, C + 1, NY, NX, dtype=torch.complex64))
        with pytest.raises(InputError, match=r"a_maps.cfl: coil maps .* do not fit k-space \(2, 8, 6\) of 3 slices"):
            open_scans(tmp_path / "a")


class TestNpy:
    @pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/mri is not on this machine")
    @pytest.mark.parametrize("path", sorted(REAL.glob("*.npy")), ids=lambda p: p.stem)
    def test_real_scans(self, path):
        (scan,) = open_scans(path)
        array = np.load(path)
        assert (scan.n_coils, *scan.shape) == array.shape
        assert scan.mask is None
        np.testing.assert_array_equal(scan.kspace(0).numpy(), array)
        strongest = int(scan.kspace(0).abs().square().sum(0).argmax())
        y, x = divmod(strongest, scan.shape[1])
        assert max(abs(y - scan.shape[0] // 2), abs(x - scan.shape[1] // 2)) <= 3  # centred k-space

    def test_single_slice(self, tmp_path):
        np.save(tmp_path / "a.npy", KSPACE[1].to(torch.complex128).numpy())
        (scan,) = open_scans(tmp_path / "a.npy")
        assert (scan.n_slices, scan.name) == (1, "a")
        assert torch.equal(scan.kspace(0), KSPACE[1])

    def test_two_dimensional_mask(self, tmp_path):
        mask = torch.rand(NY, NX) < 0.5
        np.save(tmp_path / "a.npy", torch.where(mask, KSPACE, 0).numpy())
        scan = open_scans(tmp_path / "a.npy")[0]
        assert torch.equal(scan.mask, mask)

    @pytest.mark.parametrize("array", [np.ones((2, 3)), np.ones((2, 3, 4)), np.ones((1, 2, 3, 4, 5), complex)])
    def test_other_arrays(self, tmp_path, array):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match=r"a.npy: an array .* expected complex numbers in \(coil, y, x\) or"):
            open_scans(tmp_path / "a.npy")

    def test_truncated(self, tmp_path):
        np.save(tmp_path / "a.npy", KSPACE.numpy())
        with (tmp_path / "a.npy").open("r+b") as file:
            file.truncate(500)
        with pytest.raises(InputError, match=r"a.npy: cannot read the NumPy array"):
            open_scans(tmp_path / "a.npy")

    def test_no_slices(self, tmp_path):
        np.save(tmp_path / "a.npy", KSPACE[:0].numpy())
        with pytest.raises(InputError, match=r"a.npy: no data: 0 slices"):
            open_scans(tmp_path / "a.npy")


class TestMemory:
    """fastMRI's issue 215: slices that became tensors without a copy kept HDF5's memory, megabytes a second."""

    N, COILS, SIZE = 10_000, 8, 32  # 64 KB a slice: 640 MB in all

    @pytest.fixture
    def scan(self, tmp_path):
        path = tmp_path / "a.h5"
        kspace = randn(20, self.COILS, self.SIZE, self.SIZE, dtype=torch.complex64)
        targets = kspace.abs()[:, 0]
        writing.write_fastmri(path, kspace, targets, crop=(32, 32), voxel_size=(1.0, 1.0, 1.0))
        return open_scans(path)[0]

    def test_in_this_process(self, scan):
        assert _growth(_read_all(scan, self.N)) < 4e6

    @pytest.mark.slow
    def test_in_workers(self, scan):
        loader = DataLoader(
            _Slices(scan, self.N),
            batch_size=8,
            num_workers=2,
            multiprocessing_context=multiprocessing.get_context("fork"),
        )
        sizes = {}
        for workers, memory, kspace in loader:
            assert kspace.shape == (8, self.COILS, self.SIZE, self.SIZE)
            sizes.setdefault(int(workers[0]), []).extend(memory.tolist())
        assert len(sizes) == 2
        for memory in sizes.values():
            assert len(memory) == self.N // 2
            assert _growth(memory) < 4e6


class _Slices(Dataset):
    def __init__(self, scan, n):
        self.scan, self.n = scan, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        index = i % self.scan.n_slices
        return os.getpid(), _memory(), self.scan.kspace(index)


def _read_all(scan, n):
    slices = _Slices(scan, n)
    return [slices[i][1] for i in range(n)]


def _memory():
    """Resident memory of this process in bytes."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:  # no Linux: the peak will do, since it must not grow either
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _growth(memory):
    """Growth over the second half, between the means of its first and last tenth."""
    half = np.array(memory[len(memory) // 2 :])
    part = len(half) // 10
    return half[-part:].mean() - half[:part].mean()
