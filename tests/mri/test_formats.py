"""The contract of every reader, on a file written in each format; values that nobody's writer made are elsewhere."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciml_monarch import hdf5
from sciml_monarch.errors import InputError
from sciml_monarch.mri import writing
from sciml_monarch.mri.formats.base import center_crop, column_mask, pad_center
from sciml_monarch.mri.readers import open_scans
from tests.helpers import randn, relative_error

S, C, NY, NX = 3, 2, 8, 6
KSPACE = randn(S, C, NY, NX, dtype=torch.complex64)
VOXEL = (3.0, 0.5, 0.75)


def fastmri(folder, kspace=KSPACE):
    targets = [slice_.abs().square().sum(0).sqrt()[2:6, 1:5] for slice_ in kspace]
    writing.write_fastmri(folder / "vol.h5", kspace, targets, crop=(4, 4), voxel_size=VOXEL)
    return folder / "vol.h5"


def fastmri_single(folder, kspace=KSPACE):
    writing.write_fastmri(folder / "vol.h5", kspace[:, 0], crop=(4, 4), voxel_size=VOXEL)
    return folder / "vol.h5"


def skmtea(folder, kspace=KSPACE):
    writing.write_skmtea(folder / "vol.h5", torch.stack([kspace, 2 * kspace], dim=1))
    return folder / "vol.h5"


def ismrmrd(folder, kspace=KSPACE):
    writing.write_ismrmrd(folder / "vol.mrd", kspace, voxel_size=VOXEL)
    return folder / "vol.mrd"


def cfl(folder, kspace=KSPACE):
    writing.write_cfl(folder / "vol.cfl", kspace)
    return folder / "vol.cfl"


def npy(folder, kspace=KSPACE):
    writing.write_npy(folder / "vol.npy", kspace)
    return folder / "vol.npy"


FORMATS = {f.__name__: f for f in (fastmri, fastmri_single, skmtea, ismrmrd, cfl, npy)}


@pytest.fixture(params=FORMATS)
def scan(request, tmp_path):
    with open_scans(FORMATS[request.param](tmp_path))[0] as opened:
        yield opened


def expected(scan, index):
    return KSPACE[index, : scan.n_coils]


class TestEveryFormat:
    def test_sizes(self, scan):
        assert (scan.n_slices, scan.shape) == (S, (NY, NX))
        assert scan.n_coils in (1, C)
        assert scan.name.startswith("vol")
        assert all(a <= b for a, b in zip(scan.crop, scan.shape, strict=True))
        assert scan.mask is None
        assert scan.padding in (None, (0, NX))
        assert scan.masks() == {}

    def test_reads_what_was_written(self, scan):
        for index in range(S):
            kspace = scan.kspace(index)
            assert kspace.dtype == torch.complex64
            assert kspace.is_contiguous()
            assert relative_error(kspace, expected(scan, index)) < 1e-6  # ISMRMRD's went through two transforms

    @pytest.mark.parametrize("index", [-1, S])
    def test_out_of_range(self, scan, index):
        for read in (scan.kspace, scan.target, scan.maps):
            with pytest.raises(IndexError, match=rf"slice {index} of {S}"):
                read(index)

    def test_pickles_without_handles(self, scan):
        before = scan.kspace(2)  # opens handles, which must not travel
        packed = pickle.dumps(scan)
        assert len(packed) < 20000
        copy = pickle.loads(packed)
        assert torch.equal(copy.kspace(2), before)
        copy.close()

    def test_reads_again_after_close(self, scan):
        before = scan.kspace(1)
        scan.close()
        assert torch.equal(scan.kspace(1), before)

    def test_forked_worker(self, scan):
        scan.kspace(0)  # the parent's handle is open when the worker starts
        with multiprocessing.get_context("fork").Pool(1) as pool:
            sums = pool.starmap(_sum, [(scan, index) for index in range(S)])
        assert sums == pytest.approx([float(expected(scan, i).abs().sum()) for i in range(S)], rel=1e-5)

    def test_result_is_the_callers(self, scan):
        scan.kspace(0).zero_()
        assert relative_error(scan.kspace(0), expected(scan, 0)) < 1e-6


def test_forked_process_opens_the_file_anew(tmp_path):
    """A handle that came through a fork shares HDF5's state with the parent's, which goes wrong only under load."""
    scan = open_scans(fastmri(tmp_path))[0]
    scan.kspace(0)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_opener, args=(scan, sender))  # inherited by the fork, not pickled
    process.start()
    assert receiver.recv() == process.pid
    process.join()


def _report_opener(scan, sender):
    scan.kspace(1)
    sender.send(scan._hdf5._pid)


def test_spawned_worker(tmp_path):
    """A spawned process takes seconds: HDF5 stands for all."""
    scan = open_scans(fastmri(tmp_path))[0]
    scan.kspace(0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        sums = pool.starmap(_sum, [(scan, 1)])
    assert sums == pytest.approx([float(KSPACE[1].abs().sum())], rel=1e-5)


def _sum(scan, index):
    return float(scan.kspace(index).abs().sum())


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_that_is_not_finite_is_named_with_its_slice(tmp_path, write, value):
    bad = KSPACE.clone()
    bad[1, 0, 3, 2] = value
    scan = open_scans(write(tmp_path, bad))[0]
    scan.kspace(0)
    with pytest.raises(InputError, match=r"vol.*k-space of slice 1 holds .*(nan|inf).*finite numbers were expected"):
        scan.kspace(1)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_zero_slice_is_refused(tmp_path, write):
    bad = KSPACE.clone()
    bad[2] = 0
    scan = open_scans(write(tmp_path, bad))[0]
    scan.kspace(0)
    with pytest.raises(InputError, match=r"vol.*slice 2 is zero everywhere"):
        scan.kspace(2)


@pytest.mark.parametrize("write", [fastmri, skmtea, ismrmrd], ids=lambda f: f.__name__)
def test_truncated_hdf5(tmp_path, write):
    path = write(tmp_path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(InputError, match=rf"{path.name}: .*truncated: {size // 2} of \d+ bytes.*copy it again"):
        open_scans(path)


@pytest.mark.parametrize("write", [fastmri, skmtea], ids=lambda f: f.__name__)
def test_flipped_bit_is_found(tmp_path, write):
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    values = np.ascontiguousarray(open_scans(path)[0].kspace(1).numpy()[0, 0, :1]).tobytes()
    place = bytes(data).index(values)  # one value of k-space, as it stands in the file
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot read data set 'kspace'"):
        open_scans(path)[0].kspace(1)


def test_few_files_are_open_at_a_time(tmp_path):
    """A folder of a thousand volumes must not need a thousand file handles."""
    path = fastmri(tmp_path)
    scans = []
    for i in range(3 * hdf5._MOST_OPEN):
        copy = tmp_path / f"{i}.h5"
        copy.write_bytes(path.read_bytes())
        scans += open_scans(copy)
    for _ in range(2):
        for scan in scans:
            assert torch.equal(scan.kspace(1), KSPACE[1])
    assert sum(scan._hdf5._file is not None for scan in scans) == hdf5._MOST_OPEN


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.tuples(*[st.integers(1, 9)] * 2, st.integers(2, 12), st.integers(2, 12)),
    st.integers(0, 99),
)
def test_round_trip_of_any_size(tmp_path_factory, name, shape, seed):
    kspace = randn(*shape, dtype=torch.complex64, seed=seed)
    folder = tmp_path_factory.mktemp("round")
    if name.startswith("fastmri"):
        values = kspace if name == "fastmri" else kspace[:, 0]
        writing.write_fastmri(folder / "vol.h5", values, crop=shape[2:], voxel_size=VOXEL)
        path = folder / "vol.h5"
    else:
        path = FORMATS[name](folder, kspace)
    scan = open_scans(path)[0]
    assert (scan.n_slices, *scan.shape) == (shape[0], *shape[2:])
    for index in range(shape[0]):
        assert relative_error(scan.kspace(index), kspace[index, : scan.n_coils]) < 1e-6


@settings(deadline=None)
@given(*[st.integers(1, 9)] * 4)
def test_padding_keeps_the_origin(ny, nx, more_y, more_x):
    mask = np.zeros((ny, nx), dtype=bool)
    mask[ny // 2, nx // 2] = True
    wide = pad_center(mask, (ny + more_y, nx + more_x))
    assert np.argwhere(wide).tolist() == [[(ny + more_y) // 2, (nx + more_x) // 2]]


@pytest.mark.parametrize(("n", "size"), [(8, 4), (9, 4), (8, 5), (7, 7), (4, 9)])
def test_crop_equals_fastmris(n, size):
    from fastmri.data.transforms import center_crop as oracle

    image = randn(3, n, n + 2)
    kept = min(size, n)
    assert torch.equal(center_crop(image, (size, 2)), oracle(image, (kept, 2)))


def test_column_mask():
    pattern = np.ones((4, 5), dtype=bool)
    assert column_mask(pattern) is None
    pattern[:, 2] = False
    assert column_mask(pattern).tolist() == [[True, True, False, True, True]]
    pattern[1, 2] = True
    assert torch.equal(column_mask(pattern), torch.from_numpy(pattern))
