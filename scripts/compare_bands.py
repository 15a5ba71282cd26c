"""Where in frequency a network's error lies: ``python scripts/compare_bands.py CHECKPOINTS --data DATA``.

Errors of roll-outs are cut into bands of the larger of an axis' frequencies, as networks cut fields: a Fourier layer
that keeps 24 modes of an axis knows frequencies to 12. A network that made nothing above them would have, there, the
error of what the truth has there.
"""

import json
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciml_monarch.devices import choose_device
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.hub import load_surrogate
from sciml_monarch.pde.protocol import make_protocol, open_fields
from sciml_monarch.provenance import provenance

TRUTH = "truth"


def band_energies(fields: Tensor, edges: Sequence[int]) -> Tensor:
    """Sums of squares of a field by band of frequencies.

    Args:
        fields: ``(..., *grid)`` with two grid axes.
        edges: Last frequencies of the bands, rising; one more band has what lies above.

    Returns:
        ``(..., len(edges) + 1)``; they add up to the sum of squares over the points (Parseval).
    """
    n = fields.shape[-2:]
    axes = [torch.fft.fftfreq(m, 1 / m, device=fields.device).abs() for m in n]
    frequency = torch.maximum(axes[0][:, None], axes[1])
    band = torch.bucketize(frequency, torch.tensor(edges, dtype=frequency.dtype, device=fields.device))
    power = torch.fft.fft2(fields).abs().square() / math.prod(n)
    masks = torch.stack([band == i for i in range(len(edges) + 1)]).to(power.dtype)
    return torch.einsum("...xy,bxy->...b", power, masks)


def relative(error: Tensor, truth: Tensor) -> tuple[list[list[float]], list[float]]:
    """Means over trajectories of errors by band, relative to the whole truth.

    Args:
        error: Energies of errors ``(trajectories, time, bands)``.
        truth: Those of the truth.

    Returns:
        Of each frame, and of whole trajectories; each a number a band.
    """
    frames = (error / truth.sum(-1, keepdim=True)).sqrt().mean(0)
    whole = (error.sum(1) / truth.sum((1, 2)).unsqueeze(-1)).sqrt().mean(0)
    return frames.tolist(), whole.tolist()


def compare_bands(
    checkpoints: list[Path],
    data: Path,
    out: Path = Path("results/bands.json"),
    edges: list[int] | None = None,
    n_test: int | None = None,
    n_steps: int | None = None,
    resolution: int | None = None,
    batch_size: int = 20,
    device: str = "auto",
) -> None:
    """Measures errors by band of frequencies, of networks of one field in the plane.

    Args:
        checkpoints: Trained networks.
        data: Trajectories that they did not see.
        out: JSON file to write.
        edges: Last frequencies of the bands; by default 12, 16 and 24.
        n_test: The last so many trajectories; by default as in ``evaluate``.
        n_steps: Frames of the roll-outs; by default as in ``evaluate``.
        resolution: Points on the first axis; by default that of the training.
        batch_size: Trajectories at a time.
        device: "auto", "cpu", "cuda", ...

    Raises:
        InputError: Networks and data do not fit each other, or are not of one field in the plane.
    """
    edges = [12, 16, 24] if edges is None else edges
    if not edges or sorted({*edges}) != edges or edges[0] < 0:
        raise InputError(f"edges {edges}: give rising frequencies, 0 or more")
    where = choose_device(device)
    networks = {path: load_surrogate(path).to(where).eval() for path in checkpoints}
    source = open_fields(data, {network.description.fields for network in networks.values()})
    task = make_protocol(networks, source, n_test, n_steps, resolution=resolution)
    if len(task.grid) != 2 or len(source.fields) != 1:
        raise InputError(f"{data}: bands are of one field in the plane, not of {source.fields} on {task.grid}")
    truths, errors = [], {path: [] for path in checkpoints}  # type: tuple[list[Tensor], dict[Path, list[Tensor]]]
    for first in range(0, len(task.indices), batch_size):
        batch = task.indices[first : first + batch_size]
        frames = torch.stack([source.read(i, 0, task.first + task.n_steps, task.stride) for i in batch]).to(where)
        target = frames[:, task.first :, 0].double()
        truths.append(band_energies(target, edges))
        for path, network in networks.items():
            history = frames[:, task.first - network.description.n_history : task.first]
            with torch.no_grad():
                found = network.rollout(history, task.n_steps)[:, :, 0].double()
            errors[path].append(band_energies(found - target, edges))
    truth = torch.cat(truths)
    rows: list[dict[str, Any]] = []
    for name, energies in ((TRUTH, truth), *((str(path), torch.cat(parts)) for path, parts in errors.items())):
        per_frame, whole = relative(energies, truth)
        rows.append({"name": name, "whole": whole, "per_frame": per_frame})
    found_there = {"edges": edges, "grid": list(task.grid), "n_test": len(task.indices), "known_frames": task.first}
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(provenance(where) | found_there | {"rows": rows}, indent=1) + "\n")
    print(table(rows, edges, {}))


def table(rows: list[dict[str, Any]], edges: list[int], titles: dict[str, str]) -> str:
    """Markdown: the truth's share and each network's error by band, of whole trajectories.

    Args:
        rows: Of the file.
        edges: Of the file.
        titles: By the last part of a name, what to call it.
    """
    names = [f"0 to {edges[0]}", *(f"{a + 1} to {b}" for a, b in pairwise(edges)), "above"]
    lines = [f"| relative to the whole truth | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for row in rows:
        stem = Path(row["name"]).name
        title = "the truth itself" if stem == TRUTH else titles.get(stem, stem)
        lines.append(f"| {title} | {' | '.join(f'{value:.4f}' for value in row['whole'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from sciml_monarch.cli import call, guarded

    raise SystemExit(guarded("compare_bands", lambda: call(compare_bands, sys.argv[1:], "checkpoints", "+")))
