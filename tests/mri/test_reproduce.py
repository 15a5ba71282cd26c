"""The protocol of the few-slice tables: nothing of a test head is ever trained on, runs go on where they stopped."""

import importlib
import json
import queue
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sciml_monarch.mri.base import magnitude
from sciml_monarch.mri.few_slices import Recipe, Slices, reconstruct_slices
from sciml_monarch.mri.phantom import phantom
from sciml_monarch.mri.unet import UNet
from tests.helpers import relative_error
from tests.mri.scenes import scan


@pytest.fixture(scope="module")
def program():
    scripts = Path(__file__).parents[2] / "scripts"
    sys.path.insert(0, str(scripts))  # the program's other half lies beside it
    try:
        yield importlib.import_module("reproduce_mri")
    finally:
        sys.path.remove(str(scripts))


@pytest.fixture(scope="module")
def protocol(program):
    return sys.modules["reproduce_mri_protocol"]


def numbered_heads(n):
    """Slices whose target says which head and slice they are."""
    empty = torch.zeros(n, 1, 1, 1)
    return [Slices(empty, empty[:, None], 100.0 * head + torch.arange(n).view(n, 1, 1)) for head in range(3)]


@pytest.mark.parametrize("n_slices", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("test", [0, 1, 2])
def test_split(protocol, test, n_slices):
    train, validation, tested = (
        part.target.flatten().int().tolist() for part in protocol.split(numbered_heads(64), test, n_slices)
    )
    assert len(train) == len(set(train)) == n_slices
    assert {v // 100 for v in train + validation} <= {0, 1, 2} - {test}
    assert {v // 100 for v in tested} == {test}
    assert len(validation) == 4
    assert min(abs(v - t) for v in validation for t in train) > 3
    assert set(protocol.split(numbered_heads(64), test, 1)[0].target.flatten().int().tolist()) <= set(train)


def test_masks_of_training_and_of_the_other_masks_differ(protocol):
    for kind in ("equispaced", "poisson"):
        masks = [protocol.make_mask(kind, 4, (256, 256), seed) for seed in (0, *protocol.OTHER_MASKS)]
        assert torch.equal(masks[0], protocol.make_mask(kind, 4, (256, 256), 0))
        assert all(abs(float(m.float().mean()) - 0.25) < 0.02 for m in masks)
        assert sum(not torch.equal(masks[0], m) for m in masks[1:]) >= 2


def test_a_varnet_of_zero_start_is_the_zero_filled_image(protocol):
    kspace, mask, maps, _ = scan(24, 24, batch=1)
    net = protocol.start_at_zero(protocol.VarNet(2, 4, 2, estimate_maps=False, combine_coils=True)).eval()
    zero_filled = protocol.zero_filled_sense(kspace, mask, maps)
    with torch.no_grad():
        assert relative_error(net(kspace, mask, maps), zero_filled) < 1e-5
    whole = Slices(kspace, maps, magnitude(zero_filled))
    assert relative_error(reconstruct_slices(net, whole, mask), whole.target) < 1e-5


def test_a_residual_unet_is_the_zero_filled_image_until_its_gate_opens(protocol):
    kspace, mask, maps, _ = scan(24, 24, batch=2)
    net = protocol.residual_unet(protocol.UNet(4, 2))
    zero_filled = protocol.zero_filled_sense(kspace, mask, maps)
    assert relative_error(net(kspace, mask, maps), zero_filled) < 1e-5
    whole = Slices(kspace, maps, magnitude(zero_filled))
    assert relative_error(reconstruct_slices(net, whole, mask), whole.target) < 1e-5
    with torch.no_grad():
        net.unet.gate += 0.01
    assert relative_error(net(kspace, mask, maps), zero_filled) > 1e-3
    assert relative_error(net(7.0 * kspace, mask, maps), 7.0 * net(kspace, mask, maps)) < 1e-5


def test_a_pair_a_coil_starts_as_the_exact_transform(protocol):
    kspace, mask, maps, _ = scan(24, 24, n_coils=protocol.N_COILS)
    one = protocol.NETWORKS["linear"]["MonarchSENSE"].make((24, 24))
    each = protocol.NETWORKS["linear_more"]["MonarchSENSE, pair a coil"].make((24, 24))
    zero_filled = protocol.zero_filled_sense(kspace, mask, maps)
    assert relative_error(each(kspace, mask, maps), zero_filled) < 1e-5
    one, each = (sum(p.numel() for p in net.parameters()) for net in (one, each))
    assert each == protocol.N_COILS * one


def test_the_rate_of_a_split_is_chosen_without_its_head(protocol):
    for table in ("linear", "linear_more", "unrolled"):
        tuned = protocol.tuning_cells(table)
        assert {(c.network, c.head) for c in tuned} == {(n, h) for n in protocol.NETWORKS[table] for h in range(3)}
        # every training of the tables finds its rate
        assert {(c.network, c.head) for c in protocol.cells(table)} == {(c.network, c.head) for c in tuned}


def test_many_slices_have_more_steps(protocol):
    few, many = (protocol.Cell("unrolled", "MoDL", 0, "poisson", 4, n) for n in (5, 100))
    assert protocol.recipe_of(many).n_steps == 2 * protocol.recipe_of(few).n_steps
    assert protocol.recipe_of(many, rate=3e-3, n_steps=7) == replace(
        protocol.recipe_of(few), learning_rate=3e-3, n_steps=7
    )


def test_the_untrained_network_is_what_learning_starts_from(program):
    classical = sys.modules["reproduce_mri_classical"]
    kspace, mask, maps, _ = scan(24, 24, batch=1)
    with torch.no_grad():
        start = classical.MonarchISTA(5, classical.BLOCKS).eval()(kspace, mask, maps)
    assert torch.equal(classical.untrained_ista(kspace, mask, maps, n_steps=5, scale=1.0), start)
    assert relative_error(classical.untrained_ista(kspace, mask, maps, n_steps=5, scale=10.0), start) > 1e-3


@pytest.fixture
def arguments(program, protocol, tmp_path, monkeypatch):
    """A tiny table in this process."""
    volume = (phantom((16, 64, 64), seed=0) * 255).round().byte().numpy()
    np.savez(tmp_path / "data.npz", **{f"head/{i}": volume for i in range(3)})
    for table in ("linear", "linear_more"):
        monkeypatch.setitem(protocol.CELLS, table, [("poisson", 2, 1)])
    monkeypatch.setattr(program, "_worker", _inline)
    monkeypatch.setattr(program.mp, "get_context", lambda kind: _Inline())
    return Namespace(
        data=tmp_path / "data.npz",
        table=["linear"],
        out=tmp_path / "rows.jsonl",
        workers=1,
        time_limit=60.0,
        keep=None,
        rates=None,
        only=["MonarchSENSE"],
        n_steps=2,
    )


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


@pytest.mark.parametrize("name", ["MonarchSENSE, pair a coil", "U-Net, residual"])
def test_networks_train_from_the_zero_filled_image(name, program, arguments, protocol, monkeypatch):
    monkeypatch.setattr(protocol, "UNet", lambda: UNet(4, 2))
    monkeypatch.setattr(program, "recipe_of", lambda *args, **more: Recipe(2, 1e-2, n_validations=2))
    arguments.only, arguments.table = [name], ["linear_more"]
    program.train(arguments)
    rows = rows_of(arguments.out)
    assert [row["head"] for row in rows] == [0, 1, 2]
    starts = [row["history"][0][1] for row in rows]
    arguments.only, arguments.out = ["MonarchSENSE"], arguments.out.with_name("other.jsonl")
    arguments.table = ["linear"]
    program.train(arguments)
    assert starts == pytest.approx([row["history"][0][1] for row in rows_of(arguments.out)], abs=0.05)
    for row in rows:  # two steps moved them
        assert len({value for _, value in row["history"]}) > 1


def test_a_run_goes_on_where_it_stopped(program, arguments, tmp_path, capsys):
    program.train(arguments)
    rows = rows_of(arguments.out)
    assert [row["head"] for row in rows] == [0, 1, 2]
    assert all(row["network"] == "MonarchSENSE" and row["scores"]["same"]["psnr"] > 10 for row in rows)
    assert not (tmp_path / "rows.scans").exists()
    with arguments.out.open("a") as file:
        file.write('{"table": "lin')  # the machine went down
    lines = arguments.out.read_text().splitlines()
    arguments.out.write_text("\n".join([*lines[1:2], lines[-1]]))
    program.train(arguments)
    assert sorted(row["head"] for row in rows_of(arguments.out)) == [0, 1, 2]
    capsys.readouterr()
    arguments.data = tmp_path / "missing.npz"  # is not looked at
    program.train(arguments)
    assert "nothing to do" in capsys.readouterr().out


def test_failures_are_counted_at_the_end(program, arguments, monkeypatch):
    def fails(jobs, rows, file, device, keep):
        while (job := jobs.get()) is not None:
            rows.put(job.cell._asdict() | ({"error": "no"} if job.cell.head else {"n_steps": 2}))

    monkeypatch.setattr(program, "_worker", fails)
    monkeypatch.setattr(program, "build", lambda data, device: ([], {}))
    with pytest.raises(SystemExit, match=r"^2 of 3 trainings failed"):
        program.train(arguments)
    assert [row["head"] for row in rows_of(arguments.out)] == [0]


@pytest.mark.parametrize(("usable", "left"), [(True, 0), (False, 2)])
def test_a_worker_whose_device_is_broken_leaves_the_queue_to_others(program, tmp_path, monkeypatch, usable, left):
    torch.save(([], {}), tmp_path / "scans")
    cell = program.cells("linear")[0]
    jobs, rows = queue.Queue(), queue.Queue()
    for job in [program.Job(cell, program.recipe_of(cell), True)] * 2 + [None]:
        jobs.put(job)
    monkeypatch.setattr(program, "_usable", lambda device: usable)
    program._worker(jobs, rows, tmp_path / "scans", "cpu", None)  # there is no head to train on
    assert jobs.qsize() == left
    assert "error" in rows.get()


def test_rates_of_other_numbers_of_steps_do_not_count(program, protocol, tmp_path):
    file = tmp_path / "rates.jsonl"
    cell = protocol.tuning_cells("linear")[0]
    rows = [(protocol.recipe_of(cell).n_steps, 1e-3, 20.0), (2, 3e-3, 30.0)]
    names = ("n_steps", "learning_rate", "validation_psnr")
    lines = [json.dumps(cell._asdict() | dict(zip(names, row, strict=True))) + "\n" for row in rows]
    file.write_text("".join(lines))
    key = cell.table, cell.network, cell.head
    assert program.chosen_rates(file) == {key: 1e-3}
    assert program.chosen_rates(file, 2) == {key: 3e-3}


def test_the_longest_trainings_come_first(program, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(program, "_run", lambda todo, arguments: started.extend(todo))
    rates = tmp_path / "rates.jsonl"
    seconds = {"density compensation": 3.0, "MonarchSENSE": 9.0, "U-Net": 1.0}
    rows = [
        {"table": "linear", "network": name, "head": head, "mask": "poisson", "acceleration": 3, "n_slices": 2}
        | {"n_steps": 300, "learning_rate": 1e-3, "validation_psnr": 1.0, "train_seconds": seconds[name] - head}
        for name in seconds
        for head in range(3)
    ]
    rates.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program.train(Namespace(rates=rates, n_steps=None, table=["linear"], only=list(seconds)))
    order = list(dict.fromkeys(job.cell.network for job in started))
    assert order == sorted(seconds, key=seconds.__getitem__, reverse=True)


def test_margins_are_differences_on_the_same_head_and_wait_for_what_is_not_trained(program, monkeypatch):
    tables = importlib.import_module("make_tables_mri")
    psnr = {"MonarchSENSE": (40.0, 30.0, 35.0), "U-Net": (20.0, 25.0, 30.0), "CG-SENSE": (41.0, 30.0, 37.0)}
    rows = [
        {"network": name, "head": head, "mask": "poisson", "acceleration": 3}
        | {"n_slices": 0 if name == "CG-SENSE" else 2, "scores": {"same": {"psnr": value}}}
        for name, values in psnr.items()
        for head, value in enumerate(values)
    ]
    monkeypatch.setattr(tables, "rows_of", lambda *names: rows)
    lines = tables.linear_margins("same").splitlines()
    assert "| 3x | 2 | not yet | +10.0 (+5.0) | not yet | -1.0 (-2.0) | not yet | not yet |" in lines
    assert "| 3x | 1 |" + " not yet |" * 6 in lines
    assert len(lines) == 2 + 3 * 4
    # planned, but without a row: the table says so
    rows[:] = [row for row in rows if row["head"] or row["network"] != "MonarchSENSE"]
    assert any(line.startswith("| MonarchSENSE |  | not yet |") for line in tables.linear("same").splitlines())


def test_rows_of_what_does_not_learn_say_where_they_come_from(program, arguments, monkeypatch):
    classical = sys.modules["reproduce_mri_classical"]
    arguments.only = ["zero-filled SENSE"]
    classical.classical(arguments)
    rows = rows_of(arguments.out)
    assert [row["head"] for row in rows] == [0, 1, 2]
    assert all(row["torch"] == torch.__version__ and {"commit", "device"} <= set(row) for row in rows)


def test_trainings_take_the_rate_that_was_best_on_validation_slices(program, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "RATES", (1e-3, 1e-1))
    arguments.out = tmp_path / "rates.jsonl"
    program.tune(arguments)
    tried = rows_of(arguments.out)
    assert len(tried) == 6
    assert all("scores" not in row for row in tried)  # nothing is tested
    best = {row["head"]: row["learning_rate"] for row in sorted(tried, key=lambda row: row["validation_psnr"])}
    arguments.rates, arguments.out = arguments.out, tmp_path / "rows.jsonl"
    arguments.only = ["density compensation", "MonarchSENSE"]
    with pytest.raises(SystemExit, match=r"rate for density compensation"):
        program.train(arguments)
    arguments.only = ["MonarchSENSE"]  # rates of the others are not asked for
    program.train(arguments)
    assert {row["head"]: row["learning_rate"] for row in rows_of(arguments.out)} == best


def _inline(jobs, rows, file, device, keep):
    """The worker's loop in this process."""
    program = sys.modules["reproduce_mri"]
    heads, real = torch.load(file, weights_only=False)
    while (job := jobs.get()) is not None:
        rows.put(program.train_cell(job, heads, real, device, keep))


class _Inline:
    """Stands for multiprocessing's context: workers run when they are started."""

    def Queue(self):
        return queue.Queue()

    def Process(self, target, args, daemon):
        class Process:
            def start(self):
                target(*args)

            def is_alive(self):
                return False

            def terminate(self):
                pass

        return Process()
