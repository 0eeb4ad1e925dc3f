# SPDX-License-Identifier: Apache-2.0
"""Labelled images as datasets: where they come from, what is checked, and how they reach the model."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDatasetDict, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from .images import check_images, find_images
from .labels import match_labels


logger = logging.getLogger(__name__)


SPLIT_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev")}


def load_digits_dataset() -> DatasetDict:
    """
    The 1,797 scanned handwritten digits that ship inside scikit-learn (8 x 8 pixels, from the UCI set "Optical
    Recognition of Handwritten Digits"): 90 % as `train`, 10 % as `test`, columns `image` and `label`.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8)) for scan in digits.images]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    dataset = Dataset.from_dict({"image": images, "label": digits.target.tolist()}, features=features)
    return dataset.train_test_split(test_size=0.1, seed=0, stratify_by_column="label")


def load_image_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    streaming: bool = False,
    **kwargs,
) -> DatasetDict | IterableDatasetDict:
    """
    Load labelled images.

    Args:
        dataset_name (`str`, *optional*):
            A data set on the Hub, or a local folder of parquet files or of images in one folder per class (with or
            without a folder per split above them).
        dataset_config_name (`str`, *optional*):
            The configuration of a data set on the Hub.
        train_dir (`str`, *optional*), validation_dir (`str`, *optional*):
            Local folders of parquet files or of images in one folder per class.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read the images while training, instead of all before.
        kwargs:
            More arguments for `datasets.load_dataset`, such as `cache_dir` and `token`.

    Without any of them, the handwritten digits of scikit-learn.

    Returns:
        `DatasetDict`, or `IterableDatasetDict` with `streaming`: at least `train`.

    Raises:
        `ValueError`: a folder holds no images, a class folder is empty, an image cannot be read, or there is no
        training split.
    """
    if dataset_name is not None and (train_dir is not None or validation_dir is not None):
        raise ValueError("give either dataset_name or train_dir and validation_dir, not both")
    if validation_dir is not None and train_dir is None:
        raise ValueError("validation_dir needs train_dir")

    if dataset_name is None and train_dir is None:
        if streaming:
            raise ValueError("streaming needs dataset_name or train_dir: the digits are in memory")
        return load_digits_dataset()
    kwargs["streaming"] = streaming
    if dataset_name is not None and not os.path.isdir(dataset_name):
        dataset = load_dataset(dataset_name, dataset_config_name, **kwargs)
    elif dataset_name is not None and any(Path(dataset_name).rglob("*.parquet")):
        dataset = load_dataset(dataset_name, **kwargs)
    else:
        if dataset_name is not None:
            folders = _find_split_folders(Path(dataset_name))
        else:
            given = {"train": train_dir, "validation": validation_dir}
            folders = {split: Path(folder) for split, folder in given.items() if folder is not None}
        for folder in folders.values():
            if not folder.is_dir():
                raise ValueError(f"the folder {folder} does not exist")
        if any(folders["train"].rglob("*.parquet")):
            data_files = {split: str(folder / "**" / "*.parquet") for split, folder in folders.items()}
            dataset = load_dataset("parquet", data_files=data_files, **kwargs)
        else:
            images = [path for folder in folders.values() for path in _find_class_images(folder)]
            if not streaming:
                check_images(images)
            data_files = {split: str(folder / "**") for split, folder in folders.items()}
            dataset = load_dataset("imagefolder", data_files=data_files, drop_labels=False, **kwargs)
    if "train" not in dataset:
        raise ValueError(f"no training split, only {', '.join(dataset)}: name one of them `train`")
    return dataset


def _find_split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits below `folder`, or `folder` itself as the training split."""
    found = {
        split: folder / name for split, names in SPLIT_FOLDERS.items() for name in names if (folder / name).is_dir()
    }
    return found if "train" in found else {"train": folder}


def _find_class_images(folder: Path) -> list[Path]:
    """Return the images of a folder with one folder per class, none of which may be empty."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise ValueError(f"the folder {folder} has no folders in it: expected one folder of images per class")
    images = []
    for class_folder in classes:
        found = [path for path in find_images(class_folder) if path.parent == class_folder]
        if not found:
            raise ValueError(f"the class folder {class_folder} holds no images")
        images += found
    return images


