import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_mixer import MixerImageProcessorPil
from hf_mixer.data import images
from hf_mixer.data.images import (
    ImageConversion,
    ImageTransform,
    collate_images,
    count_special_images,
    decoding_threads,
    find_image_format,
    find_images,
    open_image,
)
from tests.helpers import make_folder


def make_png(image: Image.Image, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **kwargs)
    return buffer.getvalue()


def make_special_images() -> dict[str, bytes]:
    """PNG images with a left half that is transparent, opaque ones, and ones of 16 bits."""
    half = Image.new("RGBA", (4, 2), (200, 0, 0, 255))
    half.paste((0, 200, 0, 0), (0, 0, 2, 2))
    indexed = Image.new("P", (4, 2), 1)
    indexed.putpalette([0, 200, 0, 200, 0, 0])
    indexed.paste(0, (0, 0, 2, 2))
    grey = Image.new("L", (4, 2), 200)
    grey.paste(7, (0, 0, 2, 2))
    return {
        "RGBA": make_png(half),
        "LA": make_png(half.convert("LA")),
        "P": make_png(indexed, transparency=0),
        "L": make_png(grey, transparency=7),
        "RGB": make_png(half.convert("RGB"), transparency=(0, 200, 0)),
        "opaque": make_png(Image.new("RGBA", (4, 2), (1, 2, 3, 255))),
        "plain": make_png(indexed),
        "I;16": make_png(Image.fromarray(np.full((2, 4), 40000, np.uint16))),
    }


def test_find_images_sees_only_images(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "cat" / "notes.txt").write_text("")
    assert len(find_images(folder)) == 12


def test_open_image_names_what_it_cannot_read():
    with pytest.raises(ValueError, match="cannot read the image nothing.png"):
        open_image("nothing.png")
    with pytest.raises(ValueError, match="cannot read the image row 7"):
        open_image(b"no image", "row 7")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_is_flattened_on_a_color(mode):
    image = open_image(make_special_images()[mode])
    flat = ImageConversion(flatten_transparency="#0000ff")(image)
    assert (flat.mode, flat.getpixel((0, 0))) == ("RGB", (0, 0, 255))
    assert flat.getpixel((3, 0)) == open_image(make_special_images()[mode]).convert("RGB").getpixel((3, 0))


def test_images_stay_as_they_are_where_nothing_has_to_be_done():
    for contents in make_special_images().values():
        image = open_image(contents)
        assert ImageConversion()(image) is image
    image = open_image(make_special_images()["plain"])
    assert ImageConversion(flatten_transparency="white", scale_16_bit=True)(image) is image


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 128, 129, 40000, 65535]], np.uint16), [0, 0, 1, 156, 255]),
        (np.array([[0, 300, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 77, 255]], np.int32), [0, 77, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 77, 255]], np.float32), [0, 77, 255]),
    ],
)
def test_16_bits_are_scaled_to_8(pixels, expected):
    image = ImageConversion(scale_16_bit=True)(Image.fromarray(pixels))
    assert (image.mode, np.asarray(image).tolist()) == ("L", [expected])


def test_images_that_are_converted_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    source = open_image(make_png(open_image(make_special_images()["RGBA"]), exif=exif))
    flat = ImageConversion(flatten_transparency="white")(source)
    assert flat.size == (2, 4)
    assert flat.getpixel((0, 0)) == (255, 255, 255)
    assert flat.getpixel((0, 3)) == (200, 0, 0)
    assert flat.getexif().get(0x0112) is None


def test_colors_and_ranges_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="--flatten_transparency whyte is no color"):
        ImageConversion(flatten_transparency="whyte")
    with pytest.raises(ValueError, match="8 or 16 bits per channel, got values from -1 to 9"):
        ImageConversion(scale_16_bit=True)(Image.fromarray(np.array([[-1, 9]], np.int32)))


def test_a_format_is_that_of_all_images(tmp_path):
    sources = []
    for format in ("PNG", "PNG", "JPEG"):
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, format)
        sources.append({"bytes": file.getvalue(), "path": "misnamed.bmp"})
    assert find_image_format(Dataset.from_list([{"image": source} for source in sources])) is None
    assert find_image_format(Dataset.from_list([{"image": source} for source in sources[:2]])) == "PNG"


def test_special_images_are_counted(tmp_path, monkeypatch):
    sources = [{"bytes": contents, "path": None} for contents in make_special_images().values()]
    (tmp_path / "half.png").write_bytes(make_special_images()["RGBA"])
    sources.append({"bytes": None, "path": str(tmp_path / "half.png")})
    dataset = Dataset.from_dict({"image": sources}, features=Features({"image": ImageFeature(decode=False)}))
    assert count_special_images(dataset) == {"num_images": 9, "num_transparent": 6, "num_16_bit": 1}
    monkeypatch.setattr(images, "MAX_COUNTED_IMAGES", 2)  # the first and the last
    assert count_special_images(dataset) == {"num_images": 2, "num_transparent": 2, "num_16_bit": 0}
    with pytest.raises(ValueError, match="cannot read the image gone.png: No such file or directory"):
        count_special_images(Dataset.from_dict({"image": [{"bytes": None, "path": "gone.png"}]}))


def test_training_images_are_converted_before_they_are_processed(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    conversion = ImageConversion(flatten_transparency="white")
    transform = ImageTransform(MixerImageProcessorPil(size=4), conversion)
    batch = transform({"image": [{"path": str(tmp_path / "clear.png"), "bytes": None}], "label": [0]})
    assert torch.equal(batch["pixel_values"], torch.ones(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 0], torch.tensor([2, 0])),
        ([[True, False], [True, True]], torch.tensor([[1.0, 0.0], [1.0, 1.0]])),
        ([[0.5], [-1.0]], torch.tensor([[0.5], [-1.0]])),
    ],
)
def test_labels_of_every_kind_are_stacked(labels, expected):
    batch = collate_images([{"pixel_values": torch.zeros(3, 2, 2), "labels": label} for label in labels])
    assert torch.equal(batch["labels"], expected)
    assert batch["labels"].dtype == expected.dtype
    unlabelled = collate_images([{"pixel_values": torch.zeros(3, 2, 2), "labels": None}] * 2)
    assert unlabelled.keys() == {"pixel_values"}


def test_an_image_that_cannot_be_prepared_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    Image.new("F", (4, 4), -5).save(tmp_path / "negative.tiff")
    paths = [str(tmp_path / name) for name in ("good.png", "negative.tiff")]
    batch = {"image": [{"path": path, "bytes": None} for path in paths], "label": [0, 1]}
    with pytest.raises(ValueError, match=r"cannot prepare the image .*negative\.tiff: Expected a floating-point"):
        ImageTransform(MixerImageProcessorPil(size=4), ImageConversion(scale_16_bit=True))(batch)


def test_small_images_in_memory_are_read_by_one_thread(monkeypatch):
    monkeypatch.setattr("hf_mixer.data.images.available_cores", lambda: 6)
    small, large = ({"bytes": bytes(size), "path": None} for size in (1000, 100_000))
    file = {"bytes": None, "path": "photo.jpg"}
    counts = [decoding_threads(Dataset.from_dict({"image": [small, other]})) for other in (small, large, file)]
    assert counts == [1, 6, 6]
