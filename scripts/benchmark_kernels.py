"""The kernels that ``benchmark.py --tune true`` times: what runs, with which configurations, and what is right."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from benchmark_jobs import Work
from benchmark_timing import Precision
from torch import Tensor

from sciml_monarch.monarch import MonarchLinear, MonarchTransform
from sciml_monarch.monarch.functional import Factors, multiply
from sciml_monarch.monarch.kernels import linear_plans, spectral_configs, spectral_products, transform_configs
from sciml_monarch.monarch.kernels import transform as transform_operator
from sciml_monarch.monarch.kernels.backend import dot_precision
from sciml_monarch.monarch.kernels.linear_configs import Plan, Sizes, sides

# relative errors against float64 beyond which a configuration computes something else
TOLERANCES = {"tf32x3": 1e-5, "tf32": 3e-3, "bf16": 2e-2, "native": 2e-2}

SPECTRAL = (
    "narrow",
    "widen",
    "widen with skip, bias and GELU",
    "weigh",
    "narrow_planes",
    "turn",
    "weigh_planes",
)
PRODUCTS = ("first", "second", "second_back", "first_back", "first_weight", "second_weight", "fused")
TRANSFORM = ("transform", "adjoint", "gradients of the factors")


class Spec(NamedTuple):
    """Which kernel, before anything is allocated.

    Attributes:
        work: The shape.
        part: Which kernel of those that the work needs.
        dtype: Of fields or tokens.
        precision: Of products of float32.
        variant: Of a linear layer 1 where the inner vector is regrouped; of a transform the axis.
    """

    work: Work
    part: str
    dtype: torch.dtype
    precision: Precision
    variant: int = 0

    @property
    def name(self) -> str:
        """For people, and for ``--only``."""
        kind, sizes = self.work.kind, self.work.sizes
        number = str(self.dtype)[6:]
        if kind == "linear":
            tokens, n_in, n_out, blocks = sizes
            order = "regrouped" if self.variant else "in place"
            return f"linear {self.part}, {n_in} -> {n_out}, {blocks} blocks, {tokens} tokens, {order}, {number}"
        if kind == "transform":
            axis = "last axis but one" if self.variant else "last axis"
            return f"{self.part}, " + "{} coils of {} x {}, ".format(*sizes) + f"{axis}, {number}"
        return f"spectral {self.part}, " + "batch {}, width {}, {}^2, {} modes, ".format(*sizes) + number


class Kernel(NamedTuple):
    """A kernel at a shape.

    Attributes:
        configs: What to time, the chosen one first, the others in a random order that is always the same: what a limit
            leaves out is not of one kind.
        run: What is timed.
        check: What is compared with ``exact``.
        exact: The same by plain torch in float64.
    """

    configs: Sequence[Any]
    run: Callable[[Any], Any]
    check: Callable[[Any], Sequence[Tensor]]
    exact: Callable[[], Sequence[Tensor]]


def specs(works: list[Work], only: list[str] | None) -> list[Spec]:
    """Every kernel at every shape of the table, in every precision."""
    found = dict.fromkeys(spec for work in works if not work.sweep for spec in _specs_of(work))
    return [s for s in found if only is None or any(word in f"{s.name} {s.precision}" for word in only)]


def _specs_of(work: Work) -> Iterator[Spec]:
    precisions: tuple[Precision, ...] = ("high", "highest", "medium")
    shape = Work("spectral" if work.kind in ("fno", "analysis", "synthesis") else work.kind, work.sizes)
    if shape.kind == "spectral":
        for precision in precisions:
            yield from (Spec(shape, part, torch.float32, precision) for part in SPECTRAL)
        yield from (Spec(shape, part, torch.bfloat16, "highest") for part in SPECTRAL)
    elif shape.kind == "linear":
        for regrouped in (1, 0):
            yield from (Spec(shape, part, work.dtype, "highest", regrouped) for part in PRODUCTS)
    else:
        for precision in precisions:
            for axis in (0, 1):
                yield from (Spec(shape, part, torch.float32, precision, axis) for part in TRANSFORM)


def prepare(spec: Spec, device: torch.device) -> Kernel:
    """Allocates what a kernel needs. Its precision is to be set around this and all that follows."""
    build = {"spectral": _spectral, "linear": _linear, "transform": _transform}[spec.work.kind]
    return build(spec, device)


def tolerance(spec: Spec) -> float:
    """The relative error that is allowed, at the precision that is set."""
    return TOLERANCES[dot_precision(spec.dtype)]


def tensors(found: Any) -> list[Tensor]:
    """The results among what a kernel returns."""
    return [found] if isinstance(found, Tensor) else [t for t in found if t is not None and t.numel()]


def _ordered(chosen: Any, candidates: Sequence[Any]) -> list[Any]:
    others = [config for config in dict.fromkeys(candidates) if config != chosen]
    random.Random(0).shuffle(others)
    return [chosen, *others]


def _spectral(spec: Spec, device: torch.device) -> Kernel:
    """One of the thin products of a convolution: of the last axis, or of planes of the other one."""
    from sciml_monarch.monarch.kernels import spectral_triton as kernels

    batch, width, n, modes = spec.work.sizes
    images, m, pairs = batch * width, 2 * modes, 2 * (modes + 1)
    kernel: spectral_configs.Kernel = next(k for k in spectral_configs.KERNELS if k == spec.part.split()[0])
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(spec.dtype)

    planes = kernel in spectral_configs.PLANES
    # of the field, or of its planes once the last axis is transformed
    groups, rows, kept = (2, images * pairs // 2, m) if planes else (1, images * n, pairs)
    x, y, matrix, bias = draw(groups, rows, n), draw(groups, kept, rows), draw(groups, kept, n), draw(width)
    matrix = matrix if planes else matrix[0]
    end = kernels.End(x, bias, n, True) if "GELU" in spec.part else None
    runs: dict[spectral_configs.Kernel, Callable[[Any], Any]] = {
        "narrow": lambda c: kernels.narrow(x, matrix, c),
        "widen": lambda c: kernels.widen(y, matrix.mT, end, c),
        "weigh": lambda c: kernels.weigh(y, x, c),
        "narrow_planes": lambda c: kernels.narrow_planes(x, matrix, False, width, c),
        "turn": lambda c: kernels.turn(y, matrix.mT, False, c),
        "weigh_planes": lambda c: kernels.weigh_planes(y, x, False, c),
    }

    def exact() -> list[Tensor]:
        by = spectral_products.TORCH
        wide_x, wide_y, wide = x.double(), y.double(), matrix.double()
        if kernel == "widen":
            out = by.widen(wide_y, wide.mT)
            if end is None:
                return [out]
            out = out + wide_x + bias.double().repeat_interleave(n).repeat(batch)[:, None]
            return [torch.nn.functional.gelu(out), out]
        others: dict[spectral_configs.Kernel, Callable[[], Tensor]] = {
            "narrow": lambda: by.narrow(wide_x, wide),
            "weigh": lambda: by.weigh(wide_y, wide_x),
            "narrow_planes": lambda: by.narrow_planes(wide_x, wide, False, width),
            "turn": lambda: by.turn(wide_y, wide.mT, False),
            "weigh_planes": lambda: by.weigh_planes(wide_y, wide_x, False),
        }
        return [others[kernel]()]

    problem = kernels.problem(kernel, x, n, kept)
    configs = _ordered(spectral_configs.choose(problem), list(spectral_configs.candidates(problem)))
    return Kernel(configs, runs[kernel], lambda config: tensors(runs[kernel](config)), exact)


def _linear(spec: Spec, device: torch.device) -> Kernel:
    """One of a layer's products is timed; the layer with it, forward and backward, is checked."""
    from sciml_monarch.monarch.kernels import linear_gradients_triton as backward
    from sciml_monarch.monarch.kernels import linear_triton as forward

    tokens, n_in, n_out, blocks = spec.work.sizes
    layer = MonarchLinear(n_in, n_out, bias=False, blocks=blocks, device=device, dtype=spec.dtype)
    w1, w2 = layer.w1.detach(), layer.w2.detach()
    (k, q, p), (l, s, r) = w1.shape, w2.shape
    sizes = Sizes(k, q, p, l, s, r, n_in, n_out)
    generator = torch.Generator(device).manual_seed(0)
    x, dy = (torch.randn(tokens, n, generator=generator, device=device).to(spec.dtype) for n in (n_in, n_out))
    precision = dot_precision(spec.dtype)
    chosen = linear_plans.choose(sizes, tokens, x.element_size(), bool(spec.variant))
    where = sides(sizes, chosen.regrouped)
    y, h = forward.forward(x, w1, w2, None, sizes, chosen)
    dh, dx = torch.empty_like(h), torch.empty_like(x)
    outside, grouped = where.y, dy
    if chosen.regrouped and l > 1:
        outside, grouped = where.y_regrouped, backward.regroup(dy, sizes, False)[0]

    runs: dict[str, Callable[[Plan], Any]] = {
        "first": lambda c: forward.product(x, w1, None, h, where.x, where.first, c.first, precision),
        "second": lambda c: forward.product(h, w2, None, y, where.second, where.y, c.second, precision, reverse=True),
        "second_back": lambda c: forward.product(
            grouped, w2, None, dh, outside, where.second, c.second_back, precision, transposed=True, reverse=True
        ),
        "first_back": lambda c: forward.product(
            dh, w1, None, dx, where.first, where.x, c.first_back, precision, transposed=True
        ),
        "first_weight": lambda c: backward.weight_gradient(dh, x, w1, where.first, where.x, c.first_weight, precision),
        "second_weight": lambda c: backward.weight_gradient(
            grouped, h, w2, outside, where.second, c.second_weight, precision
        ),
        "fused": lambda c: forward.forward(x, w1, w2, None, sizes, c),
    }

    def check(plan: Plan) -> list[Tensor]:
        y, h = forward.forward(x, w1, w2, None, sizes, plan)
        return [y, *tensors(backward.backward(dy, x, h, w1, w2, sizes, plan, [True, True, True, False]))]

    def exact() -> list[Tensor]:
        given = [t.double().requires_grad_() for t in (x, w1, w2)]
        padded = torch.nn.functional.pad(given[0], (0, k * p - n_in))
        with torch.enable_grad():
            y = multiply(Factors(*given[1:]), padded)[..., :n_out]
            return [y.detach(), *torch.autograd.grad(y, given, dy.double())]

    offered = linear_plans.alternatives(chosen, sizes, tokens, x.element_size())[spec.part]
    if spec.part == "fused":
        return Kernel(_ordered(offered[0], offered) if offered else [], runs[spec.part], check, exact)
    return Kernel(_ordered(chosen, offered), runs[spec.part], check, exact)


