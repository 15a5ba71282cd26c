"""ISMRMRD, on files that the package ``ismrmrd`` writes line by line: noise scans, flagged lines, bad files."""

import ismrmrd
import numpy as np
import pytest
import torch

from sciml_monarch.errors import InputError
from sciml_monarch.mri.formats.acquisitions import whitening_matrix
from sciml_monarch.mri.readers import open_scans
from tests.helpers import randn
from tests.mri.acquisitions import KSPACE, NX, NY, C, check, header, line, lines, write


def colored(n, coils, seed=0):
    """Noise of coils that are coupled and of different strength, ``(coil, n)``."""
    mixing = randn(coils, coils, dtype=torch.complex64, seed=99) + torch.diag(torch.arange(1.0, coils + 1))
    return mixing @ randn(coils, n, dtype=torch.complex64, seed=seed)


class TestNoise:
    def covariance(self, path):
        """Covariance of the coils in k-space of nothing but noise."""
        scan = open_scans(path)[0]
        assert scan.attributes["prewhitened"] is True
        values = torch.cat([scan.kspace(s).flatten(1) for s in range(scan.n_slices)], dim=1)
        return (values @ values.mH / values.shape[1]).numpy()

    @pytest.mark.parametrize(("noise_dwell", "bandwidth"), [(5.0, None), (10.0, None), (2.5, 0.8), (0.0, None)])
    def test_white_with_unit_variance(self, tmp_path, noise_dwell, bandwidth):
        """The noise power of the lines is that of the noise scan times dwell / dwell / receiver bandwidth."""
        power = (noise_dwell / 5.0 if noise_dwell else 1.0) / (bandwidth or 1.0)
        samples = colored(4 * 2 * NY * 60 * NX, C, seed=1).reshape(C, 4, 2 * NY * 60 // NX, NX * NX)
        kspace = power**0.5 * colored(20 * 2 * NY * NX, C).reshape(C, 20, 2 * NY, NX).transpose(0, 1)
        noise = line(samples.flatten(1)[:, :20000], 0, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        noise.sample_time_us = noise_dwell
        path = write(tmp_path / "a.h5", [noise, *lines(kspace)], header(noise_bandwidth=bandwidth))
        np.testing.assert_allclose(self.covariance(path), np.eye(C), atol=0.12)  # 960 samples: 1/sqrt(960) = 0.03

    def test_matrix(self):
        noise = colored(50000, C).numpy()
        whitened = whitening_matrix(noise) @ noise
        np.testing.assert_allclose(whitened @ whitened.conj().T / noise.shape[1], np.eye(C), atol=1e-5)

    def test_is_not_an_image_line(self, tmp_path):
        noise = line(colored(2 * NY, C), 2, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        scan = open_scans(write(tmp_path / "a.h5", [noise, *lines()]))[0]
        matrix = torch.from_numpy(whitening_matrix(colored(2 * NY, C).numpy()))
        check(scan, torch.einsum("dc,scyx->sdyx", matrix, KSPACE))

    def test_several_noise_scans_count_together(self, tmp_path):
        samples = colored(40, C)
        noise = [line(part, 0, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT]) for part in samples.split([30, 10], dim=1)]
        matrix = torch.from_numpy(whitening_matrix(samples.numpy()))
        check(open_scans(write(tmp_path / "a.h5", noise + lines()))[0], torch.einsum("dc,scyx->sdyx", matrix, KSPACE))

    @pytest.mark.parametrize("samples", [colored(C, C), torch.zeros(C, 50)])
    def test_singular_covariance_warns(self, tmp_path, samples):
        path = write(tmp_path / "a.h5", [line(samples, 0, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT]), *lines()])
        with pytest.warns(UserWarning, match=r"a.h5: the noise scan .* singular"):
            (scan,) = open_scans(path)
        assert scan.attributes["prewhitened"] is False
        check(scan)


class TestFlags:
    @pytest.mark.parametrize(
        "flag",
        [
            ismrmrd.ACQ_IS_PARALLEL_CALIBRATION,
            ismrmrd.ACQ_IS_NAVIGATION_DATA,
            ismrmrd.ACQ_IS_PHASECORR_DATA,
            ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
            ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
            ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
            ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
        ],
    )
    def test_is_not_an_image_line(self, tmp_path, flag):
        acquisitions = lines() + lines(99 * KSPACE, columns=[2, 3], flags=[flag])
        check(open_scans(write(tmp_path / "a.h5", acquisitions))[0])

    def test_calibration_and_imaging_is_one(self, tmp_path):
        both = [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]
        acquisitions = lines(columns=[0, 1, 4, 5]) + lines(columns=[2, 3], flags=both)
        scan = open_scans(write(tmp_path / "a.h5", acquisitions))[0]
        assert scan.mask is None
        check(scan)

    @pytest.mark.parametrize(("mode", "expected"), [("embedded", [0, 2, 3, 4]), ("separate", [0, 2, 4])])
    def test_calibration_between_the_lines(self, tmp_path, mode, expected):
        """Embedded calibration fills gaps of the same k-space; a separate one may have another contrast."""
        acquisitions = lines(columns=[0, 2, 4]) + lines(columns=[3], flags=[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION])
        scan = open_scans(write(tmp_path / "a.h5", acquisitions, header(calibration_mode=mode)))[0]
        assert np.flatnonzero(scan.mask[0]).tolist() == expected

    def test_no_image_line(self, tmp_path):
        path = write(tmp_path / "a.h5", lines(flags=[ismrmrd.ACQ_IS_NAVIGATION_DATA]))
        with pytest.raises(InputError, match=r"none of the 12 acquisitions is an image line"):
            open_scans(path)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"flags": [ismrmrd.ACQ_IS_REVERSE]}, r"reversed readouts \(EPI or bipolar echoes\)"),
            ({"flags": [ismrmrd.ACQ_COMPRESSION1]}, r"compressed \(flag 53\)"),
            ({"encoding_space_ref": 1}, r"image lines of encoding space 1; only files with a single"),
        ],
    )
    def test_refused(self, tmp_path, more, message):
        path = write(tmp_path / "a.h5", lines(**more))
        with pytest.raises(InputError, match=rf"^{path}: .*{message}"):
            open_scans(path)


