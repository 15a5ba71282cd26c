"""The program that trains GPT on a text: its parts, its network, its trainings and tables."""

import pytest
import torch

from sciml_monarch.pde import n_parameters
from tests.programs import script


@pytest.fixture(scope="module")
def text():
    return script("train_text")


def test_parts_of_a_text_do_not_overlap(text):
    train, validation, test = text.split(torch.arange(1000))
    assert [len(part) for part in (train, validation, test)] == [900, 50, 50]
    assert sorted(torch.cat([train, validation, test]).tolist()) == list(range(1000))
    assert validation[:10].tolist() == list(range(90, 100))
    assert test[-10:].tolist() == list(range(990, 1000))


def test_gpt_does_not_look_ahead_and_has_gpt2s_parameters(text):
    size = text.Size(16, 2, 2, 12, 4, 1, 1e-3, 0.0, 4)
    net = text.GPT(size)
    x = torch.randint(0, 256, (1, 12))
    changed = x.clone()
    changed[0, 7] = (x[0, 7] + 1) % 256
    y, z = net(x), net(changed)
    torch.testing.assert_close(y[:, :7], z[:, :7])
    assert (y[:, 7:] - z[:, 7:]).abs().amax(-1).gt(1e-6).all()
    with torch.device("meta"):
        large = text.GPT(size._replace(width=768, n_layers=12, n_heads=12, length=1024))
    assert n_parameters(large) == 124_439_808 - (50_257 - 256) * 768  # GPT-2 small but for its vocabulary


def test_text_is_learned_in_every_way(text, tmp_path, capsys):
    file, out = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    file.write_text("the cat sat on the mat and the dog ran after the cat. " * 100)
    sizes = {"width": 32, "n_layers": 1, "n_heads": 2, "length": 16, "batch": 8, "epochs": 3, "rate": 1e-2}
    options = [f"--{name}={value}" for name, value in (sizes | {"device": "cpu"}).items()]
    command = ["--text", str(file), "--out", str(out), *options]
    assert text.main([*command, "--ways", "dense", "sparse_to_dense_70"]) == 0
    rows = text.read_rows(out)
    assert [row["way"] for row in rows] == ["dense", "sparse_to_dense_70"]
    assert all(row["bits_per_byte"] < 3 for row in rows)  # 4.0 without any context
    assert rows[1]["n_parameters"] < rows[1]["n_parameters_at_the_end"] == rows[0]["n_parameters"]
    assert rows[1]["history"][-1][2] < rows[1]["history"][0][2]
    with out.open("a") as stream:
        stream.write('{"way": "mon')  # the machine went down
    assert text.main([*command, "--ways", "dense", "monarch"]) == 0
    assert [row["way"] for row in text.read_rows(out)] == ["dense", "sparse_to_dense_70", "monarch"]
    assert text.main([*options, "--text", str(file)]) == 2
    file.write_text("short")  # another text: not the one that is done
    assert text.main([*command, "--ways", "dense"]) == 2
    assert "is too short" in capsys.readouterr().err
    assert text.main(["--table", str(out)]) == 0
    lines = capsys.readouterr().out
    assert "| sparse_to_dense_90 | not measured yet |" in lines
    assert lines.count("| dense |") == 1
    assert text.main(["--table", str(tmp_path / "missing.jsonl")]) == 2


def test_the_best_epoch_of_a_text_is_tested_with_its_own_weights(text, monkeypatch):
    size = text.Size(16, 1, 2, 8, 4, 3, 1e-2, 0.0, 4)
    tested = []

    def evaluate(net, part, size, device):
        """Validation errors are 2, 1, 3: the second epoch is the best, still of Monarch matrices."""
        if len(part) == 45:
            tested.append([part, text.n_parameters(net), net.bytes.weight.detach().clone()])
            return [2.0, 1.0, 3.0][len(tested) - 1]
        return next(float(i) for i, seen in enumerate(tested) if torch.equal(net.bytes.weight, seen[2]))

    monkeypatch.setattr(text, "evaluate", evaluate)
    parts = (torch.randint(97, 123, (n,), dtype=torch.uint8) for n in (400, 45, 50))
    monkeypatch.setattr(text, "split", lambda whole, parts=tuple(parts): parts)
    row = text.train("sparse_to_dense_70", b"text", size, 0, torch.device("cpu"))
    assert row["best"]["epoch"] == 2
    assert row["best"]["bits_per_byte"] == pytest.approx(1 / 0.6931, rel=1e-3)
    assert row["bits_per_byte"] == pytest.approx(2 / 0.6931, rel=1e-3)
    assert tested[1][1] < tested[2][1]


def test_tables_of_texts_do_not_mix(text):
    size = text.Size(16, 1, 2, 8, 4, 3, 1e-2, 0.0, 4)
    scores = {"perplexity_per_byte": 2.0, "bits_per_byte": 1.0, "perplexity_per_word": 32.0}
    row = {
        "way": "dense",
        **size._asdict(),
        "seed": 0,
        **scores,
        "best": {"epoch": 2, **scores},
        "train_seconds": 1.0,
        "step_seconds": {"before": 0.1, "after": None},
        "n_parameters": 10,
        "n_parameters_at_the_end": 10,
        "text_sha256": "abc",
        "device": "a GPU",
        "torch": "2",
        "commit": None,
    }
    others = [row | {"way": "monarch"} | other for other in ({"seed": 1}, {"epochs": 4}, {"text_sha256": "def"})]
    tables = text.table([row, *others]).split("Text ")[1:]
    assert len(tables) == 4
    assert all(part.count("not measured yet") == 3 for part in tables)
    assert "| dense | 10 | 100.0 | 1 | 1.0000 | 2.0000 | 32.00 | 2 | 2.0000 | 32.00 |" in tables[0]
