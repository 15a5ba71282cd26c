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
    near = program.near_walls(n)
    assert near.float().mean() == 1 - 0.75**2
    assert near[0].all()
    assert near[:, n - n // 8].all()
    assert not near[n // 8, n // 8]


@pytest.mark.parametrize("name", ["fno_padded", "monarch_fno"])
def test_a_training_is_validated_or_tested(program, data, few_pairs, name):
    row = program.train((name, 16, 1e-3, 0, False), data, 1, None)
    assert row["n_train"] == 16
    assert row["validation"] > 0
    assert "errors" not in row
    row = program.train((name, 16, 1e-3, 0, True), data, 1, None)
    assert row["n_train"] == 20
    assert "validation" not in row
    assert set(row["errors"]) == {"darcy_test_16", "darcy_test_32"}
    for found in row["errors"].values():
        assert min(found["near walls"], found["elsewhere"]) < found["everywhere"]
        assert found["everywhere"] < max(found["near walls"], found["elsewhere"])


def test_the_rate_is_chosen_by_validation_and_what_is_there_is_left_out(program, data, tmp_path, monkeypatch):
    asked = []

    def run(todo, out, data, epochs, workers):
        asked.append(todo)
        with (out / "rows.jsonl").open("a") as file:
            for row, n, rate, seed, tested in todo:
                found = {"errors": {}} if tested else {"validation": abs(rate - 2e-3)}
                own = {"row": row, "resolution": n, "learning_rate": rate, "seed": seed, "epochs": epochs or 100}
                file.write(json.dumps(own | found) + "\n")

    monkeypatch.setattr(program, "_run", run)
    program.reproduce_walls(data, tmp_path, ["fno"], rates=(1e-3, 2e-3), seeds=(0, 1))
    assert asked == [
        [("fno", 16, 1e-3, 0, False), ("fno", 16, 2e-3, 0, False)],
        [("fno", 16, 2e-3, 0, True), ("fno", 16, 2e-3, 1, True)],
    ]
    asked.clear()
    program.reproduce_walls(data, tmp_path, ["fno"], rates=(1e-3, 2e-3), seeds=(0, 1, 2))
    assert asked == [[], [("fno", 16, 2e-3, 2, True)]]
    asked.clear()
    program.reproduce_walls(data, tmp_path, ["fno"], rates=(2e-3,), seeds=(0,), epochs=5)  # another training
    assert asked == [[("fno", 16, 2e-3, 0, False)], [("fno", 16, 2e-3, 0, True)]]
    with pytest.raises(InputError, match="there are no rows"):
        program.reproduce_walls(data, tmp_path, ["unet"])
