# SPDX-License-Identifier: Apache-2.0
"""Data sets of labelled images: where they come from, what is checked, and the form that the model needs."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDatasetDict, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from .images import check_images, find_images
from .labels import encode_labels


logger = logging.getLogger(__name__)

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# The splits to evaluate on, the first one that exists
EVALUATION_SPLITS = ("test", "validation")
LABEL_TYPES = ("int", "uint", "bool", "string", "large_string")
# Number of streamed images from which the next one is drawn
SHUFFLE_BUFFER_SIZE = 2048


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
    Load labelled images to train on. Without any arguments, these are the handwritten digits of scikit-learn.

    Args:
        dataset_name (`str`, *optional*), dataset_config_name (`str`, *optional*):
            A data set on the Hub and its configuration, or a local folder of parquet files or of images in one folder per
            class (with or without a folder per split above them).
        train_dir (`str`, *optional*), validation_dir (`str`, *optional*):
            Local folders of parquet files or of images in one folder per class.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read the images while training, instead of all before.
        kwargs:
            More arguments for `datasets.load_dataset`, such as `cache_dir` and `token`.

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

    if train_dir is not None:
        folders = {"train": Path(train_dir)}
        if validation_dir is not None:
            folders["validation"] = Path(validation_dir)
        dataset = _load_folders(folders, streaming, **kwargs)
    elif dataset_name is None:
        if streaming:
            raise ValueError("streaming needs dataset_name or train_dir: the digits are in memory")
        dataset = load_digits_dataset()
    elif _is_image_folder(dataset_name):
        folders = _find_split_folders(dataset_name)
        folders.pop("test", None)
        if "train" not in folders:
            folders = {"train": Path(dataset_name)}
        dataset = _load_folders(folders, streaming, **kwargs)
    else:
        dataset = load_dataset(dataset_name, dataset_config_name, streaming=streaming, **kwargs)
    if "train" not in dataset:
        raise ValueError(f"no training split, only {', '.join(dataset)}: name one of them `train`")
    return dataset


def load_evaluation_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    eval_dir: str | None = None,
    split: str | None = None,
    **kwargs,
) -> tuple[Dataset, str]:
    """
    Load labelled images to evaluate on. Without any arguments, these are the held-back digits of scikit-learn.

    Args:
        dataset_name (`str`, *optional*), dataset_config_name (`str`, *optional*), kwargs:
            As for `load_image_dataset`, but a local folder of images has a folder per split.
        eval_dir (`str`, *optional*):
            A local folder of parquet files or of images in one folder per class.
        split (`str`, *optional*):
            The split of `dataset_name`. By default `test` if there is one, else `validation`.

    Returns:
        `tuple[Dataset, str]`: the images and the name of their split, `test` for those of `eval_dir`.

    Raises:
        `ValueError`: there is no such split, a folder holds no images, or an image in a class folder cannot be read.
    """
    choices = EVALUATION_SPLITS if split is None else (split,)
    if eval_dir is not None:
        if dataset_name is not None or split is not None:
            raise ValueError("eval_dir is a data set of its own: give neither dataset_name nor split with it")
        dataset = _load_folders({"test": Path(eval_dir)}, **kwargs)
    elif dataset_name is None:
        dataset = load_digits_dataset()
    elif _is_image_folder(dataset_name):
        folders = _find_split_folders(dataset_name)
        if not folders:
            raise ValueError(
                f"the folder {dataset_name} holds neither parquet files nor folders named test, validation or train: "
                "if there is one folder per class in it, give it as eval_dir"
            )
        split = choose_split(folders, choices)
        dataset = _load_folders({split: folders[split]}, **kwargs)
    else:
        dataset = load_dataset(dataset_name, dataset_config_name, **kwargs)
    split = choose_split(dataset, choices)
    return dataset[split], split


def choose_split(available: Iterable[str], choices: Sequence[str]) -> str:
    """Return the first of `choices` that is available."""
    for choice in choices:
        if choice in available:
            return choice
    raise ValueError(
        f"no split {' or '.join(map(repr, choices))} to evaluate on: choose one of those in the data, "
        f"{', '.join(available) or 'which has none besides train'}"
    )


def _is_image_folder(name: str) -> bool:
    return os.path.isdir(name) and not _holds_parquet(name)


def _holds_parquet(folder: str | os.PathLike) -> bool:
    return any(Path(folder).rglob("*.parquet"))


def _find_split_folders(folder: str | os.PathLike) -> dict[str, Path]:
    """Return the folders below `folder` that are named for a split."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        for name in names:
            if Path(folder, name).is_dir():
                found[split] = Path(folder, name)
    return found


