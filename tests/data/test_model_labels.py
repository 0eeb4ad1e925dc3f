import numpy as np
import pytest
from datasets import ClassLabel, List, Value

from hf_mixer.data.columns import select_image_columns
from hf_mixer.data.labels import find_problem_type
from hf_mixer.data.model_labels import match_labels, use_model_labels
from tests.helpers import make_dataset, make_label_columns, make_label_config


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAMES = ClassLabel(names=["cat", "dog", "eel"])


@pytest.mark.parametrize(
    ("labels", "model_labels", "names", "expected"),
    [
        ({0, 1}, ["dog", "cat"], ["Cat", "DOG", "unused"], {0: 1, 1: 0}),
        ({"cat", "dog"}, ["dog", "cat", "eel"], None, {"cat": 1, "dog": 0}),
        ({"A", "a"}, ["a", "A"], None, {"A": 1, "a": 0}),
        # Trained on the integers 2 and 10, which became names
        ({2, 10}, ["2", "10"], None, {2: 0, 10: 1}),
        ({"2", "10"}, ["2", "10"], None, {"2": 0, "10": 1}),
        ({0, 2}, ["LABEL_0", "LABEL_1", "LABEL_2"], None, {0: 0, 2: 2}),
        ({0, 1}, ["1", "0"], ["0", "1"], {0: 1, 1: 0}),
        # ImageNet has two labels of the same name
        ({0, 1, 2}, ["crane", "tench", "crane"], ["crane", "tench", "crane"], {0: 0, 1: 1, 2: 2}),
    ],
)
def test_labels_are_matched(labels, model_labels, names, expected):
    assert match_labels(labels, model_labels, names) == expected


@pytest.mark.parametrize(
    ("labels", "model_labels", "names", "message"),
    [
        ({0, 1}, ["dog", "cat"], ["cat", "mouse"], r"'mouse' in the data; it has 'dog', 'cat'\. Rename the classes"),
        ({"a", "b"}, ["dog", "cat"], None, r"'a', 'b' in the data; it has"),
        ({0, 1}, ["dog", "cat"], None, r"'0', '1' in the data; it has .* from 0 to 1 .*--match_labels_by_index"),
        ({0, 1}, ["LABEL_0", "LABEL_1"], ["cat", "dog"], r"'cat', 'dog' in the data"),
        ({0, 1}, ["crane", "tench", "crane"], ["tench", "crane"], r"more than one, for 'crane'"),
    ],
)
def test_labels_that_the_model_lacks_are_named(labels, model_labels, names, message):
    with pytest.raises(ValueError, match=message):
        match_labels(labels, model_labels, names)


def test_integers_are_indices_only_where_that_is_asked_for():
    assert match_labels({0, 2}, ["dog", "cat", "eel"], None, match_by_index=True) == {0: 0, 2: 2}
    assert match_labels({0, 1}, ["dog", "cat"], ["x", "y"], match_by_index=True) == {0: 0, 1: 1}
    with pytest.raises(ValueError, match="'3' in the data"):
        match_labels({0, 3}, ["dog", "cat"], None, match_by_index=True)


@pytest.mark.parametrize(
    ("labels", "feature"), [([1, 0, 1], ClassLabel(names=["cat", "dog"])), (["dog", "cat", "dog"], Value("string"))]
)
def test_the_data_takes_the_indices_of_the_model(labels, feature):
    dataset = use_model_labels(make_dataset(labels, feature)["train"], make_label_config("dog", "eel", "cat"))
    assert dataset["label"][:] == [0, 2, 0]
    # Every image keeps its own label
    assert [image.getpixel((0, 0))[0] for image in dataset["image"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "feature", "expected"),
    [
        ([["dog"], [], ["eel", "cat", "eel"]], List(Value("string")), [[1, 0, 0], [0, 0, 0], [0, 1, 1]]),
        ([[0], [2]], List(NAMES), [[0, 0, 1], [0, 1, 0]]),
    ],
)
def test_several_labels_are_matched_by_name(labels, feature, expected):
    config = make_label_config("dog", "eel", "cat", problem_type=MULTI)
    dataset = use_model_labels(make_dataset(labels, feature)["train"], config)
    assert np.array(dataset["label"][:]).astype(int).tolist() == expected
    assert find_problem_type(dataset.features["label"]) == MULTI


def test_vectors_of_labels_are_matched_by_place_where_that_is_asked_for():
    data = make_dataset([[1, 0, 1], [0, 0, 1]], List(Value("int64")))["train"]
    for labels, match_by_index in ((("0", "1", "2"), False), (("dog", "eel", "cat"), True)):
        config = make_label_config(*labels, problem_type=MULTI)
        matched = use_model_labels(data, config, match_by_index)["label"][:]
        assert matched == [[True, False, True], [False, False, True]]
    with pytest.raises(ValueError, match="'0', '2' in the data.*--match_labels_by_index"):
        use_model_labels(data, make_label_config("dog", "eel", "cat", problem_type=MULTI))


def test_numbers_are_matched_by_the_names_of_their_columns():
    config = make_label_config("width", "height", problem_type=REGRESSION)
    columns = make_label_columns(height=[1, 2], width=[0.5, 0.25], depth=[7.0, 8.0])["train"]
    data = select_image_columns(columns, label_column_name=["height", "width"], problem_type=REGRESSION)
    assert use_model_labels(data, config)["label"][:] == [[0.5, 1.0], [0.25, 2.0]]
    data = select_image_columns(columns, label_column_name=["height", "depth"], problem_type=REGRESSION)
    with pytest.raises(ValueError, match="'height', 'depth' are not the outputs of the model, 'width', 'height'"):
        use_model_labels(data, config)
    assert use_model_labels(data, config, match_by_index=True)["label"][:] == [[1.0, 7.0], [2.0, 8.0]]
    data = select_image_columns(columns, label_column_name="height", problem_type=REGRESSION)
    assert use_model_labels(data, make_label_config("age"))["label"][:] == [[1.0], [2.0]]


def test_data_of_another_kind_than_the_model_is_refused():
    data = make_dataset([["cat"], ["dog"]], List(Value("string")))["train"]
    with pytest.raises(ValueError, match=f"lists of strings: they can be labels for {MULTI}, not for {SINGLE}"):
        use_model_labels(data, make_label_config("cat", "dog"))
