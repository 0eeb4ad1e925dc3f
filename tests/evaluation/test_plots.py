"""Pictures: what they show, and that they are files of a plausible size."""

import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from hf_mixer.evaluation.plots import draw_calibration, draw_confusion_matrix, save_calibration, save_confusion_matrix
from hf_mixer.evaluation.weight_plots import draw_filters, draw_token_mixing, pair_units
from hf_mixer.training.curves import draw_training_curves, save_training_curves
from tests.helpers import FIXTURES, ROOT


def cell_texts(figure):
    return {tuple(map(int, text.get_position())): text.get_text() for text in figure.axes[0].texts}


def test_confusion_matrix_shows_shares_and_counts(tmp_path):
    matrix = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    axes = draw_confusion_matrix(matrix, ["cat", "a very long label indeed", "dog"]).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]])
    assert axes.get_title() == "78.6% of 14 images right"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert (labels[0], labels[1][:19], len(labels[1])) == ("cat", "a very long label i", 20)
    # (column, row): count
    assert cell_texts(axes.figure) == {(0, 0): "8", (1, 0): "2", (0, 2): "1", (2, 2): "3"}


@pytest.mark.parametrize(
    ("num_labels", "has_numbers", "has_names"), [(20, True, True), (21, False, True), (61, False, False)]
)
def test_confusion_matrix_stays_readable(num_labels, has_numbers, has_names):
    axes = draw_confusion_matrix(np.eye(num_labels, dtype=int), [f"label {i}" for i in range(num_labels)]).axes[0]
    assert bool(axes.texts) is has_numbers
    assert ("label 7" in [label.get_text() for label in axes.get_xticklabels()]) is has_names


def test_labels_are_no_formulas(tmp_path):
    save_confusion_matrix(tmp_path / "matrix.png", np.eye(2, dtype=int), ["$5 or less$", "$\\more$"])


def test_a_thousand_labels_have_a_pixel_each(tmp_path):
    save_confusion_matrix(tmp_path / "matrix.png", 50 * np.eye(1000, dtype=int), [str(i) for i in range(1000)])
    with Image.open(tmp_path / "matrix.png") as image:
        assert min(image.size) > 1000
    assert (tmp_path / "matrix.png").stat().st_size < 500_000


def test_calibration_shows_bins_and_gaps(tmp_path):
    bins = [
        None,
        {"confidence": 0.4, "accuracy": 0.7, "count": 10},
        None,
        {"confidence": 0.9, "accuracy": 0.8, "count": 30},
    ]
    figure = draw_calibration(bins, 0.15)
    accuracy, gap = figure.axes[0].containers
    assert [bar.get_height() for bar in accuracy] == [0.7, 0.8]
    assert [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in gap] == [
        (pytest.approx(0.4), pytest.approx(0.7)),
        (pytest.approx(0.8), pytest.approx(0.9)),
    ]
    assert [bar.get_x() for bar in accuracy] == [0.25, 0.75]
    assert [bar.get_height() for bar in figure.axes[1].containers[0]] == [10, 30]
    assert "15.00%" in figure.axes[0].get_title()
    save_calibration(tmp_path / "calibration.png", bins, 0.15)
    with Image.open(tmp_path / "calibration.png") as image:
        assert image.size == (500, 600)


