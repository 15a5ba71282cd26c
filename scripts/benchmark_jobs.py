"""How each method of ``benchmark.py`` does its work: builders of what is timed and of what is checked."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sciml_monarch.monarch import MonarchLinear, MonarchTransform
from sciml_monarch.monarch.kernels.spectral import spectral_analysis, spectral_synthesis
from sciml_monarch.mri.fourier import fft2c
from sciml_monarch.pde import FNO, MonarchFNO, MonarchSpectralConv

Kind = Literal["spectral", "analysis", "synthesis", "fno", "linear", "transform"]


@dataclass(frozen=True)
class Work:
    """One piece of work that methods are compared on.

    Attributes:
        kind: What it is.
        sizes: Batch, width, points, modes (spectral, analysis, synthesis, fno); tokens, inputs, outputs, blocks
            (linear); coils, points y, points x (transform).
        backward: Whether gradients belong to it; of a whole network also the step of the optimiser.
        graph: Whether all methods run under a CUDA graph.
        dtype: Of fields, tokens or planes.
        target: What is to be reached on an H200.
        sweep: Whether it is part of the sweep over sizes.
    """

    kind: Kind
    sizes: tuple[int, ...]
    backward: bool = False
    graph: bool = False
    dtype: torch.dtype = torch.float32
    target: str = ""
    sweep: bool = False

    @property
    def name(self) -> str:
        """For people."""
        if self.kind == "linear":
            tokens, n_in, n_out, blocks = self.sizes
            what = f"linear {n_in} -> {n_out}, {blocks} blocks, {tokens} tokens, {str(self.dtype)[6:]}"
        elif self.kind == "transform":
            what = "transform of {} coils of {} x {}".format(*self.sizes)
        else:
            what = "{} of batch {}, width {}, {}^2, {} modes".format(self.kind, *self.sizes)
        step = ", training step" if self.kind == "fno" else ", forward and backward" if self.backward else ", forward"
        return what + step + (", CUDA graph" if self.graph else "") + (" (sweep)" if self.sweep else "")


class Job(NamedTuple):
    """A prepared piece of work.

    Attributes:
        run: What is timed.
        check: Its results, gradients included, to be compared with those in float64.
    """

    run: Callable[[], Any]
    check: Callable[[], Sequence[Tensor]]


Build = Callable[[Work, torch.device, torch.dtype, bool], Job]


def _field(work: Work, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    batch, width, n, _ = work.sizes
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(batch, width, n, n, generator=generator, device=device).to(dtype)


def _weight(work: Work, device: torch.device, dtype: torch.dtype) -> Tensor:
    _, width, _, modes = work.sizes
    generator = torch.Generator().manual_seed(2)  # of the processor: the same numbers for layers made on either device
    shape = width, width, 2 * modes, modes + 1, 2
    return (torch.randn(shape, generator=generator) / math.sqrt(2 * width)).to(device, dtype)


def _differentiated(
    work: Work, call: Callable[[Tensor], Tensor], x: Tensor, weights: Sequence[Tensor], compiled: bool
) -> Job:
    """A call alone, or with the gradients of its input and its weights for a given gradient of the result."""
    call = torch.compile(call) if compiled else call
    if not work.backward:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [call(x)]

        return Job(forward, forward)
    x.requires_grad_()
    with torch.no_grad():
        like = call(x)
    generator = torch.Generator(x.device).manual_seed(3)
    shape = (*like.shape, 2) if like.is_complex() else like.shape
    gradient = torch.randn(shape, generator=generator, device=x.device)  # float32: the same in every precision
    gradient = (torch.view_as_complex(gradient) if like.is_complex() else gradient).to(like.dtype)

    def both() -> list[Tensor]:
        y = call(x)
        return [y.detach(), *torch.autograd.grad(y, (x, *weights), gradient)]

    return Job(both, both)


def neuralop_conv(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """Neuraloperator's layer, with the weights of the others."""
    from neuralop.layers.spectral_convolution import SpectralConv

    _, width, _, modes = work.sizes
    conv = SpectralConv(width, width, (2 * modes, 2 * modes), bias=False).to(device)
    with torch.no_grad():
        conv.weight.tensor.copy_(torch.view_as_complex(_weight(work, device, torch.float32)))
    if dtype == torch.float64:
        _double(conv)
    return _differentiated(work, conv, _field(work, device, dtype), [conv.weight.tensor], compiled)


