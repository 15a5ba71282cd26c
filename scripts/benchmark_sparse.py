"""Time of a training step of the Monarch paper's own networks, dense against sparsified.

    pip install timm transformers
    python scripts/benchmark_sparse.py --out results/benchmark_sparse.json

ViT-B/16 (timm; the fused query, key and value map of its Monarch form split into three, as in the paper), GPT-2 small
and medium and BERT-large (transformers), with random weights: speed and parameters, not quality. Both forms of a
network are timed in turns in one process. Layers alone, of all widths and batch sizes, show where it does not pay. A
package that is missing is a row that says so, as is whatever fails. A file that is there keeps its rows; those that are
measured anew replace theirs.
"""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from benchmark_sparse_networks import LAYERS, NETWORKS, SMALL, SMALL_LAYERS, Network
from benchmark_timing import captured
from torch import Tensor, nn

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.convert import densify, sparsify
from sciml_monarch.monarch.kernels.backend import Backend, is_replayed, replayed, use_backend
from sciml_monarch.provenance import provenance

Precision = Literal["bf16-mixed", "bf16", "32"]
Mode = Literal["eager", "compiled", "graph"]
ROUNDS = 5  # dense and Monarch in turns


@contextmanager
def _precision(precision: Precision, device: torch.device) -> Iterator[None]:
    # weights that autocast cached while a graph is captured would be freed under it
    capturing = device.type == "cuda" and is_replayed()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=not capturing):
        yield


def _cast(batch: tuple[Tensor, ...], precision: Precision, device: torch.device) -> tuple[Tensor, ...]:
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    return tuple(t.to(device, kind if t.is_floating_point() else t.dtype) for t in batch)


