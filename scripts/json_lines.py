"""Files of a JSON object a line, to which runs that may be stopped at any time add."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Reads all lines; a last one that was cut off counts as not there, and is ended for what follows."""
    content = file.read_text()
    if content and not content.endswith("\n"):
        with file.open("a") as end:
            end.write("\n")
    rows = []
    for line in content.splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Adds a line, behind the end of one that was cut off."""
    line = json.dumps(row).encode() + b"\n"
    with file.open("a+b", buffering=0) as stream:  # in one write: others may add theirs
        if stream.seek(0, 2) > 0:
            stream.seek(-1, 2)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
