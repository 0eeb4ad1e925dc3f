# SPDX-License-Identifier: Apache-2.0
"""Data sets of labelled images: where they come from, what is checked, and the form that the model needs."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    load_dataset,
)
from datasets import Image as ImageFeature
from PIL import Image

from .columns import NO_FEATURES, find_column, find_label_columns, select_image_columns, select_or_unlabel
from .labels import (
    SINGLE_LABEL,
    check_labels,
    choose_problem_type,
    find_problem_type,
    prepare_labels,
)
from .sources import (
    METADATA_FILES,
    ImageTable,
    check_files,
    find_split_folders,
    holds_parquet,
    leave_out_unreadable,
    read_folder,
    read_list,
    to_stream,
)


# The splits to evaluate on, the first one that exists
EVALUATION_SPLITS = ("test", "validation")
# Number of streamed images from which the next one is drawn
SHUFFLE_BUFFER_SIZE = 2048


class LoadedImages(DatasetDict):
    """The splits of a data set. `num_skipped_images` could not be read and were left out."""

    num_skipped_images: int = 0


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
    train_file: str | None = None,
    validation_file: str | None = None,
    streaming: bool = False,
    skip_unreadable_images: bool = False,
    image_column_name: str | None = None,
    check_test: bool = False,
    **kwargs,
) -> LoadedImages | IterableDatasetDict:
    """
    Load labelled images to train on. Without any arguments, these are the handwritten digits of scikit-learn.

    Args:
        dataset_name (`str`, *optional*), dataset_config_name (`str`, *optional*):
            A data set on the Hub and its configuration, or a local folder like `train_dir`, with or without a folder per
            split above it.
        train_dir (`str`, *optional*), validation_dir (`str`, *optional*):
            Local folders: of parquet files; of images and a file `metadata.csv`, `metadata.jsonl` or `metadata.parquet`
            (see the `imagefolder` of `datasets`); or else of one folder per class, with its images at any depth.
        train_file (`str`, *optional*), validation_file (`str`, *optional*):
            Lists of images in CSV, the first line of which names the columns, such as `path,label`. Paths are absolute
            or relative to the list. A cell with several labels is a list in JSON.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read the images while training, instead of all before.
        skip_unreadable_images (`bool`, *optional*, defaults to `False`):
            Whether to leave out images that cannot be read, at most 10 % of a split. Each is named in a warning.
        image_column_name (`str`, *optional*):
            The column with the images, or with their paths in a list.
        check_test (`bool`, *optional*, defaults to `False`):
            Whether images of the split `test` have to be readable, too: where it is used.
        kwargs:
            More arguments for `datasets.load_dataset`, such as `cache_dir` and `token`.

    Returns:
        [`LoadedImages`], or `IterableDatasetDict` with `streaming`: at least `train`.

    Raises:
        `ValueError`: a folder holds no images, a class folder is empty, an image cannot be read, a list or metadata names
        a file that does not exist, or there is no training split.
    """
    local = {
        "train": _choose_source("train_dir", train_dir, "train_file", train_file),
        "validation": _choose_source("validation_dir", validation_dir, "validation_file", validation_file),
    }
    sources = {split: source for split, source in local.items() if source is not None}
    if dataset_name is not None and sources:
        raise ValueError("give either --dataset_name or --train_dir and the like, not both")
    if "validation" in sources and "train" not in sources:
        raise ValueError("--validation_dir and --validation_file need --train_dir or --train_file")
    if streaming and skip_unreadable_images:
        raise ValueError(
            "--skip_unreadable_images cannot be used with --streaming, which does not read the images before the training"
        )
    if streaming and dataset_name is None and not sources:
        raise ValueError("--streaming needs --dataset_name, --train_dir or --train_file: the digits are in memory")

    if dataset_name is None and not sources:
        return LoadedImages(load_digits_dataset())
    if dataset_name is not None and is_image_folder(dataset_name):
        sources = dict(_find_split_sources(dataset_name))
    if sources:
        loaded = _load_sources(sources, image_column_name, streaming, **kwargs)
    else:
        loaded = load_dataset(dataset_name, dataset_config_name, streaming=streaming, **kwargs)
    if "train" not in loaded:
        raise ValueError(f"no training split, only {', '.join(loaded)}: name one of them `train`")

    if streaming:
        return IterableDatasetDict({split: _stream(data, split, mix=True) for split, data in loaded.items()})
    dataset = LoadedImages()
    for split, data in loaded.items():
        is_used = split != "test" or check_test
        dataset[split], num_skipped = _check_images(data, split, image_column_name, skip_unreadable_images, is_used)
        dataset.num_skipped_images += num_skipped
    return dataset


def load_evaluation_dataset(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    eval_dir: str | None = None,
    split: str | None = None,
    eval_file: str | None = None,
    streaming: bool = False,
    image_column_name: str | None = None,
    **kwargs,
) -> tuple[Dataset | IterableDataset, str]:
    """
    Load labelled images to evaluate on. Without any arguments, these are the held-back digits of scikit-learn.

    Args:
        dataset_name (`str`, *optional*), dataset_config_name (`str`, *optional*), streaming (`bool`, *optional*),
        image_column_name (`str`, *optional*), kwargs:
            As for `load_image_dataset`, but a local folder of images has a folder per split.
        eval_dir (`str`, *optional*), eval_file (`str`, *optional*):
            A local folder or a list, see `train_dir` and `train_file` there.
        split (`str`, *optional*):
            The split of `dataset_name`. By default `test` if there is one, else `validation`.

    Returns:
        `tuple`: the images (`Dataset`, or `IterableDataset` with `streaming`, in the order of the files), and the name of
        their split, `test` for those of `eval_dir` and `eval_file`.

    Raises:
        `ValueError`: there is no such split, or as for `load_image_dataset`.
    """
    choices = EVALUATION_SPLITS if split is None else (split,)
    source = _choose_source("eval_dir", eval_dir, "eval_file", eval_file)
    loaded: dict[str, Any]
    if source is not None:
        if dataset_name is not None or split is not None:
            raise ValueError(
                "--eval_dir and --eval_file are data sets of their own: give neither --dataset_name nor --split with them"
            )
        loaded = _load_sources({"test": source}, image_column_name, streaming, **kwargs)
    elif dataset_name is None:
        loaded = load_digits_dataset()
    elif is_image_folder(dataset_name):
        folders = find_split_folders(dataset_name)
        if not folders:
            raise ValueError(
                f"the folder {dataset_name} holds neither parquet files nor folders named test, validation or train: "
                "if there is one folder per class in it, or metadata, give it as --eval_dir"
            )
        split = choose_split(folders, choices)
        loaded = _load_sources({split: folders[split]}, image_column_name, streaming, **kwargs)
    else:
        loaded = load_dataset(dataset_name, dataset_config_name, streaming=streaming, **kwargs)
    split = choose_split(loaded, choices)
    if streaming:
        return _stream(loaded[split], split, mix=False), split
    return _check_images(loaded[split], split, image_column_name, False, True)[0], split


def choose_split(available: Iterable[str], choices: Sequence[str]) -> str:
    """Return the first of `choices` that is available."""
    for choice in choices:
        if choice in available:
            return choice
    raise ValueError(
        f"no split {' or '.join(map(repr, choices))} to evaluate on: choose one of those in the data, "
        f"{', '.join(available) or 'which has none besides train'}"
    )


def is_image_folder(name: str) -> bool:
    """
    Whether a data set is a local folder of images, and not on the Hub or of parquet files.

    Raises:
        `ValueError`: it is a file, or a path that does not exist.
    """
    if os.path.isfile(name):
        raise ValueError(f"{name} is a file: give a list in CSV as --train_file, or as --eval_file to evaluate")
    if name.startswith((".", os.sep, "~")) and not os.path.isdir(name):
        raise ValueError(f"the folder {name} does not exist")
    return os.path.isdir(name) and not holds_parquet(name)


def _choose_source(dir_name: str, folder: str | None, file_name: str, file: str | None) -> Path | str | None:
    """Return a folder as a `Path`, or a list as a `str`."""
    if folder is not None and file is not None:
        raise ValueError(f"give either --{dir_name} or --{file_name}, not both")
    return file if folder is None else Path(folder)


def _find_split_sources(folder: str) -> dict[str, Path]:
    """Return the folders of a local data set by split; without folders for splits, all of it is for training."""
    folders = find_split_folders(folder)
    if not folders:
        return {"train": Path(folder)}
    if "train" not in folders:
        raise ValueError(
            f"the folder {folder} has a folder {next(iter(folders.values())).name}, but none named train. If these are "
            "classes, give it as --train_dir"
        )
    metadata = [name for name in METADATA_FILES if Path(folder, name).exists()]
    if metadata:
        raise ValueError(
            f"the folder {folder} has both {metadata[0]} and a folder {folders['train'].name}: each split needs metadata "
            "of its own, in its folder. If it is one split, give it as --train_dir"
        )
    return folders


def _load_sources(sources: dict, image_column_name: str | None, streaming: bool, **kwargs) -> dict[str, Any]:
    """Return by split what is read from a folder (`Path`) or list (`str`): a data set, or a table of files."""
    loaded = {}
    for split, source in sources.items():
        if isinstance(source, str):
            loaded[split] = read_list(source, image_column_name)
        elif source.is_dir() and holds_parquet(source):
            data_files = {split: str(source / "**" / "*.parquet")}
            loaded[split] = load_dataset("parquet", data_files=data_files, streaming=streaming, **kwargs)[split]
        else:
            loaded[split] = read_folder(source, may_lack_labels=split == "test" and len(sources) > 1)
    return loaded


def _stream(data: ImageTable | IterableDataset, split: str, mix: bool) -> IterableDataset:
    if not isinstance(data, ImageTable):
        return data
    check_files(data)
    return to_stream(data, split, mix)


def _check_images(
    data: ImageTable | Dataset, split: str, image_column_name: str | None, skip: bool, is_used: bool
) -> tuple[Dataset, int]:
    """Return a split without unreadable images, and their number. Without `skip`, only files are checked."""
    if isinstance(data, Dataset):
        if not skip or not is_used:
            return data, 0
        column = find_column(data.features, image_column_name, "image")
        data = ImageTable(data.cast_column(column, ImageFeature(decode=False)), column)
    dataset, num_skipped = leave_out_unreadable(data, split, skip) if is_used else (data.dataset, 0)
    return dataset.cast_column(data.image_column, ImageFeature()), num_skipped


def prepare_image_dataset(
    dataset: DatasetDict | IterableDatasetDict,
    image_column_name: str | None = None,
    label_column_name: str | Sequence[str] | None = None,
    train_val_split: float = 0.15,
    seed: int = 42,
    eval_split: str | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    problem_type: str | None = None,
) -> tuple[DatasetDict | IterableDatasetDict, list[str]]:
    """
    Give a data set the form that training needs.

    Args:
        dataset (`DatasetDict` or `IterableDatasetDict`):
            Labelled images, with a split `train`. One that streams also needs a split to evaluate on, and labels that
            have names or are numbers.
        image_column_name (`str`, *optional*):
            The column with the images. By default `image`, or the only one that holds images.
        label_column_name (`str` or `Sequence[str]`, *optional*):
            The column with the labels, by default `label`, or the only one of classes: classes, integers or strings (one
            label per image), lists of them (several labels), or floating-point numbers (regression). Or several columns,
            of 0 and 1 (several labels) or of numbers (regression with several outputs).
        train_val_split (`float`, *optional*, defaults to 0.15):
            Share of the training data to split off for validation, where there is no split `validation`.
        seed (`int`, *optional*, defaults to 42):
            Seed of that split, of the order of a stream, and of the choice of samples.
        eval_split (`str`, *optional*):
            The split to take for `validation`, where it is called otherwise, such as `test`.
        max_train_samples (`int`, *optional*), max_eval_samples (`int`, *optional*):
            Keep this many images at most: drawn at random, or the first ones of a stream.
        problem_type (`str`, *optional*):
            `single_label_classification`, `multi_label_classification` or `regression`, where the labels leave a choice:
            integers are classes, and strings, too, unless regression is asked for.

    Returns:
        `tuple`: the splits `train` (shuffled, if it streams), `validation` and, where there is one that is not used for
        validation, `test`, with the columns `image` (undecoded) and `label`; and the names of the labels in order, for
        regression those of the columns. Labels are classes (`ClassLabel`), one boolean for each label (several labels)
        or float32 numbers, as `find_problem_type` tells. In `test`, labels that are missing or unknown are `None`.

    Raises:
        `ValueError`: a split or column is missing, a label is missing or unknown, there are fewer than two classes, or
        the labels of a stream have no names.
    """
    limits = {"train": max_train_samples, "validation": max_eval_samples}
    is_stream = isinstance(dataset, IterableDatasetDict)
    if is_stream or eval_split is not None:
        others = [split for split in dataset if split != "train"]
        chosen = choose_split(others, [eval_split or "validation"])
        splits = {"train": dataset["train"], "validation": dataset[chosen]}
    else:
        splits = {split: dataset[split] for split in ("train", "validation", "test") if split in dataset}
    if splits["train"].features is None:
        raise ValueError(NO_FEATURES)

    columns = find_label_columns(splits["train"].features, label_column_name)
    train = select_image_columns(splits["train"], image_column_name, columns, problem_type)
    problem_type = choose_problem_type(train.features["label"], problem_type)
    for split, data in splits.items():
        splits[split] = select_or_unlabel(data, image_column_name, columns, problem_type, split)
    splits, names = prepare_labels(splits, problem_type, columns)
    if is_stream:
        return _prepare_stream(splits, limits, seed), names

    for split, data in splits.items():
        if split != "test":
            check_labels(data, split)
    if "validation" not in splits:
        splits["train"], splits["validation"] = _split_off(splits["train"], train_val_split, seed)
    for split, limit in limits.items():
        splits[split] = draw_images(splits[split], limit, seed)
    return DatasetDict(splits), names


def draw_images(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """Return `count` images of a data set, drawn at random, or all of them where it has no more."""
    if count is None or count >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(count))


def _split_off(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """
    Split off `share` of the images. Classes keep their proportions, if every class fits on both sides; the only image of
    a class stays.
    """
    if not 0 < share < 1:
        raise ValueError(f"there is no validation data, and --train_val_split {share} is not between 0 and 1")
    from sklearn.model_selection import train_test_split

    rows, alone, stratify = np.arange(len(dataset)), np.empty(0, int), None
    if find_problem_type(dataset.features["label"]) == SINGLE_LABEL:
        labels = np.array(dataset["label"][:])
        is_alone = np.bincount(labels)[labels] == 1
        if not is_alone.all():
            rows, alone = rows[~is_alone], rows[is_alone]
        smaller_part = min(share, 1 - share) * len(rows)
        if smaller_part >= len(np.unique(labels[rows])):
            stratify = labels[rows]
    train, validation = train_test_split(rows, test_size=share, random_state=seed, stratify=stratify)
    return dataset.select(np.concatenate([train, alone])), dataset.select(validation)


def _prepare_stream(splits: dict, limits: dict[str, int | None], seed: int) -> IterableDatasetDict:
    """Limit the splits of a stream, and shuffle the training data."""
    for split, limit in limits.items():
        if limit is not None:
            splits[split] = splits[split].take(limit)
    # After the limit, so that every pass has the same images
    splits["train"] = splits["train"].shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER_SIZE)
    return IterableDatasetDict(splits)
