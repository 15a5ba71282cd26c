"""Products with a thin matrix, whose one side is a number of modes and whose other side has very many rows.

Three kernels: ``z = M x^T``, its transpose ``x = y^T M^T`` and the gradient of the matrix, ``y x``. Modes lie as
``(group, modes, rows)``, so that every axis in turn is the last one of what is transformed. A number of modes is
padded on the chip only, to a power of two or to the sum of two: 66 to 64 + 16, not to 128.
"""

# What a kernel is launched with types it; a branch on a constant needs its else.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.products_triton import dot


@triton.jit
def narrow_kernel(
    x,
    matrix,
    out,
    n_rows,
    COLUMNS: tl.constexpr,
    MODES: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes ``(groups, MODES, n_rows)`` of rows ``(groups, n_rows, COLUMNS)`` and a matrix ``(MODES, COLUMNS)``.

    Grid: row tiles, mode tiles, groups.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mode = tl.program_id(1) * (MAIN + REST) + tl.arange(0, MAIN)
    group = tl.program_id(2).to(tl.int64)
    first = x + group * n_rows * COLUMNS + row.to(tl.int64)[:, None] * COLUMNS
    acc = tl.zeros((ROWS, MAIN), tl.float32)
    if REST > 0:
        mode_rest = tl.program_id(1) * (MAIN + REST) + MAIN + tl.arange(0, REST)
        acc_rest = tl.zeros((ROWS, REST), tl.float32)
    for column0 in tl.range(0, COLUMNS, DEPTH, num_stages=STAGES):
        column = column0 + tl.arange(0, DEPTH)
        inside = column[None, :] < COLUMNS
        values = tl.load(first + column[None, :], mask=inside & (row[:, None] < n_rows), other=0.0)
        at = matrix + mode[:, None] * COLUMNS + column[None, :]
        m = tl.load(at, mask=inside & (mode[:, None] < MODES), other=0.0)
        acc = dot(values, tl.trans(m), acc, PRECISION)
        if REST > 0:
            at = matrix + mode_rest[:, None] * COLUMNS + column[None, :]
            m = tl.load(at, mask=inside & (mode_rest[:, None] < MODES), other=0.0)
            acc_rest = dot(values, tl.trans(m), acc_rest, PRECISION)
    dtype: tl.constexpr = out.dtype.element_ty
    out += group * MODES * n_rows
    at = out + mode.to(tl.int64)[None, :] * n_rows + row[:, None]
    tl.store(at, acc.to(dtype), mask=(row[:, None] < n_rows) & (mode[None, :] < MODES))
    if REST > 0:
        at = out + mode_rest.to(tl.int64)[None, :] * n_rows + row[:, None]
        tl.store(at, acc_rest.to(dtype), mask=(row[:, None] < n_rows) & (mode_rest[None, :] < MODES))


@triton.jit
def widen_kernel(
    y,
    matrix,
    skip,
    bias,
    out,
    before,
    n_rows,
    rows_of_channel,
    n_channels,
    COLUMNS: tl.constexpr,
    MODES: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes rows ``(groups, n_rows, COLUMNS)`` from ``(groups, MODES, n_rows)`` and a matrix ``(COLUMNS, MODES)``.

    Adds rows of ``skip`` and a number of ``bias`` for each channel where these are not ``None``. ``GELU`` writes what
    goes into the activation to ``before`` and its output to ``out``. Grid: row tiles, column tiles, groups.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLS + tl.arange(0, COLS)
    group = tl.program_id(2).to(tl.int64)
    y += group * MODES * n_rows
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for mode0 in tl.range(0, MODES, DEPTH, num_stages=STAGES):
        mode = mode0 + tl.arange(0, DEPTH)
        at = y + mode.to(tl.int64)[:, None] * n_rows + row[None, :]
        values = tl.load(at, mask=(mode[:, None] < MODES) & (row[None, :] < n_rows), other=0.0)
        at = matrix + column[:, None] * MODES + mode[None, :]
        m = tl.load(at, mask=(column[:, None] < COLUMNS) & (mode[None, :] < MODES), other=0.0)
        acc = dot(tl.trans(values), tl.trans(m), acc, PRECISION)
    at = (group * n_rows + row.to(tl.int64))[:, None] * COLUMNS + column[None, :]
    inside = (row[:, None] < n_rows) & (column[None, :] < COLUMNS)
    if bias is not None:
        acc += tl.load(bias + (row // rows_of_channel) % n_channels).to(tl.float32)[:, None]
    if skip is not None:
        acc += tl.load(skip + at, mask=inside, other=0.0).to(tl.float32)
    dtype: tl.constexpr = out.dtype.element_ty
    stored = acc.to(dtype)
    if GELU:
        tl.store(before + at, stored, mask=inside)
        acc = stored.to(tl.float32)  # what the backward pass will see
        stored = (0.5 * acc * (1.0 + tl.math.erf(acc * 0.7071067811865476))).to(dtype)
    tl.store(out + at, stored, mask=inside)


@triton.jit
def weigh_kernel(
    y,
    x,
    partial,
    n_rows,
    n_groups,
    COLUMNS: tl.constexpr,
    MODES: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes partial sums ``(splits, MODES, COLUMNS)`` over rows of ``(groups, MODES, n_rows)`` times rows of ``x``.

    Torch adds them up: no atomic additions, the same result every time. Grid: column tiles, mode tiles, splits.
    """
    column = tl.program_id(0) * COLS + tl.arange(0, COLS)
    mode = tl.program_id(1) * (MAIN + REST) + tl.arange(0, MAIN)
    split = tl.program_id(2)
    acc = tl.zeros((COLS, MAIN), tl.float32)
    if REST > 0:
        mode_rest = tl.program_id(1) * (MAIN + REST) + MAIN + tl.arange(0, REST)
        acc_rest = tl.zeros((COLS, REST), tl.float32)
    tiles = tl.cdiv(n_rows, ROWS)
    for tile in tl.range(split, tiles * n_groups, tl.num_programs(2), num_stages=STAGES):
        group = (tile // tiles).to(tl.int64)
        row = (tile % tiles) * ROWS + tl.arange(0, ROWS)
        at = x + (group * n_rows + row)[:, None] * COLUMNS + column[None, :]
        values = tl.load(at, mask=(row[:, None] < n_rows) & (column[None, :] < COLUMNS), other=0.0)
        at = y + (group * MODES + mode)[:, None] * n_rows + row[None, :]
        weights = tl.load(at, mask=(mode[:, None] < MODES) & (row[None, :] < n_rows), other=0.0)
        acc = dot(tl.trans(values), tl.trans(weights), acc, PRECISION)
        if REST > 0:
            at = y + (group * MODES + mode_rest)[:, None] * n_rows + row[None, :]
            weights = tl.load(at, mask=(mode_rest[:, None] < MODES) & (row[None, :] < n_rows), other=0.0)
            acc_rest = dot(tl.trans(values), tl.trans(weights), acc_rest, PRECISION)
    first = partial + split.to(tl.int64) * MODES * COLUMNS
    inside = column[:, None] < COLUMNS
    tl.store(first + mode[None, :] * COLUMNS + column[:, None], acc, mask=inside & (mode[None, :] < MODES))
    if REST > 0:
        at = first + mode_rest[None, :] * COLUMNS + column[:, None]
        tl.store(at, acc_rest, mask=inside & (mode_rest[None, :] < MODES))
