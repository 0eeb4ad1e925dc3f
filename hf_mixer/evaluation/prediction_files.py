# SPDX-License-Identifier: Apache-2.0
"""
Predictions for large sets of images, in a folder of parquet files.

The rows of the data are divided into parts of the same length, a file each. Which rows a part holds depends on the data alone,
not on the number of processes: a run that was killed goes on with the parts that are missing, on any number of processes.
"""

import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, List, Value

from ..data.images import ImageDataError
from ..local_paths import shorten_path
from ..output_folder import LOCK_NAME
from ..progress import progress_bar
from ..utils import hash_tensors, read_json, written_whole
from .prediction import Prediction, Predictor


STATE_NAME = "predictions.json"
DATA_FOLDER = "data"
# Rows of the data that stand for all of it in a checksum
NUM_CHECKED_ROWS = 16
# What stands for an image that a row does not have
NO_IMAGE = {"bytes": b"", "path": None}
# Columns of the data that have the name of a column of the predictions get this before it
RENAMED = "data_"


@dataclass(frozen=True)
class Part:
    """The rows that one file holds: the `index`-th ones of a shard of the data. Without shards, all rows are in shard 0."""

    shard: int
    index: int

    @property
    def name(self) -> str:
        return f"part-{self.shard:05}-{self.index:05}.parquet"


def find_image_column(dataset: Dataset | IterableDataset, name: str | None = None) -> str:
    """
    Return the column `name`, or the one that is called `image`, or the only one with images.

    Raises:
        `ValueError`: there is no such column, or several.
    """
    if dataset.features is None:
        raise ValueError("the data stream does not tell what its columns hold: leave out --streaming")
    found = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if name is None and len(found) == 1:
        return found[0]
    name = name or "image"
    if name not in found:
        raise ValueError(
            f"no column {name!r} with images in the data: give --image_column_name one of {', '.join(found) or 'none'}; "
            f"the columns are {', '.join(dataset.features)}"
        )
    return name


def prediction_features(predictor: Predictor) -> Features:
    """Return the columns that a predictor fills, with their types."""
    label, score = Value("string"), Value("float32")
    if predictor.problem_type == "regression":
        is_single = len(predictor.labels) == 1
        features = {"value": score} if is_single else {"values": List({"label": label, "score": score})}
    else:
        features = {"label": label, "score": score, f"top{predictor.top_k}": List({"label": label, "score": score})}
        if predictor.problem_type == "multi_label_classification":
            features["labels"] = List(label)
    return Features({**features, "error": Value("string")})


def describe_columns(predictor: Predictor) -> dict[str, str]:
    """Return what the columns of `prediction_features` hold, in words."""
    meanings = {
        "label": "the most likely label",
        "score": "its probability",
        f"top{predictor.top_k}": "the most likely labels with their probabilities, the best first",
        "labels": "the labels that the model sees in the image",
        "value": f"the value of {predictor.labels[0]}",
        "values": "the values of all labels",
        "error": "why the image cannot be read; empty where it can",
    }
    return {name: meanings[name] for name in prediction_features(predictor)}


def to_table(predictions: Sequence[Prediction], predictor: Predictor) -> pa.Table:
    """Return the columns of `prediction_features`, with a row for each prediction."""
    rows = []
    for prediction in predictions:
        scores = prediction.scores
        if not scores:
            rows.append({"error": prediction.error})
            continue
        every = {
            f"top{predictor.top_k}": scores,
            "values": scores,
            "value": scores[0]["score"],
            "labels": prediction.labels,
        }
        rows.append({**scores[0], **every})
    features = prediction_features(predictor)
    columns = {name: [row.get(name) for row in rows] for name in features}
    return pa.table(columns, schema=features.arrow_schema)


