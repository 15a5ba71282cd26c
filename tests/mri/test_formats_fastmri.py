"""fastMRI's format, against the package ``fastmri`` and against files made by h5py alone."""

import tracemalloc

import fastmri.data.transforms
import h5py
import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.mri import writing
from sciml_monarch.mri.readers import open_scans
from tests.helpers import randn

S, C, NY, NX = 3, 4, 20, 14
KSPACE = randn(S, C, NY, NX, dtype=torch.complex64)
RSS = randn(S, 10, 10, dtype=torch.float32).abs()


def write(path, targets=RSS, crop=(10, 10), voxel_size=(3.0, 0.5, 0.75), **more):
    with writing.FastMRIWriter(path, crop=crop, voxel_size=voxel_size, **more) as writer:
        for index, kspace in enumerate(KSPACE):
            writer.append(kspace, None if targets is None else targets[index])
    return path


def write_by_hand(path, **datasets):
    """A file as it may come from anywhere: h5py only."""
    with h5py.File(path, "w") as file:
        for name, values in {"kspace": KSPACE.numpy(), **datasets}.items():
            if values is not None:
                file[name] = values
    return path


def oracle(path):
    """The header as fastMRI's own reader understands it."""
    return fastmri.data.SliceDataset(path.parent, "multicoil").raw_samples[0].metadata


HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<acquisitionSystemInformation><systemVendor>V</systemVendor><systemFieldStrength_T>2.89</systemFieldStrength_T>
</acquisitionSystemInformation>
<encoding><encodedSpace><matrixSize><x>640</x><y>368</y><z>1</z></matrixSize>
<fieldOfView_mm><x>280</x><y>161</y><z>4.5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>320</x><y>320</y><z>1</z></matrixSize>
<fieldOfView_mm><x>140</x><y>140</y><z>4.5</z></fieldOfView_mm></reconSpace>
<trajectory>cartesian</trajectory>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>331</maximum><center>166</center>
</kspace_encoding_step_1></encodingLimits></encoding></ismrmrdHeader>"""


class TestAgainstFastMRI:
    @pytest.mark.parametrize("padding", [None, (0, 14), (2, 13), (1, 12), (5, 9)])
    @pytest.mark.parametrize("crop", [(10, 10), (7, 14)])
    def test_header(self, tmp_path, padding, crop):
        path = write(tmp_path / "a.h5", None, crop, padding=padding)
        scan, theirs = open_scans(path)[0], oracle(path)
        assert scan.padding == (theirs["padding_left"], theirs["padding_right"]) == (padding or (0, NX))
        assert scan.encoding_size == theirs["encoding_size"] == (NY, NX, 1)
        assert scan.recon_size == theirs["recon_size"] == (*crop, 1)
        assert scan.crop == crop

    def test_real_header(self, tmp_path):
        """The numbers of a knee: limits 0 to 331 around 166 in a matrix of 368."""
        kspace = np.ones((1, 1, 640, 368), dtype=np.complex64)
        path = write_by_hand(tmp_path / "a.h5", kspace=kspace, ismrmrd_header=HEADER)
        scan, theirs = open_scans(path)[0], oracle(path)
        assert scan.padding == (theirs["padding_left"], theirs["padding_right"]) == (18, 350)
        assert (scan.encoding_size, scan.recon_size) == (theirs["encoding_size"], theirs["recon_size"])
        assert scan.crop == (320, 320)
        assert scan.voxel_size == pytest.approx((4.5, 0.4375, 0.4375))
        assert scan.attributes["field_strength"] == 2.89
        assert scan.attributes["vendor"] == "V"

    def test_slices(self, tmp_path):
        write(tmp_path / "a.h5", acquisition="AXT2", attributes={"patient_id": "x"})
        scan = open_scans(tmp_path / "a.h5")[0]
        for index, (kspace, mask, target, attributes, name, number) in enumerate(
            fastmri.data.SliceDataset(tmp_path, "multicoil")
        ):
            assert (name, number, mask) == ("a.h5", index, None)
            np.testing.assert_array_equal(scan.kspace(index).numpy(), kspace)
            np.testing.assert_array_equal(scan.target(index).numpy(), target)
            assert attributes["max"] == pytest.approx(float(RSS.max()))
            assert attributes["norm"] == pytest.approx(float(RSS.norm()))
            assert (attributes["acquisition"], attributes["patient_id"]) == ("AXT2", "x")
        assert scan.attributes["max"] == pytest.approx(float(RSS.max()))
        assert scan.acquisition == "AXT2"

    def test_mask_is_theirs_with_the_padding(self, tmp_path):
        """Their transform for networks zeroes the mask of a test file outside of the padding."""
        columns = np.arange(NX) % 3 == 0
        path = write(tmp_path / "a.h5", None, padding=(2, 12), datasets={"mask": columns.astype(np.float32)})
        transform = fastmri.data.transforms.VarNetDataTransform()
        theirs = fastmri.data.SliceDataset(tmp_path, "multicoil", transform)[1]
        scan = open_scans(path)[0]
        assert scan.mask.dtype == torch.bool
        assert torch.equal(scan.mask[0], theirs.mask[0, 0, :, 0] != 0)
        assert scan.crop == tuple(int(n) for n in theirs.crop_size)
        assert torch.equal(scan.kspace(1) != 0, scan.mask.expand(C, NY, NX))
        assert scan.target(1) is None


def test_header_fits_the_schema(tmp_path):
    import ismrmrd.xsd

    with h5py.File(write(tmp_path / "a.h5", padding=(2, 13), acquisition="AXT2")) as file:
        header = ismrmrd.xsd.CreateFromDocument(file["ismrmrd_header"][()])
    encoding = header.encoding[0]
    assert encoding.encodedSpace.fieldOfView_mm.x == NY * 0.5
    assert encoding.encodedSpace.fieldOfView_mm.y == NX * 0.75
    assert (encoding.reconSpace.matrixSize.x, encoding.reconSpace.fieldOfView_mm.y) == (10, 7.5)
    assert encoding.encodingLimits.slice.maximum == S - 1
    assert header.acquisitionSystemInformation.receiverChannels == C
    assert header.measurementInformation.protocolName == "AXT2"


class TestWithoutHeader:
    def test_crop_of_the_reference(self, tmp_path):
        scan = open_scans(write_by_hand(tmp_path / "a.h5", reconstruction_rss=RSS.numpy()))[0]
        assert scan.crop == (10, 10)
        assert scan.voxel_size is scan.padding is scan.encoding_size is None
        assert torch.equal(scan.target(2), RSS[2])

    def test_nothing_but_kspace(self, tmp_path):
        scan = open_scans(write_by_hand(tmp_path / "a.h5"))[0]
        assert scan.crop == (NY, NX)
        assert scan.target(0) is None
        assert scan.acquisition == ""


def test_single_coil(tmp_path):
    path = write_by_hand(
        tmp_path / "a.h5",
        kspace=KSPACE[:, 0].numpy(),
        reconstruction_rss=RSS.numpy(),
        reconstruction_esc=2 * RSS.numpy(),
    )
    scan = open_scans(path)[0]
    assert scan.n_coils == 1
    assert torch.equal(scan.kspace(1), KSPACE[1, :1])
    assert torch.equal(scan.target(1), 2 * RSS[1])  # the single coil's own, not the multi-coil one


def test_multi_coil_with_both_references(tmp_path):
    both = {"reconstruction_rss": RSS.numpy(), "reconstruction_esc": 2 * RSS.numpy()}
    assert torch.equal(open_scans(write_by_hand(tmp_path / "a.h5", **both))[0].target(1), RSS[1])


class TestFlair203:
    """K-space narrower than the image of the header: the crop is a square of its width, as in fastMRI's programs."""

    def test_square_crop(self, tmp_path):
        assert open_scans(write(tmp_path / "a.h5", None, (16, 16)))[0].crop == (NX, NX)

    def test_reference_is_cropped_alike(self, tmp_path):
        large = randn(S, 16, 16, dtype=torch.float32).abs()
        scan = open_scans(write(tmp_path / "a.h5", large, (16, 16)))[0]
        assert scan.crop == (NX, NX)
        assert torch.equal(scan.target(0), large[0, 1:15, 1:15])

    def test_crop_is_at_most_the_shape(self, tmp_path):
        assert open_scans(write(tmp_path / "a.h5", None, (99, 12)))[0].crop == (NY, 12)


