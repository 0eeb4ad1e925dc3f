# SPDX-License-Identifier: Apache-2.0
"""
The labels of a data set: what kind they are, and the form that a model needs.

A column of labels is raw or prepared. In prepared form every split has the same type: classes (`ClassLabel`), one boolean
for each label of the model (`List(Value("bool"))`), or one number for each of its outputs (`List(Value("float32"))`).
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, IterableDataset, LargeList, List, Value


logger = logging.getLogger(__name__)

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
MULTI_HOT = List(Value("bool"))
NUMBERS = List(Value("float32"))
# So many different strings that are all fractions are no classes
MAX_NUMBER_CLASSES = 20
BY_INDEX = "`hf-mixer evaluate --match_labels_by_index`"
NO_STREAM_NAMES = (
    "the labels of a streamed data set have to be classes with names, or numbers (if they are integers: --problem_type "
    "regression). Else leave out --streaming"
)


def find_problem_type(feature: Any) -> str:
    """Return the problem type to which a column of prepared labels belongs."""
    if not isinstance(feature, List):
        return SINGLE_LABEL
    return MULTI_LABEL if feature == MULTI_HOT else REGRESSION


def problem_type_of(config) -> str:
    """
    Return the problem type of a model, as transformers decides it where its configuration does not tell.

    Raises:
        `ValueError`: the configuration names another one than `PROBLEM_TYPES`.
    """
    if config.problem_type is not None:
        if config.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type has to be one of {', '.join(PROBLEM_TYPES)}, got {config.problem_type!r}")
        return config.problem_type
    return REGRESSION if config.num_labels == 1 else SINGLE_LABEL


def choose_problem_type(feature: Any, problem_type: str | None = None, column: str = "label") -> str:
    """
    Return the problem type to which a column of raw labels belongs, or `problem_type`, if it fits.

    Raises:
        `ValueError`: the column holds nothing that can be a label, or nothing that fits `problem_type`.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise ValueError(f"unknown problem type {problem_type!r}: expected one of {', '.join(PROBLEM_TYPES)}")
    is_list = isinstance(feature, (List, LargeList))
    kind = value_kind(feature.feature if is_list else feature)
    fitting_by_kind: dict[tuple[str | None, bool], tuple[str, ...]] = {
        ("classes", False): (SINGLE_LABEL,),
        ("strings", False): (SINGLE_LABEL, REGRESSION),
        ("integers", False): (SINGLE_LABEL, REGRESSION),
        ("floats", False): (REGRESSION,),
        ("columns", False): (REGRESSION,),
        ("classes", True): (MULTI_LABEL,),
        ("strings", True): (MULTI_LABEL,),
        ("integers", True): (MULTI_LABEL, REGRESSION),
        ("floats", True): (REGRESSION, MULTI_LABEL),
    }
    fitting = fitting_by_kind.get((kind, is_list))
    if feature == Value("null"):
        raise ValueError(f"no image has a label: the column {column!r} is empty")
    if fitting is None:
        raise ValueError(f"the column {column!r} holds no classes, integers, numbers, strings or lists of them")
    if problem_type is None:
        return fitting[0]
    if problem_type not in fitting:
        what = f"lists of {kind}" if is_list else kind
        raise ValueError(
            f"the column {column!r} holds {what}: they can be labels for {' or '.join(fitting)}, not for {problem_type}"
        )
    return problem_type


def value_kind(feature: Any) -> str | None:
    """Return `classes`, `columns` (numbers by name), `integers`, `floats` or `strings`; `None` for anything else."""
    if isinstance(feature, ClassLabel):
        return "classes"
    if isinstance(feature, dict):
        return "columns"
    if isinstance(feature, Value):
        kinds = {"int": "integers", "uint": "integers", "bool": "integers", "float": "floats", "double": "floats"}
        kinds |= {"string": "strings", "large_string": "strings"}
        return kinds.get(feature.dtype.rstrip("0123456789"))
    return None


def is_missing(label: Any) -> bool:
    """Whether a label is missing: data sets write `None`, for classes also -1, and for numbers NaN."""
    if label is None:
        return True
    if isinstance(label, str):
        return False
    if isinstance(label, dict):
        label = label.values()
    if isinstance(label, Iterable):
        return any(map(is_missing, label))
    return not math.isfinite(label) if isinstance(label, float) else label < 0


def check_labels(dataset: Dataset, split: str) -> None:
    """
    Refuse a split in which labels, in prepared form, are missing.

    Raises:
        `ValueError`: some are missing, or numbers that are infinite; the message names the first of these images.
    """
    labels = dataset["label"][:]
    if dataset.features["label"] == MULTI_HOT:
        rows = [row for row, label in enumerate(labels) if label is None]
    else:
        rows = [row for row, label in enumerate(labels) if is_missing(label)]
    if rows:
        raise ValueError(
            f"some images of the split {split!r} have no label ({_name_rows(dataset, rows)}); public benchmarks often "
            "keep those of the test split to themselves: choose another split, or leave these images out"
        )