def _transform(spec: Spec, device: torch.device) -> Kernel:
    from sciml_monarch.monarch.kernels import transform_triton as kernels

    coils, ny, nx = spec.work.sizes
    n, shape = (ny, (coils, ny, nx, 2)) if spec.variant else (nx, (coils * ny, nx, 1, 2))
    transform = MonarchTransform(n, centered=True, learnable=False, device=device)
    x = torch.randn(shape, generator=torch.Generator(device).manual_seed(0), device=device)
    w1, w2, place_in = transform.w1.detach(), transform.w2.detach(), transform.permutation_in
    (k, q), n_lines = w1.shape[:2], shape[0] * shape[2]
    adjoint = spec.part == "adjoint"
    if spec.part == "gradients of the factors":
        h, g = (kernels.first_factor(x, w1, w2, place_in, None, a) for a in (False, True))

        def gradients(tile: Any) -> Any:
            return kernels.gradients(x, h, x, g, w1, w2, place_in, None, tile)

        def exact_gradients() -> list[Tensor]:
            wide = [w.double().requires_grad_() for w in (w1, w2)]
            with torch.enable_grad():
                y = transform_operator._reference_of_lines(x.double(), wide[0], wide[1], place_in, None, 2, False)
                return list(torch.autograd.grad(y, wide, x.double()))

        chosen = transform_configs.choose_gradient(n_lines, k, q, q)
        offered = transform_configs.gradient_candidates(k, q, q)
        return Kernel(_ordered(chosen, offered), gradients, lambda tile: tensors(gradients(tile)), exact_gradients)

    def run(tile: Any) -> Tensor:
        return kernels.apply(x, w1, w2, place_in, None, 2, adjoint, tile)

    def exact() -> list[Tensor]:
        lines = x.double(), w1.double(), w2.double()
        return [transform_operator._reference_of_lines(*lines, place_in, None, 2, adjoint)]

    tile = transform_configs.choose(n_lines, k, q, shape[2], dot_precision(torch.float32))
    return Kernel(_ordered(tile, transform_configs.candidates(k, q)), run, lambda t: [run(t)], exact)
