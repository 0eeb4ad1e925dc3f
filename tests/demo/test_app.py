"""The page of the demo."""

import importlib
import json
import sys

import pytest
import torch
from PIL import Image

from hf_mixer import MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.commands.demo import main
from tests.helpers import ROOT


gradio = pytest.importorskip("gradio", reason="pip install '.[demo]'")


@pytest.fixture(scope="module")
def app(space):
    """The app of the exported Space."""
    sys.path.insert(0, str(space))
    yield importlib.import_module("app")
    sys.path.remove(str(space))
    del sys.modules["app"], sys.modules["saliency"]


@pytest.fixture(scope="module")
def demo(app, space):
    return app.Demo(*app.load(json.loads((space / "space.json").read_text())))


def test_labels_come_first_then_the_map(demo, photo, folder):
    steps = list(demo.predict(str(photo)))
    assert [picture is None for _, picture in steps] == [True, False]
    model = MixerForImageClassification.from_pretrained(folder)
    pixel_values = MixerImageProcessorPil.from_pretrained(folder)(Image.open(photo), return_tensors="pt").pixel_values
    with torch.no_grad():
        scores = model(pixel_values).logits.softmax(-1)[0].tolist()
    for labels, _ in steps:
        assert labels == pytest.approx(dict(zip(["cat", "dog", "owl"], scores)), abs=1e-6)
    assert steps[1][1].size == (448, 448)
    # No image clears the page
    assert list(demo.predict(None)) == [(None, None)]


def test_bad_uploads_get_a_readable_message(app, demo, photo, tmp_path, caplog):
    corrupt, cut, huge, odd = (tmp_path / name for name in ("corrupt.png", "cut.jpg", "huge.png", "odd.tiff"))
    corrupt.write_bytes(b"\x89PNG\r\n\x1a\n nothing that follows is a PNG")
    cut.write_bytes(photo.read_bytes()[:-200])
    Image.new("1", (10_000, 10_000)).save(huge)
    Image.new("F", (4, 4), -5).save(odd)
    for path, message in (
        (corrupt, "no image that can be read"),
        (cut, "damaged"),
        (huge, r"100 megapixels \(10000 x 10000\)\. The limit is 64 megapixels"),
        (odd, "floating-point image"),
    ):
        with pytest.raises(gradio.Error, match=message):
            next(demo.predict(str(path)))
    # The log says what it was
    assert "An upload cannot be opened\nTraceback" in caplog.text
    assert "An upload cannot be decoded\nTraceback" in caplog.text
    # and the next visitor is served
    assert len(list(demo.predict(str(photo)))) == 2


def test_number_of_passes_is_bounded(app, demo, photo):
    sizes = []
    hook = demo.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    list(demo.predict(str(photo)))
    hook.remove()
    assert demo.model.config.num_patches == 256
    assert sum(sizes) <= app.MAX_WINDOWS**2 + 2


def test_the_command_shows_the_page_of_a_folder_without_code(photo, monkeypatch):
    shown = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **options: shown.append(page))
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "saliency", raising=False)
    main([str(ROOT / "model_cards" / "mixer-nano-cifar10"), "--examples", str(photo.parent)])
    sys.modules.pop("saliency")
    (page,) = shown
    assert page.title == "mixer-nano-cifar10"
    kinds = [block.get_block_name() for block in page.blocks.values()]
    assert kinds.count("image") >= 2
    assert "label" in kinds
    assert "dataset" in kinds
