"""Rows of results as a table on the terminal, JSON, CSV and one HTML page.

A row is a flat dictionary with at least ``task`` ("pde" or "mri") and ``method``; the other keys are metrics
and the protocol that they were measured with. A number that is None was not finite or not measured.
"""

import base64
import csv
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sciml_monarch.files import replacing

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """How one metric is shown.

    Attributes:
        key: Key of the rows.
        title: Heading.
        form: Format specification of the number.
        better: Which end of the scale wins, if any.
        spread: Key of the spread, shown behind the number: the standard error of PDE metrics, twice the standard
            deviation of MRI metrics, as each field does.
        bound: Key of a flag which says that the number is a lower bound.
    """

    key: str
    title: str
    form: str = ".4f"
    better: Literal["lower", "higher"] | None = "lower"
    spread: str = ""
    bound: str = ""


TITLES = {"pde": "Neural PDE solvers", "mri": "MRI reconstruction"}
COLUMNS = (
    Column("relative_l2", "relative L2", spread="relative_l2_standard_error"),
    Column("relative_h1", "relative H1", spread="relative_h1_standard_error"),
    Column("spectrum_error", "spectrum error (log10)", ".3f"),
    Column("correlation_time", "correlation > 0.9 (s)", ".2f", "higher", bound="correlation_time_is_lower_bound"),
    Column("relative_l2_past_horizon", "L2 past horizon"),
    Column("max_rms_ratio", "largest amplitude", ".2f", None),
    Column("n_diverged", "diverged", "d", "lower"),
    Column("nmse", "NMSE", spread="nmse_2std"),
    Column("psnr", "PSNR (dB)", ".2f", "higher", spread="psnr_2std"),
    Column("ssim", "SSIM", better="higher", spread="ssim_2std"),
    Column("hfen", "HFEN", spread="hfen_2std"),
    Column("data_consistency", "data residual", spread="data_consistency_2std"),
    Column("n_parameters", "parameters", ",d", None),
    Column("ms_per_step", "ms per step", ".2f"),
    Column("train_seconds", "training (s)", ".0f", None),
)
"""All metrics that tables show, in this order; a table has those that its rows have."""


class Table(NamedTuple):
    """Text of a table."""

    header: list[str]
    cells: list[list[str]]
    best: list[list[bool]]
    """Whether a cell is the best of its column; never with a single row."""


def tabulate(rows: Sequence[Row]) -> Table:
    """Formats the rows of one task.

    Args:
        rows: The rows.

    Returns:
        One line a row: the method, then the known metrics that any row has.
    """
    columns = [c for c in COLUMNS if any(c.key in row for row in rows)]
    cells = [[str(row["method"]), *(_cell(row, c) for c in columns)] for row in rows]
    winners = [_best(rows, c) for c in columns]
    best = [[False, *(i in winner for winner in winners)] for i in range(len(rows))]
    return Table(["method", *(c.title for c in columns)], cells, best)


def terminal_table(rows: Sequence[Row], title: str | None = None) -> "RichTable":
    """A table for ``rich.console.Console.print``, a line a metric, the best of each bold.

    It stands on its side, since a terminal of 80 columns holds a few methods but not a dozen metrics.

    Args:
        rows: Rows of one task.
        title: Line above the table.

    Returns:
        The table.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    text = tabulate(rows)
    table = RichTable(title=title, title_justify="left")
    table.add_column(text.header[0])
    for line in text.cells:
        table.add_column(Text(line[0]), justify="right")
    for i, name in enumerate(text.header[1:], start=1):
        cells = [Text(line[i], "bold green" if b[i] else "") for line, b in zip(text.cells, text.best, strict=True)]
        table.add_row(name, *cells)
    return table


def write_metrics(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Writes ``metrics.json`` (the rows as they are) and ``metrics.csv`` (without lists).

    Args:
        folder: Where to; made if absent.
        rows: The rows. Numbers that are not finite are written as null, which JSON has, not as NaN.

    Returns:
        The two paths.
    """
    rows = [{key: _finite(value) for key, value in row.items()} for row in rows]
    with replacing(folder / "metrics.json") as path:
        path.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    flat = [{k: v for k, v in row.items() if not isinstance(v, list | dict)} for row in rows]
    text = io.StringIO(newline="")
    names = list(dict.fromkeys(key for row in flat for key in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    with replacing(folder / "metrics.csv") as path:
        path.write_text(text.getvalue(), encoding="utf-8")
    return [folder / "metrics.json", folder / "metrics.csv"]


def write_report(
    folder: Path,
    title: str,
    rows: Sequence[Row],
    pictures: Mapping[str, Path],
    notes: Sequence[str] = (),
) -> Path:
    """Writes ``report.html``: tables, notes and pictures in one file that can be mailed.

    Args:
        folder: Where to; made if absent.
        title: Heading of the page.
        rows: Rows of any tasks; each task has a table of its own.
        pictures: Caption to PNG or GIF file; the pictures are embedded.
        notes: Paragraphs behind the tables: data, protocol, hardware, verdict.

    Returns:
        Path of the page.
    """
    tasks = dict.fromkeys(str(row["task"]) for row in rows)
    tables = [(TITLES.get(task, task), [row for row in rows if row["task"] == task]) for task in tasks]
    body = [f"<h1>{html.escape(title)}</h1>"]
    for heading, part in tables:
        body += [f"<h2>{html.escape(heading)}</h2>", _html_table(tabulate(part))]
    body += [f"<p>{html.escape(note)}</p>" for note in notes]
    body += [_html_picture(caption, path) for caption, path in pictures.items()]
    page = _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(body))
    with replacing(folder / "report.html") as path:
        path.write_text(page, encoding="utf-8")
    return folder / "report.html"


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _cell(row: Row, column: Column) -> str:
    value = _number(row, column.key)
    if value is None:
        return "not finite" if column.key in row else "–"
    text = format(value, column.form)
    spread = _number(row, column.spread)
    if spread is not None:
        text += f" ± {spread:{column.form}}"
    return f"≥ {text}" if row.get(column.bound) else text


def _best(rows: Sequence[Row], column: Column) -> set[int]:
    """Rows that win a column, ties included as far as the digits shown tell."""
    values = {i: v for i, row in enumerate(rows) if (v := _number(row, column.key)) is not None}
    if column.better is None or len(values) < 2:
        return set()
    best = (min if column.better == "lower" else max)(values.values())
    winners = {i for i, v in values.items() if format(v, column.form) == format(best, column.form)}
    return winners if len(winners) < len(values) else set()


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    lines = []
    for cells, best in zip(table.cells, table.best, strict=True):
        tags = ["<td class=best>" if b else "<td>" for b in best]
        marked = [f"{tag}{html.escape(cell)}</td>" for tag, cell in zip(tags, cells, strict=True)]
        lines.append(f"<tr>{''.join(marked)}</tr>")
    body = "\n".join(lines)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"


def _html_picture(caption: str, path: Path) -> str:
    kind = "gif" if path.suffix == ".gif" else "png"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    text = html.escape(caption)
    source = f"data:image/{kind};base64,{data}"
    return f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #222; vertical-align: bottom; white-space: normal }
th:first-child, td:first-child { text-align: left }
td.best { font-weight: 700 }
figure { margin: 2rem 0 } img { max-width: 100%; height: auto } figcaption { color: #555 }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