def _name_rows(dataset: Dataset, rows: Sequence[int]) -> str:
    names = []
    for row in rows[:3]:
        path = dataset[row]["image"]["path"]
        names.append(f"row {row}, {path}" if path else f"row {row}")
    rest = f"; and {len(rows) - 3} more" if len(rows) > 3 else ""
    return "; ".join(names) + rest


@dataclass(frozen=True)
class ClassEncoder:
    """Gives the index of a class; `None` for a label that is missing, or whose index in `index` is `None`."""

    index: Mapping[Any, int | None]

    def __call__(self, label: Any) -> int | None:
        if is_missing(label):
            return None
        if label not in self.index:
            raise ValueError(f"the training data does not have the label {label!r}")
        return self.index[label]


@dataclass(frozen=True)
class MultiHotEncoder:
    """Gives one boolean for each of `num_labels` labels, for the list of those that are present."""

    index: Mapping[Any, int | None]
    num_labels: int

    def __call__(self, labels: Sequence | None) -> np.ndarray | None:
        encode = ClassEncoder(self.index)
        found = [None] if labels is None else [encode(label) for label in labels]
        if None in found:
            return None
        present = np.zeros(self.num_labels, bool)
        present[np.array(found, int)] = True
        return present


@dataclass(frozen=True)
class MultiHotReader:
    """Gives the list of the labels that are present, for a list of `num_labels` values that are 0 or 1."""

    num_labels: int

    def __call__(self, values: Sequence | None) -> list[int] | None:
        if values is None or any(value is None for value in values):
            return None
        if len(values) != self.num_labels or not set(values) <= {0, 1}:
            raise ValueError(
                f"expected {self.num_labels} values that are 0 or 1 for every image, got {values}: numbers are "
                "for --problem_type regression"
            )
        return [label for label, value in enumerate(values) if value]


@dataclass(frozen=True)
class NumberEncoder:
    """Gives one number for each of `names`, for a number, a list of numbers, or a `dict` of numbers by their names."""

    names: Sequence[str]

    def __call__(self, label: Any) -> list[float] | None:
        values = [label[name] for name in self.names] if isinstance(label, dict) else label
        values = values if isinstance(values, list) else [values]
        if None in values:
            return None
        if len(values) != len(self.names):
            raise ValueError(f"expected {len(self.names)} numbers for every image, got {len(values)}: {values}")
        try:
            return [float(value) for value in values]
        except ValueError:
            raise ValueError(f"the label {label!r} is no number, and regression needs numbers") from None


def encode_labels(dataset, encode: Callable, feature: Any):
    """Replace every label of a `Dataset` or `IterableDataset` by what `encode` gives for it, of the type `feature`."""
    if isinstance(dataset, IterableDataset):
        features = Features({**dataset.features, "label": feature})
        return dataset.map(_encode_example, features=features, fn_kwargs={"encode": encode})
    encoded = [encode(label) for label in dataset["label"][:]]
    return dataset.remove_columns("label").add_column("label", encoded, feature=feature)


def _encode_example(example: dict, encode: Callable) -> dict:
    label = encode(example["label"])
    return {**example, "label": label.tolist() if isinstance(label, np.ndarray) else label}


def prepare_labels(dataset: dict, problem_type: str, columns: Sequence[str]) -> tuple[dict, list[str]]:
    """
    Bring raw labels into prepared form.

    Args:
        dataset (`dict`):
            Splits (`Dataset` or `IterableDataset`) with a column `label`, as `select_image_columns` gives it.
        problem_type (`str`):
            What `choose_problem_type` says of that column in the split `train`.
        columns (`Sequence[str]`):
            What the columns of the labels are called in the data.

    Returns:
        `tuple`: the same splits in prepared form, and the names of the labels in order. In the split `test` labels that
        the training data does not have become `None`.

    Raises:
        `ValueError`: other splits have such labels; there are too few labels; the data streams and does not say what
        the labels are called; or an image does not have as many values as the others.
    """
    if problem_type == REGRESSION:
        names = _number_names(dataset["train"], columns)
        encode = NumberEncoder(names)
        return {split: encode_labels(data, encode, NUMBERS) for split, data in dataset.items()}, names

    splits = dict(dataset)
    length = find_multi_hot_length(splits["train"]) if problem_type == MULTI_LABEL else None
    if length is not None:
        splits = {split: read_multi_hot(data, length) for split, data in splits.items()}
    names, present = _class_names(splits["train"], problem_type)
    for split, data in splits.items():
        index = _index_by_name(data, split, names, present)
        if problem_type == MULTI_LABEL:
            data = encode_labels(data, MultiHotEncoder(index, len(names)), MULTI_HOT)
        elif data.features["label"] != ClassLabel(names=names):
            data = encode_labels(data, ClassEncoder(index), ClassLabel(names=names))
        splits[split] = data
    return splits, names


