"""ISMRMRD, on files that the package ``ismrmrd`` writes line by line: k-space of every order and layout."""

import ismrmrd
import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.mri import writing
from sciml_monarch.mri.formats.header import Limits, Space, header_xml
from sciml_monarch.mri.fourier import fft2c
from sciml_monarch.mri.readers import open_scans
from tests.helpers import randn, relative_error
from tests.mri.acquisitions import KSPACE, NX, NY, C, S, check, crop_readout, header, line, lines, write


class TestOrder:
    def test_oversampling_is_cut_in_image_space(self, tmp_path):
        (scan,) = open_scans(write(tmp_path / "a.h5", lines()))
        assert (scan.n_slices, scan.n_coils, scan.shape, scan.crop) == (S, C, (NY, NX), (NY, NX))
        assert scan.mask is scan.padding is None
        assert scan.acquisition == "T2"
        assert scan.attributes["prewhitened"] is False
        assert scan.voxel_size == (2.5, 0.5, 1.0)  # slices lie 2.5 mm apart, though 2 mm thick
        check(scan)

    def test_slices_that_were_left_out(self, tmp_path):
        """Numbers 1 and 4, 7.5 mm apart: two slices."""
        acquisitions = [
            line(KSPACE[s // 4, :, :, x], x, s, position=(2.5 * s, 0.0, 0.0)) for s in (4, 1) for x in range(NX)
        ]
        (scan,) = open_scans(write(tmp_path / "a.h5", acquisitions))
        assert scan.voxel_size[0] == 7.5
        check(scan)

    def test_any_order_of_lines(self, tmp_path):
        shuffled = [lines()[i] for i in np.random.default_rng(0).permutation(S * NX)]
        check(open_scans(write(tmp_path / "a.h5", shuffled))[0])

    def test_file_of_the_writer(self, tmp_path):
        kspace = KSPACE[..., :NY, :]
        writing.write_ismrmrd(tmp_path / "a.h5", kspace, voxel_size=(2.0, 0.5, 1.0), acquisition="T1")
        with ismrmrd.Dataset(str(tmp_path / "a.h5"), create_if_needed=False) as file:
            head = ismrmrd.xsd.CreateFromDocument(file.read_xml_header())
            assert head.encoding[0].encodedSpace.matrixSize.x == 2 * NY
            assert file.number_of_acquisitions() == S * NX
        (scan,) = open_scans(tmp_path / "a.h5")
        assert (scan.voxel_size, scan.acquisition) == ((2.0, 0.5, 1.0), "T1")
        assert relative_error(scan.kspace(1), kspace[1]) < 1e-6

    def test_phase_oversampling_is_only_not_shown(self, tmp_path):
        """Lines were measured; they must stay. The image to show is the middle."""
        head = header(recon=Space((NY, 4, 1), (4.0, 4.0, 2.0)))
        (scan,) = open_scans(write(tmp_path / "a.h5", lines(), head))
        assert (scan.shape, scan.crop) == ((NY, NX), (NY, 4))

    def test_no_fields_of_view(self, tmp_path):
        xml = header_xml(header(), S, C).replace(b">8.0<", b">0<").replace(b">4.0<", b">0<")
        with ismrmrd.Dataset(str(tmp_path / "a.h5"), create_if_needed=True) as file:
            file.write_xml_header(xml)
            for acquisition in lines():
                file.append_acquisition(acquisition)
        (scan,) = open_scans(tmp_path / "a.h5")
        assert scan.shape == (NY, NX)
        assert scan.voxel_size is None


class TestPhaseEncoding:
    def test_undersampled(self, tmp_path):
        (scan,) = open_scans(write(tmp_path / "a.h5", lines(columns=[0, 2, 3, 5])))
        assert scan.mask.tolist() == [[True, False, True, True, False, True]]
        check(scan, torch.where(scan.mask, KSPACE, 0))

    def test_center_of_the_loop_comes_to_the_middle(self, tmp_path):
        """Four lines, the third one k = 0, in a matrix of six: zero outside, as in fastMRI's headers."""
        placed = torch.zeros_like(KSPACE)
        placed[..., 1:5] = KSPACE[..., :4]
        head = header(step_1=Limits(0, 3, 2))
        (scan,) = open_scans(write(tmp_path / "a.h5", lines(columns=range(4)), head))
        assert scan.padding == (1, 5)
        assert scan.mask is None  # everything that the loop has was measured
        check(scan, placed)

    def test_slices_with_other_lines(self, tmp_path):
        with pytest.raises(InputError, match=r"slice 1 has 5 lines, not the 6 of slice 0.*aborted"):
            open_scans(write(tmp_path / "a.h5", lines()[:-1]))

    def test_outside_of_the_matrix(self, tmp_path):
        head = header(step_1=Limits(0, NX - 1, 0))
        with pytest.raises(InputError, match=r"acquisition 3 has encoding steps 3, 0, which lie outside"):
            open_scans(write(tmp_path / "a.h5", lines(), head))


class TestReadout:
    def test_asymmetric_echo(self, tmp_path):
        """The first five samples are missing: k = 0 is sample 3 of 11."""
        partial = KSPACE.clone()
        partial[:, :, :5] = 0
        acquisitions = lines(KSPACE[:, :, 5:], center_sample=NY - 5)
        check(open_scans(write(tmp_path / "a.h5", acquisitions))[0], partial)

    def test_discarded_samples(self, tmp_path):
        kept = KSPACE.clone()
        kept[:, :, :2] = 0
        kept[:, :, -3:] = 0
        check(open_scans(write(tmp_path / "a.h5", lines(discard_pre=2, discard_post=3)))[0], kept)

    def test_center_left_at_zero(self, tmp_path):
        check(open_scans(write(tmp_path / "a.h5", lines(center_sample=0)))[0])

    @pytest.mark.parametrize(("n", "center"), [(2 * NY, 3), (2 * NY + 2, NY + 1), (4, 12)])
    def test_does_not_fit(self, tmp_path, n, center):
        kspace = randn(S, C, n, NX, dtype=torch.complex64)
        with pytest.raises(InputError, match=rf"acquisition 0 has {n} samples with k = 0 at sample {center}, which do"):
            open_scans(write(tmp_path / "a.h5", lines(kspace, center_sample=center)))


class TestAverages:
    def test_mean(self, tmp_path):
        other = randn(*KSPACE.shape, dtype=torch.complex64, seed=1)
        acquisitions = lines() + lines(other, average=1)
        check(open_scans(write(tmp_path / "a.h5", acquisitions))[0], (KSPACE + other) / 2)

    def test_noise_falls_with_the_root(self, tmp_path):
        noise = [0.1 * randn(*KSPACE.shape, dtype=torch.complex64, seed=seed) for seed in range(16)]
        acquisitions = [a for i, values in enumerate(noise) for a in lines(KSPACE + values, average=i)]
        scan = open_scans(write(tmp_path / "a.h5", acquisitions))[0]
        errors = torch.stack([scan.kspace(s) - crop_readout(KSPACE[s]) for s in range(S)])
        assert float(errors.abs().square().mean().sqrt()) == pytest.approx(0.1 / 4, rel=0.1)

    def test_line_averaged_more_often_than_others(self, tmp_path):
        acquisitions = [*lines(), line(3 * KSPACE[0, :, :, 2], 2, average=1)]
        expected = KSPACE.clone()
        expected[0, :, :, 2] *= 2
        check(open_scans(write(tmp_path / "a.h5", acquisitions))[0], expected)


class TestSeveralScans:
    def test_echoes_and_repetitions(self, tmp_path):
        acquisitions = [
            a for r in range(2) for e in range(3) for a in lines((1 + e + 10 * r) * KSPACE, contrast=e, repetition=r)
        ]
        scans = open_scans(write(tmp_path / "a.h5", acquisitions))
        assert [scan.name for scan in scans] == [f"a_echo{e}_rep{r}" for e in (1, 2, 3) for r in (1, 2)]
        for scan, factor in zip(scans, [1, 11, 2, 12, 3, 13], strict=True):
            check(scan, factor * KSPACE)


class TestThreeDimensional:
    NZ = 4

    def head(self, nz_shown=4):
        return header(
            encoded=Space((2 * NY, NX, self.NZ), (8.0, 6.0, 8.0)),
            recon=Space((NY, NX, nz_shown), (4.0, 6.0, 2.0 * nz_shown)),
            step_2=Limits(0, self.NZ - 1, self.NZ // 2),
        )

    def volume(self):
        """An image (coil, y, x, z) and its three-dimensional k-space."""
        image = randn(C, 2 * NY, NX, self.NZ, dtype=torch.complex64)
        axes = (1, 2, 3)
        kspace = torch.fft.fftn(torch.fft.ifftshift(image, dim=axes), dim=axes, norm="ortho")
        return image, torch.fft.fftshift(kspace, dim=axes)

    def write(self, path, kspace, sampled, head):
        acquisitions = [line(kspace[:, :, x, z], x, kspace_encode_step_2=z) for x, z in np.argwhere(sampled)]
        xml = header_xml(head, 1, C).replace(
            b"<kspace_encoding_step_2><minimum>0</minimum><maximum>0</maximum><center>0</center>",
            b"<kspace_encoding_step_2><minimum>0</minimum><maximum>3</maximum><center>2</center>",
        )
        with ismrmrd.Dataset(str(path), create_if_needed=True) as file:
            file.write_xml_header(xml)
            for acquisition in acquisitions:
                file.append_acquisition(acquisition)
        return path

    @pytest.mark.parametrize(("shown", "first"), [(4, 0), (2, 1)])
    def test_partitions_become_slices(self, tmp_path, shown, first):
        image, kspace = self.volume()
        path = self.write(tmp_path / "a.h5", kspace, np.ones((NX, self.NZ)), self.head(shown))
        (scan,) = open_scans(path)
        assert (scan.n_slices, scan.shape, scan.mask) == (shown, (NY, NX), None)
        assert scan.voxel_size == (2.0, 0.5, 1.0)
        for z in range(shown):
            expected = fft2c(image[:, NY // 2 : NY // 2 + NY, :, first + z])
            assert relative_error(scan.kspace(z), expected) < 1e-6

    def test_lines_left_out_in_every_partition(self, tmp_path):
        image, kspace = self.volume()
        sampled = np.ones((NX, self.NZ), dtype=bool)
        sampled[[1, 4]] = False
        (scan,) = open_scans(self.write(tmp_path / "a.h5", kspace, sampled, self.head()))
        assert scan.mask.tolist() == [[True, False, True, True, False, True]]
        expected = fft2c(image[:, NY // 2 : NY // 2 + NY, :, 3]) * scan.mask
        assert relative_error(scan.kspace(3), expected) < 1e-6

    def test_undersampled_in_both_directions_is_cut_across_the_readout(self, tmp_path):
        image, kspace = self.volume()
        sampled = np.random.default_rng(1).random((NX, self.NZ)) < 0.6
        (scan,) = open_scans(self.write(tmp_path / "a.h5", kspace, sampled, self.head()))
        assert (scan.n_slices, scan.shape) == (NY, (NX, self.NZ))
        assert scan.voxel_size == (0.5, 1.0, 2.0)
        np.testing.assert_array_equal(scan.mask.numpy(), sampled)
        assert scan.acquired == (0, NX, 0, self.NZ)
        for y in range(NY):
            expected = torch.where(scan.mask, fft2c(image[:, NY // 2 + y]), 0)
            assert relative_error(scan.kspace(y), expected) < 1e-6

    def test_several_slabs(self, tmp_path):
        acquisitions = [
            line(KSPACE[0, :, :, 0], x, s, kspace_encode_step_2=z) for x in range(6) for z in (0, 1) for s in (0, 1)
        ]
        with pytest.raises(InputError, match=r"2 slabs of three-dimensional k-space"):
            open_scans(write(tmp_path / "a.h5", acquisitions, self.head()))
