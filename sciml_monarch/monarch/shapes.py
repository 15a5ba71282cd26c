"""Sizes of the two factors: how many blocks, and how wide the space between them."""

import math

from sciml_monarch.errors import InputError


def factor_pair(n: int) -> tuple[int, int]:
    """Splits ``n`` into the two factors nearest to ``sqrt(n)``, the larger one first.

    A prime has only the pair ``(n, 1)``: its Monarch matrix is one dense block.

    Args:
        n: Size to split, at least 1.

    Returns:
        ``(larger, smaller)`` with ``larger * smaller == n``.

    Raises:
        InputError: If ``n`` is below 1.
    """
    if n < 1:
        raise InputError(f"a size must be at least 1, but got {n}")
    smaller = next(i for i in range(math.isqrt(n), 0, -1) if n % i == 0)
    return n // smaller, smaller


def block_counts(m: int, n: int, blocks: int | tuple[int, int] | None) -> tuple[int, int]:
    """Finds the numbers of blocks ``(k, l)`` of the two factors of an ``m x n`` matrix.

    Args:
        m: Rows.
        n: Columns.
        blocks: Blocks of both factors, or ``(k, l)`` for the first and the second factor. ``None`` takes for
            ``k`` the larger of the factor pair of ``n`` nearest to ``sqrt(n)``, and for ``l`` the smaller of
            that of ``m``, so that ``k * l == n`` where the matrix is square.

    Returns:
        ``(k, l)``; ``k`` divides ``n`` and ``l`` divides ``m``.

    Raises:
        InputError: If a number of blocks is below 1 or does not divide its side of the matrix.
    """
    if blocks is None:
        return factor_pair(n)[0], factor_pair(m)[1]
    k, l = (blocks, blocks) if isinstance(blocks, int) else blocks
    for count, size, side in ((k, n, "columns"), (l, m, "rows")):
        if size < 1:
            raise InputError(f"a size must be at least 1, but got {size} {side}")
        if count < 1 or size % count:
            divisors = [i for i in range(1, size + 1) if size % i == 0]
            raise InputError(f"{count} blocks do not divide {size} {side}; choose one of {divisors}")
    return k, l


def inner_width(m: int, n: int, k: int, l: int, rank: int | None) -> int:
    """Finds ``q``, the rows of each block of the first factor.

    The ``m x n`` matrix consists of ``k * l`` sub-blocks of size ``(m / l) x (n / k)``. ``k * q`` inner
    coordinates are dealt to them in turn, so that a sub-block has rank ``q / l`` where ``l`` divides ``q``.

    Args:
        m: Rows, a multiple of ``l``.
        n: Columns, a multiple of ``k``.
        k: Blocks of the first factor.
        l: Blocks of the second factor.
        rank: Rank of every sub-block. ``None`` is the choice of the Monarch paper (arXiv 2204.00595): blocks
            as wide inside as at their narrower side, ``q = min(n / k, m / l)``, where ``k == l``. Where the
            numbers differ it is the nearest equal rank below, at least 1.

    Returns:
        ``q``; ``l`` divides ``k * q``.

    Raises:
        InputError: If ``rank`` is below 1 or above the smaller side of a sub-block.
    """
    full = min(n // k, m // l)
    if rank is None:
        return full if k == l else l * max(1, full // max(k, l))
    if not 1 <= rank <= full:
        raise InputError(
            f"rank {rank} is outside 1..{full}: the sub-blocks are {m // l} x {n // k}; "
            "take fewer blocks for a higher rank"
        )
    return l * rank


def is_smaller(in_features: int, out_features: int, blocks: int | tuple[int, int], rank: int | None = None) -> bool:
    """Whether the Monarch form of a layer exists and has fewer weights than the dense one.

    Args:
        in_features: Entries of an input.
        out_features: Entries of an output.
        blocks: Blocks of both factors, or ``(k, l)``; sizes that they do not divide are padded.
        rank: Rank of every sub-block; ``None``: as in :func:`inner_width`.

    Raises:
        InputError: ``blocks`` or ``rank`` is less than 1.
    """
    k, l = (blocks, blocks) if isinstance(blocks, int) else blocks
    if min(k, l) < 1 or (rank is not None and rank < 1):
        raise InputError(f"blocks {blocks} and rank {rank} must be at least 1")
    if k > in_features or l > out_features:
        return False
    p, s = -(-in_features // k), -(-out_features // l)
    if rank is not None and rank > min(p, s):
        return False
    q = inner_width(s * l, p * k, k, l, rank)
    return k * q * (p + s) < in_features * out_features
