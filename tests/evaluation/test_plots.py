import numpy as np
import pytest
from PIL import Image

from hf_mixer.evaluation.plots import save_calibration, save_confusion_matrix


def test_confusion_matrix_shows_shares_and_counts(tmp_path):
    matrix = [[8, 2, 0], [0, 0, 0], [1, 0, 3]]
    figure = save_confusion_matrix(tmp_path / "matrix.png", matrix, ["cat", "a very long label indeed", "dog"])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]])
    assert axes.get_title() == "78.6% of 14 images right"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert (labels[0], labels[1][:19], len(labels[1])) == ("cat", "a very long label i", 20)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    # (column, row): count
    assert texts == {(0, 0): "8", (1, 0): "2", (0, 2): "1", (2, 2): "3"}


@pytest.mark.parametrize(
    ("num_labels", "has_counts", "has_names"), [(20, True, True), (21, False, True), (61, False, False)]
)
def test_confusion_matrix_stays_readable(num_labels, has_counts, has_names, tmp_path):
    labels = [f"label {index}" for index in range(num_labels)]
    axes = save_confusion_matrix(tmp_path / "matrix.png", np.eye(num_labels, dtype=int), labels).axes[0]
    assert bool(axes.texts) is has_counts
    assert ("label 7" in [label.get_text() for label in axes.get_xticklabels()]) is has_names


def test_labels_are_no_formulas(tmp_path):
    save_confusion_matrix(tmp_path / "matrix.png", np.eye(2, dtype=int), ["$5 or less$", "$\\more$"])


def test_a_thousand_labels_have_a_pixel_each(tmp_path):
    save_confusion_matrix(tmp_path / "matrix.png", 50 * np.eye(1000, dtype=int), [str(i) for i in range(1000)])
    with Image.open(tmp_path / "matrix.png") as image:
        assert min(image.size) > 1000
    assert (tmp_path / "matrix.png").stat().st_size < 500_000


def test_calibration_shows_bins_and_gaps(tmp_path):
    low = {"confidence": 0.4, "accuracy": 0.7, "count": 10}
    high = {"confidence": 0.9, "accuracy": 0.8, "count": 30}
    figure = save_calibration(tmp_path / "calibration.png", [None, low, None, high], 0.15)
    accuracy, gap = figure.axes[0].containers
    assert [bar.get_x() for bar in accuracy] == [0.25, 0.75]
    assert [bar.get_height() for bar in accuracy] == [0.7, 0.8]
    assert [bar.get_y() for bar in gap] == pytest.approx([0.4, 0.8])
    assert [bar.get_height() for bar in gap] == pytest.approx([0.3, 0.1])
    assert [bar.get_height() for bar in figure.axes[1].containers[0]] == [10, 30]
    assert "15.00%" in figure.axes[0].get_title()
    with Image.open(tmp_path / "calibration.png") as image:
        assert image.size == (500, 600)