LOG = [
    {"epoch": 0.5, "loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.0, "step": 5},
    {"epoch": 1.0, "loss": 1.0, "learning_rate": 5e-4, "grad_norm": 1.0, "step": 10},
    {"epoch": 1.0, "eval_loss": 1.5, "eval_accuracy": 0.6, "step": 10},
    {"epoch": 2.0, "eval_loss": 1.2, "eval_accuracy": 0.7, "step": 20},
    {"epoch": 2.0, "train_loss": 1.4, "step": 20},
]


def test_training_curves_show_what_was_logged():
    loss, accuracy, learning_rate = draw_training_curves(LOG).axes
    assert {line.get_label(): line.get_xydata().tolist() for line in loss.lines} == {
        "training": [[0.5, 2.0], [1.0, 1.0]],
        "validation": [[1.0, 1.5], [2.0, 1.2]],
    }
    assert accuracy.lines[0].get_xydata().tolist() == [[1.0, 0.6], [2.0, 0.7]]
    assert "70.0%" in accuracy.get_title()
    assert learning_rate.lines[0].get_ydata().tolist() == [1e-3, 5e-4]


@pytest.mark.parametrize(
    ("log", "titles"),
    [
        ([], []),
        (LOG[:1], ["loss", "learning rate"]),
        ([{"epoch": 1.0, "eval_loss": float("nan")}, {"loss": 1.0}], ["loss"]),
    ],
)
def test_training_curves_go_without_what_is_missing(log, titles, tmp_path):
    assert [axes.get_title() for axes in draw_training_curves(log).axes] == titles
    save_training_curves(tmp_path / "curves.png", log)
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (450 * max(len(titles), 1), 350)


def test_filters_are_sorted_by_norm_and_rescaled():
    filters = np.zeros((3, 3, 2, 2))
    filters[0, 0] = [[0, 1], [0, 0]]  # one red pixel
    filters[2] = [[[-10, 30]] * 2] * 3  # half black, half white
    mosaic = np.asarray(draw_filters(filters, count=2).axes[0].images[0].get_array())
    scale, gap = 22, 3
    first, second = mosaic[: 2 * scale, : 2 * scale], mosaic[: 2 * scale, 2 * scale + gap : 4 * scale + gap]
    assert (first[:, :scale] == 0).all()
    assert (first[:, scale:] == 1).all()
    assert (second[:scale, scale:] == [1, 0, 0]).all()
    assert (second[scale:] == 0).all()
    assert (mosaic[: 2 * scale, 2 * scale : 2 * scale + gap] == 1).all()


def test_filters_of_one_channel_are_grey():
    mosaic = draw_filters(np.random.default_rng(0).normal(size=(4, 1, 3, 3))).axes[0].images[0].get_array()
    assert np.ptp(np.asarray(mosaic), axis=2).max() == 0


def wave(frequency, sign):
    return sign * np.cos(2 * np.pi * frequency * np.arange(8) / 8) * np.ones((8, 1))


def test_units_of_opposing_phase_are_paired_from_low_to_high_frequency():
    units = np.stack([wave(3, 1), wave(1, 1), wave(2, -1), wave(1, -1), wave(3, -1), wave(2, 1)])
    order = pair_units(units)
    assert [set(order[start : start + 2]) for start in (0, 2, 4)] == [{1, 3}, {2, 5}, {0, 4}]
    assert sorted(pair_units(units[:5])) == [0, 1, 2, 3, 4]
    assert pair_units(np.zeros((1, 1, 1))) == [0]


def test_token_mixing_lays_units_out_on_the_grid():
    units = np.zeros((3, 2, 4))
    units[1] = [[0, 0, 0, 5], [0, 0, 0, 0]]
    (axes,) = draw_token_mixing([units], count=1).axes
    mosaic = axes.images[0].get_array()
    scale = 45 // 4
    assert mosaic[0, 3 * scale] == 1
    assert mosaic[: 2 * scale, : 4 * scale].sum() == scale * scale
    assert axes.get_title() == "Layer 1: 1 of 3 units"


@pytest.mark.parametrize(
    "source", ["timm/b16_tiny_cls", "edifice/pooled_rgb/params.safetensors", "flax/c_nohead_none/linen.npz"]
)
def test_the_script_draws_any_source(source, tmp_path, monkeypatch):
    script = ROOT / "scripts" / "plot_weights.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(FIXTURES / source), "--output_dir", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    for name in ("token_mixing.png", "patch_embedding.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 60