def prepare_image_dataset(
    dataset: DatasetDict,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    train_val_split: float = 0.15,
    seed: int = 42,
    eval_split: str | None = None,
) -> tuple[DatasetDict, list[str]]:
    """
    Give a data set the form that training needs.

    Args:
        dataset (`DatasetDict`):
            Labelled images, with a split `train`.
        image_column_name (`str`, *optional*):
            The column with the images. By default the only one that holds images.
        label_column_name (`str`, *optional*):
            The column with the labels: classes, integers or strings. By default `label`, or the only one of classes.
        train_val_split (`float`, *optional*, defaults to 0.15):
            Share of the training data to split off for validation, where there is no split `validation`.
        seed (`int`, *optional*, defaults to 42):
            Seed of that split.
        eval_split (`str`, *optional*):
            The split to take for `validation`, where it is called otherwise, such as `test`.

    Returns:
        `tuple[DatasetDict, list[str]]`: the splits `train` and `validation`, and any other, with the columns `image`
        (undecoded) and `label`; and the names of the labels in order.

    Raises:
        `ValueError`: a column is missing or ambiguous, a label is missing or unknown, or there are fewer than two
        classes.
    """
    if eval_split is not None:
        if eval_split not in dataset or eval_split == "train":
            others = ", ".join(split for split in dataset if split != "train") or "none besides train"
            raise ValueError(f"no split {eval_split!r} to evaluate on: the data has {others}")
        dataset = DatasetDict({"train": dataset["train"], "validation": dataset[eval_split]})
    features = dataset["train"].features
    image_column_name = find_column(features, image_column_name, ImageFeature, "image")
    label_column_name = find_column(features, label_column_name, ClassLabel, "label")

    dataset = dataset.select_columns([image_column_name, label_column_name])
    for old, new in ((image_column_name, "image"), (label_column_name, "label")):
        if old != new:
            dataset = dataset.rename_column(old, new)

    if not isinstance(dataset["train"].features["label"], ClassLabel | Value):
        raise ValueError(f"the column {label_column_name!r} holds no classes, integers or strings")
    for split, data in dataset.items():
        # The test sets of public benchmarks come without labels, marked by None or -1
        if {None, -1} & set(data.unique("label")) and split != "test":
            raise ValueError(f"some images of the split {split!r} have no label in column {label_column_name!r}")
    if isinstance(dataset["train"].features["label"], ClassLabel):
        names = dataset["train"].features["label"].names
    else:
        values = sorted(dataset["train"].unique("label"))
        names = [str(value) for value in values]
        dataset = _encode_labels(dataset, values)
    num_classes = len(dataset["train"].unique("label"))
    if num_classes < 2:
        raise ValueError(f"expected at least two classes, got {num_classes} in column {label_column_name!r}")

    if "validation" not in dataset:
        if not 0 < train_val_split < 1:
            raise ValueError(f"there is no validation data, and train_val_split={train_val_split} is not in (0, 1)")
        # The classes keep their proportions, unless there are too few images to have every class on both sides.
        counts = np.unique(dataset["train"]["label"], return_counts=True)[1]
        smaller_part = min(train_val_split, 1 - train_val_split) * counts.sum()
        stratify = "label" if counts.min() > 1 and smaller_part >= len(counts) else None
        parts = dataset["train"].train_test_split(train_val_split, seed=seed, stratify_by_column=stratify)
        dataset["train"], dataset["validation"] = parts["train"], parts["test"]

    return dataset.cast_column("image", ImageFeature(decode=False)), names


