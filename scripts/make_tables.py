"""Writes the tables of the README files from what is in results/: ``python scripts/make_tables.py``."""

import argparse
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import make_tables_mri as mri
import make_tables_navier_stokes as flow
import make_tables_sparse as sparse
import make_tables_speed as fast
import make_tables_walls as walls

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "results/navier_stokes_1e-5"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON file."""
    return json.loads(path.read_text())


def speed() -> str:
    """Time of the data set, and of training steps as `auto` takes them."""
    seconds = float((RUN / "simulate_seconds.txt").read_text())
    simulating = f"Simulating the set (1,200 trajectories, 256², T = 20 s), the whole command: {seconds:.0f} s."
    return f"{simulating}\n\n{fast.networks()}"


def epochs() -> str:
    """Time of a training epoch with CUDA graphs, without, and compiled."""
    lines = ["| epoch of 50 batches, 10-step roll-out | precision | seconds | peak memory (GB) |", "|---|---|---|---|"]
    for row in rows_of(ROOT / "results/benchmark_training.json"):
        how = ["CUDA graph"] * row["cuda_graph"] + ["torch.compile"] * row["compile_net"] or ["eager"]
        lines.append(
            f"| {row['method']}, {' + '.join(how)} | {row['precision']} | {row['seconds_per_epoch']:.2f} | "
            f"{row['peak_memory_bytes'] / 1e9:.1f} |"
        )
    return "\n".join(lines)


def inverse_ffts() -> str:
    """One layer of neuraloperator on a GPU against itself on a CPU."""
    content = json.loads((ROOT / "results/inverse_ffts_h200.json").read_text())
    return "\n".join(
        [
            f"| points along an axis | one layer of neuraloperator, {content['device']} against CPU |",
            "|---|---|",
            *(f"| {row['grid']} | {row['layer, device']:.1e} |" for row in content["rows"]),
        ]
    )


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"accuracy": flow.summary, "speed": speed, "few_slices": mri.summary},
    "results/README.md": {
        "mri_time_cpu": partial(mri.time_and_memory, "benchmark_mri_cpu.json"),
        "mri_time_h200": partial(mri.time_and_memory, "benchmark_mri_h200.json"),
        "coils": partial(mri.coils, "benchmark_coils_cpu.json", "benchmark_coils_h200.json"),
        "speed_cpu": partial(fast.works, "benchmark_cpu.json"),
        "speed_h200_thin": partial(fast.works, "speed_h200_thin/first.json"),
        "epochs": epochs,
        "inverse_ffts": inverse_ffts,
        "channel_maps": partial(fast.channel_maps, "compare_channel_maps_cpu.json"),
    },
    "docs/guide/speed.md": {"sweep_cpu": partial(fast.sweep, "benchmark_cpu.json")},
    "results/mri_few_slices/README.md": {
        f"unrolled_{mask}_{test}": partial(mri.unrolled, mask, test)
        for mask in ("equispaced", "poisson")
        for test in ("same", "other")
    },
}
TABLES["results/navier_stokes/README.md"] = {
    "state_of_the_art": flow.state_of_the_art,
    "trainings": flow.trainings,
    "numbers_of_trajectories": flow.numbers_of_trajectories,
    "resolutions": flow.resolutions,
    "bands": flow.bands,
    "long_roll_outs": flow.long_roll_outs,
    "authors": flow.authors,
}
TABLES["results/sparse_training/README.md"] = {
    "layers": sparse.layers,
    "networks": sparse.networks,
    "trainings": sparse.trainings,
    "text": sparse.text,
}
TABLES["results/walls/README.md"] = {
    f"{table.__name__}_{name}": partial(table, name)
    for table in (walls.errors, walls.differences, walls.grids, walls.rates)
    for name in walls.TITLES
}
TABLES["results/speed_h200/README.md"] = {
    "targets": partial(fast.targets, *(f"speed_h200/{kind}.json" for kind in ("spectral", "fno", "linear"))),
    "products": partial(fast.products, "speed_h200/compare_products.json"),
    "pointwise": partial(fast.pointwise, "speed_h200/compare_pointwise.json"),
    "gated": partial(fast.pointwise, "speed_h200/compare_gated.json"),
    "pointwise_bf16": partial(fast.pointwise, "speed_h200/compare_pointwise_bf16.json"),
    "channel_maps": partial(fast.channel_maps, "speed_h200/compare_channel_maps.json"),
    "rows": fast.steps,
    **{kind: partial(fast.works, f"speed_h200/{kind}.json") for kind in ("spectral", "fno", "linear", "transform")},
    "sweep": partial(fast.sweep, "speed_h200/sweep.json"),
}
TABLES["results/mri_few_slices/README.md"] |= {
    "progress": mri.progress,
    **{
        f"margins_{test}": partial(mri.margins, test)
        for test in ("same", "other", "pulseq_brain_16ch", "iraki_brain_16ch")
    },
    **{f"linear_{test}": partial(mri.linear, test) for test in ("same", "other")},
    **{f"linear_margins_{test}": partial(mri.linear_margins, test) for test in ("same", "other")},
    **{f"real_{scan}": partial(mri.real, scan) for scan in ("pulseq_brain_16ch", "iraki_brain_16ch")},
}


def fill(file: str) -> str:
    """A file with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced for each of its tables."""
    text = (ROOT / file).read_text()
    for name, table in TABLES[file].items():
        found = re.findall(rf"<!-- {name} -->\n.*?<!-- /{name} -->", text, flags=re.DOTALL)
        if len(found) != 1:
            raise SystemExit(f"{file} has {len(found)} places for the table {name}, not one")
        text = text.replace(found[0], f"<!-- {name} -->\n{table()}\n<!-- /{name} -->")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for file, text in {file: fill(file) for file in TABLES}.items():  # all are made before any is written
        (ROOT / file).write_text(text)
