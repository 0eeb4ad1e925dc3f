import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from transformers.utils import is_torchvision_available

from hf_mixer import MixerImageProcessor, MixerImageProcessorPil


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


MODES = {
    "grey": (Image.new("L", (2, 2), 100), [100, 100, 100]),
    "bilevel": (Image.new("1", (2, 2), 1), [255, 255, 255]),
    "transparent grey": (Image.new("LA", (2, 2), (0, 0)), [255, 255, 255]),
    "transparent": (Image.new("RGBA", (2, 2), (200, 100, 0, 0)), [255, 255, 255]),
    "opaque": (Image.new("RGBA", (2, 2), (200, 100, 0, 255)), [200, 100, 0]),
    "cmyk": (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), [255, 0, 0]),
    "palette": (Image.new("RGB", (2, 2), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE), [10, 200, 30]),
    "16 bits": (Image.fromarray(np.full((2, 2), 100 * 257, np.uint16)), [100, 100, 100]),
    "16 in 32 bits": (Image.fromarray(np.full((2, 2), 100 * 257, np.int32)), [100, 100, 100]),
    "8 in 32 bits": (Image.fromarray(np.full((2, 2), 100, np.int32)), [100, 100, 100]),
    "float": (Image.fromarray(np.full((2, 2), 1.0, np.float32)), [255, 255, 255]),
    "grey array": (np.full((2, 2, 1), 100, np.uint8), [100, 100, 100]),
    "16-bit array": (np.full((2, 2, 3), 100 * 257, np.uint16), [100, 100, 100]),
    "transparent array": (np.tile(np.array([200, 100, 0, 0], np.uint8), (2, 2, 1)), [255, 255, 255]),
    "grey tensor": (torch.full((1, 2, 2), 100, dtype=torch.uint8), [100, 100, 100]),
}


@pytest.mark.parametrize("mode", MODES)
def test_any_mode_becomes_rgb(processor_class, mode):
    image, expected = MODES[mode]
    actual = pixels(processor_class, image, "channels_last" if isinstance(image, np.ndarray) else None)
    assert actual.shape == (3, 2, 2)
    assert actual[:, 0, 0].tolist() == expected


def test_palette_with_transparency(processor_class):
    image = Image.new("P", (2, 2), 0)
    image.putpalette([200, 100, 0, 1, 2, 3])
    image.info["transparency"] = 0
    assert pixels(processor_class, image)[:, 0, 0].tolist() == [255, 255, 255]


def test_exif_rotated_photos_are_upright(processor_class, tmp_path):
    upright = photo(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer has to turn it by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
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
    assert grey[0, 0, 0].item() == pytest.approx(0.299)
    red = pixels(processor_class, Image.new("RGB", (2, 2), (255, 0, 0)), num_channels=1)
    assert red[0, 0, 0].item() == pytest.approx(0.299 * 255, abs=1)


def test_bad_input_is_refused(processor_class):
    with pytest.raises(ValueError, match=r"`num_channels` has to be 1 .* or 3 .*, got 4.*do_convert_rgb=False"):
        processor_class(num_channels=4)(photo())
    with pytest.raises(ValueError, match="8 or 16 bits per channel, got values from 70000"):
        processor_class()(Image.fromarray(np.full((2, 2), 70000, np.int32)))
    with pytest.raises(ValueError, match="floating-point image"):
        processor_class()(Image.fromarray(np.full((2, 2), -1.0, np.float32)))


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
