import pytest
from datasets import ClassLabel, Value

from hf_mixer.data.labels import match_labels, use_model_labels
from tests.helpers import make_dataset


@pytest.mark.parametrize(
    ("labels", "model_labels", "names", "expected"),
    [
        ({0, 1}, ["dog", "cat"], ["Cat", "DOG", "unused"], {0: 1, 1: 0}),
        ({"cat", "dog"}, ["dog", "cat", "eel"], None, {"cat": 1, "dog": 0}),
        ({0, 2}, ["dog", "cat", "eel"], None, {0: 0, 2: 2}),
        # Trained on the integers 2 and 10, which became names
        ({2, 10}, ["2", "10"], None, {2: 0, 10: 1}),
        ({"2", "10"}, ["2", "10"], None, {"2": 0, "10": 1}),
        ({0, 1}, ["LABEL_0", "LABEL_1"], ["cat", "dog"], {0: 0, 1: 1}),
        ({0, 1}, ["cat", "dog"], ["0", "1"], {0: 0, 1: 1}),
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
        ({0, 2}, ["dog", "cat"], None, r"'2' in the data; it has .* integers from 0 to 1"),
        ({0, 1}, ["crane", "tench", "crane"], ["tench", "crane"], r"more than one, for 'crane'"),
    ],
)
def test_labels_that_the_model_lacks_are_named(labels, model_labels, names, message):
    with pytest.raises(ValueError, match=message):
        match_labels(labels, model_labels, names)


@pytest.mark.parametrize(
    ("labels", "feature"), [([1, 0, 1], ClassLabel(names=["cat", "dog"])), (["dog", "cat", "dog"], Value("string"))]
)
def test_the_data_takes_the_indices_of_the_model(labels, feature):
    dataset = use_model_labels(make_dataset(labels, feature)["train"], ["dog", "eel", "cat"])
    assert dataset["label"][:] == [0, 2, 0]
    # Every image keeps its own label
    assert [image.getpixel((0, 0))[0] for image in dataset["image"]] == [0, 1, 2]
