# SPDX-License-Identifier: Apache-2.0
"""Labelled images in local files: folders of classes, folders with a table of metadata, and CSV lists."""

import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value
from datasets import Image as ImageFeature
from datasets.splits import SplitDict, SplitInfo

from .images import ImageDataError, find_images, find_problems, is_image_name, open_source, scan_images, walk_files
from .labels import shorten


logger = logging.getLogger(__name__)

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Columns of a CSV list that hold the files
PATH_COLUMNS = ("path", "file_name", "image")
CSV_QUOTES = 'A cell with commas or quotes needs quotes around it, and two for each in it: "[""cat"",""dog""]"'
# With more images that cannot be read, something is wrong with the data
MAX_UNREADABLE_SHARE = 0.1
# A stream of local files has at most so many parts, which processes and workers share out
MAX_SHARDS = 1024


@dataclass
class ImageTable:
    """
    The images of one split: a data set with the column `image_column` of files, and for lists where each row is written.
    """

    dataset: Dataset
    image_column: str = "image"
    places: Sequence[str] | None = None

    def open(self, row: int) -> None:
        """Read and decode an image. An error names the image and its place."""
        try:
            open_source(self.dataset[row][self.image_column])
        except ImageDataError as error:
            raise ImageDataError(f"{error} ({self.places[row]})" if self.places else str(error)) from error

    def __len__(self) -> int:
        return len(self.dataset)


