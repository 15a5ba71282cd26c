"""Reconstructions without learning, the baselines of every comparison."""

import math

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.mri.base import check_shapes, intensity, rss
from sciml_monarch.mri.cg import cg
from sciml_monarch.mri.linops import SenseOperator
from sciml_monarch.mri.wavelet import wavelet, wavelet_adjoint


def zero_filled_rss(kspace: Tensor) -> Tensor:
    """Root-sum-of-squares image of k-space with zeros where nothing was sampled.

    Args:
        kspace: ``(b, coil, y, x)`` complex.

    Returns:
        Magnitude images, ``(b, 1, y, x)`` real.
    """
    return rss(kspace)[:, None]


def zero_filled_sense(kspace: Tensor, mask: Tensor, maps: Tensor) -> Tensor:
    """Coil combination of the zero-filled images: the adjoint of the SENSE operator.

    Args:
        kspace: ``(b, coil, y, x)`` complex.
        mask: Bool ``(b, 1, 1|y, x)``.
        maps: ``(b, set, coil, y, x)`` complex.

    Returns:
        Images ``(b, set, y, x)`` complex.
    """
    check_shapes(kspace, mask, maps, needs_maps=True)
    return SenseOperator(maps, mask).adjoint(kspace)


def cg_sense(kspace: Tensor, mask: Tensor, maps: Tensor, n_iterations: int = 30, regularization: float = 0.0) -> Tensor:
    """Iterative SENSE (Pruessmann et al., MRM 2001): least squares by conjugate gradients.

    Minimises ``||A x - y||^2 + regularization ||x||^2``; stopping early regularises as well.

    Args:
        kspace: ``(b, coil, y, x)`` complex.
        mask: Bool ``(b, 1, 1|y, x)``.
        maps: ``(b, set, coil, y, x)`` complex.
        n_iterations: Iterations.
        regularization: Tikhonov weight; the scale of k-space does not matter.

    Returns:
        Images ``(b, set, y, x)`` complex.
    """
    check_shapes(kspace, mask, maps, needs_maps=True)
    operator = SenseOperator(maps, mask)
    with torch.no_grad():
        return cg(lambda x: operator.normal(x) + regularization * x, operator.adjoint(kspace), None, n_iterations)


def l1_wavelet(
    kspace: Tensor, mask: Tensor, maps: Tensor, regularization: float = 1e-3, n_iterations: int = 100
) -> Tensor:
    """Compressed sensing with an L1 penalty on Daubechies-4 wavelets (Lustig et al., MRM 2007), by FISTA.

    Minimises ``1/2 ||A x - y||^2 + regularization ||W x||_1`` for each scan, first scaled so that its zero-filled image
    has maximum 1, without which the penalty would depend on the scanner's units.

    Args:
        kspace: ``(b, coil, y, x)`` complex.
        mask: Bool ``(b, 1, 1|y, x)``.
        maps: ``(b, set, coil, y, x)`` complex.
        regularization: Weight of the penalty.
        n_iterations: Iterations of FISTA (Beck & Teboulle 2009).

    Returns:
        Images ``(b, set, y, x)`` complex.
    """
    check_shapes(kspace, mask, maps, needs_maps=True)
    operator = SenseOperator(maps, mask)
    scale = intensity(kspace)
    with torch.no_grad():
        b, step = operator.adjoint(kspace / scale), 1 / operator.bound
        x, z, t = torch.zeros_like(b), torch.zeros_like(b), 1.0
        for _ in range(n_iterations):
            before, r = x, z - step * (operator.normal(z) - b)
            x = wavelet_adjoint(wavelet(r).soft_threshold(regularization * step))
            after = (1 + math.sqrt(1 + 4 * t * t)) / 2
            z, t = x + (t - 1) / after * (x - before), after
        return _within(x, maps) * scale


def sigpy_l1_wavelet(
    kspace: Tensor, mask: Tensor, maps: Tensor, regularization: float = 1e-3, n_iterations: int = 100
) -> Tensor:
    """The same by sigpy, one scan after the other on the CPU: the reference of :func:`l1_wavelet`.

    Args:
        kspace: ``(b, coil, y, x)`` complex.
        mask: Bool ``(b, 1, 1|y, x)``.
        maps: ``(b, 1, coil, y, x)`` complex; sigpy takes one set.
        regularization: Weight of the penalty, for scans scaled as in :func:`l1_wavelet`.
        n_iterations: Iterations of FISTA.

    Returns:
        Images ``(b, 1, y, x)`` complex, on the device of ``kspace``.

    Raises:
        InputError: There is more than one set of maps.
    """
    from sigpy.mri.app import L1WaveletRecon

    check_shapes(kspace, mask, maps, needs_maps=True)
    if maps.shape[1] != 1:
        raise InputError(f"L1-wavelet takes one set of coil maps, not {maps.shape[1]}; estimate with n_sets=1")
    scale = intensity(kspace)
    images = []
    for i in range(len(kspace)):
        y = (kspace[i] / scale[i]).cpu().numpy()
        s = maps[i % len(maps), 0].cpu().numpy()
        # the mask is given as weights: sigpy would else guess it from what is not zero
        weights = mask[i % len(mask), 0].expand(y.shape[-2:]).cpu().numpy().astype(y.real.dtype)
        found = L1WaveletRecon(y, s, regularization, weights=weights, max_iter=n_iterations, show_pbar=False).run()
        images.append(torch.from_numpy(found).to(kspace))
    return _within(torch.stack(images)[:, None], maps) * scale


def _within(image: Tensor, maps: Tensor) -> Tensor:
    """Zero where no coil sees anything: the data says nothing of what wavelets leave there."""
    return image.where(maps.abs().amax(2) > 0, 0)
