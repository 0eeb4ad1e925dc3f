import json
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from transformers import pipeline
from transformers.image_utils import load_image
from transformers.utils import is_torchvision_available

from hf_mixer import MixerForImageClassification, MixerImageProcessor, MixerImageProcessorPil
from hf_mixer.data import ImageTransform
from tests.helpers import save_classifier


@pytest.fixture(params=[MixerImageProcessorPil, pytest.param(MixerImageProcessor, marks=pytest.mark.torchvision)])
def processor_class(request):
    return request.param


def photo(height=40, width=60) -> Image.Image:
    """A smooth picture, so that two implementations of a resize stay close."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    channels = [np.sin(3 * rows + 5 * columns), np.cos(4 * rows), rows * columns]
    return Image.fromarray(np.uint8(127 + 120 * np.stack(channels, -1)))


def pixels(processor_class, image, input_data_format=None, **kwargs) -> torch.Tensor:
    """The processed image, in its own range, without a resize unless asked for."""
    processor = processor_class(**{"do_resize": False, "do_normalize": False, "do_rescale": False, **kwargs})
    return processor(image, return_tensors="pt", input_data_format=input_data_format).pixel_values[0].float()


def test_defaults_map_any_image_to_224_pixels_in_minus_one_to_one(processor_class):
    white, black = Image.new("RGB", (300, 200), "white"), Image.new("RGB", (50, 90), "black")
    batch = processor_class()([white, black], return_tensors="pt").pixel_values
    assert batch.shape == (2, 3, 224, 224)
    assert torch.equal(batch[0], torch.ones(3, 224, 224))
    assert torch.equal(batch[1], -torch.ones(3, 224, 224))


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_straight_resize_is_pillows(processor_class, resample):
    image = photo()
    expected = np.asarray(image.resize((24, 32), resample)).transpose(2, 0, 1)
    actual = pixels(processor_class, image, do_resize=True, size={"height": 32, "width": 24}, resample=resample)
    assert np.abs(actual.numpy() - expected).max() <= 1


def test_shorter_side_then_center_crop(processor_class):
    image = photo(40, 60)
    expected = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)[:, 2:30, 10:38]
    crop = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 28, "resample": 3}
    actual = pixels(processor_class, image, do_resize=True, **crop)
    assert actual.shape == (3, 28, 28)
    assert np.abs(actual.numpy() - expected).max() <= 1


@pytest.mark.parametrize(("length", "offset"), [(29, 0), (30, 1), (31, 2), (33, 2), (35, 4)])
def test_center_crop_rounds_as_torchvision_does(processor_class, length, offset):
    image = np.arange(length, dtype=np.uint8)[None, :, None].repeat(28, 0).repeat(3, 2)
    crop = {"do_center_crop": True, "crop_size": 28, "input_data_format": "channels_last"}
    processor = processor_class(do_resize=False, do_rescale=False, do_normalize=False)
    actual = processor(image, return_tensors="pt", **crop).pixel_values[0, 0, 0]
    assert actual.tolist() == list(range(offset, offset + 28))


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (2, 2), 0)
    image.putpalette([200, 100, 0, 1, 2, 3])
    image.info["transparency"] = b"\x00\xff"
    return image


# As Pillow's `convert("RGB")` has them, on which transformers' pipelines insist: without alpha, clipped above 255
MODES = {
    "grey": (Image.new("L", (2, 2), 100), [100, 100, 100]),
    "bilevel": (Image.new("1", (2, 2), 1), [255, 255, 255]),
    "transparent grey": (Image.new("LA", (2, 2), (100, 0)), [100, 100, 100]),
    "transparent": (Image.new("RGBA", (2, 2), (200, 100, 0, 0)), [200, 100, 0]),
    "opaque": (Image.new("RGBA", (2, 2), (200, 100, 0, 255)), [200, 100, 0]),
    "cmyk": (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), [255, 0, 0]),
    "palette": (Image.new("RGB", (2, 2), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE), [10, 200, 30]),
    "transparent palette": (palette_with_transparency(), [200, 100, 0]),
    "16 bits": (Image.fromarray(np.full((2, 2), 300, np.uint16)), [255, 255, 255]),
    "dark 16 bits": (Image.fromarray(np.full((2, 2), 100, np.uint16)), [100, 100, 100]),
    "32 bits": (Image.fromarray(np.full((2, 2), 70000, np.int32)), [255, 255, 255]),
    "negative 32 bits": (Image.fromarray(np.full((2, 2), -5, np.int32)), [0, 0, 0]),
    "float": (Image.fromarray(np.full((2, 2), 100.7, np.float32)), [100, 100, 100]),
    "grey array": (np.full((2, 2, 1), 100, np.uint8), [100, 100, 100]),
    "bilevel array": (np.full((2, 2, 1), True), [255, 255, 255]),
    "16-bit array": (np.full((2, 2, 3), 300, np.uint16), [255, 255, 255]),
    "32-bit array": (np.full((2, 2, 1), -5, np.int32), [0, 0, 0]),
    "transparent array": (np.tile(np.array([200, 100, 0, 0], np.uint8), (2, 2, 1)), [200, 100, 0]),
    "transparent grey array": (np.tile(np.array([100, 0], np.uint8), (2, 2, 1)), [100, 100, 100]),
    "grey tensor": (torch.full((1, 2, 2), 100, dtype=torch.uint8), [100, 100, 100]),
    "16-bit tensor": (torch.full((1, 2, 2), 300, dtype=torch.int32), [255, 255, 255]),
}


@pytest.mark.parametrize("mode", MODES)
def test_any_mode_becomes_rgb(processor_class, mode):
    image, expected = MODES[mode]
    actual = pixels(processor_class, image, "channels_last" if isinstance(image, np.ndarray) else None)
    assert actual.shape == (3, 2, 2)
    assert actual[:, 0, 0].tolist() == expected


def save_rotated(upright: Image.Image, path):
    """Save a photo as a camera on its side does, with a note to turn it by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