def _double(net: nn.Module) -> None:
    """Converts to double precision; ``nn.Module.double`` leaves complex parameters alone."""
    net.double()
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_complex():
                setattr(module, name, nn.Parameter(parameter.detach().to(torch.complex128)))


def fft_conv(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """The truncated convolution as FFTs and slices, with as little besides as possible."""
    _, _, n, modes = work.sizes
    weight = torch.view_as_complex(_weight(work, device, dtype)).requires_grad_(work.backward)
    rows = torch.arange(-modes, modes, device=device) % n

    def call(x: Tensor) -> Tensor:
        kept = torch.fft.rfft2(x, norm="ortho")[:, :, rows, : modes + 1]
        mixed = torch.einsum("bixy,ioxy->boxy", kept, weight)
        spectrum = nn.functional.pad(torch.zeros_like(mixed[:, :, :1]), (0, n // 2 - modes)).expand(-1, -1, n, -1)
        spectrum = spectrum.index_copy(2, rows, nn.functional.pad(mixed, (0, n // 2 - modes)))
        # an axis at a time: a real transform of both is not defined where mixing broke the symmetry of the first column
        return torch.fft.irfft(torch.fft.ifft(spectrum, dim=-2, norm="ortho"), n, norm="ortho")

    return _differentiated(work, call, _field(work, device, dtype), [weight], compiled)


def _make_conv(work: Work, device: torch.device, dtype: torch.dtype, learned: bool) -> MonarchSpectralConv:
    _, width, n, modes = work.sizes
    conv = MonarchSpectralConv(width, width, (2 * modes, 2 * modes), (n, n), learned, bias=False)
    with torch.no_grad():
        conv.weight.copy_(_weight(work, torch.device("cpu"), torch.float32))
    return conv.to(device, torch.float64 if dtype == torch.float64 else torch.float32)


def monarch_conv(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """With learned transforms; multiplied out anew in every run that has a backward pass, else once."""
    conv = _make_conv(work, device, dtype, learned=True)
    with torch.no_grad():
        prepared = None if work.backward else tuple(m.to(dtype) for m in conv.prepare())
    weights = [conv.weight, *(w for t in (*conv.analysis, *conv.synthesis) for w in (t.w1, t.w2))]
    return _differentiated(work, lambda x: conv(x, prepared), _field(work, device, dtype), weights, compiled)


def frozen_conv(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """With the transforms of the FFT: the gradients that neuraloperator computes, no others."""
    conv = _make_conv(work, device, dtype, learned=False)
    return _differentiated(work, conv, _field(work, device, dtype), [conv.weight], compiled)


def copy_field(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """A copy: one pass that reads and one that writes."""
    x = _field(work, device, dtype)
    y = torch.empty_like(x)
    return Job(lambda: y.copy_(x), lambda: [y.copy_(x)])


def half_conv(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """The analysis or the synthesis alone."""
    batch, width, _, modes = work.sizes
    conv = _make_conv(work, device, dtype, learned=False)
    with torch.no_grad():
        matrices = conv.prepare()
    if work.kind == "analysis":
        x, given = _field(work, device, dtype), matrices[:2]
        return _differentiated(work, lambda x: spectral_analysis(x, given), x, [], compiled)
    generator = torch.Generator(device).manual_seed(0)
    shape = 2 * modes * (modes + 1), 2, batch, width
    z, given = torch.randn(shape, generator=generator, device=device).to(dtype), matrices[3:]
    return _differentiated(work, lambda z: spectral_synthesis(z, given)[0], z, [], compiled)


# Whole networks


def fno(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """Neuraloperator's FNO with the paper's block."""
    _, width, _, modes = work.sizes
    torch.manual_seed(0)
    return _training_step(work, FNO(10, 1, width, (2 * modes, 2 * modes)), device, dtype, compiled)


def monarch_fno(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """The same network with learned Monarch transforms."""
    _, width, n, modes = work.sizes
    torch.manual_seed(0)
    net = MonarchFNO(10, 1, width, (2 * modes, 2 * modes), (n, n))
    return _training_step(work, net, device, dtype, compiled)


def _fno_without_casts(net: FNO, x: Tensor) -> Tensor:
    """What ``FNO.forward`` does, which casts to float32 before the FFTs."""
    inner = net.net
    x = inner.lifting(inner.positional_embedding(x))
    layers = list(zip(inner.fno_blocks.convs, inner.fno_blocks.fno_skips, strict=True))
    for i, (conv, skip) in enumerate(layers):
        x = conv(x) + skip(x)
        x = nn.functional.gelu(x) if i < len(layers) - 1 else x
    y: Tensor = inner.projection(x)
    return y


def _training_step(work: Work, net: nn.Module, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """Forward, mean squared error, backward, Adam."""
    batch, _, n, _ = work.sizes
    net = net.to(device)
    if dtype == torch.float64:
        _double(net)
    generator = torch.Generator(device).manual_seed(1)
    x, target = (torch.randn(batch, c, n, n, generator=generator, device=device).to(dtype) for c in (10, 1))
    fused = device.type == "cuda" and not any(p.is_complex() for p in net.parameters())  # which it has no kernels for
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, capturable=device.type == "cuda", fused=fused or None)
    call: Callable[[Tensor], Tensor] = torch.compile(net) if compiled else net
    if dtype == torch.float64 and isinstance(net, FNO):
        call = functools.partial(_fno_without_casts, net)

    def loss() -> tuple[Tensor, Tensor]:
        y = call(x)
        return y, (y - target).square().mean()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss()[1].backward()
        optimizer.step()

    def check() -> list[Tensor]:
        y, value = loss()
        gradients = torch.autograd.grad(value, list(net.parameters()))
        flat = [(torch.view_as_real(g) if g.is_complex() else g).flatten() for g in gradients]
        return [y.detach(), torch.cat(flat)]

    return Job(run, check)


# Linear layers


def _tokens(work: Work, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(work.sizes[0], work.sizes[1], generator=generator, device=device)
    return x.to(work.dtype).to(dtype)


def dense_linear(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """``torch.nn.Linear``."""
    torch.manual_seed(0)
    layer = nn.Linear(work.sizes[1], work.sizes[2], bias=False).to(device, work.dtype).to(dtype)
    return _differentiated(work, layer, _tokens(work, device, dtype), [layer.weight], compiled)


def monarch_linear(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """The layer as Monarch matrix."""
    torch.manual_seed(0)
    layer = MonarchLinear(work.sizes[1], work.sizes[2], bias=False, blocks=work.sizes[3])
    layer = layer.to(device, work.dtype).to(dtype)
    return _differentiated(work, layer, _tokens(work, device, dtype), [layer.w1, layer.w2], compiled)


def multiplied_out(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """The layer as one dense product, its matrix made of the factors at every call."""
    torch.manual_seed(0)
    layer = MonarchLinear(work.sizes[1], work.sizes[2], bias=False, blocks=work.sizes[3])
    layer = layer.to(device, work.dtype).to(dtype)

    def call(x: Tensor) -> Tensor:
        return nn.functional.linear(x, layer.weight)

    return _differentiated(work, call, _tokens(work, device, dtype), [layer.w1, layer.w2], compiled)


# Transforms of MRI


def _coils(work: Work, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    pairs = torch.randn(*work.sizes, 2, generator=generator, device=device).to(dtype)
    return torch.view_as_complex(pairs)


def centred_fft(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """The FFT of MRI, origin in the middle."""
    return _differentiated(work, fft2c, _coils(work, device, dtype), [], compiled)


def fft(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """The FFT with its origin in the corner."""
    return _differentiated(work, lambda x: torch.fft.fft2(x, norm="ortho"), _coils(work, device, dtype), [], compiled)


def transform(work: Work, device: torch.device, dtype: torch.dtype, compiled: bool) -> Job:
    """The centred transform as one learned Monarch matrix an axis."""
    _, ny, nx = work.sizes
    columns, rows = (MonarchTransform(n, centered=True, dtype=dtype, device=device) for n in (ny, nx))
    weights = [columns.w1, columns.w2, rows.w1, rows.w2]
    return _differentiated(work, lambda x: columns(rows(x), -2), _coils(work, device, dtype), weights, compiled)
