"""The acquisitions of an ISMRMRD file: which of them are image lines, and what the noise scan says.

The headers of all acquisitions are read at once, the samples only where they are asked for. They are read with
h5py, not with the package ``ismrmrd``, which gives one acquisition at a time with its samples.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from sciml_monarch.errors import InputError
from sciml_monarch.hdf5 import Hdf5File
from sciml_monarch.mri.formats.header import Header
from sciml_monarch.reading import missing, reading

# Numbers of the flags, from 1, as in the ISMRMRD standard ("MR Acquisition Data", table of flags).
_NOISE, _CALIBRATION, _CALIBRATION_AND_IMAGING, _REVERSE = 19, 20, 21, 22
# Navigation, phase correction, feedback, dummy scans, surface-coil correction, phase stabilisation.
_NOT_IMAGING = (23, 24, 26, 27, 28, 29, 30, 31)
_COMPRESSED = (53, 54, 55, 56)
COUNTERS = ("contrast", "phase", "repetition", "set")


@dataclass(frozen=True)
class Lines:
    """Readouts that belong to an image, one entry each.

    Attributes:
        row: Place in the data set.
        step_1: Phase-encoding count.
        step_2: Partition-encoding count.
        slice: Slice number.
        counters: Contrast, phase, repetition and set, ``(n, 4)``.
        n_samples: Samples, discarded ones included.
        center: Sample in which k = 0.
        discard: Samples to leave out at the start and at the end, ``(n, 2)``.
        position: Centre of the slice in mm, ``(n, 3)``.
        dwell: Time of a sample in microseconds.
        n_coils: Receiver coils, the same for all.
    """

    row: np.ndarray
    step_1: np.ndarray
    step_2: np.ndarray
    slice: np.ndarray
    counters: np.ndarray
    n_samples: np.ndarray
    center: np.ndarray
    discard: np.ndarray
    position: np.ndarray
    dwell: np.ndarray
    n_coils: int

    def select(self, which: np.ndarray) -> "Lines":
        """Returns the lines for which ``which`` is True."""
        arrays = {name: value[which] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return Lines(**arrays, n_coils=self.n_coils)


def find_group(hdf5: Hdf5File) -> str | None:
    """Name of the group that holds ``data`` and ``xml``, mostly "dataset"; None if the file is no ISMRMRD."""
    with reading(hdf5.path, "the HDF5 structure"):
        for name in sorted(hdf5.file, key=lambda key: key != "dataset"):
            group = hdf5.file.get(name)
            if isinstance(group, h5py.Group) and "xml" in group and isinstance(group.get("data"), h5py.Dataset):
                return str(name)
    return None


def read_lines(hdf5: Hdf5File, group: str, header: Header) -> tuple[Lines, np.ndarray | None]:
    """Reads the headers of all acquisitions, and the noise scan.

    Args:
        hdf5: The file.
        group: Group of the acquisitions.
        header: Header of the file.

    Returns:
        The image lines, and the matrix ``(coil, coil)`` that makes their noise white with unit variance; None
        without a noise scan.

    Raises:
        InputError: No image lines; the coil count changes; readouts are reversed or compressed; the file is damaged.
    """
    path = hdf5.path
    dataset = hdf5.dataset(f"{group}/data")
    with reading(path, f"data set '{group}/data'"):
        if dataset.dtype.names is None or not {"head", "data"} <= set(dataset.dtype.names):
            raise missing(path, "acquisitions with 'head' and 'data'", list(dataset.dtype.names or ()))
        heads = dataset.fields("head")[:]
        flags = heads["flags"].astype(np.uint64)
        is_noise = _has(flags, _NOISE)
        is_image = _are_image_lines(flags, header) & ~is_noise
        if not is_image.any():
            raise InputError(f"{path}: none of the {len(heads)} acquisitions is an image line; no data to reconstruct")
        _check_heads(path, heads, flags, is_image, is_noise)
        index = heads["idx"]
        lines = Lines(
            row=np.arange(len(heads)),
            step_1=index["kspace_encode_step_1"].astype(int),
            step_2=index["kspace_encode_step_2"].astype(int),
            slice=index["slice"].astype(int),
            counters=np.stack([index[name].astype(int) for name in COUNTERS], axis=-1),
            n_samples=heads["number_of_samples"].astype(int),
            center=heads["center_sample"].astype(int),
            discard=np.stack([heads["discard_pre"], heads["discard_post"]], axis=-1).astype(int),
            position=heads["position"].astype(float),
            dwell=heads["sample_time_us"].astype(float),
            n_coils=int(heads["active_channels"][is_image][0]),
        )
    image = lines.select(is_image)
    return image, _whitening(hdf5, group, lines.select(is_noise), image, header)


def read_samples(hdf5: Hdf5File, group: str, lines: Lines) -> list[np.ndarray]:
    """Reads the samples of some lines.

    Args:
        hdf5: The file.
        group: Group of the acquisitions.
        lines: Lines, in ascending order of their rows.

    Returns:
        One array ``(coil, sample)``, complex64, a line.

    Raises:
        InputError: The file is damaged.
    """
    dataset = hdf5.dataset(f"{group}/data")
    found = []
    with reading(hdf5.path, f"data set '{group}/data'"):
        for start, stop in _runs(lines.row):
            found.extend(dataset.fields("data")[start:stop])
    samples = []
    for row, n_samples, values in zip(lines.row, lines.n_samples, found, strict=True):
        if values.size != 2 * lines.n_coils * n_samples:
            raise InputError(
                f"{hdf5.path}: acquisition {row} holds {values.size} numbers, its header says {lines.n_coils} coils x "
                f"{n_samples} complex samples; copy the file again"
            )
        samples.append(np.asarray(values, dtype=np.float32).view(np.complex64).reshape(lines.n_coils, n_samples))
    return samples


def whitening_matrix(noise: np.ndarray, bandwidth_ratio: float = 1.0) -> np.ndarray:
    """Matrix that makes noise white: the inverse of the Cholesky factor of its covariance.

    Pruessmann et al., "Advances in sensitivity encoding with arbitrary k-space trajectories", MRM 2001, section
    "noise decorrelation". Complex noise of the result has unit variance (real and imaginary part one half each).

    Args:
        noise: Samples of noise alone, ``(coil, sample)``, more samples than coils.
        bandwidth_ratio: Noise power of the image lines relative to that of the noise scan.

    Returns:
        ``(coil, coil)``, complex64; multiply the coil axis of k-space by it.

    Raises:
        numpy.linalg.LinAlgError: The covariance is singular.
    """
    noise = noise.astype(np.complex128)
    covariance = noise @ noise.conj().T / noise.shape[1] * bandwidth_ratio
    matrix: np.ndarray = np.linalg.inv(np.linalg.cholesky(covariance)).astype(np.complex64)
    return matrix


def _whitening(hdf5: Hdf5File, group: str, noise: Lines, image: Lines, header: Header) -> np.ndarray | None:
    if not len(noise.row):
        return None
    samples = np.concatenate(read_samples(hdf5, group, noise), axis=1)
    # Noise power is proportional to the sampled bandwidth, one over the dwell time. The receiver's filter passes
    # less than the whole band of the noise scan, and all of the narrower band that is kept of the image lines.
    dwell, noise_dwell = float(np.median(image.dwell)), float(np.median(noise.dwell))
    ratio = noise_dwell / dwell if dwell > 0 and noise_dwell > 0 else 1.0
    ratio /= header.noise_bandwidth if header.noise_bandwidth and header.noise_bandwidth > 0 else 1.0
    try:
        if samples.shape[1] <= image.n_coils or not np.isfinite(samples).all():
            raise np.linalg.LinAlgError
        return whitening_matrix(samples, ratio)
    except np.linalg.LinAlgError:
        warnings.warn(
            f"{hdf5.path}: the noise scan ({samples.shape[1]} samples of {image.n_coils} coils) has a singular "
            "covariance; k-space is left as it is, without prewhitening",
            stacklevel=2,
        )
        return None


def _are_image_lines(flags: np.ndarray, header: Header) -> np.ndarray:
    """Calibration lines are no image lines unless they are flagged as both.

    Lines for calibration alone are kept where the header calls the calibration embedded: they then fill the gaps
    of the same k-space. Those of a separate calibration may have another contrast.
    """
    other = np.zeros(len(flags), dtype=bool)
    for flag in _NOT_IMAGING:
        other |= _has(flags, flag)
    calibration_only = _has(flags, _CALIBRATION) & ~_has(flags, _CALIBRATION_AND_IMAGING)
    if header.calibration_mode == "embedded":
        calibration_only[:] = False
    lines: np.ndarray = ~other & ~calibration_only
    return lines


def _check_heads(path: Path, heads: np.ndarray, flags: np.ndarray, is_image: np.ndarray, is_noise: np.ndarray) -> None:
    coils = heads["active_channels"]
    first = int(np.argmax(is_image))
    changed = np.flatnonzero((is_image | is_noise) & (coils != coils[first]))
    if changed.size:
        raise InputError(
            f"{path}: the coil count changes: {coils[first]} in acquisition {first}, {coils[changed[0]]} in "
            f"acquisition {changed[0]}; all must have the same coils"
        )
    spaces = heads["encoding_space_ref"]
    if (spaces[is_image] != 0).any():
        raise InputError(
            f"{path}: image lines of encoding space {spaces[is_image].max()}; only files with a single encoding "
            "space are read: write each to a file of its own"
        )
    if _has(flags[is_image], _REVERSE).any():
        raise InputError(
            f"{path}: reversed readouts (EPI or bipolar echoes) need a phase correction; correct and reverse them first"
        )
    for flag in _COMPRESSED:
        if _has(flags[is_image], flag).any():
            raise InputError(f"{path}: the samples are compressed (flag {flag}); decompress the file first")


def _has(flags: np.ndarray, number: int) -> np.ndarray:
    bits: np.ndarray = (flags & np.uint64(1 << (number - 1))) != 0
    return bits


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """Stretches without gaps: one read each is much faster than one read a line."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(rows, breaks) if run.size]
