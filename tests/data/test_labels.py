import pytest
from datasets import ClassLabel, Dataset, IterableDatasetDict, List, Value

from hf_mixer.data.datasets import prepare_image_dataset
from hf_mixer.data.labels import check_labels, find_problem_type, problem_type_of
from tests.helpers import make_dataset, make_label_columns, make_label_config


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAMES = ClassLabel(names=["cat", "dog", "eel"])


def test_a_model_of_one_output_is_for_regression():
    assert problem_type_of(make_label_config("age")) == REGRESSION
    assert problem_type_of(make_label_config("cat", "dog")) == SINGLE
    assert problem_type_of(make_label_config("cat", problem_type=MULTI)) == MULTI


@pytest.mark.parametrize(
    ("labels", "feature", "problem_type", "names", "prepared"),
    [
        # Several labels, as names, integers, classes and vectors; one that comes twice counts once
        ([["b", "a", "b"], []], List(Value("string")), None, ["a", "b"], [[True, True], [False, False]]),
        ([[7], [3, 7]], List(Value("int32")), None, ["3", "7"], [[False, True], [True, True]]),
        ([[2], []], List(NAMES), None, NAMES.names, [[False, False, True], [False] * 3]),
        ([[1, 0], [0, 1]], List(Value("int64")), None, ["0", "1"], [[True, False], [False, True]]),
        ([[True], [False]], List(Value("bool")), None, ["0"], [[True], [False]]),
        ([[1.0, 0.0], [1.0, 1.0]], List(Value("float32"), length=2), MULTI, ["0", "1"], [[True, False], [True, True]]),
        # Regression
        ([0.5, 2.0], Value("float64"), None, ["label"], [[0.5], [2.0]]),
        ([-1, 2], Value("int64"), REGRESSION, ["label"], [[-1.0], [2.0]]),
        (["0.5", "2"], Value("string"), REGRESSION, ["label"], [[0.5], [2.0]]),
        ([[0.5, 1.0], [2.0, 3.0]], List(Value("float32")), None, ["label_0", "label_1"], [[0.5, 1.0], [2.0, 3.0]]),
        # Classes
        ([True, False], Value("bool"), None, ["False", "True"], [1, 0]),
    ],
)
def test_labels_of_every_kind_are_prepared(labels, feature, problem_type, names, prepared):
    dataset = make_dataset(labels, feature, splits=("train", "validation", "test"))
    dataset, found = prepare_image_dataset(dataset, problem_type=problem_type)
    assert found == names
    assert all(data["label"][:] == prepared for data in dataset.values())
    kind = SINGLE if isinstance(prepared[0], int) else MULTI if isinstance(prepared[0][0], bool) else REGRESSION
    assert find_problem_type(dataset["train"].features["label"]) == kind


@pytest.mark.parametrize(
    ("feature", "labels", "prepared"),
    [
        (List(NAMES), [[2, 0], []], [[True, False, True], [False] * 3]),
        (List(Value("bool"), length=2), [[True, False], [True, True]], [[True, False], [True, True]]),
        (Value("float32"), [0.5, 2.0], [[0.5], [2.0]]),
        (List(Value("float32"), length=2), [[0.5, 1.0], [2.0, 3.0]], [[0.5, 1.0], [2.0, 3.0]]),
    ],
)
def test_labels_of_every_kind_are_prepared_while_they_stream(feature, labels, prepared):
    data = make_dataset(labels, feature)["train"].to_iterable_dataset()
    dataset, _ = prepare_image_dataset(IterableDatasetDict(train=data, validation=data))
    assert sorted(row["label"] for row in dataset["train"]) == sorted(prepared)
    assert [row["label"] for row in dataset["validation"]] == prepared


def test_columns_of_0_and_1_are_several_labels():
    dataset = make_label_columns(cat=[1, 0, 0], dog=[1, 0, 1], other=[0.5, 0.1, 0.2])
    prepared, names = prepare_image_dataset(dataset, label_column_name=["dog", "cat"])
    assert (names, prepared["train"]["label"][:]) == (["dog", "cat"], [[True, True], [False, False], [True, False]])
    prepared, names = prepare_image_dataset(dataset, label_column_name=["cat"], problem_type=MULTI)
    assert (names, prepared["train"]["label"][:]) == (["cat"], [[True], [False], [False]])
    prepared, names = prepare_image_dataset(dataset, label_column_name=["cat", "other"])
    assert (names, prepared["train"]["label"][1]) == (["cat", "other"], [0.0, pytest.approx(0.1)])
    assert find_problem_type(prepared["train"].features["label"]) == REGRESSION


