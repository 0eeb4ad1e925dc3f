"""Images on their way to the model: named, cached, streamed."""

import pytest
import torch
from datasets import Dataset, List, Value
from torch.utils.data import DataLoader

from hf_mixer.data import ImageDataError, collate_images
from hf_mixer.data.loaders import CachedImages, NamedRows, StreamedImages
from tests.helpers import make_images, make_transform


def test_a_stream_goes_on_in_another_order(tmp_path):
    stream = make_images(12).to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=8)
    images = StreamedImages(stream, make_transform(), num_passes=2)
    numbers = [int(example["pixel_values"][0, 0, 0]) for example in images]
    assert sorted(numbers[:12]) == sorted(numbers[12:]) == list(range(12))
    assert numbers[:12] != numbers[12:]


def test_images_without_labels_are_refused_in_a_stream():
    images = make_images(4).remove_columns("label").add_column("label", [0, 1, -1, 2])
    with pytest.raises(ImageDataError, match="an image has no label"):
        list(StreamedImages(Dataset.to_iterable_dataset(images), make_transform()))


@pytest.mark.parametrize(
    ("labels", "feature", "shape"),
    [
        ([[True, False], [False, False]], List(Value("bool")), (2,)),
        ([[0.5], [-1.5]], List(Value("float32")), (1,)),
    ],
)
def test_images_with_labels_of_every_kind_are_cached_and_streamed(labels, feature, shape):
    images = make_images(2).remove_columns("label").add_column("label", labels, feature=feature)
    cached = CachedImages(images, make_transform())
    assert cached.labels.dtype == torch.float32
    assert torch.equal(cached.__getitems__([1, 0])["labels"], torch.tensor(labels).float()[[1, 0]])
    streamed = StreamedImages(images.to_iterable_dataset(), make_transform(), num_passes=1)
    batch = next(iter(DataLoader(streamed, batch_size=2, collate_fn=collate_images)))
    assert torch.equal(batch["labels"], torch.tensor(labels).float())
    assert batch["labels"].shape[1:] == shape


@pytest.mark.parametrize(
    ("labels", "feature"),
    [([None, [True]], List(Value("bool"))), ([[0.5], [float("nan")]], List(Value("float32")))],
)
def test_missing_labels_of_every_kind_are_refused_in_a_stream(labels, feature):
    images = make_images(2).remove_columns("label").add_column("label", labels, feature=feature)
    with pytest.raises(ImageDataError, match="an image has no label"):
        list(StreamedImages(images.to_iterable_dataset(), make_transform()))


def test_images_that_cannot_be_read_are_named_by_their_row():
    examples = make_images(300)
    images = list(examples["image"])
    images[270] = {"bytes": images[270]["bytes"][:80], "path": None}
    broken = Dataset.from_dict({"image": images, "label": examples["label"]}, features=examples.features)
    transform = make_transform()
    for read in (
        lambda: CachedImages(broken, transform),
        lambda: NamedRows(broken.with_transform(transform)).__getitems__([3, 270]),
    ):
        with pytest.raises(ImageDataError, match="^image 270 of the data: cannot read the image in memory: "):
            read()


def test_cached_images_are_the_images():
    images, transform = make_images(20), make_transform()
    cached = CachedImages(images, transform)
    batch = cached.__getitems__([7, 2])
    assert torch.equal(batch["pixel_values"], transform(images[[7, 2]])["pixel_values"])
    assert batch["labels"].tolist() == images[[7, 2]]["label"]
    assert batch["pixel_values"].dtype == torch.uint8
