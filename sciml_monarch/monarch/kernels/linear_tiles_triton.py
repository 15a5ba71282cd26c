"""Triton kernels of the Monarch linear layer: products with block-diagonal factors that permute nothing in memory.

A Monarch product is two block-diagonal products with a fixed regrouping of the coordinates after each. Each kernel
here is one block-diagonal product over all tokens; the regroupings are only *where* a block reads and writes its
columns, told by a ``Side``. With ``l`` blocks in the second factor, entry ``j`` of the inner vector belongs to
block ``j % l`` and entry ``i`` of a block's output to column ``i * l + block``: columns of one block lie ``l`` apart.
Two ways to keep memory accesses wide all the same:

- *regrouped* (few large blocks): the first product writes the inner vector block after block, in runs of ``q / l``
  columns, which costs nothing since only rows of ``w1`` are taken in another order. The output is put together from
  several blocks in one program, so that runs of as many columns are written.
- *batched* (many small blocks): a program takes neighbouring blocks, reads and writes runs of as many columns and
  multiplies all of them by one batched product.
"""

# What a kernel is launched with types it.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# mypy: disable-error-code="no-untyped-def, assignment, union-attr"

import triton
import triton.language as tl

from sciml_monarch.monarch.kernels.products_triton import dot


@triton.jit
def columns_of(c, block, SIDE: tl.constexpr):
    """The columns of a block's entries ``c``, their indices in the weight, and whether they exist."""
    if SIDE[4] == 0:
        column = block * SIDE[0] + c * SIDE[1]
        index = c
        exists = (c < SIDE[2]) & (column < SIDE[3])
    else:
        # the inner entries from block * q on: i * l + run belongs to block `run` of the second factor, as its entry i
        run = c // SIDE[4]
        if SIDE[5] % SIDE[6] == 0:
            i = block * SIDE[4] + c % SIDE[4]
            exists = c < SIDE[2]
        else:
            i = (block * SIDE[5] - run + SIDE[6] - 1) // SIDE[6] + c % SIDE[4]
            exists = (c < SIDE[2]) & (i * SIDE[6] + run < (block + 1) * SIDE[5])
        column = run * SIDE[7] + i
        index = i * SIDE[6] + run - block * SIDE[5]
    return column, index, exists


@triton.jit
def _join(accs, GROUPS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr):
    """Puts the columns of neighbouring blocks side by side: column ``c`` of block ``b`` becomes ``c * GROUPS + b``."""
    if GROUPS == 4:
        y = tl.join(tl.join(accs[0], accs[2]), tl.join(accs[1], accs[3]))
    elif GROUPS == 2:
        y = tl.join(accs[0], accs[1])
    else:
        y = accs[0]
    return tl.reshape(y, (TOKENS, COLUMNS * GROUPS))