def test_the_training_data_decides_what_the_labels_are():
    dataset = make_label_columns(width=[0.5, 1.5], height=[1.0, 2.0])
    dataset["validation"] = make_label_columns(width=[1, 0], height=[0, 1])["train"]
    prepared, _ = prepare_image_dataset(dataset, label_column_name=["width", "height"])
    assert prepared["validation"]["label"][:] == [[1.0, 0.0], [0.0, 1.0]]
    assert find_problem_type(prepared["validation"].features["label"]) == REGRESSION
    dataset = make_label_columns(label=[["a"], ["b", "a"]])
    dataset["validation"] = make_label_columns(label=["a", "b"])["train"]
    with pytest.raises(ValueError, match=f"holds strings: they can be labels for .*, not for {MULTI}"):
        prepare_image_dataset(dataset)


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        (
            {"cat": [1, 2], "dog": [0, 1]},
            {},
            r"values that are 0 or 1 for every image, got \[2, 1\].*--problem_type reg",
        ),
        ({"cat": ["a", "b"], "dog": [0, 1]}, {}, "have to hold 0 and 1, or numbers"),
        ({"cat": [0, 1], "dog": [0, 1]}, {"problem_type": SINGLE}, "have to hold 0 and 1, or numbers"),
        (
            {"label": ["a", "b"]},
            {"problem_type": MULTI},
            f"holds strings: they can be labels for {SINGLE} or {REGRESSION}",
        ),
        ({"label": ["a", "b"]}, {"problem_type": REGRESSION}, "'a' is no number"),
        ({"label": [0.5, 1.5]}, {"problem_type": SINGLE}, f"holds floats: they can be labels for {REGRESSION}, not"),
        (
            {"label": ["a", "b"]},
            {"problem_type": "multi"},
            "unknown problem type 'multi': expected one of single_label",
        ),
        ({"label": [str(index / 8) for index in range(30)]}, {}, "30 different numbers.*--problem_type regression"),
        ({"label": [[0.5], [1.0, 2.0]]}, {}, "expected 2 numbers for every image, got 1"),
        ({"label": [[], []]}, {}, "holds no classes"),
        ({"label": [["a"], None]}, {}, r"'train' have no label \(row 1\)"),
        ({"label": [["a"], [None]]}, {}, r"'train' have no label \(row 1\)"),
    ],
)
def test_labels_that_leave_a_doubt_are_refused(columns, arguments, message):
    names = list(columns) if len(columns) > 1 else None
    with pytest.raises(ValueError, match=message):
        prepare_image_dataset(make_label_columns(**columns), label_column_name=names, **arguments)


def test_classes_are_the_same_in_every_split_whatever_their_order():
    dataset = make_dataset([0, 1, 2], NAMES)
    dataset["validation"] = make_dataset([0, 1, 1], ClassLabel(names=["eel", "cat"]))["train"]
    prepared, names = prepare_image_dataset(dataset)
    assert names == NAMES.names
    assert prepared["validation"]["label"][:] == [2, 0, 0]
    assert prepared["validation"].features["label"] == NAMES
    streams = {split: data.to_iterable_dataset() for split, data in dataset.items()}
    stream, _ = prepare_image_dataset(IterableDatasetDict(streams))
    assert [row["label"] for row in stream["validation"]] == [2, 0, 0]


def test_a_class_that_only_validation_has_is_refused_though_its_name_is_known():
    dataset = make_dataset([0, 1, 0], NAMES)
    dataset["validation"] = make_dataset([0, 2], NAMES)["train"]
    with pytest.raises(ValueError, match="the training data does not have: 'eel' in the split 'validation'"):
        prepare_image_dataset(dataset)
    dataset = make_dataset([["a"], ["b"]], List(Value("string")))
    dataset["validation"] = make_dataset([["c", "a"]], List(Value("string")))["train"]
    with pytest.raises(ValueError, match="the training data does not have: 'c' in the split 'validation'"):
        prepare_image_dataset(dataset)


def test_the_only_image_of_a_class_is_trained_on():
    labels = [*range(10), *[10] * 40]
    dataset = make_dataset(labels, ClassLabel(num_classes=11))
    for seed in range(3):
        prepared, _ = prepare_image_dataset(dataset, train_val_split=0.5, seed=seed)
        assert set(prepared["train"]["label"]) == set(range(11))
        assert len(prepared["train"]) + len(prepared["validation"]) == 50


def test_images_without_labels_are_named():
    images = [{"bytes": b"", "path": f"{row}.png"} for row in range(6)]
    dataset = Dataset.from_dict({"image": images, "label": [0.5, None, float("nan"), 1.0, float("inf"), None]})
    message = r"\(row 1, 1\.png; row 2, 2\.png; row 4, 4\.png; and 1 more\)"
    with pytest.raises(ValueError, match=message):
        check_labels(dataset, "test")
