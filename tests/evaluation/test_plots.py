import itertools

import numpy as np
import pytest
from PIL import Image

from hf_mixer.evaluation.plots import (
    save_calibration,
    save_confused_pairs,
    save_confusion_matrix,
    save_contact_sheet,
    save_per_class,
    save_regression,
)


def test_confusion_matrix_shows_shares_and_counts(tmp_path):
    matrix = [[8, 2, 0], [0, 0, 0], [1, 0, 3]]
    figure = save_confusion_matrix(tmp_path / "matrix.png", matrix, ["cat", "a very long label indeed", "dog"])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]])
    assert figure.get_suptitle() == "78.6% of 14 images right"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["cat", "a very long label indeed", "dog"]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    # (column, row): count
    assert texts == {(0, 0): "8", (1, 0): "2", (0, 2): "1", (2, 2): "3"}


@pytest.mark.parametrize(("num_labels", "has_counts"), [(20, True), (60, False)])
def test_names_in_a_confusion_matrix_are_whole_and_do_not_overlap(num_labels, has_counts, tmp_path):
    labels = [f"a label with quite a long name, number {index}" for index in range(num_labels)]
    figure = save_confusion_matrix(tmp_path / "matrix.png", np.eye(num_labels, dtype=int), labels)
    axes = figure.axes[0]
    assert bool(axes.texts) is has_counts
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == labels
        boxes = [tick.get_window_extent() for tick in ticks]
        assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes))
        # Nor do they leave no room for the matrix
        assert axes.get_window_extent().width > 250


@pytest.mark.parametrize(
    "labels", [["$5 or less$", "$\\more$"], ["\u732b", "\u0643\u0644\u0628\n"], ["a" * 500, "\x07"]]
)
def test_labels_of_any_script_are_drawn_without_warnings(labels, tmp_path):
    save_confusion_matrix(tmp_path / "matrix.png", np.eye(2, dtype=int), labels)
    save_per_class(tmp_path / "classes.png", labels, [1, 1], {"accuracy": [0, 1]})
    save_contact_sheet(tmp_path / "sheet.png", {"Mistakes": [(np.zeros((8, 8, 3), np.uint8), tuple(labels))]})


def test_confused_pairs_are_named_and_counted(tmp_path):
    pairs = [
        {"true": "cat", "predicted": "dog", "count": 40, "share": 0.8},
        {"true": "dog", "predicted": "a wolf", "count": 3, "share": 0.031},
    ]
    axes = save_confused_pairs(tmp_path / "pairs.png", pairs, 120).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["cat \N{RIGHTWARDS ARROW} dog", "dog \N{RIGHTWARDS ARROW} a wolf"]
    assert [text.get_text().strip() for text in axes.texts] == ["40 (80%)", "3 (3%)"]
    # The first one on top
    bottom, top = axes.get_ylim()
    assert bottom > top


def test_a_model_without_mistakes_is_drawn(tmp_path):
    (text,) = save_confused_pairs(tmp_path / "pairs.png", [], 120).axes[0].texts
    assert text.get_text() == "No image is classified wrong"


def test_labels_are_sorted_by_accuracy(tmp_path):
    shares = {"accuracy": [0.5, None, 0.25, 1.0]}
    axes = save_per_class(tmp_path / "classes.png", ["cat", "dog", "eel", "fox"], [4, 0, 8, 1000], shares).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eel  (8)", "cat  (4)", "fox  (1,000)"]
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.5, 1.0]
    assert [text.get_text() for text in axes.texts] == ["25.0%", "50.0%", "100.0%"]


def test_of_many_labels_the_lowest_and_the_highest_are_shown(tmp_path):
    accuracies = [index / 119 for index in range(120)]
    labels = [f"label {index}" for index in range(120)]
    figure = save_per_class(tmp_path / "classes.png", labels, [7] * 120, {"accuracy": accuracies})
    axes, distribution = figure.axes
    names = [label.get_text().removesuffix("  (7)") for label in axes.get_yticklabels()]
    assert names == [*labels[:30], "80 more labels", *labels[-10:]]
    assert len(axes.patches) == 40
    assert sum(bar.get_height() for bar in distribution.patches) == 120


def test_images_are_drawn_below_their_title_and_above_their_captions(tmp_path):
    groups = {
        "Right": [(np.full((6, 6, 1), 90, np.uint8), ("true: cat", "97% cat"))],
        "Wrong": [(np.full((6, 6, 3), 20, np.uint8), ("true: dog", "70% " + "x" * 100))],
    }
    figure = save_contact_sheet(tmp_path / "sheet.png", groups)
    assert [part.get_suptitle() for part in figure.subfigs] == ["Right", "Wrong"]
    first, second = figure.axes
    assert first.get_title() == "true: cat\n97% cat"
    assert (first.images[0].get_array() == 90).all()
    assert second.images[0].get_array().shape == (6, 6, 3)
    assert "\N{HORIZONTAL ELLIPSIS}" in second.get_title()
    bottom = 0
    for axes, part in ((second, figure.subfigs[1]), (first, figure.subfigs[0])):
        # From below: nothing overlaps or leaves the picture
        for drawn in (axes.title, axes.images[0], part.texts[0]):
            box = drawn.get_window_extent()
            assert box.y0 >= bottom
            bottom = box.y1
    assert bottom <= figure.bbox.height


def test_pixels_of_a_small_image_stay_visible(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2, (32, 32, 3), np.uint8) * 255
    save_contact_sheet(tmp_path / "sheet.png", {"Right": [(pixels, ("", ""))] * 8}, columns=8)
    with Image.open(tmp_path / "sheet.png") as image:
        columns = np.asarray(image.convert("RGB"))[60, 5:90]
    # Each pixel is a square of the same color, and nothing between them is mixed
    assert set(np.unique(columns)) == {0, 255}


@pytest.mark.parametrize("num_images", [3, 3000])
def test_values_are_drawn_over_the_true_ones(num_images, tmp_path):
    truth = np.linspace(0, 1, num_images)[:, None] * [1, 2]
    names, scores = ["price", "width"], [0.9, None]
    panels = save_regression(tmp_path / "regression.png", truth + 1, truth, names, scores).axes
    assert [panel.get_title() for panel in panels] == ["price: R\N{SUPERSCRIPT TWO} = 0.900", "width"]
    # The same distances in both directions, and nothing outside
    assert panels[1].get_xlim() == panels[1].get_ylim() == pytest.approx((-0.15, 3.15))
    if num_images == 3:
        np.testing.assert_allclose(panels[1].lines[0].get_xydata(), [[0, 1], [1, 2], [2, 3]])


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
