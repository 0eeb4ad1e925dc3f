# SPDX-License-Identifier: Apache-2.0
"""Which columns of a data set hold the images and their labels."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    Features,
    IterableDataset,
    List,
    Value,
)
from datasets import Image as ImageFeature

from .labels import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    MultiHotReader,
    choose_problem_type,
    shorten,
    value_kind,
)
from .sources import PATH_COLUMNS


logger = logging.getLogger(__name__)

NO_FEATURES = "the data stream does not tell what its columns hold: leave out --streaming"


def select_image_columns(
    dataset: Dataset | IterableDataset,
    image_column_name: str | None = None,
    label_column_name: str | Sequence[str] | None = None,
    problem_type: str | None = None,
) -> Dataset | IterableDataset:
    """
    Return a data set with nothing but the columns `image` (undecoded) and `label`; for the arguments see
    `prepare_image_dataset`. Labels in several columns become lists of those with a 1, or a `dict` of numbers by the names
    of the columns.

    Raises:
        `ValueError`: a column is missing or ambiguous, or cannot hold labels of that problem type.
    """
    features = dataset.features
    if features is None:
        raise ValueError(NO_FEATURES)
    image_column = find_column(features, image_column_name, "image")
    columns = find_label_columns(features, label_column_name)
    is_flag = problem_type == MULTI_LABEL and value_kind(features[columns[0]]) in ("integers", "floats")
    if len(columns) > 1 or is_flag:
        dataset = _join_label_columns(dataset, image_column, columns, problem_type)
    else:
        choose_problem_type(features[columns[0]], problem_type, columns[0])
        dataset = dataset.select_columns([image_column, *columns])
        if columns[0] != "label":
            dataset = dataset.rename_column(columns[0], "label")
    return _leave_undecoded(dataset, image_column)


def _leave_undecoded(dataset, image_column: str):
    if image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    return dataset.cast_column("image", ImageFeature(decode=False))


def select_or_unlabel(data, image_column_name, columns: Sequence[str], problem_type: str | None, split: str):
    """Select the columns of a split. Where the split `test` has no labels, they are `None`."""
    labelled = all(data.features.get(column, Value("null")) != Value("null") for column in columns)
    if split == "test" and not labelled:
        image_column = find_column(data.features, image_column_name, "image")
        data = data.select_columns(image_column).add_column("label", [None] * len(data), feature=Value("null"))
        return _leave_undecoded(data, image_column)
    return select_image_columns(data, image_column_name, columns, problem_type)


def find_column(features: Features, name: str | None, default: str) -> str:
    """Return the column `name`, or the one that is called `default`, or the only one of that kind, or the only other one."""
    feature_type = {"image": ImageFeature, "label": ClassLabel}[default]
    kinds = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    found = [column for column, kind in kinds.items() if isinstance(kind, feature_type)]
    if default == "label" and not found:
        found = [column for column, kind in kinds.items() if not isinstance(kind, ImageFeature)]
    if name is None and default not in features and len(found) == 1:
        if found[0] not in PATH_COLUMNS:
            logger.info(f"Taking the {default}s from the column {found[0]!r}")
        return found[0]
    name = name or default
    if name not in features:
        raise ValueError(f"no column {name!r} in the data: give --{default}_column_name one of {', '.join(features)}")
    return name


def find_label_columns(features: Features, names: str | Sequence[str] | None) -> list[str]:
    if names is None or isinstance(names, str):
        return [find_column(features, names, "label")]
    if len(set(names)) < len(names):
        raise ValueError(f"--label_column_name names a column twice: {shorten(names)}")
    return [find_column(features, name, "label") for name in names]


def _join_label_columns(dataset, image_column: str, columns: Sequence[str], problem_type: str | None):
    """Replace several columns of labels by one column `label`."""
    kinds = {column: value_kind(dataset.features[column]) for column in columns}
    wrong = [column for column, kind in kinds.items() if kind not in ("integers", "floats")]
    if wrong or problem_type == SINGLE_LABEL:
        raise ValueError(
            f"several label columns have to hold 0 and 1, or numbers (--problem_type regression), but {shorten(columns)} "
            f"hold {', '.join(str(kind) for kind in kinds.values())}"
        )
    if problem_type is None:
        problem_type = REGRESSION if "floats" in kinds.values() else MULTI_LABEL
    if problem_type == REGRESSION:
        join: Callable[[list], Any] = partial(_name_numbers, columns)
        feature: Any = {column: Value("float64") for column in columns}
    else:
        join, feature = MultiHotReader(len(columns)), List(ClassLabel(names=list(columns)))
    dataset = dataset.select_columns([image_column, *columns])
    if isinstance(dataset, IterableDataset):
        features = Features({image_column: dataset.features[image_column], "label": feature})
        join_kwargs = {"columns": columns, "join": join}
        return dataset.map(_join_example, features=features, remove_columns=list(columns), fn_kwargs=join_kwargs)
    labels = [join(list(values)) for values in zip(*(dataset[column][:] for column in columns))]
    return dataset.remove_columns(list(columns)).add_column("label", labels, feature=feature)


def _name_numbers(columns: Sequence[str], values: list) -> dict:
    return dict(zip(columns, values))


def _join_example(example: dict, columns: Sequence[str], join: Callable[[list], Any]) -> dict:
    return {"label": join([example[column] for column in columns])}
