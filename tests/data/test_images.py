import pytest
import torch
from PIL import Image

from hf_mixer import MixerImageProcessorPil
from hf_mixer.data.images import ImageTransform, find_images, open_image
from tests.helpers import make_folder


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


def test_transparent_training_images_are_seen_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    transform = ImageTransform(MixerImageProcessorPil(size=4))
    batch = transform({"image": [{"path": str(tmp_path / "clear.png"), "bytes": None}], "label": [0]})
    assert torch.equal(batch["pixel_values"], torch.ones(1, 3, 4, 4))


def test_an_image_that_cannot_be_prepared_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    Image.new("F", (4, 4), -5).save(tmp_path / "negative.tiff")
    paths = [str(tmp_path / name) for name in ("good.png", "negative.tiff")]
    batch = {"image": [{"path": path, "bytes": None} for path in paths], "label": [0, 1]}
    with pytest.raises(ValueError, match=r"cannot prepare the image .*negative\.tiff: Expected a floating-point"):
        ImageTransform(MixerImageProcessorPil(size=4))(batch)
