"""Tables of sparse training, from what is in results/sparse_training."""

import json
from pathlib import Path
from typing import Any

import benchmark_sparse
import reproduce_sparse_training
import train_text
from json_lines import read_rows

FOLDER = Path(__file__).resolve().parents[1] / "results/sparse_training"


def _rows(file: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / file).read_text())["rows"]


def layers() -> str:
    """Single layers: how many times as fast as dense ones, by width and tokens."""
    rows = [row for row in _rows("benchmark_sparse.json") if "layer" in row]
    tokens = sorted({row["tokens"] for row in rows})
    lines = ["| layer | " + " | ".join(f"{n:,} tokens" for n in tokens) + " |", "|---" * (1 + len(tokens)) + "|"]
    for name in dict.fromkeys(row["layer"] for row in rows):
        found = {row["tokens"]: row for row in rows if row["layer"] == name}
        cells = [_speed_up(found.get(n)) for n in tokens]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _speed_up(row: dict[str, Any] | None) -> str:
    return "" if row is None else row.get("skipped") or f"{row['speed_up']:.2f}"


def networks() -> str:
    """Training steps of whole networks, dense and sparsified."""
    rows = [row for row in _rows("benchmark_sparse.json") if "network" in row]
    return benchmark_sparse.networks_table(rows) if rows else "Not measured yet."


def trainings() -> str:
    """OperatorTransformer on Navier-Stokes: end to end, sparse to dense, dense to sparse."""
    file = FOLDER / "rows.jsonl"
    return reproduce_sparse_training.table(read_rows(file)) if file.exists() else "Not measured yet."


def text() -> str:
    """A small GPT-2 on the King James Bible."""
    return train_text.table(read_rows(FOLDER / "text.jsonl"))
