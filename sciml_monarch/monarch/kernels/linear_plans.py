"""Which tile sizes the Monarch linear layer's kernels take for a shape, and which are to be measured."""

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache

from sciml_monarch.monarch.kernels.backend import KERNEL_SHARED_BYTES
from sciml_monarch.monarch.kernels.linear_configs import (
    SCRATCH_BYTES,
    Plan,
    ProductConfig,
    Sizes,
    WeightConfig,
    fits,
    run_length,
)

N_MULTIPROCESSORS = 132  # of an H200; what a smaller or larger device has changes speed only


def measured_faster(sizes: Sizes, n_tokens: int, itemsize: int, replayed: bool = False) -> bool:
    """Whether kernels were measured to be faster than plain torch, at this shape or a smaller one.

    On an H200 in bfloat16 (``results/speed_h200/linear.json``), from 4 blocks on: 4096 -> 4096, 16,384 tokens; where
    launches are replayed all sizes from 768 on with 16,384 tokens and from 4096 on with 2,048.

    Args:
        sizes: Sizes of the layer.
        n_tokens: Rows of the input.
        itemsize: Bytes of an entry.
        replayed: Whether only the GPU's time counts, see :func:`~sciml_monarch.monarch.kernels.backend.replayed`.
    """
    if itemsize != 2 or min(sizes.k, sizes.l) < 4:
        return False
    if dense_pays(sizes, n_tokens, itemsize, replayed):
        return False
    if replayed:
        return min(sizes.n_in, sizes.n_out) >= 768 and n_tokens * max(sizes.n_in, sizes.n_out) >= 2048 * 4096
    return n_tokens >= 16384 and min(sizes.n_in, sizes.n_out) >= 4096


def dense_pays(sizes: Sizes, n_tokens: int, itemsize: int, replayed: bool = False) -> bool:
    """Whether it is faster to multiply the factors out first: small matrices, many tokens.

    Measured in graphs with 16,384 tokens from 768 features on (``results/speed_h200/linear.json``). Fewer features, and
    the bound outside of graphs, where a processor takes longer to begin the products that make the matrix, are
    estimates from these rows.

    Args:
        sizes: Sizes of the layer.
        n_tokens: Rows of the input.
        itemsize: Bytes of an entry.
        replayed: As in :func:`measured_faster`.
    """
    small = max(sizes.n_in, sizes.n_out) <= 1024 or (sizes.n_in <= min(1024, sizes.n_out) and sizes.l >= 16)
    return itemsize == 2 and small and n_tokens * (sizes.n_in + sizes.n_out) >= (2**23 if replayed else 2**26)


@lru_cache(maxsize=4096)  # a layer asks at every pass; numbers of tokens vary
def choose(sizes: Sizes, n_tokens: int, itemsize: int, regrouped: bool | None = None) -> Plan:
    """Chooses a plan by counted bytes and operations.

    Args:
        sizes: Sizes of the layer.
        n_tokens: Rows of the input.
        itemsize: Bytes of an entry of what is multiplied.
        regrouped: The order of the inner vector; ``None``: chosen too.

    Returns:
        The plan.
    """
    k, q, p, l, s, r, _, _ = sizes
    if regrouped is None:
        # runs of a sector of memory, or of half of one where the products are large enough for wide tiles
        run_bytes = run_length(sizes) * itemsize
        regrouped = l == 1 or run_bytes >= 32 or (run_bytes >= 16 and min(p, r) >= 96)
    tokens = min(128, max(16, _power(n_tokens)))
    inner = run_length(sizes) * l
    first = _product(tokens, inner if regrouped else q, p, itemsize)
    first_back = _product(tokens, p, inner if regrouped else q, itemsize)
    if regrouped:
        second = _joined(tokens, s, r, l, itemsize)
        second_back = _product(tokens, r, s, itemsize)
        second_weight = _weight(s, r, l, n_tokens, itemsize)
    else:
        second, second_back = _batched(s, r, l, itemsize), _batched(r, s, l, itemsize)
        second_weight = _batched_weight(s, r, l, n_tokens, itemsize)
    first_weight = _weight(inner if regrouped else q, p, k, n_tokens, itemsize)
    return Plan(0, int(regrouped), first, second, second_back, first_back, first_weight, second_weight)


