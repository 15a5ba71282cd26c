"""The centred, orthonormal Fourier transform along one axis of a NumPy array."""

import numpy as np


def fft_axis(values: np.ndarray, axis: int) -> np.ndarray:
    """Image space to k-space along one axis, origin at ``n // 2``, ``norm="ortho"``.

    Args:
        values: Any shape, complex. Values that are not finite spread; whoever reads them reports them.
        axis: The axis.

    Returns:
        The same shape, complex64.
    """
    with np.errstate(invalid="ignore"):
        moved = np.fft.fft(np.fft.ifftshift(values, axes=axis), axis=axis, norm="ortho")
    return np.fft.fftshift(moved, axes=axis).astype(np.complex64)


def ifft_axis(values: np.ndarray, axis: int) -> np.ndarray:
    """K-space to image space; inverse and adjoint of :func:`fft_axis`."""
    with np.errstate(invalid="ignore"):
        moved = np.fft.ifft(np.fft.ifftshift(values, axes=axis), axis=axis, norm="ortho")
    return np.fft.fftshift(moved, axes=axis).astype(np.complex64)