@triton.jit
def _store(
    y,
    bias_ptr,
    y_ptr,
    tile,
    block,
    column,
    tokens,
    y_row,
    OUT: tl.constexpr,
    N_BLOCKS: tl.constexpr,
    BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    c = tl.arange(0, COLUMNS * GROUPS)
    if GROUPS == 1:
        place, _, exists = columns_of(column + c, block, OUT)
    elif OUT[1] == GROUPS and OUT[0] == 1:  # all blocks at once: one stretch of memory
        place = column * GROUPS + c
        exists = (column + c // GROUPS < OUT[2]) & (place < OUT[3])
    else:
        place, _, exists = columns_of(column + c // GROUPS, block + c % GROUPS, OUT)
        exists = exists & (block + c % GROUPS < N_BLOCKS)
    if BIAS:
        y += tl.load(bias_ptr + place, mask=exists, other=0.0).to(tl.float32)[None, :]
    t = tl.arange(0, TOKENS)
    here = y_ptr + tile.to(tl.int64) * TOKENS * y_row + t[:, None] * y_row + place[None, :]
    tl.store(here, y.to(y_ptr.dtype.element_ty), mask=(tile * TOKENS + t < tokens)[:, None] & exists[None, :])


@triton.jit
def product_tile(
    x_ptr,  # (tokens, ...), row stride x_row
    w_ptr,  # block, output and input W[0], W[1], W[2] apart
    bias_ptr,  # by the output's column, if BIAS
    y_ptr,  # (tokens, ...), row stride y_row
    tile,
    part,
    tokens,
    x_row,
    y_row,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    W: tl.constexpr,
    N_BLOCKS: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """A tile of tokens and of the outputs of GROUPS blocks."""
    n_columns: tl.constexpr = (OUT[2] + COLUMNS - 1) // COLUMNS
    block = part // n_columns * GROUPS
    column = part % n_columns * COLUMNS
    c = column + tl.arange(0, COLUMNS)
    t = tl.arange(0, TOKENS)
    rows = x_ptr + tile.to(tl.int64) * TOKENS * x_row + t[:, None] * x_row
    accs = ()
    for _b in tl.static_range(GROUPS):
        accs = accs + (tl.zeros((TOKENS, COLUMNS), tl.float32),)
    for m0 in range(0, IN[2], DEPTH):
        m = m0 + tl.arange(0, DEPTH)
        sums = ()
        for b in tl.static_range(GROUPS):
            _yc, wc, has_c = columns_of(c, block + b, OUT)
            xc, wm, has_x = columns_of(m, block + b, IN)
            x = tl.load(rows + xc[None, :], mask=(tile * TOKENS + t < tokens)[:, None] & has_x[None, :], other=0.0)
            has_w = has_x[:, None] & has_c[None, :] & (block + b < N_BLOCKS)
            place = (block + b) * W[0] + wc[None, :] * W[1] + wm[:, None] * W[2]
            w = tl.load(w_ptr + place, mask=has_w, other=0.0)
            sums = sums + (dot(x, w, accs[b], PRECISION),)
        accs = sums
    y = _join(accs, GROUPS, TOKENS, COLUMNS)
    _store(y, bias_ptr, y_ptr, tile, block, column, tokens, y_row, OUT, N_BLOCKS, BIAS, TOKENS, COLUMNS, GROUPS)


@triton.jit
def product_stream(
    x_ptr,  # as in product_tile
    w_ptr,
    bias_ptr,
    y_ptr,
    part,
    first,
    step,
    tokens,
    x_row,
    y_row,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    W: tl.constexpr,
    N_BLOCKS: tl.constexpr,
    BIAS: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The same for every ``step``-th tile of tokens, with weights that are read once."""
    n_columns: tl.constexpr = (OUT[2] + COLUMNS - 1) // COLUMNS
    block = part // n_columns * GROUPS
    column = part % n_columns * COLUMNS
    c = column + tl.arange(0, COLUMNS)
    t = tl.arange(0, TOKENS)
    m = tl.arange(0, DEPTH)
    ws = ()
    for b in tl.static_range(GROUPS):
        _yc, wc, has_c = columns_of(c, block + b, OUT)
        xc, wm, has_m = columns_of(m, block + b, IN)
        has_w = has_m[:, None] & has_c[None, :] & (block + b < N_BLOCKS)
        place = (block + b) * W[0] + wc[None, :] * W[1] + wm[:, None] * W[2]
        ws = ws + (tl.load(w_ptr + place, mask=has_w, other=0.0),)
    n_tiles = tl.cdiv(tokens, TOKENS)
    for i in range(first, n_tiles, step):
        tile = n_tiles - 1 - i if REVERSE else i
        rows = x_ptr + tile.to(tl.int64) * TOKENS * x_row + t[:, None] * x_row
        accs = ()
        for b in tl.static_range(GROUPS):
            xc, wm, has_x = columns_of(m, block + b, IN)
            x = tl.load(rows + xc[None, :], mask=(tile * TOKENS + t < tokens)[:, None] & has_x[None, :], other=0.0)
            accs = accs + (dot(x, ws[b], tl.zeros((TOKENS, COLUMNS), tl.float32), PRECISION),)
        y = _join(accs, GROUPS, TOKENS, COLUMNS)
        _store(y, bias_ptr, y_ptr, tile, block, column, tokens, y_row, OUT, N_BLOCKS, BIAS, TOKENS, COLUMNS, GROUPS)


@triton.jit
def _weights_of(w_ptr, c, m, g, IN: tl.constexpr, OUT: tl.constexpr, W: tl.constexpr, N_BLOCKS: tl.constexpr):
    has_w = (m < IN[2])[None, :, None] & (c < OUT[2])[None, None, :] & (g < N_BLOCKS)[:, None, None]
    place = g[:, None, None] * W[0] + c[None, None, :] * W[1] + m[None, :, None] * W[2]
    return tl.load(w_ptr + place, mask=has_w, other=0.0)


@triton.jit
def batched_stream(
    x_ptr,  # as in product_tile
    w_ptr,
    bias_ptr,
    y_ptr,
    part,
    first,
    last,
    step,
    tokens,
    x_row,
    y_row,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    W: tl.constexpr,
    N_BLOCKS: tl.constexpr,
    BIAS: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUPS: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Every ``step``-th tile of tokens; neighbouring columns belong to neighbouring blocks, GROUPS of them at once."""
    n_groups: tl.constexpr = (N_BLOCKS + GROUPS - 1) // GROUPS
    # programs of neighbouring blocks and the same tokens follow each other: they share sectors of memory
    g = part % n_groups * GROUPS + tl.arange(0, GROUPS)
    c = part // n_groups * COLUMNS + tl.arange(0, COLUMNS)
    t = tl.arange(0, TOKENS)
    m = tl.arange(0, DEPTH)
    yc, _wc, has_y = columns_of(c[None, :], g[:, None], OUT)
    has_y = has_y & (g < N_BLOCKS)[:, None]
    if RESIDENT:
        w = _weights_of(w_ptr, c, m, g, IN, OUT, W, N_BLOCKS)
    n_tiles = tl.cdiv(tokens, TOKENS)
    for i in range(first, last, step):
        tile = n_tiles - 1 - i if REVERSE else i
        has_t = (tile * TOKENS + t < tokens)[None, :, None]
        rows = x_ptr + tile.to(tl.int64) * TOKENS * x_row + t[None, :, None] * x_row
        acc = tl.zeros((GROUPS, TOKENS, COLUMNS), tl.float32)
        if RESIDENT:
            xc, _wm, has_x = columns_of(m[None, :], g[:, None], IN)
            has_x = has_x & (g < N_BLOCKS)[:, None]
            x = tl.load(rows + xc[:, None, :], mask=has_t & has_x[:, None, :], other=0.0)
            acc = dot(x, w, acc, PRECISION)
        else:
            for m0 in range(0, IN[2], DEPTH):
                xc, _wm, has_x = columns_of(m0 + m[None, :], g[:, None], IN)
                has_x = has_x & (g < N_BLOCKS)[:, None]
                x = tl.load(rows + xc[:, None, :], mask=has_t & has_x[:, None, :], other=0.0)
                acc = dot(x, _weights_of(w_ptr, c, m0 + m, g, IN, OUT, W, N_BLOCKS), acc, PRECISION)
        if BIAS:
            acc += tl.load(bias_ptr + yc, mask=has_y, other=0.0).to(tl.float32)[:, None, :]
        here = y_ptr + tile.to(tl.int64) * TOKENS * y_row + t[None, :, None] * y_row + yc[:, None, :]
        tl.store(here, acc.to(y_ptr.dtype.element_ty), mask=has_t & has_y[:, None, :])
