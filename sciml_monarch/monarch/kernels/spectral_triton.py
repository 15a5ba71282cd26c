"""Launches the spectral kernels on fields of two axes."""

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sciml_monarch.monarch.kernels.backend import dot_precision
from sciml_monarch.monarch.kernels.device import device_of
from sciml_monarch.monarch.kernels.spectral_analysis_triton import analysis_2d
from sciml_monarch.monarch.kernels.spectral_configs import (
    GRADIENTS,
    Config,
    Kernel,
    Problem,
    aligned,
    choose,
    served,
    tiles,
)
from sciml_monarch.monarch.kernels.spectral_matrix_grad_triton import last_gradient_2d, leading_gradient_2d
from sciml_monarch.monarch.kernels.spectral_synthesis_triton import synthesis_2d

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
    t = tiles(task)
    n_images = batch * channels
    modes = torch.empty(m * k, batch, 2 * channels, dtype=field.dtype, device=field.device)
    x, rest = field, last
    use_descriptors = config.descriptors and aligned(task) and _start_aligned(field, leading, last)
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
    with device_of(field):
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
    t = tiles(task)
    fields = [skip, out, before]
    use_descriptors = config.descriptors and aligned(task) and _start_aligned(*fields)
    if use_descriptors:
        shape, strides = [batch * channels, n1, n2], [n1 * n2, n2, 1]
        fields = [
            f if f is None else TensorDescriptor(f, shape, strides, [1, config.rows, config.cols]) for f in fields
        ]
    with device_of(out):
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
    return all(served(problem(kernel, field, leading.shape[1], last.shape[0] // 2)) for kernel in GRADIENTS)


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
    forms = forms_of(modes, leading.shape[1], last.shape[0] // 2)
    by_leading, by_last = (
        matrix_gradient(name, field, forms, leading, last, activated, config)
        for name, config in zip(GRADIENTS, configs, strict=True)
    )
    return by_leading, by_last


def forms_of(modes: Tensor, m: int, k: int) -> Tensor:
    """What the kernels of the gradients take of modes ``(m k, b, 2 c)``: ``(b c, 2, m, 2 k)``."""
    re, im = modes.reshape(m, k, -1, 2).permute(3, 2, 0, 1)  # (images, m, K) each
    return torch.stack([torch.cat([re, im], -1), torch.cat([im, -re], -1)], 1)


def matrix_gradient(
    name: Kernel,
    field: Tensor,
    forms: Tensor,
    leading: Tensor,
    last: Tensor,
    activated: bool,
    config: Config | None = None,
) -> Tensor:
    """The gradient by one of the matrices.

    Args:
        name: One of ``GRADIENTS``.
        field: As in :func:`matrix_gradients`, like the other tensors.
        forms: Of :func:`forms_of`.
        leading: The first matrix.
        last: The second matrix.
        activated: Whether the analysis was of the GELU of ``field``.
        config: Tiles; by default what :func:`choose` takes.

    Returns:
        The gradient in float32, in the shape of the matrix.
    """
    batch, channels, n1, n2 = field.shape
    m, k, n_images = leading.shape[1], last.shape[0] // 2, batch * channels
    by_leading = name == "leading_gradient"
    matrix, other = (leading, last) if by_leading else (last, leading)
    task = problem(name, field, m, k)
    config = config or choose(task)
    t = tiles(task)
    n_tiles = triton.cdiv(n1, config.rows) if by_leading else triton.cdiv(n2, config.cols)
    n_splits = max(1, min(n_images, N_PROGRAMS // n_tiles))
    partial = torch.empty(n_splits, *matrix.shape, dtype=torch.float32, device=field.device)
    kernel = leading_gradient_2d if by_leading else last_gradient_2d
    with device_of(field):
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
    return partial.sum(0)


def _start_aligned(*tensors: Tensor | None) -> bool:
    """Whether all begin at multiples of 16 bytes, as the tensor memory accelerator needs it."""
    return all(t is None or t.data_ptr() % 16 == 0 for t in tensors)
