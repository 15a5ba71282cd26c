"""ESPIRiT: coil sensitivity maps from the fully sampled centre of k-space, in torch.

Uecker et al., "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI: where SENSE meets GRAPPA", Magn.
Reson. Med. 71:990-1001 (2014). Patches of the calibration region span the row space V of the calibration matrix; in
image space the projection onto V is, pixel by pixel, a small positive semi-definite (coil, coil) matrix whose
eigenvectors of eigenvalue 1 are the sensitivities (equations 19 to 22).

The definition is that of ``sigpy.mri.app.EspiritCalib``, the power iteration included. Two identities make it fast:

* Summing outer products of zero-padded kernel images, one FFT a kernel and coil, equals one Fourier sum over the
  *autocorrelation* of the kernels, which has only (2k-1)^2 points for each pair of coils: two thin matrix products.
* n steps of a power iteration apply A^n, and A^n is made of about log2(n) squarings: matrix products instead of n
  passes over the memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sciml_monarch.errors import InputError

# Bytes of pixel matrices that are worked on at a time: what stays in a core's cache; what fills a GPU.
_CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 2**28}


@torch.no_grad()
def espirit(
    kspace: Tensor,
    calibration: int | tuple[int, int] = 24,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
    n_sets: int = 1,
    n_iterations: int = 100,
    soft: bool = False,
) -> Tensor:
    """Estimates coil sensitivity maps.

    Args:
        kspace: Centred k-space, ``(b, coil, y, x)`` complex, fully sampled in the calibration region.
        calibration: Points of the calibration region on both axes, or on each ``(y, x)``.
        kernel: Width of the kernels (the patches of k-space).
        threshold: Singular values of the calibration matrix below this times the largest count as noise.
        crop: Maps are zero where their eigenvalue is not above this (0 to 1).
        n_sets: Sets of maps: 1 as a rule, 2 where the object reaches over the field of view or moves. A further
            set belongs to the next eigenvalue, on the orthogonal complement of those before.
        n_iterations: Power iterations, which start at ones.
        soft: Whether maps fade out around ``crop`` instead of ending there (soft SENSE): the weight is
            (1 + t)^2 / (2 + 2 t^2) with t = (sqrt(eigenvalue) - crop) / (1 - crop), cut to [-1, 1].

    Returns:
        Maps ``(b, set, coil, y, x)`` of the dtype of ``kspace``: where they are not zero the sum of squares over the
        coils is 1 (with ``soft``: the weight squared), and the first coil is real and not negative.

    Raises:
        InputError: K-space is not finite, zero in the calibration region or of another shape; or an option is out
            of range.
    """
    window = check_espirit(kspace, calibration, kernel, threshold, crop, n_sets, n_iterations)
    b, n_coils, ny, nx = kspace.shape
    with _full_precision():
        covariance = kernel_covariance(central(kspace, window), kernel, threshold)
        # (b, c, d, my, mx) -> (b, my, mx c d) -> rows (b y, mx, c d)
        lags = covariance.permute(0, 3, 4, 1, 2).reshape(b, 2 * kernel - 1, -1)
        rows = (_waves(ny, kernel, kspace.device) @ lags).reshape(b * ny, 2 * kernel - 1, n_coils**2)
        waves = _waves(nx, kernel, kspace.device)
        n_rows = max(1, _CHUNK_BYTES.get(kspace.device.type, 2**28) // (8 * nx * n_coils**2))
        maps = torch.cat(
            [
                _eigenmaps((waves @ chunk).reshape(-1, n_coils, n_coils), crop, n_sets, n_iterations, soft)
                for chunk in rows.split(n_rows)
            ]
        )
    return maps.reshape(b, ny, nx, n_sets, n_coils).permute(0, 3, 4, 1, 2).contiguous().to(kspace.dtype)


def check_espirit(
    kspace: Tensor,
    calibration: int | tuple[int, int],
    kernel: int,
    threshold: float,
    crop: float,
    n_sets: int,
    n_iterations: int,
) -> tuple[int, int]:
    """Checks what :func:`espirit` is given and returns the calibration window ``(y, x)``; raises InputError."""
    if kspace.ndim != 4 or not kspace.is_complex() or 0 in kspace.shape:
        raise InputError(f"k-space is {tuple(kspace.shape)} {kspace.dtype}; it must be (b, coil, y, x) and complex")
    n_coils, ny, nx = kspace.shape[1:]
    window = (calibration, calibration) if isinstance(calibration, int) else calibration
    if kernel < 1 or min(window) < kernel or window[0] > ny or window[1] > nx:
        raise InputError(
            f"a calibration region of {window[0]} x {window[1]} does not lie between the kernel, {kernel} x {kernel}, "
            f"and k-space, {ny} x {nx}; change calibration or kernel"
        )
    if not (0 <= threshold < 1 and 0 <= crop <= 1):
        raise InputError(f"threshold={threshold} must be in [0, 1) and crop={crop} in [0, 1]")
    if not 1 <= n_sets <= n_coils:
        raise InputError(f"n_sets={n_sets} must lie between 1 and the {n_coils} coils")
    if n_iterations < 1:
        raise InputError(f"n_iterations={n_iterations} must be at least 1")
    finite = torch.view_as_real(kspace).isfinite().flatten(1).all(1)
    filled = (central(kspace, window) != 0).flatten(1).any(1)
    for index, (is_finite, is_filled) in enumerate(torch.stack((finite, filled), 1).tolist()):
        if not is_finite:
            raise InputError(f"k-space {index} of the batch holds NaN or infinity; maps cannot be estimated from it")
        if not is_filled:
            raise InputError(
                f"k-space {index} of the batch is zero in its {window[0]} x {window[1]} calibration region"
            )
    return window


def central(kspace: Tensor, window: tuple[int, int]) -> Tensor:
    """Cuts the central ``window`` out of ``(..., y, x)``; the origin n // 2 stays the origin."""
    (ny, nx), (cy, cx) = kspace.shape[-2:], window
    top, left = ny // 2 - cy // 2, nx // 2 - cx // 2
    return kspace[..., top : top + cy, left : left + cx]