def candidates(sizes: Sizes, n_tokens: int, itemsize: int) -> Iterator[Plan]:
    """Plans to be measured: in either order of the inner vector one, and all that differ from it in one entry.

    The configurations do not act on each other but through that order, so that the best of each may be put together.

    Args:
        sizes: Sizes of the layer.
        n_tokens: Rows of the input.
        itemsize: Bytes of an entry of what is multiplied.

    Yields:
        The chosen plan first.
    """
    chosen = choose(sizes, n_tokens, itemsize)
    for plan in (chosen, choose(sizes, n_tokens, itemsize, not chosen.regrouped)):
        yield plan
        variants = itertools.chain(*alternatives(plan, sizes, n_tokens, itemsize).values())
        yield from (variant for variant in variants if variant != plan)


def alternatives(chosen: Plan, sizes: Sizes, n_tokens: int, itemsize: int) -> dict[str, list[Plan]]:
    """Plans that differ from a chosen one in one entry, by the name of that entry.

    Args:
        chosen: A plan; its order of the inner vector stays.
        sizes: Sizes of the layer.
        n_tokens: Rows of the input.
        itemsize: Bytes of an entry of what is multiplied.

    Returns:
        For every field of :class:`Plan` but the order its plans; those of ``fused`` differ in ``first`` too.
    """
    k, q, p, l, s, r, _, _ = sizes
    fused = [
        chosen._replace(fused=tokens, first=ProductConfig(tokens, _tile(q, columns), _tile(p, depth), warps=8))
        for tokens in (64, 128)
        for columns, depth in ((128, 64), (256, 64), (256, 256), (64, 64))
    ]
    runs = run_length(sizes) * l if chosen.regrouped else q
    batched = not chosen.regrouped
    products = {
        "first": _products(runs, p, k, itemsize, 1, False),
        "first_back": _products(p, runs, k, itemsize, 1, False),
        "second": _products(s, r, l, itemsize, 16 if batched else 4, batched),
        "second_back": _products(r, s, l, itemsize, 16 if batched else 1, batched),
    }
    weights = {
        "first_weight": _weights(runs, p, k, n_tokens, itemsize, False),
        "second_weight": _weights(s, r, l, n_tokens, itemsize, batched),
    }
    found = {"fused": [plan for plan in fused if fits(plan.first, itemsize)]}
    found |= {name: [chosen._replace(**{name: c}) for c in configs] for name, configs in products.items()}  # type: ignore[arg-type]
    return found | {name: [chosen._replace(**{name: c}) for c in configs] for name, configs in weights.items()}  # type: ignore[arg-type]


def _power(n: int) -> int:
    """The next power of two from ``n`` on."""
    return 1 << max(0, n - 1).bit_length()


def _tile(size: int, largest: int) -> int:
    """A tile that covers ``size`` where it can; 16 is the least that tensor cores multiply."""
    return max(16, min(largest, _power(size)))


def _warps(size: int) -> int:
    """As many warps as keep the sums of a tile to 64 registers a thread where 8 can; float32 needs more beside them."""
    return 4 if size <= 2 * 64 * 128 else 8


def _resident(config: ProductConfig, depth: int, itemsize: int) -> ProductConfig:
    """The configuration with its weights on the chip, and as many programs as run at a time."""
    whole = config._replace(depth=_tile(depth, 4096), programs=N_MULTIPROCESSORS)
    at_a_time = KERNEL_SHARED_BYTES // (whole.shared_bytes(itemsize) + SCRATCH_BYTES)
    return whole._replace(programs=N_MULTIPROCESSORS * max(1, min(4, at_a_time)))


