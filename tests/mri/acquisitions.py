"""ISMRMRD files that the package ``ismrmrd`` writes line by line."""

import ismrmrd
import numpy as np
import torch

from sciml_monarch.mri.formats.header import Header, Limits, Space, header_xml
from sciml_monarch.mri.fourier import fft2c, ifft2c
from tests.helpers import randn, relative_error

S, C, NY, NX = 2, 3, 8, 6
CENTER = NX // 2
KSPACE = randn(S, C, 2 * NY, NX, dtype=torch.complex64)  # as measured: the readout is oversampled by two


def header(**changes):
    """An encoded matrix 16 x 6 of 8 x 6 mm, of which the middle 4 x 6 mm are reconstructed."""
    values = {
        "encoded": Space((2 * NY, NX, 1), (8.0, 6.0, 2.0)),
        "recon": Space((NY, NX, 1), (4.0, 6.0, 2.0)),
        "step_1": Limits(0, NX - 1, CENTER),
        "trajectory": "cartesian",
        "attributes": {"protocol": "T2"},
    }
    return Header(**{**values, **changes})


def line(samples, step_1, slice_=0, flags=(), **more):
    """One acquisition; counters of the loops and fields of the header by name."""
    counters = {"kspace_encode_step_1": step_1, "slice": slice_}
    for name in ("kspace_encode_step_2", "average", "contrast", "phase", "repetition", "set"):
        counters[name] = more.pop(name, 0)
    samples = np.ascontiguousarray(samples, dtype=np.complex64)
    head = {"center_sample": samples.shape[1] // 2, "sample_time_us": 5.0, **more}
    acquisition = ismrmrd.Acquisition.from_array(samples, **head)
    for name, value in counters.items():
        setattr(acquisition.idx, name, value)
    for flag in flags:
        acquisition.set_flag(flag)
    return acquisition


def lines(kspace=KSPACE, columns=range(NX), **more):
    """All lines of a multi-slice scan."""
    return [
        line(kspace[s, :, :, x], x, s, position=(0.0, 0.0, 2.5 * s), **more)
        for s in range(len(kspace))
        for x in columns
    ]


def write(path, acquisitions, head=None, coils=C):
    with ismrmrd.Dataset(str(path), create_if_needed=True) as file:
        file.write_xml_header(header_xml(head or header(), S, coils))
        for acquisition in acquisitions:
            file.append_acquisition(acquisition)
    return path


def crop_readout(kspace):
    """What removal of the oversampling means: the middle half of the image."""
    return fft2c(ifft2c(kspace)[..., NY // 2 : NY // 2 + NY, :])


def check(scan, kspace=KSPACE):
    for index in range(scan.n_slices):
        assert relative_error(scan.kspace(index), crop_readout(kspace[index])) < 1e-6
