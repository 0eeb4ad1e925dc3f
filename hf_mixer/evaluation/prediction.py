# SPDX-License-Identifier: Apache-2.0
"""What a model says of images, as fast as it can."""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
import numpy as np
import torch
from PIL import ExifTags, Image

from ..compilation import compile_for_inference
from ..configuration_mixer import to_pair
from ..data.images import ImageConversion, ImageDataError, has_many_bits, open_image
from ..data.labels import problem_type_of
from ..data.loaders import default_num_workers


logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

AS_IT_IS = ImageConversion()
# From this probability on, a label of several counts as present
DEFAULT_THRESHOLD = 0.5
# Batches that are read and computed at a time
MAX_BATCHES = 8
# Batches on an accelerator at a time: one computes while another is copied
MAX_BATCHES_ON_DEVICE = 2
# Up to this size, in pixels, one thread reads at a time: most of it is Python, and threads that wait for the interpreter cost
# more than they help. On two cores, two threads read images of 32 pixels at 0.93 times the rate of one, and photographs
# at 1.6 times.
SMALL_IMAGE = 64


@dataclass(frozen=True)
class Prediction:
    """
    What a model says of one image. Everything but `error` is empty where there is one.

    Args:
        scores (`list[dict]`):
            Each with a `label` and its `score`: the most likely labels with their probabilities, the best first; or, in
            regression, all labels in the order of the model with their values.
        labels (`list[str]`, *optional*):
            With several labels per image those whose probability reaches their threshold, in the order of the model.
        error (`str`, *optional*):
            Why the image cannot be read.
    """

    scores: list[dict[str, Any]]
    labels: list[str] | None = None
    error: str | None = None