def kernel_covariance(block: Tensor, kernel: int, threshold: float) -> Tensor:
    """Computes the autocorrelation of the kernels that span the calibration region.

    The kernels are the right singular vectors of the calibration matrix whose singular values are above the
    threshold. They come from an eigendecomposition of its smaller Gram matrix, in double precision so that the
    squared singular values keep the digits that the threshold looks at.

    Args:
        block: Calibration regions, ``(b, coil, cy, cx)`` complex.
        kernel: Width k of the kernels.
        threshold: Smallest kept singular value over the largest.

    Returns:
        ``(b, coil, coil, 2k-1, 2k-1)`` complex64: at lag m the sum over kernels v and over points j of
        v_c(j + m) conj(v_d(j)), divided by k^2; lag 0 is in the middle.
    """
    b, n_coils = block.shape[:2]
    wide = torch.complex64 if block.device.type == "mps" else torch.complex128  # Apple's GPUs have no double
    block = (block / block.abs().amax(dim=(1, 2, 3), keepdim=True)).to(wide)
    # (b, coil, cy-k+1, cx-k+1, k, k) -> rows are patches, columns (coil, ky, kx)
    patches = block.unfold(2, kernel, 1).unfold(3, kernel, 1)
    matrix = patches.permute(0, 2, 3, 1, 4, 5).reshape(b, -1, n_coils * kernel**2)
    if matrix.shape[1] < matrix.shape[2]:
        squares, left = torch.linalg.eigh(matrix @ matrix.mH)
        weight = _kept(squares, threshold) / squares.clamp_min(torch.finfo(squares.dtype).tiny)
        right = matrix.mT @ left.conj()  # columns: singular value times kernel
    else:
        squares, right = torch.linalg.eigh(matrix.mT @ matrix.conj())
        weight = _kept(squares, threshold)
    projector = ((right * weight[:, None, :]) @ right.mH).to(torch.complex64)
    projector = projector.reshape(b, n_coils, kernel, kernel, n_coils, kernel, kernel).flip(-2, -1)
    lags = projector.new_zeros(b, n_coils, n_coils, 2 * kernel - 1, 2 * kernel - 1)
    for y in range(kernel):
        for x in range(kernel):  # the flipped second point k-1-l turns the lag j - l into a sum
            lags[..., y : y + kernel, x : x + kernel] += projector[:, :, y, x]
    return lags / kernel**2


def soft_weight(eigenvalue: Tensor, crop: float) -> Tensor:
    """Weight of a map in soft SENSE: 0 well below ``crop``, 1/2 at its square, 1 at 1; see :func:`espirit`."""
    if crop == 1:
        return (eigenvalue >= 1).to(eigenvalue.dtype)
    t = ((eigenvalue.clamp_min(0).sqrt() - crop) / (1 - crop)).clamp(-1, 1)
    return (1 + t).square() / (2 + 2 * t.square())


def _kept(squares: Tensor, threshold: float) -> Tensor:
    """1 for squared singular values above the threshold, else 0; no shape depends on the data, so no GPU waits."""
    return (squares.clamp_min(0).sqrt() > threshold * squares[:, -1:].clamp_min(0).sqrt()).to(squares.dtype)


