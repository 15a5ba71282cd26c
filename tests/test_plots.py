"""Pictures: what is drawn, not only that something is."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from sciml_monarch import plots
from sciml_monarch.pde.plots import field_comparison

LENGTHS = (2.0, 1.0, 1.0)


def fields(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def test_comparison_shows_truth_prediction_and_error_on_common_scales():
    truth = fields(7, 8, 4)
    predictions = {"FNO": truth + 0.1 * fields(7, 8, 4, seed=1), "UNet": truth - 0.2}
    figure = field_comparison(truth, predictions, [0.5 * i for i in range(7)], "vorticity (1/s)", LENGTHS, "Test")
    shown = images(figure)
    assert len(shown) == 5 * 5
    np.testing.assert_allclose(shown[0].get_array(), truth[0].T)
    np.testing.assert_allclose(shown[4].get_array(), truth[6].T)
    np.testing.assert_allclose(shown[5].get_array(), predictions["FNO"][0].T)
    np.testing.assert_allclose(shown[20].get_array(), np.full((4, 8), -0.2), rtol=1e-5)
    # Truth and predictions have one scale with zero in the middle, the errors another.
    assert {image.get_clim() for image in shown[:15]} == {(-(top := float(truth[[0, 2, 3, 4, 6]].abs().max())), top)}
    assert len({image.get_clim() for image in shown[15:]}) == 1
    assert shown[15].get_clim()[1] < top
    assert shown[0].get_extent() == [0.0, 2.0, 0.0, 1.0]
    assert shown[0].origin == "lower"
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles == ["t = 0 s", "t = 1 s", "t = 1.5 s", "t = 2 s", "t = 3 s"]
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert "vorticity (1/s)" in labels
    assert "error of vorticity (1/s)" in labels


def test_comparison_writes_the_relative_error_into_each_panel():
    truth = torch.ones(2, 4, 4)
    figure = field_comparison(truth, {"FNO": 1.25 * truth, "bad": torch.nan * truth}, [0, 1], "u", LENGTHS, "Test")
    texts = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
    assert texts == ["25 %", "25 %", "not finite", "not finite"]


def test_labels_of_rows_do_not_run_into_each_other():
    truth = fields(3, 6, 6)
    names = ("MonarchFNO (monarch_fno_symmetry_1e-5)", "FNO", "ResidualMonarchFNO (residual_history_4_1e-5)")
    figure = field_comparison(truth, dict.fromkeys(names, truth + 0.1), range(3), "u", (1.0, 1.0), "Test")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rows = [axes for axes in figure.axes if axes.images and axes.get_ylabel()]
    assert len(rows) == 1 + 2 * len(names)
    for axes in rows:
        label, panel = axes.yaxis.label.get_window_extent(), axes.get_window_extent()
        assert label.height <= 1.1 * panel.height, axes.get_ylabel()
    assert rows[0].yaxis.label.get_fontsize() == 9


def test_a_diverged_network_does_not_hide_the_errors_of_others():
    truth = fields(3, 6, 6)
    figure = field_comparison(truth, {"good": truth + 0.01, "bad": 1e9 * truth}, range(3), "u", LENGTHS, "Test")
    assert images(figure)[-1].get_clim()[1] <= float(truth.abs().max())


def test_comparison_of_lines_and_of_volumes():
    line = fields(4, 10)
    figure = field_comparison(line, {"FNO": line + 1}, range(4), "u", LENGTHS, "Test")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), line[0])
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata()[-1], 2.0 * 9 / 10)
    np.testing.assert_allclose(figure.axes[4].lines[0].get_ydata(), np.ones(10), rtol=1e-5)
    volume = fields(2, 4, 5, 6)
    figure = field_comparison(volume, {"FNO": volume}, range(2), "u", LENGTHS, "Test")
    np.testing.assert_allclose(images(figure)[0].get_array(), volume[0, :, :, 3].T)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1.0, 3.0], (-3.0, 3.0, "RdBu_r")),
        ([1.0, 3.0], (1.0, 3.0, "viridis")),
        ([2.0, 2.0], (1.5, 2.5, "viridis")),
        ([np.nan, np.inf], (0.0, 1.0, "viridis")),
        ([np.nan, -2.0, 1.0], (-2.0, 2.0, "RdBu_r")),
    ],
)
def test_colour_limits_are_centred_where_the_field_takes_both_signs(values, expected):
    assert plots.colour_limits(np.array(values)) == expected


def test_spectra_leave_out_zero_and_what_a_logarithm_cannot_show():
    k = torch.arange(4.0)
    figure = plots.spectra(k, torch.tensor([9.0, 3, 2, 1]), {"FNO": torch.tensor([9.0, 3, 0, torch.nan])}, "E", "Test")
    truth, prediction = figure.axes[0].lines
    assert truth.get_xdata().tolist() == [1, 2, 3]
    assert truth.get_ydata().tolist() == [3, 2, 1]
    assert np.isnan(prediction.get_ydata()).tolist() == [False, True, True]
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"


def test_error_growth_shows_means_and_marks_the_horizon():
    errors = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.4, torch.nan]])
    ratio = torch.tensor([[1.0, 2, 4, 50], [1.0, 2, 4, 50]])
    figure = plots.error_growth(
        [1, 2, 3, 4], {"FNO": errors}, {"FNO": 1 - errors}, {"truth": ratio[:, :2], "FNO": ratio}, horizon=2.0
    )
    error, correlation, amplitude = figure.axes
    np.testing.assert_allclose(error.lines[0].get_ydata(), [0.2, 0.3, np.nan], rtol=1e-6)
    assert error.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert error.lines[1].get_xdata() == [2.0, 2.0]
    assert correlation.lines[-1].get_ydata() == [0.9, 0.9]
    assert [line.get_color() for line in amplitude.lines[:2]] == ["black", plots.COLOURS[0]]
    assert amplitude.get_yscale() == "log"
    # The band is one standard error: std / sqrt(n).
    band = error.collections[0].get_paths()[0].get_extents()
    assert band.y0 == pytest.approx(0.1, rel=1e-4)


def test_names_of_networks_do_not_cover_the_curves():
    values = {f"MonarchFNO (monarch_fno_symmetry_1e-5_{i})": torch.rand(2, 3) for i in range(4)}
    figure = plots.error_growth([1, 2, 3], values, values, {"truth": torch.rand(2, 3)} | values, horizon=2.0)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["truth", *values]
    FigureCanvasAgg(figure).draw()
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert all(axes.get_legend() is None for axes in figure.axes)
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_contact_sheet_begins_with_the_last_known_frame_and_thins_the_rest():
    frames = fields(40, 4, 4)
    figure = plots.contact_sheet(frames, range(40), 3, "u", LENGTHS, "Test", n_columns=3, n_rows=2)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles[0] == "t = 2 s (given)"
    assert titles[-1] == "t = 39 s"
    assert len(titles) == 6
    assert not any("given" in title for title in titles[1:])
    np.testing.assert_allclose(images(figure)[0].get_array(), frames[2].T)
    hidden = plots.contact_sheet(frames[:6], range(6), 3, "u", LENGTHS, "Test", n_columns=3).axes
    assert [axes.get_visible() for axes in hidden[:6]] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("shape", [(10,), (8, 8), (4, 8, 8)])
def test_save_and_animate_write_pictures(tmp_path, shape):
    frames = fields(5, *shape)
    shown = (frames, [0.1 * i for i in range(5)], 2, "u", LENGTHS)
    png = plots.save(plots.contact_sheet(*shown, "Test"), tmp_path / "sheet.png", dpi=40)
    with Image.open(png) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 5
    gif = plots.animate(tmp_path / "film.gif", *shown, frames_per_second=4)
    with Image.open(gif) as picture:
        assert (picture.format, picture.n_frames) == ("GIF", 5)
        assert picture.info["duration"] == 250
        first = np.asarray(picture.convert("L"), dtype=float)
        picture.seek(4)
        assert np.abs(np.asarray(picture.convert("L"), dtype=float) - first).max() > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.gif", "sheet.png"]


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    figure = plots.spectra(torch.arange(3.0), torch.ones(3), {}, "E", "Test")
    path = plots.save(figure, tmp_path / "a.png", dpi=40)
    before = path.read_bytes()

    def broken(self, file, **_):
        file.write_bytes(b"half")
        raise RuntimeError("stopped")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    with pytest.raises(RuntimeError, match="stopped"):
        plots.save(figure, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == before


def test_pyplot_and_its_global_state_are_not_touched():
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom sciml_monarch import plots\n"
        "from sciml_monarch.pde.plots import field_comparison\n"
        "t = torch.ones(2, 4, 4)\nfield_comparison(t, {'a': t}, [0, 1], 'u', (1.0, 1.0), 'x')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
