"""The protocol of the few-slice tables: nothing of a test head is ever trained on, runs go on where they stopped."""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from sciml_monarch.mri.base import magnitude
from sciml_monarch.mri.few_slices import Slices, reconstruct_slices
from sciml_monarch.mri.phantom import phantom
from tests.helpers import relative_error
from tests.mri.scenes import scan


@pytest.fixture(scope="module")
def program():
    path = Path(__file__).parents[2] / "scripts/reproduce_mri.py"
    spec = importlib.util.spec_from_file_location("reproduce_mri", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce_mri"] = module
    spec.loader.exec_module(module)
    return module


def numbered_heads(n):
    """Slices whose target says which head and slice they are."""
    empty = torch.zeros(n, 1, 1, 1)
    return [Slices(empty, empty[:, None], 100.0 * head + torch.arange(n).view(n, 1, 1)) for head in range(3)]


@pytest.mark.parametrize("n_slices", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("test", [0, 1, 2])
def test_split(program, test, n_slices):
    train, validation, tested = (
        part.target.flatten().int().tolist() for part in program.split(numbered_heads(64), test, n_slices)
    )
    assert len(train) == len(set(train)) == n_slices
    assert {v // 100 for v in train + validation} <= {0, 1, 2} - {test}
    assert {v // 100 for v in tested} == {test}
    assert len(validation) == 4
    assert min(abs(v - t) for v in validation for t in train) > 3
    assert set(program.split(numbered_heads(64), test, 1)[0].target.flatten().int().tolist()) <= set(train)


def test_masks_of_training_and_of_the_other_masks_differ(program):
    for kind in ("equispaced", "poisson"):
        masks = [program.make_mask(kind, 4, (256, 256), seed) for seed in (0, *program.OTHER_MASKS)]
        assert torch.equal(masks[0], program.make_mask(kind, 4, (256, 256), 0))
        assert all(abs(float(m.float().mean()) - 0.25) < 0.02 for m in masks)
        assert sum(not torch.equal(masks[0], m) for m in masks[1:]) >= 2


def test_a_varnet_of_zero_start_is_the_zero_filled_image(program):
    kspace, mask, maps, _ = scan(24, 24, batch=1)
    net = program.start_at_zero(program.VarNet(2, 4, 2, estimate_maps=False, combine_coils=True)).eval()
    zero_filled = program.zero_filled_sense(kspace, mask, maps)
    with torch.no_grad():
        assert relative_error(net(kspace, mask, maps), zero_filled) < 1e-5
    whole = Slices(kspace, maps, magnitude(zero_filled))
    assert relative_error(reconstruct_slices(net, whole, mask), whole.target) < 1e-5


def test_a_run_goes_on_where_it_stopped(program, tmp_path, monkeypatch):
    volume = (phantom((16, 64, 64), seed=0) * 255).round().byte().numpy()
    np.savez(tmp_path / "data.npz", **{f"head/{i}": volume for i in range(3)})
    monkeypatch.setattr(program, "CELLS", {"linear": [("poisson", 2, 1)]})
    monkeypatch.setattr(program, "_worker", _inline)
    arguments = Namespace(
        data=tmp_path / "data.npz",
        table=["linear"],
        out=tmp_path / "rows.jsonl",
        workers=1,
        time_limit=60.0,
        keep=None,
        only=["MonarchSENSE"],
        n_steps=2,
    )
    context = _Inline()
    monkeypatch.setattr(program.mp, "get_context", lambda kind: context)
    program.train(arguments)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    assert [row["head"] for row in rows] == [0, 1, 2]
    assert all(row["network"] == "MonarchSENSE" and row["scores"]["same"]["psnr"] > 10 for row in rows)
    assert not (tmp_path / "rows.scans").exists()
    with arguments.out.open("a") as file:
        file.write('{"table": "lin')  # the machine went down
    lines = arguments.out.read_text().splitlines()
    arguments.out.write_text("\n".join([*lines[1:2], lines[-1]]) + "\n")
    context.started.clear()
    program.train(arguments)
    again = [json.loads(line) for line in arguments.out.read_text().splitlines() if line.endswith("}")]
    assert sorted(row["head"] for row in again) == [0, 1, 2]


def _inline(jobs, rows, file, device, n_steps, keep):
    """The worker's loop in this process."""
    program = sys.modules["reproduce_mri"]
    heads, real = torch.load(file, weights_only=False)
    while (cell := jobs.get()) is not None:
        rows.put(program.train_cell(cell, heads, real, device, n_steps, keep))


class _Inline:
    """Stands for multiprocessing's context: workers run when they are started."""

    def __init__(self):
        self.started = []

    def Queue(self):
        import queue

        return queue.Queue()

    def Process(self, target, args, daemon):
        outer = self

        class Process:
            def start(self):
                outer.started.append(1)
                target(*args)

            def is_alive(self):
                return False

            def terminate(self):
                pass

        return Process()
