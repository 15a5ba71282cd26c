import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, warnings
import torch
warnings.simplefilter("ignore")
from sciml_monarch.pde import MonarchFNO
from sciml_monarch.pde.data import TrajectoryData
from sciml_monarch.pde.task import Optimization, PDETask
from sciml_monarch.training import fit

if __name__ == "__main__":
    data, out, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = PDETask(MonarchFNO(3, 1, 6, (8, 8), (16, 16), n_layers=2, projection_channels=8),
                   Optimization(learning_rate=1e-2))
    options = {"accelerator": "cpu", "devices": devices, "max_epochs": 3, "enable_progress_bar": False,
               "enable_model_summary": False, "strategy": "ddp" if devices > 1 else "auto", "logger": False}
    from pathlib import Path
    trainer = fit(task, TrajectoryData(data, 6, 2, 2, 3, 3, batch_size=2), Path(out),
                  trainer_options={k: v for k, v in options.items() if k != "logger"})
    if trainer.is_global_zero:
        metrics = {k: v.item() for k, v in trainer.callback_metrics.items()}
        Path(out, "result.json").write_text(json.dumps(metrics))
    if devices > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()  # else gloo's threads may end the process with an error
"""


@pytest.mark.slow
def test_two_processes_compute_the_loss_of_one_on_the_same_global_batch(vorticity_folder, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    results = {}
    for devices in (1, 2):
        out = tmp_path / str(devices)
        subprocess.run(
            [sys.executable, str(program), str(vorticity_folder), str(out), str(devices)],
            check=True,
            capture_output=True,
            timeout=240,
        )
        results[devices] = json.loads(Path(out, "result.json").read_text())
    one, two = results[1], results[2]
    assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)
    assert two["val/relative_l2"] == pytest.approx(one["val/relative_l2"], rel=1e-4)
