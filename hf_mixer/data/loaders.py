# SPDX-License-Identifier: Apache-2.0
"""How images reach the training loop fast: decoded once, or streamed."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset, IterableDataset

from ..progress import progress_bar
from ..threads import available_cores
from .images import ImageDataError, ImageTransform, collate_images, decoding_threads, stack_labels
from .labels import is_missing


def default_num_workers() -> int:
    """Return the number of loader workers that a process gets: its share of the CPU cores, at most 8."""
    return min(8, available_cores())


class NamedRows(Dataset):
    """
    The rows of a data set under an [`~hf_mixer.data.ImageTransform`]. Where an image cannot be read, the
    [`~hf_mixer.data.ImageDataError`] names its row.
    """

    def __init__(self, dataset: datasets.Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict:
        try:
            return self.dataset[row]
        except ImageDataError as error:
            raise ImageDataError(f"image {row} of the data: {error}") from error

    def __getitems__(self, rows: Sequence[int]) -> list[dict]:
        try:
            return self.dataset.__getitems__(rows)
        except ImageDataError:
            return [self[row] for row in rows]


class CachedImages(Dataset):
    """
    A data set of small images, decoded once and kept as one uint8 tensor. It returns whole batches.

    Args:
        dataset (`datasets.Dataset`):
            Columns `image` (undecoded) and `label`.
        transform ([`~hf_mixer.data.ImageTransform`]):
            What decodes and resizes the images to uint8 pixels.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Where to keep the pixels. Batches come from there, so that an accelerator never waits for a copy.

    Raises:
        [`~hf_mixer.data.ImageDataError`]: an image cannot be read; the message names its row.
    """

    CHUNK = 256

    def __init__(self, dataset: datasets.Dataset, transform: ImageTransform, device: torch.device | str = "cpu"):
        rows = NamedRows(dataset.with_transform(transform))
        chunks = [range(len(rows))[start : start + self.CHUNK] for start in range(0, len(rows), self.CHUNK)]
        self.labels = stack_labels(dataset["label"][:]).to(device)
        self.pixel_values = torch.empty(0)
        with ThreadPoolExecutor(decoding_threads(dataset)) as pool:
            decoded = pool.map(lambda chunk: collate_images(rows.__getitems__(chunk))["pixel_values"], chunks)
            for chunk, pixels in zip(
                chunks, progress_bar(decoded, desc="Decoding images", total=len(chunks), leave=False)
            ):
                if chunk.start == 0:
                    shape = (len(rows), *pixels.shape[1:])
                    self.pixel_values = torch.empty(shape, dtype=pixels.dtype, device=device)
                self.pixel_values[chunk.start : chunk.stop] = pixels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        index = torch.tensor(indices).to(self.labels.device, non_blocking=True)
        return {"pixel_values": self.pixel_values[index], "labels": self.labels[index]}


class StreamedImages(IterableDataset):
    """
    A data set that is read while it trains. Every process and every worker reads its own shards, and every image is
    read once per pass; with fewer shards than processes, each process reads all and takes its share of the images.
    Passes follow each other without end, each one shuffled anew: give the training its length in steps.

    Args:
        dataset (`datasets.IterableDataset`):
            Columns `image` (undecoded) and `label`, shuffled.
        transform ([`~hf_mixer.data.ImageTransform`]):
            What decodes and resizes the images.
        process_index (`int`, *optional*, defaults to 0), num_processes (`int`, *optional*, defaults to 1):
            This process, and how many there are.
        num_passes (`int`, *optional*):
            How often to read the data. Without end by default.

    Raises:
        [`~hf_mixer.data.ImageDataError`]: the data cannot be read on, or an image has no label; the message says how
        far it got.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        transform: ImageTransform,
        process_index: int = 0,
        num_processes: int = 1,
        num_passes: int | None = None,
    ):
        self.dataset = split_dataset_by_node(dataset, process_index, num_processes)
        self.transform = transform
        self.num_passes = num_passes

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        passes = itertools.count() if self.num_passes is None else range(self.num_passes)
        for epoch in passes:
            self.dataset.set_epoch(epoch)
            count = 0
            try:
                for example in self.dataset:
                    if is_missing(example["label"]):
                        raise ValueError("an image has no label")
                    batch = self.transform({name: [value] for name, value in example.items()})
                    yield {"pixel_values": batch["pixel_values"][0], "labels": batch["labels"][0]}
                    count += 1
            except Exception as error:  # of the file system, the network, the compression or the file format
                raise ImageDataError(
                    f"the data stream broke in pass {epoch + 1}, after {count} images of this reader: "
                    f"{str(error).rstrip('.')}. Check the files of the data set, download the broken one again or leave it out"
                ) from error
            if count == 0:
                return
