"""Rows that were measured anew, in the file of those measured before.

    python scripts/merge_benchmark.py results/speed_h200/spectral.json anew.json another.json

Rows of ours take the place of those of the same work, method and precision. What they are compared with must be of the
same run, on the same machine at the same time: so the others' rows come with them, under the number of the run
(``"run"``), and stay as long as a row of ours of their run does. ``"runs"`` says of each run what ``benchmark.py``
noted of it.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from sciml_monarch.cli import guarded
from sciml_monarch.errors import InputError
from sciml_monarch.files import replacing

OURS = "sciml-monarch"


def merged(before: dict[str, Any], anew: dict[str, Any]) -> dict[str, Any]:
    """What is measured, with rows of another run in the place of ours.

    Args:
        before: As ``benchmark.py`` wrote it, or this program.
        anew: As ``benchmark.py`` wrote it.

    Returns:
        Both; rows stay in the order of works that they had.

    Raises:
        InputError: They are of different devices, or nothing of ours was measured anew.
    """
    if anew["device"] != before["device"]:
        raise InputError(f"these are of {anew['device']}, those before of {before['device']}")
    number = max([row.get("run", 1) for row in before["rows"]], default=1) + 1
    added = [row | {"run": number} for row in anew["rows"] if row["status"] == "measured"]
    replaced = {_key(row) for row in added if row["package"] == OURS}
    if not replaced:
        raise InputError("no row of ours was measured")
    rows = [row for row in before["rows"] if row["package"] != OURS or _key(row) not in replaced]
    rows += added
    compared = {_compared(row) for row in rows if row["package"] == OURS}
    rows = [row for row in rows if row["package"] == OURS or _compared(row) in compared]
    works = list(dict.fromkeys(row["work"] for row in (*before["rows"], *added)))
    noted = {name: value for name, value in anew.items() if name != "rows"}
    noted["command"] = re.sub(r" --out \S+", "", noted["command"])
    return before | {
        "runs": [*before.get("runs", []), {"run": number} | noted],
        "rows": sorted(rows, key=lambda row: works.index(row["work"])),
    }


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return row["work"], row["method"], row["precision"]


def _compared(row: dict[str, Any]) -> tuple[str, int]:
    """What rows have in common that are compared with each other."""
    return row["work"], row.get("run", 1)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what was measured before, which is changed")
    parser.add_argument("anew", type=Path, nargs="+", help="what benchmark.py wrote since, the oldest first")
    arguments = parser.parse_args()

    def run() -> None:
        found = json.loads(arguments.file.read_text())
        for path in arguments.anew:
            found = merged(found, json.loads(path.read_text()))
        with replacing(arguments.file) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")

    raise SystemExit(guarded("merge_benchmark", run))


if __name__ == "__main__":
    main()