def _product(tokens: int, columns: int, depth: int, itemsize: int) -> ProductConfig:
    """Rows of blocks in, rows of blocks out: weights stay on the chip where they fit, else a tiled product."""
    for largest, stages in ((128, 3), (64, 3), (64, 2)):
        rows, wide = min(tokens, largest), _tile(columns, 128)
        whole = _resident(
            ProductConfig(rows, wide, 0, warps=_warps(rows * wide * itemsize), stages=stages), depth, itemsize
        )
        if depth * 4 > 3 * whole.depth and fits(whole, itemsize):  # else a quarter of the work is on zeros
            return whole
    wide = _tile(columns, 256 if itemsize == 2 else 128)
    return ProductConfig(tokens, wide, _tile(depth, 128 // itemsize), warps=_warps(tokens * wide * itemsize), stages=3)


def _joined(tokens: int, columns: int, depth: int, blocks: int, itemsize: int) -> ProductConfig:
    """Rows of blocks in, neighbouring blocks put together on the way out."""
    # the larger the product, the more its rate counts (wide tiles) and the less the width of its stores
    groups = min(_power(blocks), 2 if depth >= 512 else 4)
    wide = 256 if itemsize == 2 else 128
    return ProductConfig(
        tokens, _tile(columns, wide // groups), _tile(depth, 128 // itemsize), groups, warps=8, stages=3 - groups // 4
    )


def _batched(columns: int, depth: int, blocks: int, itemsize: int) -> ProductConfig:
    """Neighbouring blocks in and out, of the fewest tokens: blocks are many instead."""
    groups = min(16, _power(blocks))
    config = ProductConfig(16, _tile(columns, 64), _tile(depth, 64), groups, 1, 0, 8, 2)
    if config.depth >= depth:
        config = config._replace(programs=N_MULTIPROCESSORS)
    while not fits(config, itemsize):
        config = config._replace(groups=config.groups // 2)
    return config


def _weight(rows: int, columns: int, blocks: int, n_tokens: int, itemsize: int) -> WeightConfig:
    wide = 256 if itemsize == 2 else 128
    config = WeightConfig(_tile(rows, 128), _tile(columns, wide), 64, 1, 1, 8, 3)
    config = config._replace(warps=_warps(config.rows * config.columns * itemsize))
    return _split(config, rows, columns, blocks, n_tokens, itemsize)


def _batched_weight(rows: int, columns: int, blocks: int, n_tokens: int, itemsize: int) -> WeightConfig:
    config = WeightConfig(_tile(rows, 32), _tile(columns, 32), 32, min(16, _power(blocks)), 1, 8, 3)
    while not fits(config, itemsize):
        config = config._replace(groups=config.groups // 2)
    return _split(config, rows, columns, blocks, n_tokens, itemsize)


def _split(config: WeightConfig, rows: int, columns: int, blocks: int, n_tokens: int, itemsize: int) -> WeightConfig:
    """As many parts as keep the device busy, of at least a few steps each."""
    tiles = math.prod(-(-a // b) for a, b in ((rows, config.rows), (columns, config.columns), (blocks, config.groups)))
    at_a_time = max(1, min(4, KERNEL_SHARED_BYTES // (config.shared_bytes(itemsize) + SCRATCH_BYTES)))
    parts = min(at_a_time * N_MULTIPROCESSORS // tiles, n_tokens // (4 * config.tokens))
    return config._replace(splits=max(1, parts))


def _products(
    columns: int, depth: int, blocks: int, itemsize: int, groups: int, batched: bool
) -> Iterator[ProductConfig]:
    seen = set()
    for g, tokens, wide, (warps, stages) in itertools.product(
        [g for g in ((4, 8, 16) if batched else (1, 2, 4)) if g <= min(groups, _power(blocks))],
        (16, 32) if batched else (64, 128, 256),
        (64,) if batched else (64, 128, 256),
        ((4, 2), (4, 3), (8, 2), (8, 3), (8, 4)),
    ):
        tiled = ProductConfig(
            tokens, _tile(columns, wide), _tile(depth, 128 // itemsize), g, int(batched), 0, warps, stages
        )
        for config in (tiled, _resident(tiled, depth, itemsize)):
            busy = config.registers() >= (8 if batched else min(32, 4 * _power(columns)))
            if config not in seen and fits(config, itemsize) and busy:
                seen.add(config)
                yield config


def _weights(
    rows: int, columns: int, blocks: int, n_tokens: int, itemsize: int, batched: bool
) -> Iterator[WeightConfig]:
    seen = set()
    for g in [g for g in ((2, 4, 8, 16) if batched else (1,)) if g <= _power(blocks)]:
        for tall, wide in (
            ((32, 32), (32, 64), (64, 64)) if batched else ((64, 128), (64, 256), (128, 128), (128, 256), (256, 128))
        ):
            for tokens, warps, stages in ((32, 4, 3), (32, 8, 4), (64, 4, 3), (64, 8, 2), (64, 8, 3)):
                config = WeightConfig(_tile(rows, tall), _tile(columns, wide), tokens, g, 1, warps, stages)
                config = _split(config, rows, columns, blocks, n_tokens, itemsize)
                for splits in {config.splits, max(1, config.splits // 2), 2 * config.splits}:
                    variant = config._replace(splits=splits)
                    if variant not in seen and fits(variant, itemsize):
                        seen.add(variant)
                        yield variant
