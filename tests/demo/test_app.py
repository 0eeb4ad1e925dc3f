"""The page of the demo."""

import importlib
import json
import sys

import pytest
import torch
from PIL import Image

from hf_mixer import MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.commands.demo import main
from tests.helpers import ROOT, save_classifier


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
    corrupt, cut, huge = (tmp_path / name for name in ("corrupt.png", "cut.jpg", "huge.png"))
    corrupt.write_bytes(b"\x89PNG\r\n\x1a\n nothing that follows is a PNG")
    cut.write_bytes(photo.read_bytes()[:-200])
    Image.new("1", (10_000, 10_000)).save(huge)
    for path, message in (
        (corrupt, "no image that can be read"),
        (cut, "damaged"),
        (huge, r"100 megapixels \(10000 x 10000\)\. The limit is 64 megapixels"),
    ):
        with pytest.raises(gradio.Error, match=message):
            next(demo.predict(str(path)))
    # The log says what it was
    assert "An upload cannot be opened\nTraceback" in caplog.text
    assert "An upload cannot be decoded\nTraceback" in caplog.text
    # and the next visitor is served
    assert len(list(demo.predict(str(photo)))) == 2


def test_a_visitor_learns_of_images_that_the_training_had_converted(app, demo, photo, tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(gradio, "Warning", warnings.append)
    Image.new("RGBA", (8, 8)).save(tmp_path / "transparent.png")
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    images = (photo, tmp_path / "transparent.png", tmp_path / "deep.png")
    converting = app.Demo(demo.model, demo.processor, {"flatten_transparency": "white", "scale_16_bit": True})
    for each, expected in ((demo, []), (converting, ["put on white", "scaled to 8 bits"])):
        for image in images:
            next(each.predict(str(image)))
        assert [text in warning for text, warning in zip(expected, warnings)] == [True] * len(expected)
        assert len(warnings) == len(expected)


def test_what_the_image_processor_refuses_is_told(demo, photo, monkeypatch):
    monkeypatch.setattr(demo.processor, "num_channels", 4)
    with pytest.raises(gradio.Error, match="`num_channels` has to be 1"):
        next(demo.predict(str(photo)))


def load(app, folder):
    return app.Demo(*app.load({"model": str(folder), "revision": None}))


def outputs_of(folder, photo) -> list[float]:
    model = MixerForImageClassification.from_pretrained(folder)
    pixel_values = MixerImageProcessorPil.from_pretrained(folder)(Image.open(photo), return_tensors="pt").pixel_values
    with torch.no_grad():
        return model(pixel_values).logits[0].tolist()


def texts_of(app, demo) -> str:
    return " ".join(str(getattr(block, "value", "")) for block in app.build(demo, "Mine", []).blocks.values())


def test_a_multi_label_model_shows_the_labels_over_their_thresholds(app, photo, tmp_path):
    save_classifier(tmp_path / "scenes", ["sea", "sky", "sand"], problem_type="multi_label_classification")
    scores = torch.tensor(outputs_of(tmp_path / "scenes", photo)).sigmoid().tolist()
    demo = load(app, tmp_path / "scenes")
    for thresholds, expected in (
        ([scores[0] - 1e-3, scores[1] + 1e-3, scores[2] - 1e-3], {"sea": scores[0], "sand": scores[2]}),
        ([1.0, 1.0, 1.0], "none of its labels"),
        (None, {name: score for name, score in zip(["sea", "sky", "sand"], scores) if score >= 0.5}),
    ):
        demo.model.config.label_thresholds = thresholds
        (first, _), (last, picture) = demo.predict(str(photo))
        assert first == last
        assert last == (expected if isinstance(expected, str) else pytest.approx(expected, abs=1e-6))
        assert picture.size == (448, 448)
    assert "which of 3 labels an image shows" in texts_of(app, demo)


@pytest.mark.parametrize("names", [["price"], ["width", "height"]])
def test_a_regression_model_shows_its_values(names, app, photo, tmp_path):
    problem_type = None if len(names) == 1 else "regression"
    save_classifier(tmp_path / "houses", names, problem_type=problem_type)
    values = outputs_of(tmp_path / "houses", photo)
    demo = load(app, tmp_path / "houses")
    for answer, _ in demo.predict(str(photo)):
        shown = dict(part.split(": ") for part in answer.split(", "))
        assert list(shown) == names
        assert [float(value) for value in shown.values()] == pytest.approx(values, rel=1e-4)
    page = texts_of(app, demo)
    assert f"estimates {', '.join(names)} from an image" in page
    assert f"makes {names[0]} smaller" in page


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
