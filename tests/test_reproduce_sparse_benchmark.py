"""The benchmark of sparse networks: rows, what is missing, and networks of the paper's sizes."""

import json

import pytest
import torch

from sciml_monarch import InputError
from sciml_monarch.monarch import MonarchLinear
from sciml_monarch.monarch.convert import sparsify
from sciml_monarch.pde import n_parameters
from tests.programs import script


def test_benchmark_times_both_forms_and_says_what_is_missing(tmp_path, capsys, monkeypatch):
    benchmark = script("benchmark_sparse")
    out = tmp_path / "rows.json"
    benchmark.benchmark_sparse(out, device="cpu", quick=True, seconds_per_row=0.02)
    content = json.loads(out.read_text())
    assert content["provenance"]["torch"] == torch.__version__
    networks = [row for row in content["rows"] if "network" in row]
    layers = [row for row in content["rows"] if "layer" in row]
    measured, missing = networks[:2], networks[2:]
    for row in measured:
        assert row["n_parameters"]["dense"] > 2 * row["n_parameters"]["monarch"]
        assert row["speed_up"] == pytest.approx(row["step_seconds"]["dense"] / row["step_seconds"]["monarch"])
        assert row["output_error"] < 3e-2
    assert [row["batch"] for row in measured] == [2, 1]
    assert [row["skipped"] for row in missing] == ["a_package_that_is_missing is not installed"]
    assert all(0 < row["error"] < 3e-2 for row in layers)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "| not there | 1 | eager | a_package_that_is_missing is not installed | | | |"
    # what was measured stays where it is not measured anew
    benchmark.benchmark_sparse(out, device="cpu", quick=True, time_limit=-1)
    assert json.loads(out.read_text())["rows"] == content["rows"]

    def fails(*arguments):
        raise RuntimeError("a compiler\nfailed")

    monkeypatch.setattr(benchmark, "layer_row", fails)
    options = {"device": "cpu", "quick": True, "seconds_per_row": 0.02, "smaller_batches": [1]}
    benchmark.benchmark_sparse(out, networks=["OperatorTransformer"], **options)
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == len(content["rows"])
    assert rows[1:-2] == content["rows"][1:-2]
    assert rows[0]["step_seconds"] != content["rows"][0]["step_seconds"]
    assert [row["skipped"] for row in rows[-2:]] == ["RuntimeError: a compiler failed"] * 2
    benchmark.benchmark_sparse(out, networks=["not there"], blocks=2, **options)  # other rows
    assert len(json.loads(out.read_text())["rows"]) == len(rows) + 3
    monkeypatch.setattr(benchmark, "layer_row", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark_sparse(out, networks=["not there"], **options)
    late = tmp_path / "late.json"
    benchmark.benchmark_sparse(late, device="cpu", quick=True, time_limit=-1)
    assert {row["skipped"] for row in json.loads(late.read_text())["rows"]} == {"time is up"}
    with pytest.raises(InputError, match=r"no networks \['GPT-3'\]"):
        benchmark.benchmark_sparse(out, device="cpu", networks=["GPT-3"])


def test_benchmarks_networks_of_transformers_have_the_parameters_of_the_paper():
    pytest.importorskip("transformers")
    benchmark = script("benchmark_sparse")
    for name, count in {"GPT-2 small": 124_439_808, "BERT-large": 335_174_458}.items():
        network = benchmark.NETWORKS[name]
        net = network.make()
        assert n_parameters(net) == count
        report = sparsify(net, 4, init="random", head=True)
        if network.parameters is not None:
            assert report.parameters_after / 1e6 == pytest.approx(network.parameters, rel=0.02)


def test_benchmarks_networks_have_the_parameters_of_the_paper():
    """Where timm and transformers are missing: layers of their sizes; the rest of their parameters is counted."""
    benchmark = script("benchmark_sparse")

    def layers(width, n_layers, *others):
        maps = [(width, width)] * 3 + [(width, width), (width, 4 * width), (4 * width, width)]
        with torch.device("meta"):
            net = torch.nn.ModuleList(torch.nn.Linear(*size) for size in [*maps * n_layers, *others])
            monarch = torch.nn.ModuleList(MonarchLinear(*size) for size in [*maps * n_layers, *others])
        return n_parameters(net), n_parameters(monarch)

    # patches, positions, class token, normalisations
    rest = 768 * (3 * 16 * 16 + 1) + 768 * 197 + 768 + 25 * 2 * 768
    dense, monarch = layers(768, 12, (768, 1000))
    assert dense + rest == 86_567_656
    assert (monarch + rest) / 1e6 == pytest.approx(benchmark.NETWORKS["ViT-B/16"].parameters, rel=0.02)
    rest = 1024 * (30522 + 512 + 2) + 30522 + (1 + 2 * 24 + 1) * 2 * 1024
    dense, monarch = layers(1024, 24, (1024, 1024))
    assert dense + rest == 335_174_458
    assert (monarch + rest) / 1e6 == pytest.approx(benchmark.NETWORKS["BERT-large"].parameters, rel=0.02)


def test_splitting_a_fused_map_keeps_its_shape():
    benchmark = script("benchmark_sparse_networks")
    net = torch.nn.Module()
    net.qkv = torch.nn.Linear(8, 24)
    benchmark.split_attention(net)
    assert len(net.qkv.maps) == 3
    assert net.qkv(torch.randn(2, 5, 8)).shape == (2, 5, 24)
