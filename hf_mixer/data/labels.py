# SPDX-License-Identifier: Apache-2.0
"""The labels of a data set: their numbers, and how they correspond to those of a model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Value


def encode_labels(dataset: Dataset, index: Mapping, feature: Any) -> Dataset:
    """Replace every value of the column `label` by its entry in `index`, of the type `feature`."""
    encoded = [index[label] for label in dataset["label"][:]]
    return dataset.remove_columns("label").add_column("label", encoded, feature=feature)


def use_model_labels(dataset: Dataset, model_labels: Sequence[str]) -> Dataset:
    """Replace the labels of a data set by the indices of the same labels in a model; see `match_labels`."""
    feature = dataset.features["label"]
    names = feature.names if isinstance(feature, ClassLabel) else None
    index = match_labels(dataset.unique("label"), model_labels, names)
    return encode_labels(dataset, index, Value("int64"))


def match_labels(
    labels: Iterable[int | str], model_labels: Sequence[str], names: Sequence[str] | None = None
) -> dict[int | str, int]:
    """
    Find the labels of a data set among those of a model: by name, ignoring case, where both have names, else by index.

    Args:
        labels (`Iterable[int | str]`):
            The labels that occur in the data.
        model_labels (`Sequence[str]`):
            The labels of the model, in order. `LABEL_0`, `LABEL_1`, ... (what transformers fills in) count as no names.
        names (`Sequence[str]`, *optional*):
            The names of integer labels. Without them, or where they only count from 0, an integer is an index, unless
            the labels of the model are integers themselves.

    Returns:
        `dict[int | str, int]`: the index of the model's label for each of `labels`.

    Raises:
        `ValueError`: the model does not have some of them.
    """
    labels = sorted(labels)
    if names is not None and list(names) == [str(index) for index in range(len(names))]:
        names = None
    name_of = {label: str(label) if names is None else names[int(label)] for label in labels}
    model_names = [_fold(name) for name in model_labels]
    if names is not None:
        unnamed = all(name == f"label_{index}" for index, name in enumerate(model_names))
        # Names may occur twice, as `crane` does in ImageNet: then only the order tells them apart
        by_index = unnamed or [_fold(name) for name in names] == model_names
    else:
        by_index = all(isinstance(label, int) for label in labels) and not all(map(str.isdecimal, model_names))

    result: dict[int | str, int] = {}
    counts = Counter(model_names)
    for label, name in name_of.items():
        if by_index and label in range(len(model_labels)):
            result[label] = int(label)
        elif not by_index and counts[_fold(name)] == 1:
            result[label] = model_names.index(_fold(name))
    unmatched = [name_of[label] for label in labels if label not in result]
    if unmatched:
        raise ValueError(
            f"the model has no label, or more than one, for {_shorten(unmatched)} in the data; it has "
            f"{_shorten(model_labels)}. Rename the classes of the data to the labels of the model, or give them as "
            f"integers from 0 to {len(model_labels) - 1}, the indices of its labels"
        )
    return result


def _fold(name: str) -> str:
    return name.strip().casefold()


def _shorten(names: Sequence[str], limit: int = 10) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + rest
