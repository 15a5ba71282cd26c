"""A small GPT-2 on English text: dense, Monarch, and Monarch first and dense at the end, for the same epochs.

    apt-get install bible-kjv          # or any other text
    bible -f gen1:1-rev22:21 > kjv.txt
    python scripts/train_text.py --text kjv.txt --out runs/text.jsonl
    python scripts/train_text.py --table runs/text.jsonl

The text is that of Debian's package bible-kjv-text: the King James Version, 4.4 MB, whose copyright has expired. The
network is GPT-2 (pre-norm blocks, GELU, learned positions, tied embedding) on bytes, so that there is no tokeniser to
choose; perplexity is given per byte and per word. Of a hundred parts of the text five validate and five others test,
the latter only at the end: with the last weights, and with those of the epoch that was best on the validation text.
Each way is a line in the output; those that are there, of the same text, sizes and seed, are left out, so that several
GPUs can share an output: ``--ways monarch --device cuda:1``.
"""

import argparse
import hashlib
import math
import statistics
import time
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from json_lines import add_row, read_rows
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, gelu, scaled_dot_product_attention

from sciml_monarch.cli import guarded
from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.monarch.convert import densify, sparsify
from sciml_monarch.monarch.convert_optimizer import carry_over
from sciml_monarch.pde import n_parameters
from sciml_monarch.provenance import provenance

# the part of the steps with Monarch matrices; None: never
WAYS = {"dense": None, "monarch": 1.0, "sparse_to_dense_90": 0.9, "sparse_to_dense_70": 0.7}
N_PARTS = 100


class Size(NamedTuple):
    """Sizes of the network and of its training."""

    width: int
    n_layers: int
    n_heads: int
    length: int
    batch: int
    epochs: int
    rate: float
    dropout: float
    blocks: int


class Block(nn.Module):
    """A block of GPT-2; queries, keys and values are maps of their own, as in the Monarch paper."""

    def __init__(self, width: int, n_heads: int, p: float) -> None:
        super().__init__()
        self.n_heads, self.p = n_heads, p
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(b, length, width)`` to the same shape."""
        h = self.norm1(x)
        q, k, v = (f(h).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        h = scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0, is_causal=True)
        x = x + dropout(self.out(h.transpose(1, 2).flatten(2)), self.p, self.training)
        return x + dropout(self.down(gelu(self.up(self.norm2(x)))), self.p, self.training)


class GPT(nn.Module):
    """GPT-2 (Radford et al., 2019) on bytes."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.p = size.dropout
        self.bytes, self.positions = nn.Embedding(256, size.width), nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.n_heads, size.dropout) for _ in range(size.n_layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, 256, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:  # GPT-2's: less for the maps that are added to the residual stream
                into = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * size.n_layers) if into else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.head.weight = self.bytes.weight

    def forward(self, text: Tensor) -> Tensor:
        """Scores of the next byte, ``(b, length) -> (b, length, 256)``."""
        x = self.bytes(text) + self.positions.weight[: text.shape[1]]
        x = dropout(x, self.p, self.training)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def split(text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test text: of a hundred parts in a row each tenth, in turns, is held out."""
    parts = text.tensor_split(N_PARTS)
    validation, test = parts[9::20], parts[19::20]
    return torch.cat([p for i, p in enumerate(parts) if i % 10 != 9]), torch.cat(validation), torch.cat(test)


def batches(text: Tensor, size: Size, generator: torch.Generator | None, device: torch.device) -> list[Tensor]:
    """Windows of ``length + 1`` bytes, ``(batch, length + 1)`` each: at random offsets, or all in their order."""
    first = 0 if generator is None else int(torch.randint(size.length, (), generator=generator))
    windows = text[first:].unfold(0, size.length + 1, size.length)
    order = torch.arange(len(windows)) if generator is None else torch.randperm(len(windows), generator=generator)
    found = [windows[index].to(device, torch.long) for index in order.split(size.batch)]
    return found if generator is None else [b for b in found if len(b) == size.batch]  # steps of one shape


def loss_of(net: nn.Module, windows: Tensor) -> Tensor:
    """Mean negative log-likelihood of the bytes behind the first, in nats."""
    with torch.autocast(windows.device.type, torch.bfloat16, enabled=windows.is_cuda):
        scores = net(windows[:, :-1])
    return cross_entropy(scores.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def evaluate(net: nn.Module, text: Tensor, size: Size, device: torch.device) -> float:
    """Nats per byte."""
    net.eval()
    losses = [(loss_of(net, windows).item(), len(windows)) for windows in batches(text, size, None, device)]
    net.train()
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def train(way: str, content: bytes, size: Size, seed: int, device: torch.device) -> dict[str, Any]:
    """Trains one way and tests it; returns a row."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    training, validation, test = split(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    if min(len(validation), len(test)) <= size.length or len(training) <= size.batch * (size.length + 1):
        raise InputError(f"a text of {len(content)} bytes is too short for windows of {size.length} bytes")
    net = GPT(size).to(device)
    share = WAYS[way]
    if share is not None:
        sparsify(net, size.blocks, init="random")
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=size.rate,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    n_batches = (len(training) - size.length) // size.length // size.batch
    total = n_batches * size.epochs
    switch = total if share is None else round(share * total)
    n_start, step, seconds = n_parameters(net), 0, 0.0
    best: tuple[float, int, nn.Module] = (math.inf, 0, net)  # bits per byte of the validation text, epoch, network
    history: list[list[float]] = []  # epochs, seconds, bits per byte of the validation text
    times: dict[str, list[float]] = {"before": [], "after": []}  # of steps, a mean an epoch
    for epoch in range(size.epochs):
        epoch_batches = batches(training, size, generator, device)[:n_batches]
        started, first = _clock(device), step
        is_whole = epoch > 0 and not (first < switch < first + len(epoch_batches)) and first != switch
        for windows in epoch_batches:
            if step == switch:
                with carry_over(net, optimizer):
                    densify(net)
            # a warm-up of 2 %, then half a cosine
            scale = min(1.0, (step + 1) / (0.02 * total)) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = size.rate * scale
            loss_of(net, windows).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        passed = _clock(device) - started
        seconds += passed
        if is_whole:
            times["before" if step <= switch else "after"].append(passed / len(epoch_batches))
        history.append([epoch + 1, seconds, evaluate(net, validation, size, device) / math.log(2)])
        if history[-1][2] < best[0]:  # of the last epoch no copy is needed
            best = history[-1][2], epoch + 1, net if epoch + 1 == size.epochs else deepcopy(net)
        print(f"{way}: epoch {epoch + 1}, {seconds:.0f} s, validation {history[-1][2]:.4f} bits a byte", flush=True)
    last = _scores(net, test, size, device)
    return {
        "way": way,
        **size._asdict(),
        "seed": seed,
        **last,
        "best": {"epoch": best[1]} | (last if best[2] is net else _scores(best[2], test, size, device)),
        "train_seconds": seconds,
        "step_seconds": {name: statistics.median(values) if values else None for name, values in times.items()},
        "n_parameters": n_start,
        "n_parameters_at_the_end": n_parameters(net),
        "history": history,
        "text_bytes": len(content),
        "text_sha256": hashlib.sha256(content).hexdigest(),
    } | provenance(device)


def _scores(net: nn.Module, test: Tensor, size: Size, device: torch.device) -> dict[str, float]:
    """Bits and perplexities of the test text."""
    nats = evaluate(net, test, size, device)
    words = len(bytes(test.tolist()).split())
    return {
        "perplexity_per_byte": math.exp(nats),
        "bits_per_byte": nats / math.log(2),
        "perplexity_per_word": math.exp(nats * len(test) / words),
    }


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What trainings have in common that can be compared: the text, the sizes (with the epochs) and the seed."""
    return (row["text_sha256"], row["seed"], *(row[name] for name in Size._fields))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table for each text, seed and sizes; ways without a training say so."""
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key_of(row), {}).setdefault(row["way"], row)
    lines = []
    for (text, seed, *sizes), ways in groups.items():
        named = ", ".join(f"{name} {value}" for name, value in zip(Size._fields, sizes, strict=True))
        lines += [
            f"Text {text[:12]} (SHA-256), seed {seed}, {named}. Test scores, of the weights of the last epoch, and "
            "of the epoch that was best on the validation text:",
            "",
            "| way | parameters | step (ms) | training (s) | bits per byte | perplexity per byte | per word "
            "| best epoch | perplexity per byte | per word |",
            "|---" * 10 + "|",
            *(_line(way, ways.get(way)) for way in WAYS),
            "",
            *dict.fromkeys(f"{r['device']}, torch {r['torch']}, commit {r['commit']}" for r in ways.values()),
            "",
        ]
    return "\n".join(lines) if lines else "not measured yet"


