"""One scan to one volume: by a network or a classical method, undersampled first or as it is."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sciml_monarch import hub
from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import Recon, magnitude
from sciml_monarch.mri.batches import acceleration, sampling
from sciml_monarch.mri.classical import cg_sense, l1_wavelet, zero_filled_rss, zero_filled_sense
from sciml_monarch.mri.coils import CoilMaps
from sciml_monarch.mri.description import description_of
from sciml_monarch.mri.fastmri_checkpoint import load_fastmri_checkpoint
from sciml_monarch.mri.formats.base import Scan, center_crop
from sciml_monarch.mri.io import ComplexImage, Provenance
from sciml_monarch.mri.masks import Mask, seed_of
from sciml_monarch.mri.metrics import residual_energy

_TOLERANCE = 0.25  # by which a pattern may differ from the acceleration after which it is called

Classical = Literal["zero_filled_rss", "zero_filled_sense", "cg_sense", "l1_wavelet"]


@dataclass(frozen=True)
class Settings:
    """What CG-SENSE or L1-wavelet is run with.

    Attributes:
        n_iterations: Iterations; ``None``: the method's default.
        regularization: Weight of its penalty, L2 or L1; ``None``: the method's default.
    """

    n_iterations: int | None = None
    regularization: float | None = None

    def __post_init__(self) -> None:
        if self.n_iterations is not None and self.n_iterations < 1:
            raise InputError(f"n_iterations is {self.n_iterations}; it must be at least 1")
        if self.regularization is not None and not 0 <= self.regularization < float("inf"):
            raise InputError(f"regularization is {self.regularization}; it must be finite and not negative")

    def given(self) -> dict[str, int | float]:
        """Those that are not left to the method."""
        return {name: value for name, value in asdict(self).items() if value is not None}


DEFAULT_SETTINGS = Settings()


@dataclass(frozen=True)
class Method:
    """What turns k-space into images.

    Attributes:
        name: What tables call it.
        network: Class of a network and name of its checkpoint; empty for a classical method.
        settings: Options of a classical method that are not its defaults, in words.
        maps: How coil maps are got; ``None``: it takes none.
        is_magnitude: Whether its images have no phase, so that they cannot be compared with k-space.
        apply: ``(kspace, mask, maps) -> image``; shapes as for :class:`~sciml_monarch.mri.base.Recon`.
    """

    name: str
    network: str
    settings: str
    maps: CoilMaps | None
    is_magnitude: bool
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Undersampling:
    """What is taken as sampled of scans that are fully sampled.

    Attributes:
        mask: Draws a pattern from the name of each file; ``None``: all is sampled.
        file_mask: Name of a pattern in the files; ``None``: none of them.

    Raises:
        InputError: Both are given.
    """

    mask: Mask | None
    file_mask: str | None

    def __post_init__(self) -> None:
        if self.mask is not None and self.file_mask is not None:
            raise InputError(
                f"--mask {type(self.mask).__name__} and --file_mask {self.file_mask}: a scan has one pattern; leave "
                "one of them out"
            )

    def pattern(self, scan: Scan) -> Tensor:
        """Sampling pattern of a scan, bool ``(1|y, x)``.

        Raises:
            InputError: The scan is undersampled itself and would be undersampled again, or the pattern does not fit.
        """
        if scan.mask is not None and (self.mask is not None or self.file_mask is not None):
            raise InputError(f"{scan.path}: is undersampled already; leave --mask and --file_mask out")
        return sampling(scan, self.mask, seed_of(scan.path.name), self.file_mask)

    def nominal(self, scan: Scan, pattern: Tensor) -> float:
        """Acceleration as it is called: the number of the file or the mask where the pattern is near it, else counted.

        Args:
            scan: The volume.
            pattern: What :meth:`pattern` gave for it.

        Returns:
            The nominal acceleration if the points of the acquired part for each sample are within 25% of it; else
            these points, rounded to two digits.
        """
        counted = acceleration(pattern, scan.acquired)
        named: object = None
        if scan.mask is not None:
            named = scan.attributes.get("acceleration")
        elif self.file_mask is not None:
            written = re.search(r"(\d+(?:\.\d+)?)x$", self.file_mask)  # SKM-TEA's poisson_8.0x
            named = float(written[1]) if written else None
        elif self.mask is not None:
            named = self.mask.nominal(scan.shape, seed_of(scan.path.name))
        if isinstance(named, int | float) and abs(counted - named) <= _TOLERANCE * named:
            return float(named)
        return round(counted, 2)


def choose_method(
    checkpoint: Path | None,
    classical: Classical | None,
    maps: CoilMaps | None,
    device: torch.device,
    settings: Settings = DEFAULT_SETTINGS,
) -> Method:
    """Loads the network, or takes a classical method.

    Args:
        checkpoint: Training checkpoint, saved folder or fastMRI's weights; ``None``: classical.
        classical: Which method then; ``None``: CG-SENSE.
        maps: How coil maps are got; ``None``: as in the training of the network, else by ESPIRiT. A network that
            takes none is run without, and a warning says so.
        device: Where the network goes.
        settings: Of CG-SENSE or L1-wavelet.

    Raises:
        InputError: The checkpoint cannot be read, or is of a PDE network; or settings or maps are given to a method
            that has none, or both a checkpoint and a method.
    """
    if checkpoint is not None and classical is not None:
        raise InputError(f"--checkpoint {checkpoint} and --method {classical}: one of them reconstructs; leave one out")
    classical = classical or "cg_sense"
    if settings.given() and (checkpoint is not None or classical.startswith("zero_filled")):
        raise InputError(
            f"{', '.join(settings.given())}: only for cg_sense and l1_wavelet, not for {checkpoint or classical}"
        )
    if checkpoint is not None:
        net = load_network(checkpoint).to(device)
        description = description_of(net)
        name = type(net).__name__
        if maps is not None and not net.needs_maps:
            warnings.warn(f"{name} takes no coil maps; none are made, and --maps has no effect", stacklevel=2)
            maps = None
        elif maps is None and net.needs_maps:
            maps = _trained_maps(checkpoint, None if description is None else description.maps)
        return Method(name, f"{name} {checkpoint.name}", "", maps, net.is_magnitude, net)
    if classical == "zero_filled_rss":
        if maps is not None:
            raise InputError("zero_filled_rss combines coils without maps; leave --maps out, or take zero_filled_sense")
        return Method("zero-filled RSS", "", "", None, True, lambda kspace, mask, maps: zero_filled_rss(kspace))
    names = {"zero_filled_sense": "zero-filled SENSE", "cg_sense": "CG-SENSE", "l1_wavelet": "L1-wavelet"}
    functions: dict[Classical, Callable[..., Tensor]] = {
        "zero_filled_sense": zero_filled_sense,
        "cg_sense": cg_sense,
        "l1_wavelet": l1_wavelet,
    }
    function = partial(functions[classical], **settings.given())

    def apply(kspace: Tensor, mask: Tensor, maps: Tensor | None) -> Tensor:
        assert maps is not None
        return function(kspace, mask, maps)

    words = ", ".join(f"{name} {value:g}" for name, value in settings.given().items())
    return Method(names[classical], "", words, maps or CoilMaps(), False, apply)


def load_network(path: Path) -> Recon:
    """Loads a network of this package, or a U-Net or VarNet of fastMRI.

    Raises:
        InputError: It cannot be read, or is of a PDE network.
    """
    if path.is_file() and not hub.is_checkpoint(path):
        return load_fastmri_checkpoint(path)
    for best in (path / "checkpoints" / "best.ckpt", path / "best.ckpt"):
        if best.is_file():
            raise InputError(f"{path}: is a folder of a training; give {best}")
    return hub.load_recon(path)


def _trained_maps(checkpoint: Path, options: Mapping[str, Any] | None) -> CoilMaps:
    try:
        return CoilMaps(**(options or {}))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{checkpoint}: the coil maps of its training cannot be made by this version ({error}); give --maps"
        ) from None


@torch.no_grad()
def reconstruct_scan(
    scan: Scan,
    method: Method,
    undersampling: Undersampling,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], object] = lambda n: None,
    keep_complex: bool = False,
) -> tuple[Tensor, Provenance, ComplexImage | None]:
    """Reconstructs a volume, some slices at a time.

    Args:
        scan: K-space.
        method: What turns it into images.
        undersampling: What is taken as sampled.
        batch_size: Slices at a time.
        device: Where to run.
        advance: Called with the number of slices after each batch.
        keep_complex: Whether to return the complex image, which takes as much memory as k-space.

    Returns:
        Magnitudes ``(slices, h, w)`` on the CPU, cropped as the scan says; where they come from; the complex image of
        the size of k-space with mask and maps, or ``None``. The residual ``|A x - y| / |y|`` is that of the whole
        volume; there is none where the method has no maps or no phase.

    Raises:
        InputError: The scan is damaged or does not fit mask, maps or network; the device has too little memory;
            the images are not finite; the method has no complex image to keep.
    """
    if keep_complex and (method.maps is None or method.is_magnitude):
        raise InputError(f"--complex: {method.name} gives magnitudes, whose phase is lost; leave it out")
    pattern = undersampling.pattern(scan)
    mask = pattern[None, None].to(device)
    slices: list[Tensor] = []
    kept: list[tuple[Tensor, Tensor]] = []
    residual = measured = 0.0
    for first in range(0, scan.n_slices, batch_size):
        indices = range(first, min(first + batch_size, scan.n_slices))
        try:
            kspace = torch.stack([scan.kspace(i) for i in indices]).to(device)
            kspace = torch.where(mask, kspace, 0)
            maps = None if method.maps is None else _maps(method.maps, scan, indices, kspace, mask[0, 0])
            image = method.apply(kspace, mask, maps)
        except torch.OutOfMemoryError:
            raise InputError(f"{scan.path}: {device} has too little memory; lower batch_size ({batch_size})") from None
        if maps is not None and not method.is_magnitude:
            above, below = residual_energy(image, kspace, mask, maps)
            residual, measured = residual + float(above.sum()), measured + float(below.sum())
        if keep_complex and maps is not None:
            kept.append((image.cpu(), maps.cpu()))
        shown = center_crop(magnitude(image), scan.crop).float().cpu()
        if not shown.isfinite().all():
            raise InputError(f"{scan.path}: the reconstruction of slices {indices[0]} to {indices[-1]} is not finite")
        slices.append(shown)
        advance(len(indices))
    provenance = Provenance(
        method=method.name,
        source=scan.path.name,
        network=method.network,
        settings=method.settings,
        acceleration=undersampling.nominal(scan, pattern),
        acquisition=scan.acquisition,
        voxel_size=scan.voxel_size,
        data_consistency=(residual / measured) ** 0.5 if measured else None,
    )
    images = [torch.cat(parts) for parts in zip(*kept, strict=True)]
    return torch.cat(slices), provenance, ComplexImage(images[0], pattern, images[1]) if kept else None


def _maps(maps: CoilMaps, scan: Scan, indices: Sequence[int], kspace: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([maps(scan, i, y, mask) for i, y in zip(indices, kspace, strict=True)])