def _waves(n: int, kernel: int, device: torch.device) -> Tensor:
    """exp(2 pi i (r - n // 2) m / n) for points r and lags m = 1-k ... k-1: ``(n, 2k-1)`` complex64."""
    turns = torch.outer(torch.arange(n) - n // 2, torch.arange(1 - kernel, kernel)) % n  # exact in integers
    angle = 2 * torch.pi * turns.double() / n
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)


def _eigenmaps(matrices: Tensor, crop: float, n_sets: int, n_iterations: int, soft: bool) -> Tensor:
    """Cropped eigenvectors ``(p, set, coil)`` of positive semi-definite matrices ``(p, coil, coil)``."""
    if matrices.device.type != "cpu":
        return _all_eigenmaps(matrices, crop, n_sets, n_iterations, soft)
    # The largest eigenvalue is at most the Frobenius norm: much of the background needs no iteration. A GPU would
    # lose more by waiting for the list of pixels than by computing them all.
    lowest = max(0.0, 2 * crop - 1) ** 2 if soft else crop
    some = (_norm(matrices)[:, 0, 0] >= lowest * (1 - 1e-5)).nonzero()[:, 0]
    maps = matrices.new_zeros(len(matrices), n_sets, matrices.shape[-1])
    maps[some] = _all_eigenmaps(matrices[some], crop, n_sets, n_iterations, soft)
    return maps


def _all_eigenmaps(matrices: Tensor, crop: float, n_sets: int, n_iterations: int, soft: bool) -> Tensor:
    maps = []
    vector = start = torch.ones_like(matrices[..., :1])
    for index in range(n_sets):
        if index:  # the rest of the matrix on the orthogonal complement; its largest column is a safe start
            image = matrices @ vector
            w = image - 0.5 * (vector.mH @ image) * vector
            matrices = matrices - vector @ w.mH - w @ vector.mH
            column = matrices.diagonal(dim1=-2, dim2=-1).real.argmax(-1)[:, None, None]
            start = matrices.take_along_dim(column, -1)
        vector, value = _power_iteration(matrices, start, n_iterations)
        first = vector[:, :1]
        phase = torch.where(first == 0, 1, first.conj() / first.abs().clamp_min(torch.finfo(torch.float32).tiny))
        weight = soft_weight(value, crop) if soft else (value > crop).float()
        maps.append(vector * (phase * weight))
    return torch.stack(maps, 1)[..., 0]


def _power_iteration(matrices: Tensor, start: Tensor, n_iterations: int) -> tuple[Tensor, Tensor]:
    """The state of a power iteration after n steps: unit vectors ``(p, c, 1)`` and eigenvalues ``(p, 1, 1)``.

    n - 1 steps apply the power n - 1 of the matrix, through its binary digits; the last step is an ordinary one,
    whose growth of the norm is the eigenvalue.
    """
    result, some = start.clone(), torch.arange(len(start), device=start.device)
    vector, power, n = start, matrices * (1 / _trace(matrices)), n_iterations - 1
    while n:
        if n & 1:
            vector = _unit(power @ vector)[0]
        n >>= 1
        if not n:
            result[some] = vector
            break
        # Of trace 1 before each squaring, the largest eigenvalue is in [1 / c, 1]: no underflow however often squared.
        power = power @ power
        trace = _trace(power)
        power *= 1 / trace
        if power.device.type == "cpu":
            # The trace of the square of a matrix of trace 1 is 1 - 2 e, where e is the share of all but the largest
            # eigenvalue. With e < 1e-4 the square has rank one to 1e-8 and higher powers are the same: done early.
            # A GPU would wait for the list of pixels longer than it computes.
            done = trace[:, 0, 0] > 1 - 2e-4
            ready, left = done.nonzero()[:, 0], (~done).nonzero()[:, 0]
            result[some[ready]] = power[ready] @ vector[ready]
            some, vector, power = some[left], vector[left], power[left]
    return _unit(matrices @ _unit(result)[0])


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).real.sum(-1)[:, None, None].clamp_min(1e-30)


def _unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    norm = _norm(vector)
    return vector * (1 / norm.clamp_min(1e-30)), norm


def _norm(x: Tensor) -> Tensor:
    """Root of the sum of squares of ``(p, c, d)`` as ``(p, 1, 1)``; torch's own norm of complex numbers is slow."""
    return torch.linalg.vector_norm(torch.view_as_real(x).flatten(1), dim=1)[:, None, None]


@contextmanager
def _full_precision() -> Iterator[None]:
    """TF32 off on a GPU: repeated squaring multiplies its 1e-3 by the number of iterations."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
