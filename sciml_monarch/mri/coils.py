"""Coil maps for a slice of a scan: by which method, from which part of k-space, and kept on disk."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import rss
from sciml_monarch.mri.coil_cache import MapCache, content_key
from sciml_monarch.mri.espirit import central, check_espirit, espirit
from sciml_monarch.mri.formats.base import Scan
from sciml_monarch.mri.masks import calibration_region
from sciml_monarch.version import version

# More of the centre makes ESPIRiT slower and hardly better; and with a bound, patterns whose centres are larger
# share their maps in the cache.
_WIDEST = 24

# Share of the object that maps must cover; less gives a warning, or no reconstruction worth the name.
_COVERED, _USELESS = 0.9, 0.5
_GRID = 64  # points of the grid on which they are compared, on an axis


def sigpy_espirit(
    kspace: Tensor,
    calibration: int | tuple[int, int] = 24,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    n_sets: int = 1,
    n_iterations: int = 100,
    soft: bool = False,
) -> Tensor:
    """Estimates coil maps by sigpy's ESPIRiT, on the CPU: slower, and what :func:`espirit` is compared with.

    The arguments are those of :func:`sciml_monarch.mri.espirit.espirit`. sigpy knows square calibration regions,
    one set of maps and hard cropping.

    Returns:
        Maps ``(b, 1, coil, y, x)`` of the dtype and on the device of ``kspace``; where sigpy divides zero by zero
        they are zero.

    Raises:
        InputError: As ``espirit`` does, or an option is one that sigpy does not have.
    """
    import numpy as np
    from sigpy.mri.app import EspiritCalib

    window = check_espirit(kspace, calibration, kernel, threshold, crop, n_sets, n_iterations)
    if window[0] != window[1]:
        raise InputError(f"sigpy takes a square calibration region, not {window[0]} x {window[1]}; give one number")
    if n_sets != 1 or soft:
        raise InputError(f"sigpy has one set of maps and hard cropping, not n_sets={n_sets}, soft={soft}; use espirit")
    maps = []
    for one in kspace.detach().cpu().resolve_conj().numpy():
        app = EspiritCalib(
            one,
            calib_width=window[0],
            thresh=threshold,
            kernel_width=kernel,
            crop=crop,
            max_iter=n_iterations,
            show_pbar=False,
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            maps.append(torch.from_numpy(np.nan_to_num(app.run(), nan=0.0, posinf=0.0, neginf=0.0)))
    return torch.stack(maps)[:, None].to(kspace.device, kspace.dtype)


def coverage(kspace: Tensor, maps: Tensor, window: tuple[int, int]) -> float | None:
    """Share of an object that coil maps cover.

    The object is where the root sum of squares of the calibration region, an image of low resolution, is above a tenth
    of its maximum and above three times its background. A grid of at most 64 x 64 points is enough, and takes a small
    part of the time of ESPIRiT.

    Args:
        kspace: ``(coil, y, x)``, sampled in the calibration region.
        maps: ``(set, coil, y, x)``; a point is covered where one of them is not zero.
        window: Points ``(cy, cx)`` of the calibration region.

    Returns:
        0 to 1; None if there is no object, as in the outermost slices of a volume.
    """
    block = central(kspace, window)
    inner = central(block, (max(1, window[0] // 3), max(1, window[1] // 3)))
    # k-space of noise is as strong at the edge of the region as in its centre; that of objects falls steeply
    if not inner.abs().square().mean() > 2 * block.abs().square().mean():
        return None
    grid = [min(max(_GRID, m), n) for n, m in zip(kspace.shape[-2:], window, strict=True)]
    padded = kspace.new_zeros(len(kspace), *grid)
    central(padded, window).copy_(block)
    image = rss(padded[None])[0]
    rows, columns = (
        (n // 2 + ((torch.arange(m) - m // 2) * n / m).round().long()).clamp(0, n - 1)
        for n, m in zip(kspace.shape[-2:], grid, strict=True)
    )
    covered = (maps[..., rows.to(maps.device)[:, None], columns.to(maps.device)] != 0).any(1).any(0)
    background = image.flatten().kthvalue(max(1, image.numel() // 20)).values
    is_object = image > torch.maximum(0.1 * image.max(), 3 * background)
    if not is_object.any():
        return None
    return float((is_object & covered).sum() / is_object.sum())


@dataclass(frozen=True)
class CoilMaps:
    """How the coil maps of a slice are got.

    Args:
        source: ``espirit``: estimated from the sampled centre of k-space; ``sigpy``: the same by sigpy, slowly;
            ``file``: those that came with the scan.
        calibration: Points of the calibration region on both axes or on each ``(y, x)``; None: the largest fully
            sampled box in the centre of the mask, at most 24 on an axis.
        kernel: Width of ESPIRiT's kernels.
        threshold: Singular values below this times the largest count as noise.
        crop: Maps are zero where their eigenvalue is not above this.
        n_sets: Sets of maps.
        soft: Whether maps fade out around ``crop`` instead of ending there.
        cache: Folder in which estimated maps are kept; they are found again by the content of the calibration
            region and every option. None: no cache.
    """

    source: Literal["espirit", "sigpy", "file"] = "espirit"
    calibration: int | tuple[int, int] | None = None
    kernel: int = 6
    threshold: float = 0.02
    crop: float = 0.95
    n_sets: int = 1
    soft: bool = False
    cache: Path | None = None

    def __call__(self, scan: Scan, index: int, masked_kspace: Tensor, mask: Tensor) -> Tensor:
        """Gets the maps of a slice.

        Args:
            scan: The volume that the slice belongs to.
            index: The slice.
            masked_kspace: What was sampled of it, ``(coil, ny, nx)`` complex64.
            mask: Where, bool ``(1|ny, nx)``.

        Returns:
            Maps ``(set, coil, ny, nx)`` complex64, on the device of ``masked_kspace``.

        Raises:
            InputError: The maps of the scan are absent or do not match; k-space is not finite or zero; the fully
                sampled centre is too small, or estimated maps cover less than half of the object.

        Warns:
            UserWarning: Estimated maps cover less than 90% of the object.
        """
        try:
            if self.source == "file":
                return self._from_scan(scan, index, masked_kspace)
            return self._estimated(scan, masked_kspace, mask)
        except InputError as error:
            raise InputError(f"{scan.path}, slice {index}: {error}") from error

    def _from_scan(self, scan: Scan, index: int, kspace: Tensor) -> Tensor:
        maps = scan.maps(index)
        if maps is None:
            raise InputError("the scan brings no coil maps; set source to espirit")
        if maps.ndim != 4 or maps.shape[1:] != kspace.shape or maps.shape[0] < self.n_sets:
            raise InputError(
                f"its coil maps {tuple(maps.shape)} do not match k-space {tuple(kspace.shape)} and {self.n_sets} "
                f"set(s): they must be (set, coil, y, x) with at least that many sets"
            )
        maps = maps[: self.n_sets].to(kspace.device, torch.complex64)
        if not torch.view_as_real(maps).isfinite().all():
            raise InputError("its coil maps hold NaN or infinity")
        return maps

    def _estimated(self, scan: Scan, kspace: Tensor, mask: Tensor) -> Tensor:
        window = self._window(kspace, mask)
        estimate = espirit if self.source == "espirit" else sigpy_espirit
        options = (self.kernel, self.threshold, self.crop, self.n_sets)
        if self.cache is None:
            fresh = estimate(kspace[None], window, *options, soft=self.soft)[0]
            self._check(scan, kspace, fresh, window)
            return fresh
        # checked before the look-up: a bad slice must not depend on what happens to be in the cache
        check_espirit(kspace[None], window, *options, n_iterations=1)
        shape = (self.n_sets, *kspace.shape)
        cache = MapCache(self.cache)
        key = content_key(
            central(kspace, window), f"{self.source} {version()} {shape} {window} {options} soft={self.soft}"
        )
        maps = cache.get(key, shape)
        known = maps is not None
        if maps is None:
            maps = estimate(kspace[None], window, *options, soft=self.soft)[0]
        maps = maps.to(kspace.device)
        self._check(scan, kspace, maps, window)
        if not known:
            cache.put(key, maps)
        return maps

    def _check(self, scan: Scan, kspace: Tensor, maps: Tensor, window: tuple[int, int]) -> None:
        covered = coverage(kspace, maps, window)
        if covered is None or covered >= _COVERED:
            return
        mend = (
            f"sample more of the centre of k-space (its calibration region is {window[0]} x {window[1]} points), lower "
            f"crop ({self.crop:g}) or kernel ({self.kernel}), or take maps from a file"
        )
        if covered < _USELESS:
            raise InputError(f"ESPIRiT's coil maps cover {covered:.0%} of the object; {mend}")
        # neither the slice nor the exact share, so that it is said a few times a volume and not once a slice
        warnings.warn(
            f"{scan.path}: ESPIRiT's coil maps cover less than {-(-covered * 10 // 1) * 10:.0f}% of the object; {mend}",
            stacklevel=3,
        )

    def _window(self, kspace: Tensor, mask: Tensor) -> tuple[int, int]:
        ny, nx = kspace.shape[-2:]
        region = calibration_region(mask, (ny, nx))
        if self.calibration is None:
            window = (min(region[0], _WIDEST), min(region[1], _WIDEST))
            if self.source == "sigpy":
                window = (min(window), min(window))
        elif isinstance(self.calibration, int):
            window = (self.calibration, self.calibration)
        else:
            window = (self.calibration[0], self.calibration[1])
        if window[0] > region[0] or window[1] > region[1]:
            raise InputError(
                f"calibration {window[0]} x {window[1]} reaches beyond the fully sampled centre of the mask, "
                f"{region[0]} x {region[1]}; lower it, or leave it out"
            )
        if min(window) < self.kernel:
            raise InputError(
                f"the fully sampled centre of the mask, {region[0]} x {region[1]}, is smaller than the {self.kernel} x "
                f"{self.kernel} kernel of ESPIRiT; sample more of it, lower kernel, or take maps from a file"
            )
        return window
