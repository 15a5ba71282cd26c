"""Semi-synthetic scans: the anatomy of a picture, the physics of a scanner.

A magnitude volume gets a smooth phase, is seen through coil maps, transformed and covered with noise:
``y_c = F (S_c m exp(i phase)) + noise``. What is real about it is the anatomy (unless it is a phantom) and, where they
were measured, the coil maps; every file says so in its attributes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.anatomy import Anatomy, Plane, choose_slices, onto_grid, open_anatomy
from sciml_monarch.mri.base import rss
from sciml_monarch.mri.fourier import fft2c
from sciml_monarch.mri.measured_coils import measured_maps, read_measurement
from sciml_monarch.version import version

ACQUISITION = "semi-synthetic"


@dataclass(frozen=True)
class SemiSyntheticVolume:
    """A volume whose k-space is made a slice at a time.

    Attributes:
        truth: What the scan would show without noise, ``(slices, y, x)`` complex64.
        maps: Coil sensitivities of all slices, ``(coil, y, x)`` complex64.
        deviation: Standard deviation of the complex noise: ``E |noise|^2 = deviation^2`` in each sample.
        seed: Seed of the noise.
    """

    truth: Tensor
    maps: Tensor
    deviation: float
    seed: int

    def __len__(self) -> int:
        return len(self.truth)

    def kspace(self, index: int) -> Tensor:
        """Measures one slice.

        Args:
            index: The slice, from 0. The same slice has the same noise whenever it is asked for.

        Returns:
            ``(coil, y, x)`` complex64, centred, fully sampled.

        Raises:
            IndexError: There is no such slice.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"slice {index} of {len(self)}")
        clean = fft2c(self.maps * self.truth[index])
        noise = torch.randn(clean.shape, dtype=torch.complex64, generator=_generator(self.seed, 1, index))
        return clean + self.deviation * noise  # of variance 1 in all, half of it in the real part


def semi_synthetic(
    magnitude: Tensor, maps: Tensor, noise: float = 0.01, phase: float = 1.0, seed: int = 0
) -> SemiSyntheticVolume:
    """Makes a scan of a magnitude volume.

    Args:
        magnitude: ``(slices, y, x)``, not negative.
        maps: ``(coil, y, x)`` complex.
        noise: Standard deviation of the complex noise in each sample, relative to the largest magnitude.
        phase: Root mean square of the smooth phase in rad, weighted by the magnitude; 0 leaves the image real.
        seed: Seed of phase and noise.

    Returns:
        The scan.

    Raises:
        InputError: A number is negative, or the shapes do not fit.
    """
    if magnitude.ndim != 3 or maps.ndim != 3 or magnitude.shape[1:] != maps.shape[1:]:
        raise InputError(
            f"coil maps {tuple(maps.shape)} do not fit a volume {tuple(magnitude.shape)}; give (coil, y, x) and "
            "(slices, y, x)"
        )
    if not (0 <= noise < np.inf and 0 <= phase < np.inf):
        raise InputError(f"noise {noise:g} and phase {phase:g} must be finite and not negative")
    angle = smooth_phase(magnitude, phase, seed) if phase else torch.zeros_like(magnitude)
    truth = torch.polar(magnitude.float(), angle.float())
    return SemiSyntheticVolume(truth, maps.to(torch.complex64), noise * float(magnitude.max()), seed)


def smooth_phase(magnitude: Tensor, deviation: float, seed: int) -> Tensor:
    """Draws a polynomial of degree three in all three coordinates, plus a constant.

    Args:
        magnitude: Volume that gets the phase, ``(slices, y, x)``.
        deviation: Root mean square of the polynomial in rad, weighted by the magnitude.
        seed: Seed.

    Returns:
        Phase of the shape of the volume, float32, in rad, not wrapped.

    Raises:
        InputError: The volume is zero everywhere.
    """
    weight = magnitude.double() / magnitude.double().sum()
    if not weight.isfinite().all():
        raise InputError("the magnitude is zero everywhere or not finite; give an anatomy")
    generator = _generator(seed, 0, 0)
    powers = [torch.linspace(-1, 1, n).double()[None] ** torch.arange(4)[:, None] for n in magnitude.shape]
    index = torch.arange(4)
    degree = index[:, None, None] + index[None, :, None] + index[None, None, :]
    draws = torch.randn(4, 4, 4, generator=generator, dtype=torch.float64)
    coefficients = torch.where((degree > 0) & (degree <= 3), draws, 0)
    phase = torch.einsum("ijk,iz,jy,kx->zyx", coefficients, *powers)
    phase = phase - (weight * phase).sum()
    constant = 2 * np.pi * float(torch.rand((), generator=generator))
    return (constant + deviation * phase / (weight * phase.square()).sum().sqrt()).float()