def _load_folders(folders: dict[str, Path], streaming: bool = False, **kwargs) -> DatasetDict | IterableDatasetDict:
    """Load one folder per split, all of parquet files or all of images in one folder per class."""
    for folder in folders.values():
        if not folder.is_dir():
            raise ValueError(f"the folder {folder} does not exist")
    if all(_holds_parquet(folder) for folder in folders.values()):
        data_files = {split: str(folder / "**" / "*.parquet") for split, folder in folders.items()}
        return load_dataset("parquet", data_files=data_files, streaming=streaming, **kwargs)
    images = [path for folder in folders.values() for path in _find_class_images(folder)]
    if not streaming:
        check_images(images)
    data_files = {split: str(folder / "**") for split, folder in folders.items()}
    return load_dataset("imagefolder", data_files=data_files, drop_labels=False, streaming=streaming, **kwargs)


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
    dataset: DatasetDict | IterableDatasetDict,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    train_val_split: float = 0.15,
    seed: int = 42,
    eval_split: str | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> tuple[DatasetDict | IterableDatasetDict, list[str]]:
    """
    Give a data set the form that training needs.

    Args:
        dataset (`DatasetDict` or `IterableDatasetDict`):
            Labelled images, with a split `train`. One that streams also needs a split to evaluate on, and labels that
            are classes with names.
        image_column_name (`str`, *optional*):
            The column with the images. By default `image`, or the only one that holds images.
        label_column_name (`str`, *optional*):
            The column with the labels: classes, integers or strings. By default `label`, or the only one of classes.
        train_val_split (`float`, *optional*, defaults to 0.15):
            Share of the training data to split off for validation, where there is no split `validation`.
        seed (`int`, *optional*, defaults to 42):
            Seed of that split, of the order of a stream, and of the choice of samples.
        eval_split (`str`, *optional*):
            The split to take for `validation`, where it is called otherwise, such as `test`.
        max_train_samples (`int`, *optional*), max_eval_samples (`int`, *optional*):
            Keep this many images at most: drawn at random, or the first ones of a stream.

    Returns:
        `tuple`: the splits `train` (shuffled, if it streams) and `validation`, and any other, with the columns `image`
        (undecoded) and `label`; and the names of the labels in order.

    Raises:
        `ValueError`: a split or column is missing, a label is missing or unknown, there are fewer than two classes, or
        the labels of a stream have no names.
    """
    limits = {"train": max_train_samples, "validation": max_eval_samples}
    is_stream = isinstance(dataset, IterableDatasetDict)
    if is_stream or eval_split is not None:
        others = [split for split in dataset if split != "train"]
        chosen = choose_split(others, [eval_split or "validation"])
        dataset = type(dataset)({"train": dataset["train"], "validation": dataset[chosen]})
    dataset = select_image_columns(dataset, image_column_name, label_column_name)
    if is_stream:
        return _prepare_stream(dataset, limits, seed)

    dataset, names = _number_labels(dataset)
    if "validation" not in dataset:
        dataset["train"], dataset["validation"] = _split_off(dataset["train"], train_val_split, seed)
    for split, limit in limits.items():
        dataset[split] = draw_images(dataset[split], limit, seed)
    return dataset, names