def find_split_folders(folder: str | os.PathLike) -> dict[str, Path]:
    """Return the folders in `folder` that are named for a split."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        for name in names:
            if Path(folder, name).is_dir():
                found[split] = Path(folder, name)
    return found


def holds_parquet(folder: str | os.PathLike) -> bool:
    """Whether there are parquet files of images in a folder; `metadata.parquet` is none."""
    return any(path.endswith(".parquet") and not _is_metadata(path) for path in walk_files(folder))


def _is_metadata(path: str) -> bool:
    return os.path.basename(path) in METADATA_FILES


def read_folder(folder: Path, may_lack_labels: bool = False) -> ImageTable:
    """
    Find the images of a folder, with the labels in its `metadata.csv`, `metadata.jsonl` or `metadata.parquet`, or else by
    the folders in it, one per class. Where labels may be missing, images without class folders are welcome, too.

    Raises:
        `ValueError`: the folder does not exist, holds no images, has an empty class folder, or metadata that cannot be
        read.
    """
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file, not a folder: give lists in CSV as --train_file, --validation_file or --eval_file"
        )
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist")
    metadata = sorted(Path(path) for path in walk_files(folder) if _is_metadata(path))
    if metadata:
        return _read_metadata(folder, metadata)
    return _read_class_folders(folder, may_lack_labels)


def _read_class_folders(folder: Path, may_lack_labels: bool) -> ImageTable:
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    classes = [path for path in entries if path.is_dir()]
    loose = [path for path in entries if is_image_name(path) and path.is_file()]
    if not classes and may_lack_labels:
        return _build_table({"image": loose}, {"label": [None] * len(loose)}, Features({"label": Value("null")}))
    if not classes:
        raise ValueError(
            f"the folder {folder} has no folders in it: expected one folder of images per class, a file metadata.csv "
            "beside the images, or a CSV list of path,label (--train_file, --eval_file)"
        )
    if loose:
        names = shorten([path.name for path in loose], 3)
        logger.warning(f"Left out {len(loose)} images that lie beside the class folders in {folder}: {names}")

    images: list[str] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, class_folder in enumerate(classes):
        found, other = scan_images(class_folder)
        if not found and not may_lack_labels:
            raise ValueError(f"the class folder {class_folder} holds no images")
        images += found
        labels += [label] * len(found)
        others += other
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(5))
        logger.info(f"Left out {others.total()} files in {folder} that are not images: {kinds}")
    return _build_table(
        {"image": images}, {"label": labels}, Features({"label": ClassLabel(names=_class_names(folder, classes))})
    )


def _class_names(folder: Path, classes: Sequence[Path]) -> list[str]:
    names = [path.name for path in classes]
    counts = Counter(map(str.casefold, names))
    twins = [name for name in names if counts[name.casefold()] > 1]
    if twins:
        logger.warning(
            f"These classes in {folder} differ only by case: {shorten(twins)}. Rename one if they are the same"
        )
    return names


def read_list(file: str | os.PathLike, image_column: str | None = None) -> ImageTable:
    """
    Read a CSV file with one image per line: the path, absolute or relative to the file, in the column `image_column`
    (by default the first of `path`, `file_name` and `image`), and columns of labels. The first line names the columns.
    Cells that are lists in JSON hold several labels.

    Raises:
        `ValueError`: the file does not exist, has no such column, or a line cannot be read.
    """
    rows, places = _read_rows(Path(file), _read_csv)
    columns = list(rows[0])
    choices = PATH_COLUMNS if image_column is None else (image_column,)
    found = [column for column in choices if column in columns]
    if not found:
        raise ValueError(
            f"the list {file} has no column {' or '.join(map(repr, choices))} with the paths of the images: its first line "
            f"has to name the columns, such as path,label, and it names {shorten(columns)}. --image_column_name can name it"
        )
    paths = {found[0]: [_join(file, row.pop(found[0]), place) for row, place in zip(rows, places)]}
    return _build_table(paths, _infer_columns(rows, places), None, places)


def _read_metadata(folder: Path, files: Sequence[Path]) -> ImageTable:
    """Read metadata as `datasets` lays it down: a column `file_name`, or `*_file_name`, relative to the metadata."""
    kinds = {file.suffix for file in files}
    if len(kinds) > 1:
        raise ValueError(f"the folder {folder} has metadata of different types, {shorten(sorted(kinds))}: keep one")
    read = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[kinds.pop()]
    rows: list[dict] = []
    places: list[str] = []
    paths: dict[str, list[str]] = {}
    for file in files:
        new_rows, new_places = _read_rows(file, read)
        path_columns = [column for column in new_rows[0] if column == "file_name" or column.endswith("_file_name")]
        if not path_columns:
            raise ValueError(f"{file} has no column 'file_name', only {shorten(list(new_rows[0]))}")
        for column in path_columns:
            new_paths = [_join(file, row.pop(column, None), place) for row, place in zip(new_rows, new_places)]
            paths.setdefault(column.removesuffix("file_name").removesuffix("_") or "image", []).extend(new_paths)
        rows += new_rows
        places += new_places
    listed = {path for found in paths.values() for path in found}
    unlisted = [str(path) for path in find_images(folder) if os.path.normpath(path) not in listed]
    if unlisted:
        logger.warning(f"Left out {len(unlisted)} images that the metadata does not name: {shorten(unlisted, 3)}")
    if files[0].suffix == ".csv":
        return _build_table(paths, _infer_columns(rows, places), None, places)
    features = None
    if files[0].suffix == ".parquet":
        features = Features.from_arrow_schema(pyarrow.parquet.read_schema(files[0]))
        features = Features({name: feature for name, feature in features.items() if name in rows[0]})
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return _build_table(paths, columns, features, places)


def _join(file: str | os.PathLike, name: str | None, place: str) -> str:
    """Return the path of an image that a file names."""
    if not name:
        raise ValueError(f"no path of an image in {place}")
    return os.path.normpath(os.path.join(os.path.dirname(file), name))


def _read_rows(file: Path, read: Callable) -> tuple[list[dict], list[str]]:
    """Return the rows of a file of images, at least one, and the place of each."""
    rows, places = read(file)
    if not rows:
        raise ValueError(f"{file} lists no images")
    return rows, places


def _read_csv(file: Path) -> tuple[list[dict], list[str]]:
    """Return the rows of a CSV file, whose cells are strings, and the place of each."""
    rows, places = [], []
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True, strict=True)
            columns = list(reader.fieldnames or ())
            if len(set(columns)) < len(columns):
                raise ValueError(f"{file} has several columns of the same name: {shorten(columns)}")
            for row in reader:
                place = f"line {reader.line_num} of {file}"
                if None in row or None in row.values():
                    raise ValueError(f"{place} does not have the {len(columns)} cells of the first line. {CSV_QUOTES}")
                rows.append(row)
                places.append(place)
    except csv.Error as error:
        raise ValueError(f"cannot read {file} as CSV after line {reader.line_num}: {error}. {CSV_QUOTES}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {file} as UTF-8: {getattr(error, 'strerror', None) or error}") from error
    return rows, places


def _read_jsonl(file: Path) -> tuple[list[dict], list[str]]:
    rows, places = [], []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {file} as UTF-8: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"line {number} of {file}"
            rows.append(_parse_json(line, dict, place))
            places.append(place)
    return rows, places


def _parse_json(text: str, kind: type, place: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{place} has to hold a JSON {kind.__name__}, got {text}")
    return value


def _read_parquet(file: Path) -> tuple[list[dict], list[str]]:
    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    return rows, [f"row {row} of {file}" for row in range(len(rows))]


# An integer like 007 is a name
NUMBER = r"[+-]?(0|[1-9]\d{0,17})"
CELL_TYPES: list[tuple[re.Pattern, Callable]] = [
    (re.compile(NUMBER), int),
    (re.compile(rf"({NUMBER}(\.\d*)?|[+-]?\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE), float),
    (re.compile("true|false", re.IGNORECASE), lambda cell: cell.lower() == "true"),
]


def _infer_columns(rows: list[dict], places: Sequence[str]) -> dict[str, list]:
    """Return the columns of a CSV file, with cells as integers, numbers, booleans or lists, if all of a column are."""
    columns = {}
    for name in rows[0]:
        cells = [row.get(name) for row in rows]
        filled = [cell for cell in cells if cell]
        parse: Callable = str
        for pattern, cell_type in reversed(CELL_TYPES):
            if all(map(pattern.fullmatch, filled)):
                parse = cell_type
        if filled and all(cell.startswith("[") for cell in filled):
            columns[name] = [_parse_json(cell, list, place) if cell else None for cell, place in zip(cells, places)]
        else:
            columns[name] = [parse(cell) if cell else None for cell in cells]
    return columns


def _build_table(
    paths: Mapping[str, Sequence],
    columns: dict[str, list],
    features: Features | None,
    places: Sequence[str] | None = None,
) -> ImageTable:
    """Join columns of files and other columns, the types of which are inferred from their values by default."""
    try:
        image_features = {name: ImageFeature(decode=False) for name in paths}
        features = Features({**image_features, **(features or Dataset.from_dict(columns).features)})
        images = {name: [str(path) for path in column] for name, column in paths.items()}
        dataset = Dataset.from_dict({**images, **columns}, features=features)
    except UnicodeEncodeError as error:
        raise ValueError(f"the name of a file is not in UTF-8, rename it: {os.fsencode(error.object)!r}") from error
    except pyarrow.ArrowException as error:
        where = places[0].split(" of ", 1)[-1] if places else "the data"
        raise ValueError(f"a column of {where} holds values of different types: {error}") from error
    return ImageTable(dataset, next(iter(paths)), places)


def leave_out_unreadable(table: ImageTable, split: str, skip: bool) -> tuple[Dataset, int]:
    """
    Decode every image of a split once. Return the split without those that cannot be read, if `skip`, and their number.

    Raises:
        `ValueError`: images cannot be read, and `skip` is not set, or these are more than 10 % of the split.
    """
    problems = find_problems(table.open, len(table))
    if not problems:
        return table.dataset, 0
    texts = list(problems.values())
    rest = f" (and {len(texts) - 3} more)" if len(texts) > 3 else ""
    summary = "; ".join(texts[:3]) + rest
    if not skip:
        raise ValueError(
            f"{summary}. Repair or remove what cannot be read, or have `hf-mixer train --skip_unreadable_images true` leave it out"
        )
    if len(problems) > MAX_UNREADABLE_SHARE * len(table):
        raise ValueError(
            f"{len(problems)} of the {len(table)} images of the split {split!r} cannot be read, more than "
            f"{MAX_UNREADABLE_SHARE:.0%}, which are too many to leave out: {summary}"
        )
    for text in texts:
        logger.warning(f"Left out: {text}")
    return table.dataset.select([row for row in range(len(table)) if row not in problems]), len(problems)


def check_files(table: ImageTable) -> None:
    """Refuse a list that names a file that does not exist, without reading the others."""
    if table.places is None:
        return
    for path, place in zip(table.dataset[table.image_column][:], table.places):
        if not os.path.isfile(path["path"]):
            raise ValueError(f"no such image: {path['path']} ({place})")


def to_stream(table: ImageTable, split: str, mix: bool) -> IterableDataset:
    """
    Return the files as a stream that knows its number of images, in parts for processes and workers to share out. To `mix` puts the
    images in one other order, so that neighbours are not of the same class.
    """
    dataset = table.dataset
    if mix:
        dataset = Dataset.from_dict(dataset.shuffle(seed=0)[:], features=dataset.features)
    num_shards = min(MAX_SHARDS, 2 ** (max(len(dataset), 1).bit_length() - 1))
    stream = dataset.to_iterable_dataset(num_shards)
    stream.info.splits = SplitDict({split: SplitInfo(split, num_examples=len(dataset))})
    return stream.cast_column(table.image_column, ImageFeature())
