# SPDX-License-Identifier: Apache-2.0
"""Classes of very different size: how many images each has, and how to make up for it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler


# From this ratio of the largest class to the smallest on, a run says so
IMBALANCE = 10


def combine_seeds(*numbers: int) -> int:
    """Return a seed of 63 bits for a place in a training run, given by numbers such as seed, process and step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def count_classes(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """
    Count the images of each class.

    Args:
        labels (`np.ndarray`):
            Class indices of shape `(num_images,)`, or of shape `(num_images, num_labels)`, 1 for every label that an image
            has.
        names (`Sequence[str]`):
            The names of the classes in order.

    Returns:
        `dict[str, int]`: the number of images by name.
    """
    return {name: int(count) for name, count in zip(names, _counts(labels, len(names)))}


def describe_imbalance(class_counts: Mapping[str, int]) -> str | None:
    """
    Return a sentence on classes of very different size, from the number of images of each: where the largest has more than
    10 times the images of the smallest. Otherwise `None`.
    """
    smallest, largest = (choose(class_counts, key=lambda name: class_counts[name]) for choose in (min, max))
    if class_counts[largest] <= IMBALANCE * class_counts[smallest]:
        return None
    return (
        f"The classes differ in size: {largest!r} has {class_counts[largest]} images, {smallest!r} only "
        f"{class_counts[smallest]}. See --class_weights balanced and --balanced_sampling true"
    )


def balanced_class_weights(
    labels: np.ndarray, num_labels: int, image_weights: np.ndarray | None = None
) -> torch.Tensor:
    """
    Return factors on the loss of each class that make all classes count the same.

    With class indices of shape `(num_images,)` they are inverse to the number of images and have a mean of 1 over the
    images, as `"balanced"` in scikit-learn; with labels of shape `(num_images, num_labels)` they are for the images that
    have the label, and make these count as much as those that do not. A class without images, or a label that all images
    have, gets 1. `image_weights` of shape `(num_images,)` says how often images are drawn, where that differs.
    """
    counts = _counts(labels, num_labels, image_weights)
    total = len(labels) if image_weights is None else image_weights.sum()
    is_usable = counts > 0
    if labels.ndim == 1:
        target = total / is_usable.sum()
    else:
        target = total - counts
        is_usable &= (labels <= 0).any(axis=0)
    weights = np.divide(target, counts, out=np.ones(num_labels), where=is_usable)
    return torch.tensor(weights, dtype=torch.float32)


def balanced_image_weights(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """
    Return how often to draw each image relative to the others, so that all classes are drawn equally often.

    Of an image with several labels the rarest one decides, as in the repeat factors of
    [LVIS](https://huggingface.co/papers/1908.03195), so that these are drawn about equally often; images without any label
    count as one more class.

    Args:
        labels (`np.ndarray`):
            Class indices of shape `(num_images,)`, or of shape `(num_images, num_labels)`, 1 for every label that an image
            has.

    Returns:
        `np.ndarray` of shape `(num_images,)`: one divided by the number of images of its class.
    """
    frequencies = 1 / np.maximum(_counts(labels, num_labels), 1)
    if labels.ndim == 1:
        return frequencies[labels]
    has_label = labels > 0
    is_unlabelled = ~has_label.any(axis=1)
    rarest = np.where(has_label, frequencies, 0).max(axis=1)
    return np.where(is_unlabelled, 1 / max(is_unlabelled.sum(), 1), rarest)


def _counts(labels: np.ndarray, num_labels: int, image_weights: np.ndarray | None = None) -> np.ndarray:
    if labels.ndim == 1:
        return np.bincount(labels, image_weights, num_labels)
    return (labels > 0).sum(axis=0) if image_weights is None else image_weights @ (labels > 0)


class BalancedSampler(WeightedRandomSampler):
    """
    Draws as many images as there are, with replacement. What it draws is a function of the seed and the epoch alone, so
    that all processes draw the same, and a run that is resumed draws the same again.

    Args:
        weights (`np.ndarray` of shape `(num_images,)`):
            How often to draw each image, relative to the others.
        seed (`int`):
            The seed of the run.
    """

    def __init__(self, weights: np.ndarray, seed: int):
        super().__init__(weights.tolist(), len(weights), generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(combine_seeds(self.seed, self.epoch))
        return super().__iter__()
