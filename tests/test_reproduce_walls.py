"""The program behind the table of flow with walls, on a few small fields."""

import json

import pytest
import torch

from sciml_monarch import InputError
from tests.programs import script


@pytest.fixture(scope="module")
def program():
    return script("reproduce_walls")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("darcy")
    generator = torch.Generator().manual_seed(0)
    for name, number, n in (("train_16", 20, 16), ("test_16", 3, 16), ("test_32", 3, 32)):
        x = torch.rand(number, n, n, generator=generator) > 0.5
        torch.save({"x": x, "y": x.float() + 0.1}, folder / f"darcy_{name}.pt")
    for name, number, n in (("train_32", 20, 32), ("test_32", 3, 32), ("test_64", 3, 64)):
        x = torch.rand(number, n, generator=generator)
        torch.save({"x": x, "y": x + 0.1}, folder / f"burgers_walls_{name}.pt")
    return folder


@pytest.fixture
def few_pairs(program, monkeypatch):
    read = program.read_config

    def config(file):
        found = read(file)
        found["data"]["init_args"] |= {"n_train": 20, "batch_size": 8}
        found["model"]["init_args"]["net"]["init_args"]["width"] = 4
        return found

    monkeypatch.setattr(program, "read_config", config)
    monkeypatch.setattr(program, "N_VALIDATION", 4)


