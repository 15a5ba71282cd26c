"""The product of two tiles on the tensor cores, in each precision that a kernel may be asked for."""

# What a kernel is launched with types it; a branch on a constant needs its else.
# ruff: noqa: ANN001, ANN201, ANN202, RET505
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _to_tf32(x):
    """The nearest TF32 numbers: the tensor cores take float32 numbers too, but drop their last 13 bits.

    That makes each operand smaller, so that the errors of a sum do not cancel. The interpreter, which multiplies at
    float32's accuracy, has no instructions of a GPU.
    """
    if INTERPRETED:
        return x
    else:
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def round_kernel(x, out, n, BLOCK: tl.constexpr):
    """Writes the nearest TF32 numbers of ``n`` numbers. Grid: blocks."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, _to_tf32(tl.load(x + at, mask=at < n)), mask=at < n)


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """An operand of :func:`dot_rounded`: what is multiplied several times is rounded once."""
    if PRECISION == "tf32":
        return _to_tf32(x)
    elif PRECISION == "bf16":
        return x.to(tl.bfloat16)
    else:
        return x


@triton.jit
def dot_rounded(a, b, acc, PRECISION: tl.constexpr):
    """What :func:`dot` computes, of operands that :func:`rounded` has made."""
    if PRECISION == "bf16" or PRECISION == "native":
        return tl.dot(a, b, acc)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a b`` with float32 sums; of tiles with three axes, products of the last two.

    ``PRECISION`` is what :func:`~sciml_monarch.monarch.kernels.backend.dot_precision` gives, or "tf32_left": TF32 where
    ``b`` has been rounded before. The tensor cores take the left operand from registers, where it can be rounded, but
    the right one from shared memory only: rounding it takes a way to the registers and back.
    """
    if PRECISION == "tf32_left":
        return dot_rounded(_to_tf32(a), b, acc, "tf32")
    else:
        return dot_rounded(rounded(a, PRECISION), rounded(b, PRECISION), acc, PRECISION)