def _number_names(dataset, columns: Sequence[str]) -> list[str]:
    """Return the names of the columns, or of the numbers in a column of lists: that of the column and their place."""
    feature = dataset.features["label"]
    if not isinstance(feature, (List, LargeList)):
        return list(columns)
    length = getattr(feature, "length", -1)
    if length < 0 and isinstance(dataset, IterableDataset):
        raise ValueError("streamed lists of numbers have to have a fixed length: leave out --streaming")
    if length < 0:
        length = max((len(label) for label in dataset["label"][:] if label is not None), default=0)
    return [f"{columns[0]}_{place}" for place in range(length)]


def find_multi_hot_length(dataset) -> int | None:
    """
    Return the length of the lists of labels, if they are vectors with a 0 or 1 for each label of the data; `None`, if
    they are lists of those labels that are present. Lists of integers are vectors where all are of the same length, at
    least 2, and hold nothing but 0 and 1.

    Raises:
        `ValueError`: booleans or floating-point numbers are not such vectors; or the data streams, and the labels have
        no names.
    """
    feature = dataset.features["label"]
    dtype = getattr(feature.feature, "dtype", "") if isinstance(feature.feature, Value) else ""
    if value_kind(feature.feature) not in ("integers", "floats"):
        return None
    is_vector = not dtype.startswith(("int", "uint"))
    if isinstance(dataset, IterableDataset):
        length = getattr(feature, "length", -1)
        if not is_vector or length < 1:
            raise ValueError(NO_STREAM_NAMES)
        return length
    labels = [label for label in dataset["label"][:] if label is not None]
    lengths = {len(label) for label in labels}
    if len(lengths) == 1 and (is_vector or lengths != {1}) and all(set(label) <= {0, 1} for label in labels):
        return lengths.pop()
    if is_vector:
        raise ValueError(f"lists of {dtype} are labels where all are of the same length and hold nothing but 0 and 1")
    return None


def read_multi_hot(dataset, length: int):
    """Turn vectors with a 0 or 1 for each of `length` labels, called `"0"`, `"1"`, ..., into lists of those present."""
    names = [str(label) for label in range(length)]
    return encode_labels(dataset, MultiHotReader(length), List(ClassLabel(names=names)))


def label_values(dataset: Dataset) -> list:
    """Return the different labels that occur, without those that are missing, in order."""
    if isinstance(dataset.features["label"], (List, LargeList)):
        values = {value for label in dataset["label"][:] for value in label or ()}
    else:
        values = set(dataset.unique("label"))
    return sorted(value for value in values if not is_missing(value))


def _value_name(feature: Any) -> Callable[[Any], str]:
    """Return what names the values of a column of labels."""
    item = feature.feature if isinstance(feature, (List, LargeList)) else feature
    return item.int2str if isinstance(item, ClassLabel) else str


def _class_names(dataset, problem_type: str) -> tuple[list[str], set[str]]:
    """Return the names of all labels in order, and those that the other splits may have."""
    feature = dataset.features["label"]
    item = feature.feature if problem_type == MULTI_LABEL else feature
    if isinstance(dataset, IterableDataset):
        if not isinstance(item, ClassLabel):
            raise ValueError(NO_STREAM_NAMES)
        return item.names, set(item.names)

    values = label_values(dataset)
    if problem_type == SINGLE_LABEL and len(values) < 2:
        raise ValueError(f"expected at least two classes, got {len(values)} in the split 'train'")
    if not values:
        raise ValueError("no image of the split 'train' has a label")
    if len(values) > MAX_NUMBER_CLASSES and isinstance(values[0], str) and _are_fractions(values):
        raise ValueError(
            f"the labels are {len(values)} different numbers, such as {values[0]!r}: give --problem_type regression to "
            "learn their values, or names that are no numbers"
        )
    occurring = [_value_name(feature)(value) for value in values]
    if not isinstance(item, ClassLabel):
        return occurring, set(occurring)
    return item.names, set(occurring if problem_type == SINGLE_LABEL else item.names)


def _are_fractions(values: Iterable[str]) -> bool:
    try:
        return not all(float(value).is_integer() for value in values)
    except ValueError:
        return False


def _index_by_name(dataset, split: str, names: Sequence[str], present: set[str]) -> dict[Any, int | None]:
    """Return for every label that occurs in a split the position of its name in `names`."""
    feature = dataset.features["label"]
    if isinstance(dataset, IterableDataset):
        item = feature.feature if isinstance(feature, (List, LargeList)) else feature
        if not isinstance(item, ClassLabel):
            raise ValueError(NO_STREAM_NAMES)
        values: Sequence = range(len(item.names))
    else:
        values = label_values(dataset)
    name_of = {value: _value_name(feature)(value) for value in values}
    unknown = sorted({name for name in name_of.values() if name not in present})
    if unknown:
        message = f"labels that the training data does not have: {shorten(unknown)} in the split {split!r}"
        if split != "test":
            raise ValueError(message)
        logger.warning(f"{message}; its images with them count as images without a label")
    position = {name: index for index, name in enumerate(names) if name in present}
    return {value: position.get(name) for value, name in name_of.items()}


def shorten(names: Sequence[str], limit: int = 10) -> str:
    """Return the first `limit` names in quotes, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + rest