@pytest.mark.parametrize("n_sets", [None, 2])
def test_maps(tmp_path, n_sets):
    shape = (S, C, NY, NX) if n_sets is None else (S, n_sets, C, NY, NX)
    maps = randn(*shape, dtype=torch.complex64)
    writing.write_fastmri(tmp_path / "a.h5", KSPACE, crop=(10, 10), voxel_size=(1.0, 1.0, 1.0), maps=iter(maps))
    scan = open_scans(tmp_path / "a.h5")[0]
    assert torch.equal(scan.maps(1), maps[1] if n_sets else maps[1][None])


class TestWriter:
    def test_takes_one_slice_at_a_time(self, tmp_path):
        """40 slices of 2 MB: a volume of 80 MB must not be in memory."""
        tracemalloc.start()
        with writing.FastMRIWriter(tmp_path / "a.h5", crop=(256, 256), voxel_size=(1.0, 1.0, 1.0)) as writer:
            for _ in range(40):
                writer.append(np.ones((1, 512, 512), dtype=np.complex64), np.ones((256, 256), dtype=np.float32))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert open_scans(tmp_path / "a.h5")[0].n_slices == 40
        assert peak < 16e6

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"targets": RSS[:2]}, r"targets: only 2 entries, fewer than kspace"),
            ({"targets": torch.cat([RSS, RSS])}, r"kspace: only 3 entries, fewer than targets"),
            ({"maps": iter(KSPACE[:1])}, r"maps: only 1 entries, fewer than kspace"),
            ({"targets": [RSS[0], RSS[1, :5], RSS[2]]}, r"'reconstruction_rss' of slice 1 is \(5, 10\)"),
        ],
    )
    def test_refuses_and_leaves_nothing(self, tmp_path, more, message):
        with pytest.raises(InputError, match=message):
            writing.write_fastmri(tmp_path / "a.h5", KSPACE, crop=(4, 4), voxel_size=(1.0, 1.0, 1.0), **more)
        assert list(tmp_path.iterdir()) == []

    def test_every_slice_has_the_same_data_sets(self, tmp_path):
        def write_both():
            with writing.FastMRIWriter(tmp_path / "a.h5", crop=(4, 4), voxel_size=(1.0, 1.0, 1.0)) as writer:
                writer.append(KSPACE[0], RSS[0])
                writer.append(KSPACE[1], extra={"maps": KSPACE[1]})

        with pytest.raises(InputError, match=r"slice 1 and those before it do not all have: maps, reconstruction_rss"):
            write_both()
        assert list(tmp_path.iterdir()) == []

    def test_append_outside_of_the_block(self, tmp_path):
        with pytest.raises(RuntimeError, match=r"with"):
            writing.FastMRIWriter(tmp_path / "a.h5", crop=(4, 4), voxel_size=(1.0, 1.0, 1.0)).append(KSPACE[0])

    def test_interrupted_leaves_the_old_file(self, tmp_path):
        write(tmp_path / "a.h5")
        before = (tmp_path / "a.h5").read_bytes()

        def broken():
            yield KSPACE[0]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            writing.write_fastmri(tmp_path / "a.h5", broken(), crop=(4, 4), voxel_size=(1.0, 1.0, 1.0))
        assert (tmp_path / "a.h5").read_bytes() == before
        assert len(list(tmp_path.iterdir())) == 1

    def test_no_slices(self, tmp_path):
        with pytest.raises(InputError, match=r"no slices to write"):
            writing.write_fastmri(tmp_path / "a.h5", [], crop=(4, 4), voxel_size=(1.0, 1.0, 1.0))

    def test_real_numbers(self, tmp_path):
        with pytest.raises(InputError, match=r"must be complex, not float32"):
            writing.write_fastmri(tmp_path / "a.h5", RSS, crop=(4, 4), voxel_size=(1.0, 1.0, 1.0))


