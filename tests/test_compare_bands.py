"""Errors of networks by band of frequencies."""

import json
import math

import pytest
import torch

from sciml_monarch import InputError
from tests.pde.decaying_waves import DESCRIPTION, Scale, exact, network, write_data
from tests.programs import script


@pytest.fixture(scope="module")
def program():
    return script("compare_bands")


def test_bands_add_up_and_hold_their_frequencies(program):
    fields = torch.randn(3, 2, 12, 10, dtype=torch.float64)
    energies = program.band_energies(fields, [1, 3])
    assert energies.shape == (3, 2, 3)
    torch.testing.assert_close(energies.sum(-1), fields.square().sum((-1, -2)))
    x = torch.arange(16, dtype=torch.float64) / 16
    for frequency, band in ((0, 0), (2, 0), (3, 1), (5, 1), (6, 2), (8, 2)):
        wave = torch.cos(2 * math.pi * frequency * x)
        for field in (wave[:, None].expand(16, 16), wave.expand(16, 16), wave[:, None] * wave):
            found = program.band_energies(field, [2, 5])
            assert found[band] == pytest.approx(field.square().sum().item())
            assert found.sum() == pytest.approx(found[band].item())


def test_errors_lie_where_they_are_made(program, tmp_path, monkeypatch, capsys):
    # trajectory i is i + 1 waves: of the last two one in each band
    data = write_data(tmp_path / "data")
    found = {"exact": network(Scale(exact())), "nothing": network(Scale(0.0))}
    monkeypatch.setattr(program, "load_surrogate", lambda path: found[path.name])
    out = tmp_path / "bands.json"
    paths = [tmp_path / name for name in found]
    program.compare_bands(paths, data, out, edges=[4], n_test=2, batch_size=1, device="cpu")
    content = json.loads(out.read_text())
    truth, right, nothing = content["rows"]
    assert (content["n_test"], content["edges"], content["known_frames"]) == (2, [4], DESCRIPTION.n_history)
    assert truth["whole"] == pytest.approx([0.5, 0.5])
    assert nothing["whole"] == pytest.approx(truth["whole"])
    assert right["whole"] == pytest.approx([0, 0], abs=1e-5)
    assert [len(row["per_frame"]) for row in content["rows"]] == [DESCRIPTION.n_steps] * 3
    assert "| the truth itself | 0.5000 | 0.5000 |" in capsys.readouterr().out
    program.compare_bands(paths, data, out, edges=[4], n_test=2, n_steps=1, device="cpu")
    assert [len(row["per_frame"]) for row in json.loads(out.read_text())["rows"]] == [1] * 3
    with pytest.raises(InputError, match=r"edges \[4, 2\]: give rising frequencies"):
        program.compare_bands(paths, data, out, edges=[4, 2])
