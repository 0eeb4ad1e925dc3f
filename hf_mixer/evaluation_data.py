# SPDX-License-Identifier: Apache-2.0
"""The data that a model is evaluated on: which split, and how its labels correspond to those of the model."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, Value, load_dataset
from datasets import Image as ImageFeature

from .data import SPLIT_FOLDERS, find_column, load_digits_dataset, load_image_dataset


EVALUATION_SPLITS = ("test", "validation")
EVALUATION_FOLDERS = {**SPLIT_FOLDERS, "test": ("test", "testing")}


def load_evaluation_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    eval_dir: str | None = None,
    split: str | None = None,
    **kwargs,
) -> tuple[Dataset, str]:
    """
    Load the labelled images to evaluate on.

    Args:
        dataset_name (`str`, *optional*):
            A data set on the Hub, or a local folder of parquet files or with a folder per split and in it one folder per
            class.
        dataset_config_name (`str`, *optional*):
            The configuration of a data set on the Hub.
        eval_dir (`str`, *optional*):
            A local folder of parquet files or of images in one folder per class.
        split (`str`, *optional*):
            The split of `dataset_name`. By default `test` if there is one, else `validation`.
        kwargs:
            More arguments for `datasets.load_dataset`, such as `cache_dir` and `token`.

    Without `dataset_name` and `eval_dir`, the handwritten digits of scikit-learn.

    Returns:
        `tuple[Dataset, str]`: the images and the name of their split, `test` for those of `eval_dir`.

    Raises:
        `ValueError`: there is no such split, a folder holds no images, or an image in a class folder cannot be read.
    """
    if eval_dir is not None:
        if dataset_name is not None or split is not None:
            raise ValueError("eval_dir is a data set of its own: give neither dataset_name nor split with it")
        return load_image_dataset(train_dir=eval_dir, **kwargs)["train"], "test"
    if dataset_name is not None and os.path.isdir(dataset_name) and not any(Path(dataset_name).rglob("*.parquet")):
        folders = {
            name: Path(dataset_name) / folder
            for name, choices in EVALUATION_FOLDERS.items()
            for folder in choices
            if (Path(dataset_name) / folder).is_dir()
        }
        if not folders:
            raise ValueError(
                f"the folder {dataset_name} holds neither parquet files nor folders named test, validation or train: "
                "if there is one folder per class in it, give it as eval_dir"
            )
        split = _choose_split(folders, split)
        return load_image_dataset(train_dir=str(folders[split]), **kwargs)["train"], split
    if dataset_name is None:
        dataset = load_digits_dataset()
    else:
        dataset = load_dataset(dataset_name, dataset_config_name, **kwargs)
    split = _choose_split(dataset, split)
    return dataset[split], split


def _choose_split(available: Iterable[str], split: str | None) -> str:
    choices = EVALUATION_SPLITS if split is None else (split,)
    for choice in choices:
        if choice in available:
            return choice
    raise ValueError(
        f"no split {' or '.join(map(repr, choices))} in the data, only {', '.join(available)}: name one of them as split"
    )


def prepare_evaluation_dataset(
    dataset: Dataset,
    model_labels: Sequence[str],
    image_column_name: str | None = None,
    label_column_name: str | None = None,
) -> Dataset:
    """
    Give a data set the form that evaluation needs.

    Args:
        dataset (`Dataset`):
            Labelled images.
        model_labels (`Sequence[str]`):
            The labels of the model, in order.
        image_column_name (`str`, *optional*):
            The column with the images. By default the only one that holds images.
        label_column_name (`str`, *optional*):
            The column with the labels: classes, integers or strings. By default `label`, or the only one of classes.

    Returns:
        `Dataset`: the columns `image` (undecoded) and `label`, the index of the model's label (see `match_labels`).

    Raises:
        `ValueError`: a column is missing or ambiguous, an image has no label, or the model does not have it.
    """
    features = dataset.features
    image_column_name = find_column(features, image_column_name, ImageFeature, "image")
    label_column_name = find_column(features, label_column_name, ClassLabel, "label")
    feature = features[label_column_name]
    if not isinstance(feature, ClassLabel) and not (
        isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "string", "large_string"))
    ):
        raise ValueError(f"the column {label_column_name!r} holds no classes, integers or strings")

    labels = dataset.select_columns(label_column_name)[:][label_column_name]
    missing = sum(label in (None, -1) for label in labels)
    if missing:
        raise ValueError(
            f"{missing} of {len(labels)} images have no label in column {label_column_name!r}; public benchmarks often "
            "keep those of the test split to themselves: choose another split"
        )
    index = match_labels(set(labels), model_labels, feature.names if isinstance(feature, ClassLabel) else None)
    dataset = dataset.select_columns(image_column_name)
    if image_column_name != "image":
        dataset = dataset.rename_column(image_column_name, "image")
    dataset = dataset.add_column("label", [index[label] for label in labels], feature=Value("int64"))
    return dataset.cast_column("image", ImageFeature(decode=False))


def match_labels(
    labels: Iterable[int | str], model_labels: Sequence[str], names: Sequence[str] | None = None
) -> dict[int | str, int]:
    """
    Find the labels of a data set among those of a model: by name, whatever the case, where both have names, else by
    index.

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

    result: dict[int | str, int]
    if by_index:
        result = {label: int(label) for label in labels if label in range(len(model_labels))}
    else:
        counts, positions = Counter(model_names), {name: index for index, name in enumerate(model_names)}
        result = {label: positions[_fold(name)] for label, name in name_of.items() if counts[_fold(name)] == 1}
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