class PixelReader:
    """
    Decodes images and prepares them for a model, to the same `pixel_values` as its image processor.

    An RGB image that has the size of the model's already needs no resizing, and the image processor only maps each of its
    256 values to a number. For such images the numbers are looked up, which takes half the time.

    Args:
        image_processor:
            The image processor of the model.
        conversion ([`ImageConversion`], *optional*):
            What to do with transparent and 16-bit images before the image processor gets them. By default nothing.
        trained_with ([`ImageConversion`], *optional*):
            What was done with those that the model was trained on. One warning tells of the first image that would have
            been another one in training.
    """

    def __init__(
        self,
        image_processor,
        conversion: ImageConversion = AS_IT_IS,
        trained_with: ImageConversion = AS_IT_IS,
    ):
        self.image_processor = image_processor
        self.conversion, self.trained_with = conversion, trained_with
        self.warning = threading.Lock()  # taken by the first warning, and never given back
        size = image_processor.size
        is_plain = image_processor.do_convert_rgb and image_processor.num_channels == 3 and image_processor.do_resize
        is_square = size.height is not None and size.height == size.width
        self.fitting_size: tuple[int, int] | None = None
        if is_plain and is_square and not image_processor.do_center_crop:
            self.fitting_size = (size.width, size.height)
            values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
            outputs = image_processor(Image.fromarray(values), do_resize=False, return_tensors="pt")["pixel_values"]
            # What becomes of each value in each channel, of shape (3, 256)
            self.outputs = outputs.reshape(3, 256).numpy()

    def __call__(self, sources: Sequence[dict]) -> tuple[torch.Tensor | None, list[str | None]]:
        """
        Read a batch of entries of an undecoded image column, which have `bytes` or `path`.

        Returns:
            `tuple`: `pixel_values` of shape `(num_readable, num_channels, height, width)`, `None` without a readable
            image; and for each source why it cannot be read, `None` where it can.
        """
        errors: list[str | None] = [None] * len(sources)
        images: dict[int, Image.Image] = {}
        for index, source in enumerate(sources):
            try:
                images[index] = self.open(source)
            except ValueError as error:
                errors[index] = str(error)
        if not images:
            return None, errors
        if self.fitting_size is not None and all(map(self.fits, images.values())):
            return self.look_up(list(images.values())), errors
        try:
            return self.prepare(list(images.values())), errors
        except ValueError:
            return self.prepare_each(images, sources, errors)

    def open(self, source: dict) -> Image.Image:
        """Decode one image."""
        contents = source["path"] if source["bytes"] is None else source["bytes"]
        if isinstance(contents, str) and "://" in contents:
            try:
                with fsspec.open(contents) as file:
                    contents = file.read()
            except Exception as error:  # of any file system and network
                raise ImageDataError(f"cannot read the image {source['path']}: {error}") from error
        image = open_image(contents, source["path"])
        self.warn_of_conversion(image, name_of(source))
        try:
            return self.conversion(image)
        except ValueError as error:
            raise ImageDataError(f"cannot prepare the image {name_of(source)}: {error}") from error

    def warn_of_conversion(self, image: Image.Image, name: str) -> None:
        """Warn where an image would have been converted in training, and is not."""
        color = self.trained_with.flatten_transparency
        missing = []
        if color not in (None, self.conversion.flatten_transparency) and image.has_transparency_data:
            missing.append(f"--flatten_transparency {color}")
        if self.trained_with.scale_16_bit and not self.conversion.scale_16_bit and has_many_bits(image):
            missing.append("--scale_16_bit")
        if missing and self.warning.acquire(blocking=False):
            logger.warning(
                f"The model was trained with {' '.join(missing)}, and looks at images such as {name} without: give the same"
            )

    def fits(self, image: Image.Image) -> bool:
        """Whether the pixels of an image can be looked up: it is RGB, upright, and has the model's size."""
        if image.mode != "RGB" or image.size != self.fitting_size:
            return False
        try:
            return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        except SyntaxError:
            # The metadata cannot be read: the image processor knows what to do
            return False

    def look_up(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = np.stack([np.asarray(image) for image in images])  # (batch_size, height, width, 3)
        pixel_values = np.empty((len(images), 3, *pixels.shape[1:3]), np.float32)
        for channel, outputs in enumerate(self.outputs):
            np.take(outputs, pixels[..., channel], out=pixel_values[:, channel], mode="clip")
        return torch.from_numpy(pixel_values)

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return self.image_processor(images, return_tensors="pt")["pixel_values"]

    def prepare_each(
        self, images: dict[int, Image.Image], sources: Sequence[dict], errors: list[str | None]
    ) -> tuple[torch.Tensor | None, list[str | None]]:
        """Prepare the images one by one, because the image processor refuses some of them."""
        prepared = []
        for index, image in images.items():
            try:
                prepared.append(self.prepare([image]))
            except ValueError as error:
                errors[index] = f"cannot prepare the image {name_of(sources[index])}: {error}"
        return torch.cat(prepared) if prepared else None, errors


def name_of(source: dict) -> str:
    return source["path"] or "in memory"


class Predictor:
    """
    A model that says what images show: `predictor(sources)` returns a [`Prediction`] for each.

    Args:
        model ([`MixerForImageClassification`] or [`~deployment.runtime.ExportedMixerForImageClassification`]):
            The model, on its device.
        image_processor:
            Its image processor.
        conversion ([`ImageConversion`], *optional*), trained_with ([`ImageConversion`], *optional*):
            See [`PixelReader`].
        top_k (`int`, *optional*, defaults to 5):
            How many labels to name per image.
        label_threshold (`float`, *optional*):
            The probability from which one of several labels counts as present, in place of `config.label_thresholds`,
            or of 0.5 where the model has none.
        compile_batch_size (`int`, *optional*):
            Compile the model when the first batches come, see [`compile_for_inference`]: for so many images at a time.

    Raises:
        `ValueError`: the model has no classifier.
    """

    def __init__(
        self,
        model,
        image_processor,
        conversion: ImageConversion = AS_IT_IS,
        trained_with: ImageConversion = AS_IT_IS,
        top_k: int = 5,
        label_threshold: float | None = None,
        compile_batch_size: int | None = None,
    ):
        if not model.config.num_labels:
            raise ValueError("the model has no classifier: give one that was trained on labels")
        self.model, self.compile_batch_size = model.eval(), compile_batch_size
        self.reader = PixelReader(image_processor, conversion, trained_with)
        self.problem_type = problem_type_of(model.config)
        self.labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.top_k = min(top_k, len(self.labels))
        if label_threshold is not None:
            self.thresholds = [label_threshold] * len(self.labels)
        else:
            self.thresholds = model.config.label_thresholds or [DEFAULT_THRESHOLD] * len(self.labels)
        self.on_cpu = model.device.type == "cpu"
        is_small = max(to_pair(model.config.image_size)) <= SMALL_IMAGE
        self.reading = threading.Semaphore(1 if is_small else MAX_BATCHES)
        self.turns = threading.Semaphore(MAX_BATCHES if self.on_cpu else MAX_BATCHES_ON_DEVICE)

    def __call__(self, sources: Sequence[dict]) -> list[Prediction]:
        """
        Read a batch of images, entries of an undecoded image column with `bytes` or `path`, and run the model.

        Raises:
            `ValueError`: the output of the model for an image is not finite.
        """
        with self.reading:
            pixel_values, errors = self.reader(sources)
        if pixel_values is None:
            return [Prediction([], error=error) for error in errors]
        with self.turns, torch.inference_mode():
            logits = self.model(pixel_values.to(self.model.device)).logits.float().cpu()
        if not logits.isfinite().all():
            names = [name_of(source) for source, error in zip(sources, errors) if error is None]
            first = names[int(logits.isfinite().all(dim=1).int().argmin())]
            raise ValueError(
                f"the output of the model for the image {first} is not finite: check the weights and that image"
            )
        predictions = iter(self.interpret(logits))
        return [next(predictions) if error is None else Prediction([], error=error) for error in errors]

    def interpret(self, logits: torch.Tensor) -> list[Prediction]:
        """Return what `logits` of shape `(batch_size, num_labels)` say of each image."""
        if self.problem_type == "regression":
            return [Prediction(self.name_scores(range(len(self.labels)), values)) for values in logits.tolist()]
        is_multi_label = self.problem_type == "multi_label_classification"
        scores = logits.sigmoid() if is_multi_label else logits.softmax(dim=-1)
        best = scores.topk(self.top_k)
        named = list(map(self.name_scores, best.indices.tolist(), best.values.tolist()))
        if not is_multi_label:
            return [Prediction(entry) for entry in named]
        present = (scores >= torch.tensor(self.thresholds)).tolist()
        return [Prediction(entry, list(itertools.compress(self.labels, row))) for entry, row in zip(named, present)]

    def name_scores(self, indices: Iterable[int], scores: Iterable[float]) -> list[dict[str, Any]]:
        return [{"label": self.labels[index], "score": score} for index, score in zip(indices, scores)]

    def predict_batches(
        self, batches: Iterable[Item], sources_of: Callable[[Item], Sequence[dict]], num_batches: int | None = None
    ) -> Iterator[tuple[Item, list[Prediction]]]:
        """
        Run the model on many batches, in threads that each decode and predict whole batches. On the CPU they share out the
        threads that torch has, `torch.get_num_threads()`: that leaves no core idle while images are decoded. A model on
        an accelerator gets its batches from as many threads as this process has cores, at most 8.

        Args:
            batches (`Iterable`):
                The batches, of any kind. Few of them are read ahead.
            sources_of (`Callable`):
                What returns the images of a batch.
            num_batches (`int`, *optional*):
                How many there are, where that is known.

        Yields:
            Each batch and its predictions, in order.
        """
        before = torch.get_num_threads()
        cores = before if self.on_cpu else default_num_workers()
        num_threads, threads_each = share_threads(cores, min(MAX_BATCHES, num_batches or MAX_BATCHES))
        torch.set_num_threads(min(before, threads_each))
        try:
            if self.compile_batch_size is not None:
                # Here, because the code is for this number of threads
                compile_for_inference(self.model, self.compile_batch_size)
                self.compile_batch_size = None
            yield from map_ahead(lambda batch: self(sources_of(batch)), batches, num_threads)
        finally:
            torch.set_num_threads(before)


def share_threads(cores: int, num_batches: int) -> tuple[int, int]:
    """
    Return how many of at most `num_batches` batches to compute at a time, and with how many threads each, such that together
    they take no more than `cores`: rather many with one thread, which waits for no other.
    """
    threads_each = -(-cores // num_batches)
    return cores // threads_each, threads_each


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[tuple[Item, Result]]:
    """Yield every item with what `function` returns for it, in order. Threads work on the ones that come next."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > 2 * num_threads:
                item, future = waiting.popleft()
                yield item, future.result()
        for item, future in waiting:
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
