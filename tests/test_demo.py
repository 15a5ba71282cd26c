import csv
import json

import h5py
import pytest

from sciml_monarch.demo import WRITTEN, Problem, demo
from sciml_monarch.demo_mri import MRIProblem, best_settings
from sciml_monarch.demo_pde import PDEProblem
from sciml_monarch.errors import InputError
from sciml_monarch.mri import EquispacedFractionMask
from sciml_monarch.mri.semisynthetic import make_semisynthetic
from sciml_monarch.mri.volumes import Settings, Undersampling

TINY = Problem(
    PDEProblem(
        n_train=8,
        n_val=2,
        n_test=2,
        simulation_resolution=32,
        resolution=16,
        n_history=2,
        n_steps=3,
        n_modes=8,
        width=4,
        n_epochs=2,
    ),
    MRIProblem(
        n_train=2,
        n_val=1,
        n_test=2,
        resolution=64,
        n_coils=4,
        acceleration=3.0,
        center_fraction=0.2,
        n_steps=4,
        n_epochs=3,
    ),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "demo"
    demo(out, problem=TINY)
    return out


@pytest.mark.slow
def test_demo_writes_the_rows_of_both_parts(finished):
    rows = json.loads((finished / "metrics.json").read_text())
    assert [(row["task"], row["method"]) for row in rows] == [
        ("pde", "FNO"),
        ("pde", "MonarchFNO"),
        ("mri", "zero-filled SENSE"),
        ("mri", "CG-SENSE"),
        ("mri", "L1-wavelet"),
        ("mri", "MonarchISTA"),
    ]
    pde, mri = rows[:2], rows[2:]
    assert all(0 < row["relative_l2"] < 2 and row["n_test"] == 2 for row in pde)
    assert all(0 < row["nmse"] < 1 and row["psnr"] > 10 and 0 < row["ssim"] < 1 for row in mri)
    assert all(row["target_key"] == "truth" and row["n_slices"] == 2 and row["acceleration"] == 3 for row in mri)
    assert mri[-1]["nmse"] < mri[0]["nmse"]
    with (finished / "metrics.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in rows]


@pytest.mark.slow
def test_demo_leaves_volumes_pictures_and_one_report(finished):
    assert {path.name for path in finished.iterdir()} == WRITTEN
    for method in ("zero_filled_sense", "cg_sense", "l1_wavelet", "reconstructed"):
        with h5py.File(finished / "mri" / method / "head_2.h5") as file:
            assert file["reconstruction"].shape == (2, 64, 64)
    page = (finished / "report.html").read_text()
    assert page.count("<h2>") == 2
    assert page.count("data:image/png") == len(list(finished.glob("*.png"))) >= 4
    assert "MonarchFNO&#x27;s error is" in page
    assert "MonarchISTA is" in page


@pytest.mark.slow
def test_demo_deletes_only_what_a_demo_wrote(finished):
    with pytest.raises(InputError, match="holds an earlier demo"):
        demo(finished)
    (finished / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds thesis\.tex, which no demo has written"):
        demo(finished, overwrite=True)
    assert (finished / "metrics.json").is_file()
    (finished / "thesis.tex").unlink()


def test_settings_of_classical_methods_are_those_with_the_least_error(tmp_path):
    scan = make_semisynthetic(tmp_path / "head.h5", shape=(64, 64), n_slices=1, n_coils=4)
    undersampling = Undersampling(EquispacedFractionMask((2.0,), (0.2,)), None)
    wild, sensible = Settings(regularization=3.0), Settings(regularization=1e-3)
    assert best_settings("l1_wavelet", [wild, sensible], scan, undersampling) == sensible
    assert best_settings("l1_wavelet", [sensible, wild], scan, undersampling) == sensible
