"""What ``benchmark.py`` measures: works, the methods that do them, and what each costs at least."""

import math
from typing import NamedTuple

import torch
from benchmark_jobs import (
    Build,
    Work,
    centred_fft,
    copy_field,
    dense_linear,
    fft,
    fft_conv,
    fno,
    frozen_conv,
    half_conv,
    monarch_conv,
    monarch_fno,
    monarch_linear,
    multiplied_out,
    neuralop_conv,
    transform,
)
from benchmark_timing import Precision

from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.kernels.backend import Backend
from sciml_monarch.monarch.shapes import factor_pair

OURS, THEIRS, TORCH = "sciml-monarch", "neuraloperator", "torch"
HALF = torch.bfloat16


def works(on_gpu: bool, quick: bool) -> list[Work]:
    """Everything that is measured on a kind of device."""
    if quick:
        return [
            Work("spectral", (2, 4, 16, 3)),
            Work("spectral", (2, 4, 16, 3), backward=True),
            Work("analysis", (2, 4, 16, 3)),
            Work("synthesis", (2, 4, 16, 3)),
            Work("fno", (2, 4, 16, 3), backward=True),
            Work("linear", (32, 16, 24, 4), backward=True, dtype=HALF),
            Work("transform", (2, 12, 10)),
            Work("transform", (2, 12, 10), backward=True),
            *(Work("spectral", (2, 4, n, m), sweep=True) for n, m in ((16, 2), (32, 2), (32, 4))),
        ]
    if not on_gpu:
        return [
            *(Work("spectral", s, b) for s in CPU_SPECTRAL for b in (False, True)),
            Work("fno", (4, 32, 64, 12), backward=True),
            Work("linear", (1024, 1024, 1024, 4), backward=True),
            Work("linear", (1024, 4096, 4096, 4), backward=True),
            Work("transform", (15, 320, 320)),
            Work("transform", (15, 640, 372)),
            Work("transform", (15, 320, 320), backward=True),
            *(
                Work("spectral", (2, 16, n, m), sweep=True)
                for n in (32, 64, 128, 256)
                for m in (4, 8, 16)
                if 2 * m <= n
            ),
        ]
    large = (16, 64, 256, 32)
    halves = "at most 1.6 times the time of reading the field, in TF32"
    return [
        Work("spectral", large, target="6x in TF32 (error <= 3e-3), 3x at float32's accuracy (<= 2e-6)"),
        Work("spectral", large, graph=True),
        Work("spectral", large, backward=True, target="5x in TF32, 2.5x at float32's accuracy"),
        Work("spectral", large, backward=True, graph=True),
        Work("spectral", (20, 32, 64, 12), backward=True, graph=True, target="5x"),
        *(
            Work(kind, sizes, graph=True, target=halves)
            for kind in ("analysis", "synthesis")
            for sizes in (large, (8, 64, 512, 32))
        ),
        *(
            Work("fno", sizes, backward=True, graph=graph, target="" if graph else "3x and 0.6 of the memory, compiled")
            for sizes in ((16, 32, 64, 12), (16, 32, 256, 32))
            for graph in (False, True)
        ),
        *(
            Work("linear", (16384, *sizes), backward=True, graph=graph, dtype=HALF, target=target)
            for sizes, target in LINEAR
            for graph in (False, True)
        ),
        *(
            Work("linear", (tokens, *sizes, blocks), backward=True, graph=True, dtype=HALF)
            for tokens, sizes, blocks in OTHER_LINEAR
        ),
        *(Work("transform", (15, *s), b) for s in ((320, 320), (640, 372)) for b in (False, True)),
        *(Work("transform", (15, *s), graph=True) for s in ((320, 320), (640, 372))),
        *(
            Work("spectral", (max(1, min(16, 2**20 // n**2)), 64, n, m), graph=True, sweep=True)
            for n in (64, 128, 256, 512, 1024)
            for m in (8, 16, 32, 64)
            if 2 * m <= n
        ),
    ]  # fmt: skip


LINEAR = ((1024, 1024, 4), "1.5x"), ((768, 3072, 4), "1.5x"), ((4096, 4096, 4), "1.8x"), ((4096, 4096, 64), "5x")
# by these `auto` chooses: blocks, sizes, fewer tokens
OTHER_LINEAR = (
    *((16384, sizes, 4) for sizes in ((768, 768), (3072, 768), (1024, 4096), (4096, 1024))),
    *((16384, sizes, 16) for sizes in ((1024, 1024), (768, 3072), (1024, 4096), (4096, 4096))),
    *((2048, sizes, 4) for sizes in ((1024, 1024), (1024, 4096), (4096, 4096))),
)
CPU_SPECTRAL = ((4, 32, 64, 4), (4, 32, 64, 12), (2, 32, 128, 12), (1, 32, 256, 16), (1, 32, 256, 32))


class Cost(NamedTuple):
    """What a method has to do at least.

    Attributes:
        bytes: Read and written where everything that fits between is kept on the chip.
        operations: Multiplications and additions.
        tensor_cores: Whether they are matrix products.
    """

    bytes: float
    operations: float
    tensor_cores: bool = True


class Method(NamedTuple):
    """A way to do a work: the first of a work's methods is what the others are compared with."""

    name: str
    package: str
    build: Build
    cost: Cost | None  # None: not counted
    precision: Precision = "highest"
    backend: Backend = "torch"
    compiled: bool = False


def methods(work: Work, on_gpu: bool) -> list[Method]:
    """All methods for a work; the first is what the others are compared with."""
    found = _methods(work)
    if not on_gpu:  # a CPU multiplies float32 as it is; the network of neuraloperator is there in one precision
        found = [m for m in found if m.precision == "highest" or m.build == fno]
    if work.sweep:  # the picture would be crowded
        return [m for m in found if not m.compiled and m.precision != "medium"]
    return found


def _methods(work: Work) -> list[Method]:
    if work.kind == "spectral":
        return _spectral_methods(work)
    if work.kind in ("analysis", "synthesis"):
        batch, width, n, _ = work.sizes
        field = 4.0 * batch * width * n * n
        found = [Method("copy of the field", TORCH, copy_field, Cost(2 * field, 0.0))]
        return found + _ours(
            work, half_conv, Cost(field, _spectral_operations(work, learned=False)[0] / 2), "", (False,)
        )
    if work.kind == "fno":
        cost = _fno_cost(work)
        found = [Method(f"FNO{label}", THEIRS, fno, None, "high", "torch", bool(label)) for label in (", compiled", "")]
        return found + [m for m in _ours(work, monarch_fno, cost, "FNO") if m.precision != "medium"]
    if work.kind == "linear":
        return _linear_methods(work)
    coils, ny, nx = work.sizes
    passes = 8.0 if work.backward else 4.0  # each axis reads once and writes once
    shifted = Cost(passes * 8 * coils * ny * nx, passes / 4 * 5 * coils * ny * nx * math.log2(ny * nx), False)
    sums = sum(map(sum, (factor_pair(ny), factor_pair(nx))))
    gemm = Cost(
        (10.0 if work.backward else 4.0) * 8 * coils * ny * nx,
        (3 if work.backward else 1) * 8.0 * coils * ny * nx * sums,
    )
    found = [
        Method("FFT, centred by shifts", TORCH, centred_fft, shifted),
        Method("FFT, not centred", TORCH, fft, shifted),
    ]
    return found + _ours(work, transform, gemm, "", (False,))


def _ours(
    work: Work, build: Build, cost: Cost, label: str = "", compiled: tuple[bool, ...] = (False, True)
) -> list[Method]:
    """Plain torch, kernels and what ``auto`` takes, at each precision that differs."""
    precisions: tuple[Precision, ...] = ("highest",) if work.dtype == HALF else ("highest", "high", "medium")
    backends: tuple[tuple[Backend, str], ...] = (("torch", "plain torch"), ("triton", "kernels"), ("auto", "auto"))
    return [
        Method(f"Monarch{label}, {kind}{', compiled' if c else ''}", OURS, build, cost, precision, backend, c)
        for backend, kind in backends
        for c in compiled
        for precision in precisions
        if precision != "medium" or (backend == "triton" and not c)
    ]


def _spectral_operations(work: Work, learned: bool) -> tuple[float, float]:
    """Operations of the thin products and of the mixing, forward; backward twice or once as many."""
    batch, width, n, modes = work.sizes
    rows, columns = 2 * modes, modes + 1
    thin = 2 * batch * width * (4.0 * n * n * columns + 8.0 * n * rows * columns)
    mixing = 8.0 * rows * columns * batch * width * width
    if work.backward:
        return thin * (3 if learned else 2), mixing * 3
    return thin, mixing


def _spectral_methods(work: Work) -> list[Method]:
    batch, width, n, modes = work.sizes
    item = work.dtype.itemsize
    field, weights = item * batch * width * n * n, 8.0 * 2 * modes * (modes + 1) * width**2
    passes = 3 if work.backward else 1

    def bytes_moved(n_fields: int) -> float:
        return float(n_fields * field + passes * weights)

    thin, mixing = _spectral_operations(work, learned=True)
    ffts = 2 * 2.5 * batch * width * n * n * math.log2(n * n) * (2 if work.backward else 1)
    by_fft = Cost(bytes_moved(4 if work.backward else 2), ffts + mixing, False)
    learned = Cost(bytes_moved(5 if work.backward else 2), thin + mixing)
    found = [
        Method("SpectralConv", THEIRS, neuralop_conv, by_fft),
        Method("SpectralConv, compiled", THEIRS, neuralop_conv, by_fft, compiled=True),
        Method("SpectralConv", THEIRS, neuralop_conv, by_fft, "high"),
        Method("SpectralConv, compiled", THEIRS, neuralop_conv, by_fft, "high", compiled=True),
        Method("FFT form", TORCH, fft_conv, by_fft),
        *_ours(work, monarch_conv, learned),
    ]
    if work.backward:
        cost = Cost(bytes_moved(4), sum(_spectral_operations(work, learned=False)))
        found += _ours(work, frozen_conv, cost, ", frozen", (False,))
    return found


def _fno_cost(work: Work) -> Cost:
    """Of our network: four layers, each five passes over the field; lifting and projection, 128 channels wide, five."""
    batch, width, n, _ = work.sizes
    field, points = 4.0 * batch * width * n * n, batch * n * n
    layer = sum(_spectral_operations(Work("spectral", work.sizes, backward=True), learned=True))
    pointwise = 3 * 2.0 * points * (4 * width**2 + 128 * width + 128 + 12 * width)
    return Cost((4 * 5 + 5) * field, 4 * layer + pointwise)


def _linear_methods(work: Work) -> list[Method]:
    tokens, n_in, n_out, blocks = work.sizes
    layer = MonarchLinear(n_in, n_out, bias=False, blocks=blocks, device="meta")
    times, item = (3 if work.backward else 1), work.dtype.itemsize
    rows = tokens * ((3 * n_in + 2 * n_out) if work.backward else n_in + n_out)

    def cost(n_weights: int) -> Cost:
        return Cost(float(item * (rows + times * n_weights)), 2.0 * times * tokens * n_weights)

    dense = cost(n_in * n_out)
    found = [
        Method("F.linear", TORCH, dense_linear, dense),
        Method("F.linear, compiled", TORCH, dense_linear, dense, compiled=True),
    ]
    found += _ours(work, monarch_linear, cost(layer.w1.numel() + layer.w2.numel()))
    return [*found, Method("Monarch, multiplied out", OURS, multiplied_out, dense)]
