"""Is neuraloperator's spectral convolution the same on a GPU and on a CPU? ``python scripts/compare_inverse_ffts.py``.

Mixing breaks the Hermitian symmetry of the column of modes that are zero along the last axis. The inverse real
transform of several axes is not defined there; libraries differ in what they make of it, and one library does between
sizes. Transforming an axis at a time, the real one last, is defined: the imaginary part of that column has no effect.
Differences are relative to this, on the CPU.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.provenance import provenance

GRIDS = (32, 48, 64, 96, 128, 192, 256)  # even: of others the layer keeps other modes


def compare(device: torch.device, width: int = 20, n_modes: int = 24) -> list[dict[str, Any]]:
    """Relative differences on each grid, with one layer's random weights.

    Args:
        device: To compare with the CPU.
        width: Channels.
        n_modes: As neuraloperator counts them.

    Raises:
        InputError: neuraloperator is not installed.
    """
    try:
        from neuralop.layers.spectral_convolution import SpectralConv
    except ModuleNotFoundError as error:
        raise InputError("comparing needs neuraloperator: pip install neuraloperator") from error
    torch.manual_seed(0)
    conv = SpectralConv(width, width, (n_modes, n_modes), bias=False).requires_grad_(False)
    rows = []
    for n in GRIDS:
        x = torch.randn(4, width, n, n)
        spectrum = _mixed(conv.cpu().weight.tensor, x)
        exact = torch.fft.irfft(torch.fft.ifft(spectrum, dim=-2, norm="forward"), n, norm="forward")
        found = {"layer, CPU": conv(x), "layer, device": conv.to(device)(x.to(device))}
        found["irfft2, device"] = torch.fft.irfft2(spectrum.to(device), s=(n, n), norm="forward")
        rows.append({"grid": n} | {k: float((y.cpu() - exact).norm() / exact.norm()) for k, y in found.items()})
    return rows


def _mixed(weight: Tensor, x: Tensor) -> Tensor:
    """The layer's spectrum before it is transformed back."""
    n, (m, k) = x.shape[-1], weight.shape[-2:]
    rows = torch.arange(-(m // 2), m - m // 2) % n
    spectrum = torch.zeros(len(x), weight.shape[1], n, n // 2 + 1, dtype=torch.cfloat)
    kept = torch.fft.rfft2(x, norm="forward")[:, :, rows, :k]
    spectrum[:, :, rows, :k] = torch.einsum("bixy,ioxy->boxy", kept, weight)
    return spectrum


def run(out: Path | None = None, device: str | None = None) -> None:
    """Compares a device with the CPU.

    Args:
        out: JSON file for the results.
        device: "cuda" or "cpu"; by default the GPU if there is one.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = compare(where)
    for row in rows:
        print("  ".join(f"{k} {v}" if k == "grid" else f"{k} {v:.1e}" for k, v in row.items()))
    if out is not None:
        with replacing(out) as file:
            file.write_text(json.dumps(provenance(where) | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    import sys

    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("compare_inverse_ffts", lambda: call(run, sys.argv[1:])))
