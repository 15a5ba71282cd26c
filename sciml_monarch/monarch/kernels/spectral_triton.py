"""Launches the spectral kernels on fields of two axes."""

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sciml_monarch.monarch.kernels.backend import dot_precision
from sciml_monarch.monarch.kernels.spectral_analysis_triton import analysis_2d
from sciml_monarch.monarch.kernels.spectral_configs import Config, Kernel, Problem, aligned, candidates, choose, tiles
from sciml_monarch.monarch.kernels.spectral_matrix_grad_triton import last_gradient_2d, leading_gradient_2d
from sciml_monarch.monarch.kernels.spectral_synthesis_triton import synthesis_2d

GRADIENTS: tuple[Kernel, Kernel] = ("leading_gradient", "last_gradient")
N_PROGRAMS = 264  # that go through images: two for each multiprocessor of an H200; on others only speed differs


def problem(kernel: Kernel, field: Tensor, m: int, k: int) -> Problem:
    """Describes what is to be computed on or for a field ``(b, c, n1, n2)`` with ``m`` by ``k`` modes."""
    n1, n2 = field.shape[-2:]
    return Problem(kernel, n1, n2, m, k, field.element_size(), dot_precision(field.dtype))


def analysis(field: Tensor, leading: Tensor, last: Tensor, adjoint: bool, config: Config | None = None) -> Tensor:
    """Analyses both axes in one kernel.

    Args:
        field: ``(b, c, n1, n2)``, contiguous, not empty.
        leading: Planes ``(2, m, n1)`` of the first axis, float32 and contiguous like the next; with ``adjoint``
            ``(2, n1, m)``.
        last: ``(2 K, n2)``; with ``adjoint`` ``(n2, 2 K)``.
        adjoint: Whether the matrices are those of the synthesis that this transposes.
        config: Tiles; by default what :func:`choose` takes.

    Returns:
        Modes ``(m K, b, 2 c)``.
    """
    batch, channels, n1, n2 = field.shape
    m, k = (leading.shape[2], last.shape[1] // 2) if adjoint else (leading.shape[1], last.shape[0] // 2)
    task = problem("analysis", field, m, k)
    config = config or choose(task)
    t = tiles(task.kernel, m, k)
    n_images = batch * channels
    modes = torch.empty(m * k, batch, 2 * channels, dtype=field.dtype, device=field.device)
    x, rest = field, last
    use_descriptors = config.descriptors and aligned(task) and field.data_ptr() % 16 == 0
    points_first = adjoint
    if use_descriptors:
        dtype = torch.bfloat16 if task.precision == "bf16" else field.dtype
        # the accelerator moves rows of points; the copies are of small matrices
        leading = (leading.mT if adjoint else leading).to(dtype).contiguous()
        last = (last.mT if adjoint else last).to(dtype).contiguous()
        points_first = False
        pairs, strides = [k, 2, n2], [n2, k * n2, 1]
        x = TensorDescriptor(field, [n_images, n1, n2], [n1 * n2, n2, 1], [1, config.rows, config.cols])
        rest = TensorDescriptor(last, pairs, strides, [max(t.rest, 2) // 2, 2, config.cols])
        last = TensorDescriptor(last, pairs, strides, [t.main // 2, 2, config.cols])
        leading = TensorDescriptor(leading, [2, m, n1], [m * n1, n1, 1], [2, t.modes, config.rows])
    grid = (triton.cdiv(n_images, config.images), triton.cdiv(m, t.modes), triton.cdiv(2 * k, t.main + t.rest))
    analysis_2d[grid](
        x,
        leading,
        last,
        rest,
        modes,
        n_images,
        N1=n1,
        N2=n2,
        M=m,
        K=k,
        POINTS_FIRST=points_first,
        CONJUGATE=adjoint,
        PRECISION=task.precision,
        IMAGES=config.images,
        ROWS=config.rows,
        COLS=config.cols,
        MODES=t.modes,
        MAIN=t.main,
        REST=t.rest,
        STAGES=config.stages,
        DESCRIPTORS=use_descriptors,
        num_warps=config.warps,
    )
    return modes


def synthesis(
    modes: Tensor,
    leading: Tensor,
    last: Tensor,
    adjoint: bool,
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    gelu: bool = False,
    config: Config | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Synthesises both axes in one kernel, and applies the end of a Fourier layer.

    Args:
        modes: ``(m K, b, 2 c)``, contiguous, not empty.
        leading: Planes ``(2, n1, m)`` of the first axis, float32 and contiguous like the next; with ``adjoint``
            ``(2, m, n1)``.
        last: ``(n2, 2 K)``; with ``adjoint`` ``(2 K, n2)``.
        adjoint: Whether the matrices are those of the analysis that this transposes.
        skip: ``(b, c, n1, n2)`` to add, contiguous.
        bias: ``(c,)`` to add.
        gelu: Whether to apply GELU.
        config: Tiles; by default what :func:`choose` takes.

    Returns:
        The field ``(b, c, n1, n2)`` and, with GELU, what went into it.
    """
    batch, channels = modes.shape[1], modes.shape[2] // 2
    n1, m = (leading.shape[2], leading.shape[1]) if adjoint else (leading.shape[1], leading.shape[2])
    n2, k = (last.shape[1], last.shape[0] // 2) if adjoint else (last.shape[0], last.shape[1] // 2)
    out = torch.empty(batch, channels, n1, n2, dtype=modes.dtype, device=modes.device)
    before = torch.empty_like(out) if gelu else None
    task = problem("synthesis", out, m, k)
    config = config or choose(task)
    t = tiles(task.kernel, m, k)
    fields = [skip, out, before]
    use_descriptors = config.descriptors and aligned(task) and all(f is None or f.data_ptr() % 16 == 0 for f in fields)
    if use_descriptors:
        shape, strides = [batch * channels, n1, n2], [n1 * n2, n2, 1]
        fields = [
            f if f is None else TensorDescriptor(f, shape, strides, [1, config.rows, config.cols]) for f in fields
        ]
    synthesis_2d[(batch * channels,)](
        modes,
        leading,
        last,
        fields[0],
        bias,
        fields[1],
        fields[2],
        batch * channels,
        channels,
        N1=n1,
        N2=n2,
        M=m,
        K=k,
        POINTS_FIRST=not adjoint,
        CONJUGATE=adjoint,
        SKIP=skip is not None,
        BIAS=bias is not None,
        GELU=gelu,
        PRECISION=task.precision,
        ROWS=config.rows,
        COLS=config.cols,
        MODES=t.modes,
        MAIN=t.main,
        REST=t.rest,
        STAGES=config.stages,
        DESCRIPTORS=use_descriptors,
        num_warps=config.warps,
    )
    return out, before


def gradients_fit(field: Tensor, leading: Tensor, last: Tensor) -> bool:
    """Whether :func:`matrix_gradients` takes these; it needs tiles that hold all modes of an image."""
    tasks = (problem(kernel, field, leading.shape[1], last.shape[0] // 2) for kernel in GRADIENTS)
    return all(next(candidates(task), None) is not None for task in tasks)


def matrix_gradients(
    field: Tensor,
    modes: Tensor,
    leading: Tensor,
    last: Tensor,
    activated: bool,
    configs: tuple[Config | None, Config | None] = (None, None),
) -> tuple[Tensor, Tensor]:
    """Gradients of ``<modes, analysis(field)>`` by both matrices, a kernel each.

    Args:
        field: ``(b, c, n1, n2)``, contiguous, not empty.
        modes: ``(m K, b, 2 c)``.
        leading: Planes ``(2, m, n1)``, float32 and contiguous like the next.
        last: ``(2 K, n2)``.
        activated: Whether the analysis was of the GELU of ``field``.
        configs: Tiles of the two kernels; by default what :func:`choose` takes.

    Returns:
        Gradients in float32, in the shapes of the matrices.
    """
    batch, channels, n1, n2 = field.shape
    m, k = leading.shape[1], last.shape[0] // 2
    n_images = batch * channels
    re, im = modes.reshape(m, k, n_images, 2).permute(3, 2, 0, 1)  # (images, m, K) each
    forms = torch.stack([torch.cat([re, im], -1), torch.cat([im, -re], -1)], 1)
    found = []
    for name, matrix, other, config in zip(GRADIENTS, (leading, last), (last, leading), configs, strict=True):
        task = problem(name, field, m, k)
        config = config or choose(task)
        t = tiles(name, m, k)
        n_tiles = triton.cdiv(n1, config.rows) if matrix is leading else triton.cdiv(n2, config.cols)
        n_splits = max(1, min(n_images, N_PROGRAMS // n_tiles))
        partial = torch.empty(n_splits, *matrix.shape, dtype=torch.float32, device=field.device)
        kernel = leading_gradient_2d if matrix is leading else last_gradient_2d
        kernel[(n_tiles, n_splits)](
            field,
            forms,
            other,
            partial,
            n_images,
            N1=n1,
            N2=n2,
            M=m,
            K=k,
            ACTIVATED=activated,
            PRECISION=task.precision,
            ROWS=config.rows,
            COLS=config.cols,
            MODES=t.modes,
            MAIN=t.main,
            REST=t.rest,
            STAGES=config.stages,
            num_warps=config.warps,
        )
        found.append(partial.sum(0))
    return found[0], found[1]
