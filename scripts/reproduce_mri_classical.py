"""What the few-slice tables of MRI compare with that does not learn, and pictures; :mod:`reproduce_mri` runs it."""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from json_lines import add_row, read_rows
from reproduce_mri_protocol import (
    BLOCKS,
    CELLS,
    OTHER_MASKS,
    REAL_TABLE,
    Cell,
    build,
    done_in,
    make_mask,
    network_of,
    scores_of,
    split,
    tests_of,
)

from sciml_monarch.mri.base import magnitude
from sciml_monarch.mri.classical import cg_sense, l1_wavelet, zero_filled_sense
from sciml_monarch.mri.few_slices import Slices, reconstruct_slices, score_images
from sciml_monarch.mri.ista import SPEED, MonarchISTA
from sciml_monarch.provenance import provenance


def untrained_ista(
    kspace: torch.Tensor, mask: torch.Tensor, maps: torch.Tensor, n_steps: int, scale: float
) -> torch.Tensor:
    """FISTA in a block DCT with cycle spinning: MonarchISTA as it starts, its thresholds times ``scale``."""
    net = MonarchISTA(n_steps, BLOCKS).to(kspace.device).eval()
    with torch.no_grad():
        for threshold in net.threshold:
            threshold.add_(math.log(scale) / SPEED)
        image: torch.Tensor = net(kspace, mask, maps)
    return image


def _classical(method: Callable[..., torch.Tensor], slices: Slices, mask: torch.Tensor, **setting: Any) -> torch.Tensor:
    return magnitude(method(slices.undersampled(mask), mask, slices.maps, **setting))


def classical(arguments: argparse.Namespace) -> None:
    """Zero-filled SENSE, and CG-SENSE and L1-wavelet with the setting that is best on the validation slices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    heads, real = build(arguments.data, device)
    settings: dict[str, list[partial[torch.Tensor]]] = {
        "zero-filled SENSE": [partial(_classical, zero_filled_sense)],
        "CG-SENSE": [
            partial(_classical, cg_sense, n_iterations=i, regularization=r)
            for i in (1, 2, 3, 5, 8, 12, 20, 30, 50)
            for r in (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
        ],
    }
    settings["L1-wavelet"] = [
        partial(_classical, l1_wavelet, regularization=w, n_iterations=i)
        for i in (2, 4, 8, 15, 30, 60)
        for w in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    ]
    # what learning starts from, with as much tuning as the others have: it shows what learning adds
    settings["MonarchISTA, untrained"] = [
        partial(_classical, untrained_ista, n_steps=n, scale=s)
        for n in (8, 15, 30, 60)
        for s in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    ]
    if arguments.only:
        settings = {name: choices for name, choices in settings.items() if name in arguments.only}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = done_in(arguments.out)
    source = provenance(torch.device(device))
    for table in arguments.table:
        for kind, acceleration in dict.fromkeys(c[:2] for c in CELLS[table]):
            for head in range(3):
                _, validation, test = (part.to(device) for part in split(heads, head, 1))
                shape = (test.target.shape[-2], test.target.shape[-1])
                mask = make_mask(kind, acceleration, shape, 0).to(device)
                for name, choices in settings.items():
                    cell = Cell(table, name, head, kind, acceleration, 0)
                    if (*cell, None, None) in done:
                        continue
                    found = [score_images(c(validation, mask), validation.target)["psnr"] for c in choices]
                    best = int(np.argmax(found)) if len(choices) > 1 else 0
                    row = {"setting": choices[best].keywords, "validation_psnr": max(found)}
                    scores = scores_of(
                        choices[best], [(n, s.to(device), m.to(device)) for n, s, m in tests_of(test, real, cell)]
                    )
                    add_row(arguments.out, cell._asdict() | row | {"scores": scores} | source)
                    print(cell, row, scores["same"], flush=True)


def pictures(arguments: argparse.Namespace) -> None:
    """Real slices: truth, classical reconstructions and the networks that ``train`` kept, with errors and a zoom."""
    from sciml_monarch.mri.plots import image_comparison
    from sciml_monarch.plots import save

    _, real = build(arguments.data, "cpu")
    settings = {
        row["network"]: row["setting"]
        for row in read_rows(arguments.classical)
        # as tuned for the networks that are shown
        if (row["head"], row["mask"], row["acceleration"]) == (2, arguments.mask, arguments.acceleration)
    }
    methods: dict[str, Callable[..., torch.Tensor]] = {
        "zero-filled SENSE": zero_filled_sense,
        "CG-SENSE": cg_sense,
        "L1-wavelet": l1_wavelet,
    }
    for name, slices in real.items():
        shape = (slices.target.shape[-2], slices.target.shape[-1])
        mask = make_mask(arguments.mask, arguments.acceleration, shape, OTHER_MASKS[0])
        images = {m: _classical(run, slices, mask, **settings[m]) for m, run in methods.items() if m in settings}
        for network in REAL_TABLE:
            file = arguments.nets / f"{network}_{arguments.mask}_{arguments.acceleration}x.pt"
            if file.exists():
                content = torch.load(file, weights_only=True)
                net = network_of(Cell("unrolled", network, 2, arguments.mask, arguments.acceleration, 100)).make(shape)
                net.load_state_dict(content["state_dict"])
                images[network] = reconstruct_slices(net, slices, mask)
        scores = {m: f"{score_images(image, slices.target)['psnr']:.1f} dB" for m, image in images.items()}
        title = f"{name}, {arguments.mask} {arguments.acceleration}x"
        figure = image_comparison(slices.target[0], {m: image[0] for m, image in images.items()}, scores, title)
        save(figure, arguments.out / f"{name}_{arguments.mask}_{arguments.acceleration}x.png")
