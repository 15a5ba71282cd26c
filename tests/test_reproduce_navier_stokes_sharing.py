"""What the program behind the Navier-Stokes table hands on: checkpoints in pieces, and tested networks."""

from pathlib import Path

import pytest
import torch

from sciml_monarch import InputError, load
from sciml_monarch.pde import n_parameters
from tests import navier_stokes_runs
from tests.navier_stokes_runs import LAST, arguments
from tests.programs import script

RESULTS = Path(__file__).resolve().parents[1] / "results"

# fixtures; imported by their names, they would be unused to Ruff
program, pieces, inline = navier_stokes_runs.program, navier_stokes_runs.pieces, navier_stokes_runs.inline
data, trained = navier_stokes_runs.data, navier_stokes_runs.trained


def test_checkpoints_in_pieces_come_back_exactly(program, pieces, trained, data, tmp_path, inline):
    name = "fno_1e-5_3_epochs_seed_0"
    packed, out = tmp_path / "packed", tmp_path / "runs"
    files = pieces.pack(trained, packed, program.ROW, piece_bytes=10_000)
    assert len(files) > 4
    assert max(file.stat().st_size for file in files[:-1]) == 10_000
    assert pieces.unpack(packed, out, program.ROW) == [out / name / LAST]
    for file in (LAST, program.ROW):
        assert (out / name / file).read_bytes() == (trained / name / file).read_bytes()
    (out / name / program.ROW).unlink()  # tested anew, on the weights that were carried
    program.train(arguments(data, out))
    assert program.rows_in(out)[0]["relative_l2"] == program.rows_in(trained)[0]["relative_l2"]
    with pytest.raises(InputError, match=f"has checkpoints of {name} already"):
        pieces.unpack(packed, out, program.ROW)
    # a training that began elsewhere and got to no checkpoint leaves a row that is not of this one
    (out / name / LAST).unlink()
    (out / name / program.ROW).write_text('{"finished": false}')
    pieces.unpack(packed, out, program.ROW)
    assert (out / name / program.ROW).read_bytes() == (trained / name / program.ROW).read_bytes()
    # packed again into the same folder, in fewer pieces
    pieces.pack(trained, packed, program.ROW, rows=["fno_1e-5"])
    assert sorted(file.name for file in packed.iterdir()) == ["manifest.json", "piece_000"]
    with pytest.raises(InputError, match="holds no runs with checkpoints of these rows"):
        pieces.pack(trained, tmp_path / "none", program.ROW, rows=["no_1e-5"])
    with pytest.raises(InputError, match=r"holds no runs with checkpoints of monarch_1e-5$"):
        pieces.pack(trained, tmp_path / "none", program.ROW, rows=["fno_1e-5", "monarch_1e-5"])
    with pytest.raises(InputError, match=r"holds other files, or a packing that was cut short"):
        pieces.pack(trained, out, program.ROW)


def test_incomplete_pieces_are_refused(program, pieces, trained, tmp_path):
    packed, out = tmp_path / "packed", tmp_path / "runs"
    files = pieces.pack(trained, packed, program.ROW, piece_bytes=10_000)
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    files[2].unlink()
    with pytest.raises(
        InputError, match=rf"2 of {len(files) - 1} pieces are missing or damaged: piece_001, piece_002$"
    ):
        pieces.unpack(packed, out, program.ROW)
    files[-1].unlink()
    with pytest.raises(InputError, match=r"lacks manifest.json; this is no packing, or not all of it"):
        pieces.unpack(packed, out, program.ROW)
    assert not out.exists()


def test_pieces_go_across_checkpoints(pieces, tmp_path):
    sizes = {"a": 25, "b": 3, "c": 12}
    for name, size in sizes.items():
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / LAST).write_bytes(bytes(range(size)))
    files = pieces.pack(tmp_path / "runs", tmp_path / "packed", "row.json", piece_bytes=10)
    assert [file.stat().st_size for file in files[:-1]] == [10] * 4
    pieces.unpack(tmp_path / "packed", tmp_path / "again", "row.json")
    for name, size in sizes.items():
        assert (tmp_path / "again" / name / LAST).read_bytes() == bytes(range(size))