def save_photo(kind: str, folder):
    """Save a photo in a form that image libraries do not agree on."""
    image = photo()
    alpha = Image.linear_gradient("L").resize(image.size)
    if kind == "turned by EXIF":
        return save_rotated(image, folder / "photo.jpg")
    if kind == "CMYK":
        image.convert("CMYK").save(folder / "photo.jpg")
        return folder / "photo.jpg"
    path = folder / "photo.png"
    if kind == "P":
        image.quantize(64).save(path, transparency=bytes(range(0, 256, 4)))
    elif kind == "LA":
        Image.merge("LA", (image.convert("L"), alpha)).save(path)
    elif kind == "RGBA":
        image.putalpha(alpha)
        image.save(path)
    else:
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 3).save(path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"), ["a", "b", "c"])


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("num_channels", [3, 1])
@pytest.mark.parametrize("kind", ["P", "LA", "RGBA", "I;16", "CMYK", "turned by EXIF"])
def test_every_road_to_the_model_has_the_same_pixels(processor_class, kind, num_channels, classifier, tmp_path):
    path = save_photo(kind, tmp_path)
    processor = processor_class(num_channels=num_channels, size=16)
    expected = processor(load_image(str(path)), return_tensors="pt").pixel_values
    assert expected.shape == (1, num_channels, 16, 16)

    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(names=["a", "b"])})
    row = {"image": {"bytes": path.read_bytes(), "path": None}, "label": 1}
    dataset = Dataset.from_list([row], features=features).with_transform(ImageTransform(processor))
    with Image.open(path) as image:
        assert image.mode == {"turned by EXIF": "RGB"}.get(kind, kind)
        roads = {
            "image": processor(image, return_tensors="pt").pixel_values,
            "path": processor(str(path), return_tensors="pt").pixel_values,
            "data set": dataset[0]["pixel_values"][None],
        }
        if kind in ("LA", "RGBA", "I;16"):
            array = np.atleast_3d(np.array(image))
            roads["array"] = processor(array, input_data_format="channels_last", return_tensors="pt").pixel_values
    for road, pixel_values in roads.items():
        assert torch.equal(pixel_values, expected), road

    if num_channels == 3:
        model = MixerForImageClassification.from_pretrained(classifier)
        scores = dict(zip("abc", model(expected).logits[0].softmax(-1).tolist()))
        classify = pipeline("image-classification", model, image_processor=processor)
        with Image.open(path) as image:
            for answer in (classify(str(path)), classify(image)):
                assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(scores, rel=1e-6)