class PredictionFolder:
    """
    A folder of predictions: `data/part-*.parquet`, in the order of the data, and `predictions.json`, which says of what.

    Args:
        folder (`Path`):
            Where to write.
        identity (`dict`):
            What decides the predictions, ready for JSON. A folder with predictions of something else is refused.
        rows_per_file (`int`):
            How many rows a file holds.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], rows_per_file: int):
        self.folder, self.data = folder, folder / DATA_FOLDER
        self.identity = {**identity, "rows_per_file": rows_per_file}
        self.rows_per_file = rows_per_file

    def prepare(self, **notes: Any) -> None:
        """
        Create the folder, or check that it holds an unfinished run of the same predictions. One process calls this,
        before all others start. `notes` are written down in a new folder and never compared.

        Raises:
            `ValueError`: the folder holds something else.
        """
        path = self.folder / STATE_NAME
        if path.exists():
            state = read_json(path)
            before = {key: state.get(key) for key in self.identity}
            if before != self.identity:
                changes = "; ".join(describe_changes(before, self.identity))
                raise ValueError(
                    f"{self.folder} holds the predictions of another run ({changes}): choose another --output_dir, or remove it"
                )
            for unfinished in self.data.glob(".part-*"):
                shutil.rmtree(unfinished)
            return
        others = [entry.name for entry in self.folder.glob("*") if entry.name != LOCK_NAME]
        if others:
            raise ValueError(
                f"{self.folder} is not empty, and what it holds ({', '.join(sorted(others)[:3])}) is no predictions: choose "
                "another --output_dir"
            )
        self.write_state({**self.identity, **notes, "complete": False})

    def write_state(self, state: dict[str, Any]) -> None:
        with written_whole(self.folder / STATE_NAME) as path:
            path.write_text(json.dumps(state, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def finish(self) -> dict[str, int]:
        """Write down that all parts are there, and return `num_images` and `num_unreadable`. One process calls this."""
        counts = {"num_images": 0, "num_unreadable": 0}
        for path in self.paths():
            errors = pq.read_table(path, columns=["error"]).column("error")
            counts["num_images"] += len(errors)
            counts["num_unreadable"] += len(errors) - errors.null_count
        self.write_state({**read_json(self.folder / STATE_NAME), **counts, "complete": True})
        return counts

    def paths(self) -> list[Path]:
        """Return the files that are there, in the order of the data."""
        return sorted(self.data.glob("part-*.parquet"))

    def has(self, part: Part) -> bool:
        return (self.data / part.name).exists()

    def count_finished(self, shard: int) -> tuple[int, bool]:
        """Return how many parts of a shard are there, up to the first that is missing, and whether the last one is short."""
        count = next(index for index in itertools.count() if not self.has(Part(shard, index)))
        if count == 0:
            return 0, False
        last = pq.read_metadata(self.data / Part(shard, count - 1).name).num_rows
        return count, last < self.rows_per_file

    def write(self, part: Part, table: pa.Table) -> None:
        with written_whole(self.data / part.name) as path:
            pq.write_table(table, path)


def describe_changes(before: dict[str, Any], after: dict[str, Any], name: str = "") -> Iterator[str]:
    """Say for every value that differs what it was and what it is, one level down in dictionaries."""
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from describe_changes(old, new, f"{name}{key}.")
        else:
            yield f"{name}{key} was {json.dumps(old, ensure_ascii=False)} and is {json.dumps(new, ensure_ascii=False)}"


def describe_model(predictor: Predictor) -> str:
    """Return a checksum of everything that decides what a model says: weights, labels, and how images are prepared."""
    checksum = hashlib.sha256()
    for path in getattr(predictor.model, "files", ()):  # an exported model has no weights that torch knows of
        checksum.update(path.read_bytes())
    checksum.update(hash_tensors(predictor.model.state_dict()).encode())
    processor = predictor.reader.image_processor.to_dict()
    rest = [predictor.problem_type, predictor.labels, predictor.thresholds, processor]
    checksum.update(json.dumps(rest, sort_keys=True, default=str).encode())
    return checksum.hexdigest()


def describe_data(dataset: Dataset | IterableDataset, image_column: str) -> dict[str, Any]:
    """
    Return what tells a data set from others: its columns, length or number of shards, and a checksum of some rows.

    Raises:
        `ValueError`: it has no rows.
    """
    checksum = hashlib.sha256()
    if isinstance(dataset, Dataset):
        size = {"num_rows": len(dataset)}
        step = max(1, len(dataset) // NUM_CHECKED_ROWS)
        rows = dataset.select(range(0, len(dataset), step))
    else:
        size = {"num_shards": dataset.num_shards}
        rows = dataset.take(1)
    undecoded = rows.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
    images = [row[image_column] or NO_IMAGE for row in undecoded]
    if not images:
        raise ValueError("the data holds no images")
    for source in images:
        checksum.update(source.get("bytes") or str(source.get("path")).encode())
    return {**size, "columns": list(dataset.features), "checksum": checksum.hexdigest()}


class PartReader:
    """
    Reads the parts of a stream that are missing in a folder and fall to this process, in batches.

    A stream whose number of shards is a multiple of the number of processes is shared out by shards, and every process reads
    its own only. Any other is read by all processes, and each takes the parts in turn.

    Args:
        stream (`IterableDataset`):
            The images, undecoded.
        folder ([`PredictionFolder`]):
            Where the parts go.
        batch_size (`int`):
            Images per batch. The last batch of a part may have fewer.
        process_index (`int`), num_processes (`int`):
            This process, and how many there are.
    """

    def __init__(
        self,
        stream: IterableDataset,
        folder: PredictionFolder,
        batch_size: int,
        process_index: int,
        num_processes: int,
    ):
        self.stream, self.folder, self.batch_size = stream, folder, batch_size
        self.process_index, self.num_processes = process_index, num_processes
        self.by_shards = stream.num_shards % num_processes == 0

    def __iter__(self) -> Iterator[tuple[Part, int, dict[str, list]]]:
        """Yield, in order, a part, a row of its shard, and the columns from there on."""
        for shard in range(self.stream.num_shards):
            if not self.by_shards or shard % self.num_processes == self.process_index:
                yield from self.read_shard(shard)

    def takes(self, part: Part) -> bool:
        """Whether this process has to compute a part."""
        is_own = self.by_shards or (part.shard + part.index) % self.num_processes == self.process_index
        return is_own and not self.folder.has(part)

    def count(self, num_rows: int) -> int:
        """Return how many rows this process has to compute of `num_rows` in a single shard."""
        length = self.folder.rows_per_file
        starts = range(0, num_rows, length)
        return sum(min(length, num_rows - start) for start in starts if self.takes(Part(0, start // length)))

    def read_shard(self, shard: int) -> Iterator[tuple[Part, int, dict[str, list]]]:
        length = self.folder.rows_per_file
        num_finished, is_complete = self.folder.count_finished(shard)
        if is_complete:
            return
        position = num_finished * length
        stream = self.stream.shard(self.stream.num_shards, shard).skip(position)
        batches = iter(stream.iter(self.batch_size))
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # of the file system, the network, the compression or the file format
                raise ImageDataError(
                    f"the data stream broke at row {position} of shard {shard}: {str(error).rstrip('.')}. Finished files "
                    "are kept: run the same command again to go on"
                ) from error
            if batch is None:
                return
            stop = position + len(next(iter(batch.values())))
            while position < stop:
                part = Part(shard, position // length)
                count = min(stop, (part.index + 1) * length) - position
                if self.takes(part):
                    yield part, position, {name: values[:count] for name, values in batch.items()}
                batch = {name: values[count:] for name, values in batch.items()}
                position += count


def write_predictions(
    dataset: Dataset | IterableDataset,
    image_column: str,
    predictor: Predictor,
    folder: PredictionFolder,
    batch_size: int = 32,
    process_index: int = 0,
    num_processes: int = 1,
) -> None:
    """
    Predict the images of a data set, and write the parts that are missing in a folder and fall to this process.

    Every row of the data has one row in the files, in the same order if the files are sorted by name. It has the columns of
    the data without images and other media, and those of `prediction_features`. Where an image cannot be read, these are
    empty except for `error`.

    Raises:
        [`ImageDataError`]: a stream cannot be read on.
        `ValueError`: the output of the model is not finite.
    """
    own = {name: feature for name, feature in dataset.features.items() if not hasattr(feature, "decode_example")}
    added = prediction_features(predictor)
    renamed = Features({rename(name, own, added): feature for name, feature in own.items()})
    data = dataset.select_columns([*own, image_column]).cast_column(image_column, datasets.Image(decode=False))
    stream = data.to_iterable_dataset() if isinstance(data, Dataset) else data
    reader = PartReader(stream, folder, batch_size, process_index, num_processes)
    total = reader.count(len(dataset)) if isinstance(dataset, Dataset) else None
    batches = predictor.predict_batches(
        reader,
        lambda batch: name_images(batch[2][image_column], batch[1], batch[0].shard if stream.num_shards > 1 else None),
        None if total is None else -(-total // batch_size),
    )
    with progress_bar(total=total, desc="Predicting", unit=" images") as progress:
        for part, group in itertools.groupby(batches, key=lambda result: result[0][0]):
            columns: dict[str, list] = {name: [] for name in renamed}
            results: list[Prediction] = []
            for (_, _, batch), predictions in group:
                for new, old in zip(renamed, own):
                    columns[new] += batch[old]
                results += map(without_path, predictions, batch[image_column])
                progress.update(len(predictions))
                report_errors(predictions, progress)
            kept = Dataset.from_dict(columns, renamed).with_format("arrow")[:]
            predicted = to_table(results, predictor)
            schema = Features({**renamed, **added}).arrow_schema
            folder.write(part, pa.Table.from_arrays([*kept.columns, *predicted.columns], schema=schema))


def rename(name: str, own: Collection[str], added: Collection[str]) -> str:
    """Return what a column of the data is called beside those of the predictions."""
    new = name
    while new in added or (new != name and new in own):
        new = RENAMED + new
    return new


def name_images(images: Sequence[dict | None], start: int, shard: int | None) -> list[dict]:
    """Return the entries of an undecoded image column. Those that are no files are named for their rows."""
    place = "" if shard is None else f" of shard {shard}"
    named = []
    for row, source in enumerate(images, start):
        source = source or NO_IMAGE
        if not source["path"]:
            source = {"bytes": source["bytes"] or b"", "path": f"in row {row}{place}"}
        named.append(source)
    return named


def without_path(prediction: Prediction, source: dict | None) -> Prediction:
    """Return a prediction whose error names the image, and not where it lies on this machine."""
    path = source and source["path"]
    if not path or prediction.error is None:
        return prediction
    return replace(prediction, error=prediction.error.replace(path, shorten_path(path)))


def report_errors(predictions: Sequence[Prediction], progress) -> None:
    """Name the images that cannot be read on standard error."""
    for prediction in predictions:
        if prediction.error is not None:
            progress.write(f"error: {prediction.error}", file=sys.stderr)