@pytest.mark.parametrize("bf16", [False, True], ids=["exact", "bf16"])
def test_weights_alone_can_be_carried(program, pieces, trained, tmp_path, bf16):
    whole = pieces.pack(trained, tmp_path / "whole", program.ROW)
    files = pieces.pack(trained, tmp_path / "packed", program.ROW, weights_only=True, bf16=bf16)
    assert sum(f.stat().st_size for f in files[:-1]) < sum(f.stat().st_size for f in whole[:-1]) / (3 if bf16 else 2)
    (restored,) = pieces.unpack(tmp_path / "packed", tmp_path / "runs", program.ROW)
    ours, theirs = load(restored).state_dict(), load(trained / "fno_1e-5_3_epochs_seed_0" / LAST).state_dict()
    assert any(value.is_complex() for value in ours.values())
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        tolerance = 2**-8 if bf16 and value.ndim >= 2 else 0
        parts = [torch.view_as_real(v) if v.is_complex() else v for v in (ours[key], value)]
        torch.testing.assert_close(*parts, rtol=tolerance, atol=0)
    assert not (tmp_path / "runs" / "fno_1e-5_3_epochs_seed_0" / LAST).exists()  # no training goes on from it
    if bf16:
        with pytest.raises(InputError, match="give --weights_only too"):
            pieces.pack(trained, tmp_path / "x", program.ROW, bf16=True)
        with pytest.raises(InputError, match=r"the weights of fno_1e-5 were rounded after the test"):
            program.share(tmp_path / "runs", tmp_path / "shared")
    else:
        assert program.share(tmp_path / "runs", tmp_path / "shared") == [tmp_path / "shared/fno_1e-5"]


def test_tested_networks_are_shared_with_what_they_were_tested_to(program, trained, tmp_path):
    (folder,) = program.share(trained, tmp_path / "shared", ["fno_1e-5"])
    assert folder == tmp_path / "shared/fno_1e-5"
    ours, theirs = (load(path).state_dict() for path in (folder, trained / "fno_1e-5_3_epochs_seed_0" / LAST))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    (row,) = program.read_rows(trained / "rows.jsonl")
    text = (folder / "README.md").read_text()
    assert f"mean over 2 test trajectories: **{row['relative_l2']:.4f}**" in text
    assert "6 trajectories, 3 epochs, seed 0" in text
    assert "whole roll-out, 2 frames behind 3" in text
    card = script("reproduce_navier_stokes_share").card
    assert "whole roll-out, 2 frames behind 3" in card(row | {"n_steps": 1})
    # rows that do not say what they were tested on: the configuration does
    older = {name: value for name, value in row.items() if name != "test_steps"}
    assert "whole roll-out, 2 frames behind 3" in card(older)
    of_single_steps = older | {"row": "one_step_gated_1e-5", "n_steps": 1, "settings": []}
    assert "whole roll-out, 10 frames behind 3" in card(of_single_steps)
    assert load(folder).description.n_test_steps == 2
    assert program.share(trained, tmp_path / "all") == [tmp_path / "all/fno_1e-5"]
    with pytest.raises(InputError, match=r"holds no tested network of seed 0 of monarch_fno_1e-5$"):
        program.share(trained, tmp_path / "none", ["fno_1e-5", "monarch_fno_1e-5"])
    with pytest.raises(InputError, match=r"holds no tested network of seed 1$"):
        program.share(trained, tmp_path / "none", seed=1)
    assert not (tmp_path / "none").exists()


def test_networks_that_are_shared_are_those_of_the_table(program):
    rows = {row["row"]: row for row in program.read_rows(RESULTS / "navier_stokes/rows.jsonl") if row["seed"] == 0}
    folders = sorted((RESULTS / "checkpoints").iterdir())
    assert folders
    for folder in folders:
        assert n_parameters(load(folder)) == rows[folder.name]["n_parameters"]
        assert f"**{rows[folder.name]['relative_l2']:.4f}**" in (folder / "README.md").read_text()