@pytest.mark.parametrize("kind", ["RGB", "L"])
def test_grey_pixels_are_pillows(processor_class, kind):
    image = photo(64, 64).convert(kind)
    expected = np.asarray(image.convert("L"))
    assert np.array_equal(pixels(processor_class, image, num_channels=1)[0], expected)
    array = np.atleast_3d(np.array(image))
    assert np.array_equal(pixels(processor_class, array, "channels_last", num_channels=1)[0], expected)


def test_exif_rotated_photos_are_upright(processor_class, tmp_path):
    upright = photo(40, 60)
    with Image.open(save_rotated(upright, tmp_path / "photo.png")) as image:
        actual = pixels(processor_class, image)
    assert actual.shape == (3, 40, 60)
    assert np.array_equal(actual.numpy(), np.asarray(upright).transpose(2, 0, 1))


def test_unreadable_exif_leaves_the_image_as_it_is(processor_class):
    image = photo(4, 6)
    image.info["exif"] = b"Exif\0\0garbage"
    assert pixels(processor_class, image).shape == (3, 4, 6)


def test_grey_models_get_one_channel(processor_class):
    processor = processor_class(num_channels=1, size=8)
    images = [Image.new("RGB", (9, 9), "white"), Image.new("L", (8, 8)), np.zeros((3, 8, 8), np.uint8)]
    batch = processor(images, return_tensors="pt").pixel_values
    assert batch.shape == (3, 1, 8, 8)
    assert [image.mean().item() for image in batch] == [1, -1, -1]

    scaled = np.tile(np.array([1.0, 0.0, 0.0], np.float32), (2, 2, 1))
    grey = pixels(processor_class, scaled, num_channels=1, input_data_format="channels_last")
    assert grey[0, 0, 0].item() == pytest.approx(0.299, abs=1e-5)
    red = pixels(processor_class, Image.new("RGB", (2, 2), (255, 0, 0)), num_channels=1)
    assert red[0, 0, 0].item() == pytest.approx(0.299 * 255, abs=1)


def test_bad_input_is_refused(processor_class):
    with pytest.raises(ValueError, match=r"`num_channels` has to be 1 .* or 3 .*, got 4.*do_convert_rgb=False"):
        processor_class(num_channels=4)(photo())
    with pytest.raises(ValueError, match="that Pillow converts to RGB, got one in mode 'La'"):
        processor_class()(Image.new("LA", (2, 2)).convert("La"))


def test_saved_settings_name_both_backends_and_load_with_either(processor_class, tmp_path):
    processor = processor_class(size={"shortest_edge": 32}, do_center_crop=True, crop_size=28, num_channels=1)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "MixerImageProcessor"
    assert saved["auto_map"]["AutoImageProcessor"] == {
        "pil": "image_processing_pil_mixer.MixerImageProcessorPil",
        "torchvision": "image_processing_mixer.MixerImageProcessor",
    }
    loaded = MixerImageProcessorPil.from_pretrained(tmp_path)
    assert loaded(photo(), return_tensors="pt").pixel_values.shape == (1, 1, 28, 28)
    code = {path.name for path in tmp_path.glob("*.py")}
    assert code == {"image_processing_mixer.py", "image_processing_pil_mixer.py"}


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there")
def test_without_torchvision_its_processor_says_so():
    with pytest.raises(ImportError, match="(?i)MixerImageProcessor requires the Torchvision library"):
        MixerImageProcessor()


@pytest.mark.parametrize("processor_class", [MixerImageProcessorPil, MixerImageProcessor])
def test_the_keyword_arguments_are_found_beside_the_processor(processor_class):
    # Where transformers' own suite for image processors looks for them
    module = sys.modules[processor_class.__module__]
    assert module.MixerImageProcessorKwargs is processor_class.valid_kwargs