def make_semisynthetic(
    out: Path,
    anatomy: str = "phantom",
    shape: tuple[int, int] = (256, 256),
    n_slices: int | None = None,
    plane: Plane = "axial",
    coils: Path | None = None,
    n_coils: int = 8,
    noise: float = 0.01,
    phase: float = 1.0,
    min_signal: float = 0.4,
    with_maps: bool = False,
    seed: int = 0,
    force: bool = False,
) -> Path:
    """Makes a file in fastMRI's format from a picture of a head.

    It holds fully sampled `kspace` with noise, its `reconstruction_rss`, which is fastMRI's reference, and `truth`, the
    complex image without noise; attributes say that it is semi-synthetic and what it was made from.

    Args:
        out: HDF5 file to write (.h5).
        anatomy: A NIfTI or NumPy file, or the name of a head: phantom (all synthetic), and, where these packages are
            installed, pydeface, mni152 (nilearn), colin27 (Debian's mricron-data).
        shape: Rows and columns of the grid.
        n_slices: Number of slices, spread evenly over those with enough of the head. By default all of a file, 16 of
            the phantom.
        plane: How a file is cut into slices.
        coils: Measured k-space, a NumPy file (coil, y, x), whose coil maps are taken. By default they are simulated.
        n_coils: Number of simulated coils.
        noise: Standard deviation of the complex noise in each sample, relative to the largest magnitude.
        phase: Root mean square of the smooth phase in rad.
        min_signal: Least area of the head in a slice of a file, relative to the fullest slice.
        with_maps: Store the true coil maps too; the file grows to twice its size.
        seed: Seed of the phantom, of simulated coils, phase and noise.
        force: Replace a file that exists.

    Returns:
        The file.

    Raises:
        InputError: The anatomy or the coils cannot be read, an argument is out of range, or the file exists.
    """
    from rich.console import Console
    from rich.progress import track

    from sciml_monarch.mri.writing import FastMRIWriter

    if out.suffix != ".h5":
        raise InputError(f"{out}: a fastMRI file is called .h5")
    if out.exists() and not force:
        raise InputError(f"{out}: exists; give --force or another --out")
    if n_slices is not None and n_slices < 1:
        raise InputError(f"n_slices is {n_slices}; it must be at least 1")
    head = _head(anatomy, plane, shape, n_slices, min_signal, seed)
    maps, source = _maps(coils, shape, n_coils, seed)
    scan = semi_synthetic(head.volume, maps, noise, phase, seed)
    attributes: dict[str, float | int | str | bool] = {
        "semi_synthetic": True,
        "anatomy": head.name,
        "anatomy_is_synthetic": head.is_synthetic,
        "plane": plane,
        "coil_source": source,
        "noise": noise,
        "phase": phase,
        "seed": seed,
        "software": f"sciml-monarch {version()}",
    }
    console = Console()
    silent = not console.is_terminal
    writer = FastMRIWriter(out, crop=shape, voxel_size=head.voxel_size, acquisition=ACQUISITION, attributes=attributes)
    with writer:
        for index in track(range(len(scan)), out.name, console=console, transient=True, disable=silent):
            kspace = scan.kspace(index)
            extra: Mapping[str, Tensor] = {"truth": scan.truth[index]} | ({"maps": maps} if with_maps else {})
            writer.append(kspace, rss(kspace), extra)
    console.print(
        f"{out}: {len(scan)} slices of {head.name}, {shape[0]} x {shape[1]}, {len(maps)} coils ({source}), noise "
        f"{noise:g}; semi-synthetic",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    return out


def _head(
    source: str, plane: Plane, shape: tuple[int, int], n_slices: int | None, min_signal: float, seed: int
) -> Anatomy:
    if source == "phantom":
        return open_anatomy(source, plane, shape, 16 if n_slices is None else n_slices, seed)
    return onto_grid(choose_slices(open_anatomy(source, plane), n_slices, min_signal), shape)


def _maps(coils: Path | None, shape: tuple[int, int], n_coils: int, seed: int) -> tuple[Tensor, str]:
    """Coil maps ``(coil, y, x)`` and where they come from."""
    if coils is not None:
        return measured_maps(read_measurement(coils), shape), f"measured, {coils.name}"
    from sciml_monarch.mri.coil_simulation import simulate_maps

    if n_coils < 1:
        raise InputError(f"n_coils is {n_coils}; it must be at least 1")
    return simulate_maps(shape, n_coils, seed).to(torch.complex64), "simulated"


def _generator(seed: int, purpose: int, index: int) -> torch.Generator:
    """Independent draws for each purpose and slice of a seed."""
    if seed < 0:
        raise InputError(f"seed is {seed}; it must not be negative")
    state = np.random.SeedSequence((seed, purpose, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
