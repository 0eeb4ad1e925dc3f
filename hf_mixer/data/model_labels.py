# SPDX-License-Identifier: Apache-2.0
"""How the labels of a data set correspond to those of a model."""

from collections import Counter
from collections.abc import Iterable, Sequence

from datasets import ClassLabel, Dataset, Value

from .labels import (
    MULTI_HOT,
    MULTI_LABEL,
    NUMBERS,
    REGRESSION,
    ClassEncoder,
    MultiHotEncoder,
    NumberEncoder,
    choose_problem_type,
    encode_labels,
    find_multi_hot_length,
    label_values,
    problem_type_of,
    read_multi_hot,
    shorten,
)


BY_INDEX = "--match_labels_by_index"


def use_model_labels(dataset: Dataset, config, match_by_index: bool = False) -> Dataset:
    """
    Bring the raw labels of a data set into the form that a model needs: the indices of its labels (int64), one boolean
    for each of them, or one number for each of its outputs. Labels that are missing become `None`.

    Args:
        dataset (`Dataset`):
            A column `label`, as `select_image_columns` gives it.
        config ([`MixerConfig`]):
            The configuration of the model.
        match_by_index (`bool`, *optional*, defaults to `False`):
            See `match_labels`. Several columns of numbers are taken in their order, too.

    Raises:
        `ValueError`: the labels do not fit the problem type of the model, or the model does not have some of them.
    """
    problem_type = choose_problem_type(dataset.features["label"], problem_type_of(config))
    model_labels = [config.id2label[index] for index in range(config.num_labels)]
    if problem_type == REGRESSION:
        return _use_model_outputs(dataset, model_labels, match_by_index)

    is_multi_label = problem_type == MULTI_LABEL
    length = find_multi_hot_length(dataset) if is_multi_label else None
    if length == len(model_labels):
        dataset = read_multi_hot(dataset, length)
    feature = dataset.features["label"]
    item = feature.feature if is_multi_label else feature
    names = item.names if isinstance(item, ClassLabel) else None
    index = match_labels(label_values(dataset), model_labels, names, match_by_index)
    if is_multi_label:
        return encode_labels(dataset, MultiHotEncoder(index, len(model_labels)), MULTI_HOT)
    return encode_labels(dataset, ClassEncoder(index), Value("int64"))


def _use_model_outputs(dataset: Dataset, model_labels: Sequence[str], match_by_index: bool) -> Dataset:
    feature = dataset.features["label"]
    columns = list(feature) if isinstance(feature, dict) else model_labels
    if len(columns) == len(model_labels) and match_by_index:
        model_labels = columns
    if set(columns) != set(model_labels):
        raise ValueError(
            f"the columns {shorten(columns)} are not the outputs of the model, {shorten(model_labels)}: rename them, or "
            f"evaluate as many in that order with {BY_INDEX}"
        )
    return encode_labels(dataset, NumberEncoder(model_labels), NUMBERS)


def match_labels(
    labels: Iterable[int | str],
    model_labels: Sequence[str],
    names: Sequence[str] | None = None,
    match_by_index: bool = False,
) -> dict[int | str, int]:
    """
    Find the labels of a data set among those of a model by their names, if need be ignoring case.

    Args:
        labels (`Iterable[int | str]`):
            The labels that occur in the data.
        model_labels (`Sequence[str]`):
            The labels of the model, in order. `LABEL_0`, `LABEL_1`, ... are what transformers fills in.
        names (`Sequence[str]`, *optional*):
            The names of integer labels. Without them, or where they only count from 0, the integer 3 is called `3` or
            `LABEL_3`.
        match_by_index (`bool`, *optional*, defaults to `False`):
            Whether integers are the indices of the model's labels, whatever these are called. They are so, too, where
            both have the same names in the same order.

    Returns:
        `dict[int | str, int]`: the index of the model's label for each of `labels`.

    Raises:
        `ValueError`: the model does not have some of them.
    """
    labels = sorted(labels)
    if names is not None and list(names) == [str(index) for index in range(len(names))]:
        names = None
    integers = all(isinstance(label, int) for label in labels)
    name_of = {label: str(label) if names is None else names[int(label)] for label in labels}
    # Names may occur twice, as `crane` does in ImageNet: then only the order tells them apart
    same_names = names is not None and [_fold(name) for name in names] == [_fold(name) for name in model_labels]
    if integers and (match_by_index or same_names):
        result = {label: int(label) for label in labels if label in range(len(model_labels))}
    else:
        unnamed = names is None and all(name == f"LABEL_{index}" for index, name in enumerate(model_labels))
        exact, folded = _unique_positions(model_labels), _unique_positions(map(_fold, model_labels))
        result = {}
        for label, name in name_of.items():
            name = f"LABEL_{name}" if unnamed else name
            index = exact.get(name, folded.get(_fold(name)))
            if index is not None:
                result[label] = index
    unmatched = [name_of[label] for label in labels if label not in result]
    if unmatched:
        raise ValueError(
            f"the model has no label, or more than one, for {shorten(unmatched)} in the data; it has "
            f"{shorten(model_labels)}. Rename the classes of the data to the labels of the model, or, if they are integers "
            f"from 0 to {len(model_labels) - 1} that are the indices of its labels, evaluate with {BY_INDEX}"
        )
    return result


def _unique_positions(names: Iterable[str]) -> dict[str, int]:
    """Return the position of every name that occurs once."""
    names = list(names)
    counts = Counter(names)
    return {name: index for index, name in enumerate(names) if counts[name] == 1}


def _fold(name: str) -> str:
    return name.strip().casefold()
