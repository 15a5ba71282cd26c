"""Writes ISMRMRD files."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.mri.formats.axis_fourier import fft_axis, ifft_axis
from sciml_monarch.mri.formats.header import cartesian_header, header_xml

Array = Tensor | np.ndarray


def write_ismrmrd(
    path: Path,
    kspace: Iterable[Array],
    *,
    voxel_size: tuple[float, float, float],
    acquisition: str = "",
    mask: Array | None = None,
    noise: Array | None = None,
    oversampling: int = 2,
) -> None:
    """Writes a Cartesian multi-slice volume as ISMRMRD, through the package ``ismrmrd`` (extra ``mri``).

    Args:
        path: File to write or replace.
        kspace: Slices ``(coil, ny, nx)``, complex; x becomes ``kspace_encode_step_1``.
        voxel_size: Size of a voxel in mm, ``(slice, y, x)``.
        acquisition: Name of the protocol.
        mask: Columns to write, bool ``(nx,)`` or ``(1, nx)``; None: all.
        noise: Samples of a noise scan, ``(coil, sample)``, complex.
        oversampling: Factor by which the readout is oversampled, by zeros outside of the field of view.

    Raises:
        InputError: Shapes change, there are no slices, or the file cannot be written.
    """
    import ismrmrd  # type: ignore[import-untyped]

    with replacing(path) as temporary:
        temporary.unlink()  # the package creates the file itself
        with ismrmrd.Dataset(str(temporary), create_if_needed=True) as file:
            n_slices, shape = 0, (0, 0, 0)
            if noise is not None:
                samples = ismrmrd.Acquisition.from_array(_complex(noise), sample_time_us=5.0)
                samples.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
                file.append_acquisition(samples)
            for index, values in enumerate(kspace):
                current = _complex(values)
                if current.ndim != 3 or (index and current.shape != shape):
                    raise InputError(f"{path}: slice {index} is {current.shape}, expected (coil, ny, nx) {shape}")
                shape, n_slices = current.shape, index + 1
                columns = np.ones(shape[2], dtype=bool) if mask is None else np.asarray(mask).reshape(-1) != 0
                wide = _oversampled(current, oversampling)
                for column in np.flatnonzero(columns):
                    line = ismrmrd.Acquisition.from_array(
                        np.ascontiguousarray(wide[:, :, column]),
                        center_sample=wide.shape[1] // 2,
                        sample_time_us=5.0,
                        position=(0.0, 0.0, index * voxel_size[0]),
                    )
                    line.idx.kspace_encode_step_1 = int(column)
                    line.idx.slice = index
                    file.append_acquisition(line)
            if not n_slices:
                raise InputError(f"{path}: no slices to write")
            header = cartesian_header(shape[1:], shape[1:], voxel_size, oversampling=oversampling)
            if acquisition:
                header.attributes["protocol"] = acquisition
            file.write_xml_header(header_xml(header, n_slices, shape[0]))


def _oversampled(kspace: np.ndarray, factor: int) -> np.ndarray:
    """Widens the field of view of the readout, axis 1, by zeros in image space."""
    n = kspace.shape[1]
    wide = np.zeros((kspace.shape[0], n * factor, kspace.shape[2]), dtype=np.complex64)
    start = n * factor // 2 - n // 2
    wide[:, start : start + n] = ifft_axis(kspace, axis=1)
    return fft_axis(wide, axis=1)


def _complex(values: Array) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind != "c":
        raise InputError(f"k-space must be complex, not {array.dtype}")
    return array.astype(np.complex64)
