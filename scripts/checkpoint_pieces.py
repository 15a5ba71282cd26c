"""Runs as files small enough to be carried between machines: checkpoints in pieces, and back again.

The checkpoints of all runs, one behind the other, are cut into pieces, so that these are as few as can be.
``manifest.json`` lists every piece with its size and SHA-256; runs are restored if all are there and right, or not at
all. Whole checkpoints come back byte for byte, and a training goes on from them. Weights alone
(``checkpoints/weights.ckpt``) are what :func:`sciml_monarch.load` reads; no training goes on from them.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing
from sciml_monarch.hub import CHECKPOINT_KEY, read_checkpoint
from sciml_monarch.training import LAST

MANIFEST = "manifest.json"
WEIGHTS = Path("checkpoints/weights.ckpt")
PIECE_BYTES = 16 * 2**20
ROUNDED = "rounded_from"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def weights_of(checkpoint: Path, bf16: bool) -> bytes:
    """A checkpoint without what only a training needs.

    Args:
        checkpoint: Of a training.
        bf16: Round matrices to bfloat16, complex ones part by part; vectors (normalisation, biases) stay as they are.

    Returns:
        A file for :func:`restored_weights`.

    Raises:
        InputError: The checkpoint is damaged or of another program.
    """
    read_checkpoint(checkpoint, "meta")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = content["state_dict"]
    kinds: dict[str, str] = {}
    if bf16:
        for key, value in state.items():
            if value.ndim >= 2 and (value.is_floating_point() or value.is_complex()):
                kinds[key] = str(value.dtype).removeprefix("torch.")
                parts = torch.view_as_real(value) if value.is_complex() else value
                state[key] = parts.to(torch.bfloat16)
    kept = {CHECKPOINT_KEY: content[CHECKPOINT_KEY], "state_dict": state, "epoch": content["epoch"], ROUNDED: kinds}
    file = io.BytesIO()
    torch.save(kept, file)
    return file.getvalue()


def restored_weights(packed: bytes) -> bytes:
    """What :func:`weights_of` returned, with every tensor in the type that it had: a file for ``load``."""
    content = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    for key, kind in content.pop(ROUNDED).items():
        value, dtype = content["state_dict"][key], getattr(torch, kind)
        if dtype.is_complex:
            content["state_dict"][key] = torch.view_as_complex(value.to(dtype.to_real()))
        else:
            content["state_dict"][key] = value.to(dtype)
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def pack(
    out: Path,
    target: Path,
    row_file: str,
    weights_only: bool = False,
    bf16: bool = False,
    rows: list[str] | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> list[Path]:
    """Writes the runs of an output folder in pieces.

    Args:
        out: Folder of all runs.
        target: Folder for the pieces: new, empty, or of an earlier packing, which is replaced.
        row_file: Name of the file in a run folder that says what the run is; it travels within the manifest.
        weights_only: Leave out what only a training needs.
        bf16: See :func:`weights_of`; with ``weights_only`` alone.
        rows: Names that run folders are to begin with; ``None``: all.
        piece_bytes: Size of the largest piece.

    Returns:
        The files written.

    Raises:
        InputError: There is nothing to pack, ``target`` holds other files, or a checkpoint is damaged.
    """
    if bf16 and not weights_only:
        raise InputError("--bf16 rounds weights, and a training goes on from exact ones only: give --weights_only too")
    runs = [
        file.parent.parent
        for file in sorted(out.glob(f"*/{LAST}"))
        if rows is None or any(file.parent.parent.name.startswith(f"{row}_") for row in rows)
    ]
    if not runs:
        raise InputError(f"{out}: holds no runs with checkpoints{' of these rows' if rows else ''}")
    if missing := [row for row in rows or [] if not any(run.name.startswith(f"{row}_") for run in runs)]:
        raise InputError(f"{out}: holds no runs with checkpoints of {', '.join(missing)}")
    _clear(target)
    manifest: dict[str, Any] = {"weights_only": weights_only, "bf16": bf16, "runs": [], "pieces": []}
    rest = b""
    for run in runs:
        content = weights_of(run / LAST, bf16) if weights_only else (run / LAST).read_bytes()
        row = run / row_file
        text = row.read_text() if row.is_file() else None
        manifest["runs"].append({"name": run.name, "row": text, "bytes": len(content), "sha256": _digest(content)})
        rest += content
        whole = len(rest) if run is runs[-1] else len(rest) // piece_bytes * piece_bytes
        for begin in range(0, whole, piece_bytes):
            manifest["pieces"].append(_write(target, len(manifest["pieces"]), rest[begin : begin + piece_bytes]))
        rest = rest[whole:]
    with replacing(target / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1))
    return [*(target / piece["file"] for piece in manifest["pieces"]), target / MANIFEST]


def _write(target: Path, number: int, content: bytes) -> dict[str, Any]:
    """Writes a piece; returns its entry in the manifest."""
    file = target / f"piece_{number:03d}"
    with replacing(file) as temporary:
        temporary.write_bytes(content)
    return {"file": file.name, "bytes": len(content), "sha256": _digest(content)}


def _clear(target: Path) -> None:
    """Removes an earlier packing.

    Raises:
        InputError: There are other files in the folder.
    """
    if not target.exists() or not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise InputError(f"{target}: holds other files, or a packing that was cut short; give another --out")
    old = _manifest(target)
    (target / MANIFEST).unlink()  # first: what is left is no packing
    for piece in old["pieces"]:
        (target / piece["file"]).unlink(missing_ok=True)


def _manifest(packed: Path) -> dict[str, Any]:
    try:
        return json.loads((packed / MANIFEST).read_text())
    except FileNotFoundError:
        raise InputError(f"{packed}: lacks {MANIFEST}; this is no packing, or not all of it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{packed / MANIFEST}: not JSON: {error}") from None


def _read(packed: Path, piece: dict[str, Any]) -> bytes | None:
    """A piece, or ``None`` where it is absent or not what was packed."""
    file = packed / piece["file"]
    content = file.read_bytes() if file.is_file() else b""
    return content if len(content) == piece["bytes"] and _digest(content) == piece["sha256"] else None


def unpack(packed: Path, out: Path, row_file: str) -> list[Path]:
    """Puts packed runs back as run folders.

    Args:
        packed: Folder that :func:`pack` wrote.
        out: Folder of all runs; runs of the same names in it must not have a checkpoint yet.
        row_file: As of :func:`pack`.

    Returns:
        The checkpoints.

    Raises:
        InputError: A piece is missing or damaged, or a run is there already; nothing is written then.
    """
    manifest = _manifest(packed)
    runs, pieces = manifest["runs"], manifest["pieces"]
    contents = [_read(packed, piece) for piece in pieces]
    wrong = [piece["file"] for piece, content in zip(pieces, contents, strict=True) if content is None]
    if wrong:
        listed = ", ".join(wrong[:5]) + ", ..." * (len(wrong) > 5)
        raise InputError(f"{packed}: {len(wrong)} of {len(pieces)} pieces are missing or damaged: {listed}")
    place = WEIGHTS if manifest["weights_only"] else LAST
    taken = [run["name"] for run in runs if (out / run["name"] / place).exists()]
    if taken:
        raise InputError(f"{out}: has checkpoints of {', '.join(taken)} already; give another --out")
    whole = memoryview(b"".join(content or b"" for content in contents))
    restored, begin = [], 0
    for run in runs:
        content = bytes(whole[begin : begin + run["bytes"]])
        begin += run["bytes"]
        if _digest(content) != run["sha256"]:
            raise InputError(f"{packed}: the pieces do not make {run['name']} as it was packed")
        folder = out / run["name"]
        # what a training that got no further wrote is not of this checkpoint; of weights beside a whole one it is
        if run["row"] is not None and not (folder / LAST).exists():
            row = json.dumps(json.loads(run["row"]) | {"is_rounded": True}) if manifest["bf16"] else run["row"]
            with replacing(folder / row_file) as temporary:
                temporary.write_text(row)
        with replacing(folder / place) as temporary:
            temporary.write_bytes(restored_weights(content) if manifest["weights_only"] else content)
        restored.append(folder / place)
    return restored