class TestBadFiles:
    @pytest.mark.parametrize(
        ("datasets", "message"),
        [
            ({"kspace": RSS.numpy()}, r"'kspace' is \(3, 10, 10\) of float32, expected complex numbers"),
            ({"kspace": KSPACE[0, 0].numpy()}, r"'kspace' is \(20, 14\) of complex64, expected complex numbers in"),
            ({"kspace": KSPACE[:0].numpy()}, r"no data: 0 slices"),
            ({"mask": np.ones(NX - 1)}, r"the mask \(13,\) does not fit k-space 20 x 14: one value a column"),
            ({"mask": np.zeros(NX)}, r"mask in the file is False everywhere"),
            ({"ismrmrd_header": b"no xml"}, r"'ismrmrd_header' is not XML"),
            ({"ismrmrd_header": np.ones(3)}, r"'ismrmrd_header' holds float64 \(3,\), expected one text"),
            ({"ismrmrd_header": HEADER.replace("331", "many")}, r"a number in the data set 'ismrmrd_header'.*many"),
            ({"reconstruction_rss": RSS[:2].numpy()}, r"'reconstruction_rss' is \(2, 10, 10\), expected \(3, h, w\)"),
            ({"maps": KSPACE[:, :2].numpy()}, r"'maps' \(3, 2, 20, 14\) do not fit 'kspace' \(3, 4, 20, 14\)"),
            ({"maps": RSS.numpy()}, r"'maps' is \(3, 10, 10\) of float32, expected complex"),
        ],
    )
    def test_refused_in_one_line(self, tmp_path, datasets, message):
        path = write_by_hand(tmp_path / "a.h5", **datasets)
        with pytest.raises(InputError, match=rf"^{path}: .*{message}") as caught:
            open_scans(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(("key", "what"), [("reconstruction_rss", "target"), ("maps", "maps")])
    def test_nan_is_named(self, tmp_path, key, what):
        values = {"reconstruction_rss": RSS, "maps": KSPACE}[key].numpy().copy()
        values[1, ..., 0, 0] = np.nan
        scan = open_scans(write_by_hand(tmp_path / "a.h5", **{key: values}))[0]
        getattr(scan, what)(0)
        with pytest.raises(InputError, match=r"a.h5: the .* of slice 1 holds .*nan"):
            getattr(scan, what)(1)

    def test_file_that_goes_away(self, tmp_path):
        scan = open_scans(write(tmp_path / "a.h5"))[0]
        (tmp_path / "a.h5").unlink()
        with pytest.raises(InputError, match=r"no such file"):
            scan.kspace(0)

    def test_header_in_a_text_without_namespace(self, tmp_path):
        text = HEADER.replace(' xmlns="http://www.ismrm.org/ISMRMRD"', "").replace("640", str(NY)).replace("368", "14")
        scan = open_scans(write_by_hand(tmp_path / "a.h5", ismrmrd_header=text))[0]
        assert scan.encoding_size == (NY, 14, 1)

    @pytest.mark.parametrize("axis", "xyz")
    @pytest.mark.parametrize("space", ["encodedSpace", "reconSpace"])
    @pytest.mark.parametrize("size", [0, -3])
    def test_sizes_below_one_are_refused(self, tmp_path, space, axis, size):
        start = HEADER.index(f"<{axis}>", HEADER.index("<matrixSize>", HEADER.index(f"<{space}>"))) + 3
        text = f"{HEADER[:start]}{size}{HEADER[HEADER.index('<', start) :]}"
        path = write_by_hand(tmp_path / "a.h5", ismrmrd_header=text)
        with pytest.raises(InputError, match=rf"^{path}: .*the matrixSize of {space} is .*{size}.*1 or more") as error:
            open_scans(path)
        assert "\n" not in str(error.value)

    def test_padding_outside_of_kspace_is_cut(self, tmp_path):
        """fastMRI's formula gives -162 here, which as a Python index would blank the wrong end of the mask."""
        text = HEADER.replace("368", "8")
        assert open_scans(write_by_hand(tmp_path / "a.h5", ismrmrd_header=text))[0].padding == (0, NX)