@pytest.mark.parametrize("n", [16, 32])
def test_an_eighth_of_the_domain_from_each_wall_is_near_it(program, n):
    near = program.near_walls((n, n))
    assert near.float().mean() == 1 - 0.75**2
    assert near[0].all()
    assert near[:, n - n // 8].all()
    assert not near[n // 8, n // 8]
    near = program.near_walls((n,))
    assert near.sum() == n // 4
    assert near[0]
    assert near[-1]


@pytest.mark.parametrize(
    ("name", "row_name", "n"),
    [
        ("darcy", "fno_padded", 16),
        ("darcy", "monarch_fno", 16),
        ("burgers_walls", "fno_wide", 32),
        ("burgers_walls", "monarch_fno_padded", 32),
    ],
)
def test_a_training_is_validated_or_tested(program, data, few_pairs, name, row_name, n):
    row = program.train(program.Job(name, row_name, n, 1e-3, 0, False), data, 1, None)
    assert row["n_train"] == 16
    assert row["validation"] > 0
    assert "errors" not in row
    row = program.train(program.Job(name, row_name, n, 1e-3, 0, True), data, 1, None)
    assert row["n_train"] == 20
    assert "validation" not in row
    assert (row["set"], row["row"], row["resolution"]) == (name, row_name, n)
    ways = {", fourier", ", output", *[", cubic"] * row_name.startswith("monarch")}
    assert set(row["errors"]) == {f"{name}_test_{n}", *(f"{name}_test_{2 * n}{way}" for way in ways)}
    for found in row["errors"].values():
        assert min(found["near walls"], found["elsewhere"]) < found["everywhere"]
        assert found["everywhere"] < max(found["near walls"], found["elsewhere"])


def test_the_rate_is_chosen_by_validation_and_what_is_there_is_left_out(program, data, tmp_path, monkeypatch):
    asked = []

    def run(todo, out, data, epochs, workers):
        asked.append(todo)
        with (out / "rows.jsonl").open("a") as file:
            for job in todo:
                found = {"errors": {}} if job.tested else {"validation": abs(job.learning_rate - 2e-3)}
                file.write(json.dumps(job._asdict() | {"epochs": epochs or 100} | found) + "\n")

    monkeypatch.setattr(program, "_run", run)
    program.reproduce_walls(data, "darcy", tmp_path, ["fno"], rates=(1e-3, 2e-3), seeds=(0, 1))
    assert asked == [
        [("darcy", "fno", 16, 1e-3, 0, False), ("darcy", "fno", 16, 2e-3, 0, False)],
        [("darcy", "fno", 16, 2e-3, 0, True), ("darcy", "fno", 16, 2e-3, 1, True)],
    ]
    asked.clear()
    program.reproduce_walls(data, "darcy", tmp_path, ["fno"], rates=(1e-3, 2e-3), seeds=(0, 1, 2))
    assert asked == [[], [("darcy", "fno", 16, 2e-3, 2, True)]]
    asked.clear()
    program.reproduce_walls(data, "darcy", tmp_path, ["fno"], rates=(2e-3,), seeds=(0,), epochs=5)  # another training
    assert asked == [[("darcy", "fno", 16, 2e-3, 0, False)], [("darcy", "fno", 16, 2e-3, 0, True)]]
    asked.clear()
    program.reproduce_walls(data, "burgers_walls", tmp_path, ["fno"], 32, (2e-3,), (0,))  # another set
    assert asked == [[("burgers_walls", "fno", 32, 2e-3, 0, False)], [("burgers_walls", "fno", 32, 2e-3, 0, True)]]
    with pytest.raises(InputError, match="there are no rows"):
        program.reproduce_walls(data, "darcy", tmp_path, ["unet"])
    with pytest.raises(InputError, match="there is no set"):
        program.reproduce_walls(data, "stokes", tmp_path)
    with pytest.raises(InputError, match=r"lacks darcy_train_16\.pt, darcy_test_16\.pt, darcy_test_32\.pt"):
        program.reproduce_walls(tmp_path, "darcy", tmp_path)


def test_a_rate_that_diverges_is_not_chosen(program, data, few_pairs):
    diverged = program.train(program.Job("darcy", "fno", 16, 1e30, 0, False), data, 2, None)
    assert diverged["validation"] == float("inf")
    rows = [json.loads(json.dumps(diverged)), diverged | {"learning_rate": 1e-3, "validation": 0.3}]
    for order in (rows, rows[::-1]):
        assert program.chosen(order, "darcy", "fno", 16, 2) == 1e-3
    with pytest.raises(InputError, match="every training of darcy, fno diverged"):
        program.chosen(rows[:1], "darcy", "fno", 16, 2)
    with pytest.raises(InputError, match="the loss is"):
        program.train(program.Job("darcy", "fno", 16, 1e30, 0, True), data, 2, None)


def training(row, rate, seed, error, n=16):
    """A row of the file: errors twice as large near the walls and half as large elsewhere, more of all at ``2 n``."""
    parts = {"everywhere": error, "near walls": 2 * error, "elsewhere": error / 2}
    found = {f"darcy_test_{n}": parts}
    for way, times in (("fourier", 3), ("output", 4), ("cubic", 5)):
        if way != "cubic" or row.startswith("monarch"):
            found[f"darcy_test_{2 * n}, {way}"] = {part: times * value for part, value in parts.items()}
    return trial(row, rate, None, seed=seed, n=n) | {"errors": found}


def trial(row, rate, validation, epochs=100, seed=0, n=16):
    own = {"set": "darcy", "row": row, "resolution": n, "learning_rate": rate, "seed": seed, "epochs": epochs}
    own |= {"n_parameters": 1000}
    return own if validation is None else own | {"validation": validation}


ROWS = [
    trial("fno", 1e-3, 0.3),
    trial("fno", 1e-2, 0.2),
    trial("fno", 3e-2, 0.1, epochs=5),  # another training
    *(training("fno", 1e-3, seed, 0.01) for seed in (0, 1)),  # the better test does not count
    training("fno", 1e-2, 0, 0.20),
    training("fno", 1e-2, 1, 0.24),
    trial("fno_padded", 1e-3, 0.3),
    trial("fno_padded", 1e-2, 0.2),
    *(training("fno_padded", 1e-3, seed, 0.1) for seed in (0, 1)),  # the chosen rate is not trained yet
    trial("monarch_fno", 1e-3, 0.25),
    training("monarch_fno", 1e-3, 1, 0.25),  # paired by seeds, not by lines
    training("monarch_fno", 1e-3, 0, 0.23),
]


@pytest.fixture
def tables(program, tmp_path, monkeypatch):
    tables = script("make_tables_walls")
    monkeypatch.setattr(tables, "ROWS", tmp_path / "rows.jsonl")
    return tables


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def cells(table, name):
    """Cells behind the first of a line."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_only_trainings_of_the_chosen_rate_are_in_the_table(tables):
    write(tables.ROWS, ROWS)
    table = tables.errors("darcy")
    finer = ["0.6600 ± 0.0600", "1.3200 ± 0.1200", "0.3300 ± 0.0300"]  # within the band
    assert cells(table, "FNO") == [
        "1,000",
        "0.01",
        "2",
        "0.2200 ± 0.0200",
        "0.4400 ± 0.0400",
        "0.1100 ± 0.0100",
        *finer,
    ]
    assert cells(table, "MonarchFNO")[:4] == ["1,000", "0.001", "2", "0.2400 ± 0.0100"]
    assert cells(table, "MonarchFNO")[6:] == ["1.2000 ± 0.0500", "2.4000 ± 0.1000", "0.6000 ± 0.0250"]  # by cubics
    assert {len(line.split("|")) for line in table.splitlines() if line.startswith("|")} == {12}


def test_rows_that_are_not_trained_yet_say_so(tables):
    assert tables.errors("darcy") == tables.differences("darcy") == tables.rates("darcy") == "Not measured yet."
    write(tables.ROWS, ROWS)
    for name in ("padded FNO", "padded MonarchFNO"):
        assert cells(tables.errors("darcy"), name) == ["not measured yet", *[""] * 8]
        assert cells(tables.differences("darcy"), f"{name} − FNO") == ["not measured yet", *[""] * 5]
    write(tables.ROWS, [row for row in ROWS if row["seed"] == 0])  # one seed has no standard error
    assert cells(tables.errors("darcy"), "FNO")[0] == "not measured yet"
    assert cells(tables.differences("darcy"), "MonarchFNO − FNO")[0] == "not measured yet"


def test_differences_are_those_of_the_same_seed(tables):
    write(tables.ROWS, ROWS)
    # 0.23 - 0.20 and 0.25 - 0.24: 0.02 ± 0.01; 0.02 of 0.22 are 9.1%
    found = ["+0.0200 ± 0.0100 (+9.1%)", "+0.0400 ± 0.0200 (+9.1%)", "+0.0100 ± 0.0050 (+9.1%)"]
    # 5 * 0.23 - 3 * 0.20 and 5 * 0.25 - 3 * 0.24
    found += ["+0.5400 ± 0.0100 (+81.8%)", "+1.0800 ± 0.0200 (+81.8%)", "+0.2700 ± 0.0050 (+81.8%)"]
    assert cells(tables.differences("darcy"), "MonarchFNO − FNO") == found


def test_the_ways_to_a_finer_grid_are_side_by_side(tables):
    write(tables.ROWS, ROWS)
    table = tables.grids("darcy")
    assert cells(table, "FNO") == ["0.2200 ± 0.0200", "0.6600 ± 0.0600", "", "0.8800 ± 0.0800"]
    assert cells(table, "MonarchFNO") == ["0.2400 ± 0.0100", "0.7200 ± 0.0300", "1.2000 ± 0.0500", "0.9600 ± 0.0400"]
    assert cells(table, "padded FNO") == ["not measured yet", "", "", ""]


def test_an_output_on_every_second_point_is_interpolated(program):
    """The points that it was computed on keep it, and a cubic polynomial of place is right between them too."""
    surrogate = torch.nn.Module()
    surrogate.net, surrogate.forward = None, lambda x: x**3
    place = torch.arange(16, dtype=torch.float64).view(1, 1, 1, 16) / 16
    ways = program.ways(surrogate)
    assert ways.keys() == {"fourier", "output"}
    torch.testing.assert_close(ways["output"](place), place**3)
    x = torch.randn(2, 1, 1, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(ways["output"](x)[..., ::2, ::2], x[..., ::2, ::2] ** 3)


def test_the_validation_error_of_each_rate_is_shown_and_the_least_marked(tables):
    write(tables.ROWS, ROWS)
    table = tables.rates("darcy")
    assert cells(table, "network") == ["0.001", "0.01"]
    assert cells(table, "FNO") == ["0.3000", "**0.2000**"]
    assert cells(table, "MonarchFNO") == ["**0.2500**", "not measured yet"]
    assert cells(table, "padded MonarchFNO") == ["not measured yet"] * 2


def test_another_resolution_has_tables_of_its_own_where_it_is_trained(tables):
    write(tables.ROWS, ROWS)
    assert "trained at 32²" not in tables.errors("darcy")
    finer = [trial("fno", 3e-3, 0.3, n=32), *(training("fno", 3e-3, seed, 0.1 * (seed + 1), n=32) for seed in (0, 1))]
    write(tables.ROWS, ROWS + finer)
    coarse, _, fine = tables.errors("darcy").partition("trained at 32²:")
    assert cells(coarse, "FNO")[1] == "0.01"
    assert cells(fine, "FNO")[1:4] == ["0.003", "2", "0.1500 ± 0.0500"]
    assert "64², near walls" in fine
    assert "64²" not in coarse
    assert cells(fine, "MonarchFNO")[0] == "not measured yet"


def test_sets_do_not_mix_and_have_their_own_rows(tables):
    write(tables.ROWS, [row | {"set": "burgers_walls"} for row in ROWS if "errors" not in row])
    assert tables.errors("darcy") == "Not measured yet."
    table = tables.rates("burgers_walls")
    assert cells(table, "FNO") == ["0.3000", "**0.2000**"]
    assert cells(table, "wider FNO") == ["not measured yet"] * 2
    write(tables.ROWS, ROWS)
    assert "wider FNO" not in tables.errors("darcy") + tables.differences("darcy")