def find_column(features: Features, name: str | None, feature_type: type, default: str) -> str:
    """Return the column `name`, or the one that is called `default`, or the only one of `feature_type`."""
    found = [column for column, feature in features.items() if isinstance(feature, feature_type)]
    if name is None and default not in features and len(found) == 1:
        logger.info(f"Taking the {default}s from the column {found[0]!r}")
        return found[0]
    name = name or default
    if name not in features:
        raise ValueError(f"no column {name!r} in the data: give {default}_column_name one of {', '.join(features)}")
    return name


def _encode_labels(dataset: DatasetDict, values: list) -> DatasetDict:
    """Turn integer or string labels into classes, in the order of `values`."""
    index = {value: position for position, value in enumerate(values)} | {None: None}
    if -1 not in index:
        index[-1] = None

    def encode(batch):
        unknown = set(batch["label"]) - index.keys()
        if unknown:
            raise ValueError(f"labels that the training data does not have: {sorted(map(str, unknown))}")
        return {"label": [index[value] for value in batch["label"]]}

    features = dataset["train"].features.copy()
    features["label"] = ClassLabel(names=[str(value) for value in values])
    return dataset.map(encode, batched=True, features=features)


def prepare_streamed_dataset(
    dataset: IterableDatasetDict,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    seed: int = 42,
    eval_split: str | None = None,
    buffer_size: int = 2048,
    max_train_samples: int | None = None,
) -> tuple[IterableDatasetDict, list[str]]:
    """
    Give a streamed data set the form that training needs.

    Args:
        dataset (`IterableDatasetDict`):
            Labelled images, with a split `train`. The labels have to be classes with names.
        image_column_name (`str`, *optional*):
            The column with the images. By default the only one that holds images.
        label_column_name (`str`, *optional*):
            The column with the labels. By default `label`, or the only one of classes.
        seed (`int`, *optional*, defaults to 42):
            Seed of the order of the training data.
        eval_split (`str`, *optional*):
            The split to take for `validation`, where it is called otherwise.
        buffer_size (`int`, *optional*, defaults to 2048):
            Number of images from which the next one is drawn, after the shards are shuffled.
        max_train_samples (`int`, *optional*):
            Keep the first ones of the training data only.

    Returns:
        `tuple[IterableDatasetDict, list[str]]`: the splits `train`, shuffled, and `validation`, with the columns `image`
        (undecoded) and `label`; and the names of the labels in order.

    Raises:
        `ValueError`: a column or a split is missing, or the labels have no names.
    """
    eval_split = eval_split or "validation"
    if eval_split not in dataset or eval_split == "train":
        others = ", ".join(split for split in dataset if split != "train") or "none besides train"
        raise ValueError(f"no split {eval_split!r} to evaluate on: give eval_split one of the others ({others})")
    dataset = IterableDatasetDict({"train": dataset["train"], "validation": dataset[eval_split]})
    features = dataset["train"]._resolve_features().features
    columns = {
        find_column(features, image_column_name, ImageFeature, "image"): "image",
        find_column(features, label_column_name, ClassLabel, "label"): "label",
    }
    (label_column,) = (column for column, name in columns.items() if name == "label")
    if not isinstance(features[label_column], ClassLabel):
        raise ValueError(f"the column {label_column!r} of a streamed data set has to hold classes with names")
    dataset = dataset.select_columns(list(columns))
    renamed = {old: new for old, new in columns.items() if old != new}
    if renamed:
        dataset = IterableDatasetDict({split: data.rename_columns(renamed) for split, data in dataset.items()})
    dataset = IterableDatasetDict(
        {split: data.cast_column("image", ImageFeature(decode=False)) for split, data in dataset.items()}
    )
    if max_train_samples is not None:
        # Before the shuffle, so that they are the same in every pass
        dataset["train"] = dataset["train"].take(max_train_samples)
    dataset["train"] = dataset["train"].shuffle(seed=seed, buffer_size=buffer_size)
    return dataset, features[label_column].names


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