def select_image_columns(
    dataset: Dataset | DatasetDict | IterableDatasetDict,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
) -> Dataset | DatasetDict | IterableDatasetDict:
    """
    Return a data set, or all its splits, with nothing but the columns `image` (undecoded) and `label`; for the arguments
    see `prepare_image_dataset`.

    Raises:
        `ValueError`: a column is missing or ambiguous, or the labels are neither classes, integers nor strings.
    """
    features = (dataset["train"] if isinstance(dataset, dict) else dataset).features
    if features is None:
        raise ValueError("the data stream does not tell what its columns hold: leave out streaming")
    image_column = _find_column(features, image_column_name, ImageFeature, "image")
    label_column = _find_column(features, label_column_name, ClassLabel, "label")
    feature = features[label_column]
    is_value = isinstance(feature, Value) and feature.dtype.startswith(LABEL_TYPES)
    if not is_value and not isinstance(feature, ClassLabel):
        raise ValueError(f"the column {label_column!r} holds no classes, integers or strings")

    dataset = dataset.select_columns([image_column, label_column])
    for old, new in ((image_column, "image"), (label_column, "label")):
        if old != new:
            dataset = dataset.rename_column(old, new)
    return dataset.cast_column("image", ImageFeature(decode=False))


def _find_column(features: Features, name: str | None, feature_type: type, default: str) -> str:
    """Return the column `name`, or the one that is called `default`, or the only one of `feature_type`."""
    found = [column for column, feature in features.items() if isinstance(feature, feature_type)]
    if name is None and default not in features and len(found) == 1:
        logger.info(f"Taking the {default}s from the column {found[0]!r}")
        return found[0]
    name = name or default
    if name not in features:
        raise ValueError(f"no column {name!r} in the data: give {default}_column_name one of {', '.join(features)}")
    return name


def check_labels(dataset: Dataset, split: str) -> None:
    """Refuse a split in which some of the labels are missing: data sets write them as `None` or -1."""
    if not {None, -1}.isdisjoint(dataset.unique("label")):
        raise ValueError(
            f"some images of the split {split!r} have no label; public benchmarks often keep those of the test split to "
            "themselves: choose another split"
        )


def draw_images(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """Return `count` images of a data set, drawn at random, or all of them where it has no more."""
    if count is None or count >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(count))


def _number_labels(dataset: DatasetDict) -> tuple[DatasetDict, list[str]]:
    """Turn labels that are integers or strings into classes, and return the names of all classes as well."""
    for split, data in dataset.items():
        if split != "test":
            check_labels(data, split)
    values = sorted(dataset["train"].unique("label"))
    if len(values) < 2:
        raise ValueError(f"expected at least two classes, got {len(values)} in the split 'train'")
    feature = dataset["train"].features["label"]
    if isinstance(feature, ClassLabel):
        return dataset, feature.names

    feature = ClassLabel(names=[str(value) for value in values])
    index = {value: position for position, value in enumerate(values)} | {None: None, -1: None}
    encoded = DatasetDict()
    for split, data in dataset.items():
        unknown = set(data.unique("label")) - index.keys()
        if unknown:
            raise ValueError(
                f"labels that the training data does not have: {sorted(map(str, unknown))} in the split {split!r}"
            )
        encoded[split] = encode_labels(data, index, feature)
    return encoded, feature.names


def _split_off(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split off `share` of the images. The classes keep their proportions, if every class fits on both sides."""
    if not 0 < share < 1:
        raise ValueError(f"there is no validation data, and train_val_split={share} is not in (0, 1)")
    counts = np.unique(dataset["label"], return_counts=True)[1]
    smaller_part = min(share, 1 - share) * counts.sum()
    stratify = "label" if counts.min() > 1 and smaller_part >= len(counts) else None
    parts = dataset.train_test_split(share, seed=seed, stratify_by_column=stratify)
    return parts["train"], parts["test"]


def _prepare_stream(
    dataset: IterableDatasetDict, limits: dict[str, int | None], seed: int
) -> tuple[IterableDatasetDict, list[str]]:
    """Limit the splits of a stream, and shuffle the training data."""
    feature = dataset["train"].features["label"]
    if not isinstance(feature, ClassLabel):
        raise ValueError("the labels of a streamed data set have to be classes with names: leave out streaming")
    for split, limit in limits.items():
        if limit is not None:
            dataset[split] = dataset[split].take(limit)
    # After the limit, so that every pass has the same images
    dataset["train"] = dataset["train"].shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER_SIZE)
    return dataset, feature.names
