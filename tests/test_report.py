"""Tables, JSON, CSV and the HTML page; files that are whole or not there."""

import csv
import errno
import json
import math
import re

import pytest
from rich.console import Console

from sciml_monarch import InputError
from sciml_monarch.files import replacing
from sciml_monarch.report import tabulate, terminal_table, write_metrics, write_report

ROWS = [
    {
        "task": "pde",
        "method": "FNO",
        "relative_l2": 0.1555,
        "relative_l2_standard_error": 0.002,
        "correlation_time": 8.0,
        "correlation_time_is_lower_bound": False,
        "n_parameters": 1188514,
        "relative_l2_per_step": [0.1, math.inf],
        "data": "waves, decaying",
    },
    {
        "task": "pde",
        "method": "MonarchFNO <b>",
        "relative_l2": 0.12,
        "relative_l2_standard_error": None,
        "correlation_time": 10.0,
        "correlation_time_is_lower_bound": True,
        "n_parameters": 1188514,
        "relative_l2_per_step": [0.1, 0.2],
        "data": "waves, decaying",
    },
]
MRI = {"task": "mri", "method": "CG-SENSE", "nmse": 0.01, "psnr": 38.25, "ssim": 0.95}


def column(table, title):
    at = table.header.index(title)
    return [line[at] for line in table.cells], [line[at] for line in table.best]


def test_table_formats_numbers_with_their_spread_and_bounds():
    table = tabulate(ROWS)
    assert table.header == ["method", "relative L2", "correlation > 0.9 (s)", "parameters"]
    assert column(table, "relative L2") == (["0.1555 ± 0.0020", "0.1200"], [False, True])
    assert column(table, "correlation > 0.9 (s)") == (["8.00", "≥ 10.00"], [False, True])
    assert column(table, "parameters") == (["1,188,514", "1,188,514"], [False, False])


def test_table_says_what_is_missing_and_what_is_not_finite():
    rows = [
        {"method": "a", "nmse": None},
        {"method": "b", "nmse": 0.5},
        {"method": "c"},
        {"method": "d", "nmse": math.nan},
    ]
    assert column(tabulate(rows), "NMSE") == (["not finite", "0.5000", "–", "not finite"], [False] * 4)


def test_best_goes_by_the_digits_shown_and_needs_a_loser():
    rows = [{"method": m, "psnr": v} for m, v in (("a", 38.001), ("b", 38.002), ("c", 30.0))]
    assert column(tabulate(rows), "PSNR (dB)")[1] == [True, True, False]
    assert column(tabulate(rows[:2]), "PSNR (dB)")[1] == [False, False]
    assert column(tabulate(rows[:1]), "PSNR (dB)")[1] == [False]


def test_terminal_table_holds_the_same_text():
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(terminal_table(ROWS, "Comparison"))
        text = console.export_text()
    for cell in ("Comparison", "MonarchFNO <b>", "0.1555 ± 0.0020", "≥ 10.00", "1,188,514"):
        assert cell in text


def test_json_keeps_everything_and_is_valid_and_csv_keeps_scalars(tmp_path):
    json_file, csv_file = write_metrics(tmp_path / "new/folder", ROWS)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    rows = json.loads(json_file.read_text(), parse_constant=refuse)
    assert rows[0]["relative_l2_per_step"] == [0.1, None]
    assert rows[1] == ROWS[1]
    with csv_file.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table[0]["data"] == "waves, decaying"
    assert float(table[1]["relative_l2"]) == 0.12
    assert "relative_l2_per_step" not in table[0]


def test_report_is_one_file_with_tables_notes_and_pictures(tmp_path):
    png = tmp_path / "a.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\nxyz")
    gif = tmp_path / "b.gif"
    gif.write_bytes(b"GIF89a")
    page = write_report(tmp_path / "out", "A & B", [*ROWS, MRI], {"Fields <x>": png, "Film": gif}, ["1 < 2"])
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "out/report.html"
    assert "<title>A &amp; B</title>" in text
    assert re.findall("<h2>(.*?)</h2>", text) == ["Neural PDE solvers", "MRI reconstruction"]
    assert text.count("<table>") == 2
    assert "MonarchFNO &lt;b&gt;" in text
    assert "<b>" not in text
    assert "<td class=best>0.1200</td>" in text
    assert "<td>38.25</td>" in text
    assert "<p>1 &lt; 2</p>" in text
    assert 'src="data:image/png;base64,iVBORw0KGgp4eXo="' in text
    assert 'src="data:image/gif;base64,R0lGODlh"' in text
    assert "<figcaption>Fields &lt;x&gt;</figcaption>" in text
    assert not re.search(r'(src|href)="(?!data:)', text), "the page must not need other files"


def write_and_fail(target, error):
    with replacing(target) as path:
        path.write_text("half of tw")
        raise error


def test_replacing_is_all_or_nothing(tmp_path):
    target = tmp_path / "deep/file.txt"
    with replacing(target) as path:
        assert path.parent == target.parent
        path.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    assert target.stat().st_mode & 0o777 == 0o644
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(target, KeyboardInterrupt())
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_replacing_names_the_file_on_a_full_or_forbidden_disk(tmp_path, code):
    with pytest.raises(InputError, match=r"file\.txt: cannot be written"):
        write_and_fail(tmp_path / "file.txt", OSError(code, "no"))
    assert not list(tmp_path.iterdir())


def test_replacing_names_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        write_metrics(tmp_path / "out", ROWS)


def test_other_errors_are_not_the_users(tmp_path):
    with pytest.raises(OSError, match="strange") as caught:
        write_and_fail(tmp_path / "file.txt", OSError(errno.EIO, "strange"))
    assert not isinstance(caught.value, InputError)