def _line(way: str, row: dict[str, Any] | None) -> str:
    if row is None:
        return f"| {way} | not measured yet |" + " |" * 8
    counts = dict.fromkeys(f"{row[key]:,}" for key in ("n_parameters", "n_parameters_at_the_end"))
    steps = [f"{1e3 * s:.1f}" for s in row["step_seconds"].values() if s is not None]
    last, best = (f"{r['perplexity_per_byte']:.4f} | {r['perplexity_per_word']:.2f}" for r in (row, row["best"]))
    return (
        f"| {way} | {' -> '.join(counts)} | {' -> '.join(steps)} | {row['train_seconds']:.0f} "
        f"| {row['bits_per_byte']:.4f} | {last} | {row['best']['epoch']} | {best} |"
    )


def run(arguments: argparse.Namespace) -> None:
    """Trains the ways that the output lacks."""
    if arguments.table is not None:
        print(table(read_rows(arguments.table)))
        return
    if arguments.text is None or arguments.out is None:
        raise InputError("give --text and --out, or --table")
    content = arguments.text.read_bytes()
    size = Size(*(getattr(arguments, name) for name in Size._fields))
    device = choose_device(arguments.device)
    start = time.monotonic()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    key = (hashlib.sha256(content).hexdigest(), arguments.seed, *size)
    for way in arguments.ways:
        rows = read_rows(arguments.out) if arguments.out.exists() else []
        if any(row["way"] == way and key_of(row) == key for row in rows):
            continue
        if time.monotonic() - start > arguments.time_limit:
            print(f"time is up; run again for {way} and what follows")
            break
        add_row(arguments.out, train(way, content, size, arguments.seed, device))


def main(given: list[str] | None = None) -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text file")
    parser.add_argument("--out", type=Path, help="a row a line is added here")
    parser.add_argument("--table", type=Path, help="print the table of these rows instead")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--n_layers", type=int, default=6)
    parser.add_argument("--n_heads", type=int, default=12)
    parser.add_argument("--length", type=int, default=512, help="bytes that the network sees")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=6e-4, help="largest learning rate")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--time_limit", type=float, default=float("inf"), help="seconds after which no way is begun")
    arguments = parser.parse_args(given)
    return guarded("train_text", lambda: run(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