def seconds_of(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of a call, over as many calls as fit into some time after one that warms up."""

    def run(n: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(n):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / n

    return run(max(1, int(seconds / max(run(1), 1e-6))))


def in_turns(steps: dict[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, float]:
    """Median seconds of each of several steps, timed in turns so that a drift of the clock meets all alike."""
    for step in steps.values():
        for _ in range(3):
            step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            found[name].append(seconds_of(step, device, seconds / ROUNDS))
    return {name: statistics.median(values) for name, values in found.items()}


def training_step(
    net: nn.Module, batch: tuple[Tensor, ...], precision: Precision, device: torch.device, mode: Mode
) -> Callable[[], object]:
    """Loss, gradients and AdamW."""
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=on_gpu, capturable=mode == "graph")
    forward: Callable[..., Tensor] = torch.compile(net) if mode == "compiled" else net

    def step() -> None:
        with _precision(precision, device):
            loss = forward(*batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _replayed(step) if mode == "graph" else step


def _replayed(step: Callable[[], object]) -> Callable[[], object]:
    with replayed():
        return captured(step)


@torch.no_grad()
def output_error(net: nn.Module, batch: tuple[Tensor, ...], precision: Precision, device: torch.device) -> float:
    """Relative difference of the outputs of a Monarch network and of the same with its factors multiplied out."""
    net = deepcopy(net).eval()

    def outputs() -> Tensor:
        with _precision(precision, device):
            found = net.get_submodule("net")(batch[0][:1])
        return getattr(found, "logits", found).float()

    ours = outputs()
    densify(net)
    theirs = outputs()
    return ((ours - theirs).norm() / theirs.norm()).item()


def network_row(
    name: str,
    network: Network,
    batch_size: int,
    blocks: int,
    precision: Precision,
    device: torch.device,
    mode: Mode,
    seconds: float,
) -> dict[str, Any]:
    """Times one network of one batch size in both forms."""
    row: dict[str, Any] = {
        "network": name,
        "batch": batch_size,
        "tokens": network.tokens,
        "blocks": blocks,
        "precision": precision,
        "mode": mode,
        "parameters_in_the_paper_millions": network.parameters,
    }
    if find_spec(network.package) is None:
        return row | {"skipped": f"{network.package} is not installed"}
    torch.manual_seed(0)
    dense = network.make()
    monarch = deepcopy(dense)
    if network.prepare is not None:
        network.prepare(monarch)
    report = sparsify(monarch, blocks, init="random", head=True)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    nets = {"dense": dense.to(device, kind), "monarch": monarch.to(device, kind)}
    batch = _cast(network.draw(batch_size), precision, device)
    row |= {
        "n_parameters": {"dense": report.parameters_before, "monarch": report.parameters_after},
        "n_layers_converted": len(report.converted),
        "skipped_layers": sorted({f"{r.kind}: {r.note}" for r in report.skipped}),
        "output_error": output_error(monarch, batch, precision, device),
    }
    steps = {form: training_step(net, batch, precision, device, mode) for form, net in nets.items()}
    if device.type == "cuda":
        memory = {}
        for form, step in steps.items():
            step()  # the optimizer's state is there from then on
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step()
            memory[form] = torch.cuda.max_memory_allocated(device) - before
        row["memory_of_a_step_bytes"] = memory
    times = in_turns(steps, device, seconds)
    return row | {"step_seconds": times, "speed_up": times["dense"] / times["monarch"]}


def layer_row(
    width: int, ratio: int, tokens: int, blocks: int, precision: Precision, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Times one linear layer, forward and backward, in both forms; on a GPU replayed as a CUDA graph."""
    row = {"layer": f"{width} -> {ratio * width}", "tokens": tokens, "blocks": blocks, "precision": precision}
    monarch = MonarchLinear(width, ratio * width, blocks=blocks, device=device)
    dense = monarch.to_linear()
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(tokens, width, device=device, dtype=torch.float32 if precision == "32" else torch.bfloat16)
    g = torch.randn(tokens, ratio * width, device=device, dtype=x.dtype)
    x.requires_grad_()
    steps: dict[str, Callable[[], object]] = {}
    outputs = {}
    for form, layer in (("dense", dense.to(kind)), ("monarch", monarch.to(kind))):

        def step(layer: nn.Module = layer) -> Tensor:
            layer.zero_grad(set_to_none=True)
            x.grad = None
            with _precision(precision, device):
                y = layer(x)
            y.backward(g)
            return y

        outputs[form] = step().detach().float()
        steps[form] = _replayed(step) if device.type == "cuda" else step
    error = (outputs["monarch"] - outputs["dense"]).norm() / outputs["dense"].norm()
    times = in_turns(steps, device, seconds)
    return row | {"error": error.item(), "step_seconds": times, "speed_up": times["dense"] / times["monarch"]}


def benchmark_sparse(
    out: Path = Path("results/benchmark_sparse.json"),
    networks: list[str] | None = None,
    blocks: int = 4,
    precision: Precision = "bf16-mixed",
    smaller_batches: list[int] | None = None,
    modes: list[Mode] | None = None,
    layers: bool = True,
    backend: Backend = "auto",
    device: str = "auto",
    seconds_per_row: float = 5.0,
    time_limit: float = float("inf"),
    quick: bool = False,
) -> None:
    """Times training steps of dense and of sparsified networks, and of single layers.

    Args:
        out: JSON file for the rows; written after each. Rows of an earlier run that are not measured now stay.
        networks: Which; by default all: "ViT-B/16", "GPT-2 small", "GPT-2 medium", "BERT-large",
            "OperatorTransformer" and "OperatorTransformer, width 2048".
        blocks: Blocks of the Monarch matrices; the paper's are 4.
        precision: "bf16-mixed": float32 weights, autocast; "bf16": everything; "32".
        smaller_batches: The batch sizes of the table are divided by each of these too; by default 8.
        modes: "eager", "compiled", "graph" (not compiled, the whole step replayed as a CUDA graph); by default all on a
            GPU, and eager on a CPU.
        layers: Whether to time single layers too.
        backend: How Monarch layers are computed.
        device: "cpu", "cuda", "cuda:1" ...; "auto" is a GPU if there is one.
        seconds_per_row: Time in which the steps of each form are counted.
        time_limit: Seconds after which no row is begun.
        quick: A tiny network and two tiny layers, to try the program.

    Raises:
        InputError: There is no such network or device.
    """
    start = time.monotonic()
    where = choose_device(device)
    known = SMALL if quick else NETWORKS
    unknown = set(networks or ()) - set(known)
    if unknown:
        raise InputError(f"there are no networks {sorted(unknown)}; networks are {', '.join(known)}")
    modes = modes or (["eager", "compiled", "graph"] if where.type == "cuda" else ["eager"])
    origin = provenance(where) | {"backend": backend}
    setting = {"blocks": blocks, "precision": precision, "backend": backend}
    rows = earlier_rows(out)

    def add(make: Callable[[], dict[str, Any]], title: dict[str, Any]) -> None:
        title |= setting
        places = [i for i, row in enumerate(rows) if all(row.get(key) == title[key] for key in title)]
        if time.monotonic() - start > time_limit:
            if places:  # measured before
                return
            row = {"skipped": "time is up"}
        else:
            try:
                with use_backend(backend):
                    row = make()
            except torch.OutOfMemoryError:
                row = {"skipped": "out of memory"}
            except ImportError as error:  # of what a package needs in turn: timm imports torchvision
                row = {"skipped": f"cannot be imported: {error}"}
            except Exception as error:  # of a compiler, a kernel: the other rows are not lost
                row = {"skipped": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            gc.collect()
            torch._dynamo.reset()
            if where.type == "cuda":
                torch.cuda.empty_cache()
        row = title | row | origin
        if places:
            rows[places[0]] = row
        else:
            rows.append(row)
        print(json.dumps({key: value for key, value in row.items() if key not in origin}), flush=True)
        with replacing(out) as temporary:
            temporary.write_text(json.dumps({"provenance": origin, "rows": rows}, indent=2))

    for name in networks or known:
        network = known[name]
        for size in dict.fromkeys(max(1, network.batch // d) for d in (1, *(smaller_batches or [8]))):
            for mode in modes:
                add(
                    lambda n=name, w=network, s=size, m=mode: network_row(  # type: ignore[misc]
                        n, w, s, blocks, precision, where, m, seconds_per_row
                    ),
                    {"network": name, "batch": size, "mode": mode},
                )
    for width, ratio, tokens in (SMALL_LAYERS if quick else LAYERS) if layers else ():
        add(
            lambda w=width, r=ratio, t=tokens: layer_row(  # type: ignore[misc]
                w, r, t, blocks, precision, where, seconds_per_row / 5
            ),
            {"layer": f"{width} -> {ratio * width}", "tokens": tokens},
        )
    print(table([row for row in rows if all(row[key] == setting[key] for key in setting)]))


def earlier_rows(out: Path) -> list[dict[str, Any]]:
    """Rows that a file has, each with where it comes from.

    Raises:
        InputError: The file is not one of this program.
    """
    if not out.exists():
        return []
    try:
        content = json.loads(out.read_text())
        return [content["provenance"] | row for row in content["rows"]]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{out} is no file of this program; give another --out") from None


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the layers and networks that are not faster as Monarch matrices, then the networks, a short table."""
    slower = [row for row in rows if row.get("speed_up", 1.0) < 1]
    lines = ["Where it does not pay:", ""]
    lines += ["| layer or network | tokens | speed-up |", "|---|---|---|"] if slower else ["nowhere in this run."]
    for row in slower:
        n_tokens = row["tokens"] * row.get("batch", 1)
        lines.append(f"| {row.get('network') or row['layer']} | {n_tokens} | {row['speed_up']:.2f} |")
    return "\n".join([*lines, "", networks_table(rows)])


def networks_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the networks among the rows."""
    lines = [
        "| network | batch x tokens | | parameters (million) | dense (ms) | Monarch (ms) | speed-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "network" not in row:
            continue
        how = row["mode"]
        if "skipped" in row:
            reason = row["skipped"].replace("|", "/")
            lines.append(f"| {row['network']} | {row['batch']} | {how} | {reason} | | | |")
            continue
        count, ms = row["n_parameters"], {k: 1e3 * v for k, v in row["step_seconds"].items()}
        paper = row["parameters_in_the_paper_millions"]
        of_paper = "" if paper is None else f" (paper: {paper:.0f})"
        lines.append(
            f"| {row['network']} | {row['batch']} x {row['tokens']} | {how} "
            f"| {count['dense'] / 1e6:.1f} -> {count['monarch'] / 1e6:.1f}{of_paper} "
            f"| {ms['dense']:.2f} | {ms['monarch']:.2f} | {row['speed_up']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("benchmark_sparse", lambda: call(benchmark_sparse, sys.argv[1:])))
