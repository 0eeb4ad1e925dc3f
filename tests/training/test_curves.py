import pytest
from PIL import Image

from hf_mixer.training.curves import save_training_curves


LOG = [
    {"epoch": 0.5, "loss": 2.0, "learning_rate": 1e-3, "grad_norm": 1.0, "step": 5},
    {"epoch": 1.0, "loss": 1.0, "learning_rate": 5e-4, "grad_norm": 1.0, "step": 10},
    {"epoch": 1.0, "eval_loss": 1.5, "eval_accuracy": 0.6, "step": 10},
    {"epoch": 2.0, "eval_loss": 1.2, "eval_accuracy": 0.7, "step": 20},
    {"epoch": 2.0, "train_loss": 1.4, "step": 20},
]


def test_training_curves_show_what_was_logged(tmp_path):
    loss, accuracy, learning_rate = save_training_curves(tmp_path / "curves.png", LOG).axes
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
    figure = save_training_curves(tmp_path / "curves.png", log)
    assert [axes.get_title() for axes in figure.axes] == titles
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (450 * max(len(titles), 1), 350)


def test_a_regression_has_a_curve_of_its_own_metric(tmp_path):
    log = [{"epoch": 1.0, "eval_loss": 0.3, "eval_r2": -0.25, "eval_mae": 2.0}]
    _, r2 = save_training_curves(tmp_path / "curves.png", log).axes
    assert r2.lines[0].get_xydata().tolist() == [[1.0, -0.25]]
    assert r2.get_title() == "R\N{SUPERSCRIPT TWO} (last: -0.25)"