class TestBadFiles:
    @pytest.mark.parametrize("kind", ["radial", "spiral", "epi", "goldenangle", "other"])
    def test_not_cartesian(self, tmp_path, kind):
        with pytest.raises(InputError, match=rf"a.h5: the trajectory is '{kind}'; only Cartesian scans are read$"):
            open_scans(write(tmp_path / "a.h5", lines(), header(trajectory=kind)))

    def test_coil_count_changes(self, tmp_path):
        acquisitions = lines()
        acquisitions[4] = line(KSPACE[0, :2, :, 4], 4)
        with pytest.raises(InputError, match=r"coil count changes: 3 in acquisition 0, 2 in acquisition 4"):
            open_scans(write(tmp_path / "a.h5", acquisitions))

    def test_coil_count_of_the_noise_scan(self, tmp_path):
        noise = line(colored(50, 2), 0, flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])
        with pytest.raises(InputError, match=r"coil count changes: 3 in acquisition 1, 2 in acquisition 0"):
            open_scans(write(tmp_path / "a.h5", [noise, *lines()]))

    def test_header_that_is_no_xml(self, tmp_path):
        path = write(tmp_path / "a.h5", lines())
        with ismrmrd.Dataset(str(path), create_if_needed=False) as file:
            file.write_xml_header(b"hello")
        with pytest.raises(InputError, match=r"'dataset/xml' is not XML"):
            open_scans(path)

    def test_header_without_an_encoded_space(self, tmp_path):
        path = write(tmp_path / "a.h5", lines())
        with ismrmrd.Dataset(str(path), create_if_needed=False) as file:
            file.write_xml_header(b"<ismrmrdHeader xmlns='http://www.ismrm.org/ISMRMRD'/>")
        with pytest.raises(InputError, match=r"no encodedSpace"):
            open_scans(path)

    def test_samples_that_disagree_with_their_header(self, tmp_path):
        import h5py

        path = write(tmp_path / "a.h5", lines())
        with h5py.File(path, "a") as file:
            record = file["dataset/data"][7]
            record["data"] = record["data"][:-4]
            file["dataset/data"][7] = record
        scan = open_scans(path)[0]
        scan.kspace(0)
        with pytest.raises(InputError, match=r"acquisition 7 holds 92 numbers, its header says 3 coils x 16"):
            scan.kspace(1)
