"""The page of the demo."""

import html
import importlib
import json
import os
import shutil
import socket
import sys

import httpx
import pytest
import torch
from PIL import Image

from hf_mixer import MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.commands.demo import main
from tests.helpers import ROOT, save_classifier


gradio = pytest.importorskip("gradio", reason="pip install '.[demo]'")

MODULES = ("app", "answers", "saliency", "uploads")
MARKUP = ["<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "a|b\n# c", "${value} {{value}} {0}"]
MARK = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """The folder that Gradio puts uploads into."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def app(space, uploads):
    """The app of the exported Space."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(space)
        for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "")
        yield importlib.import_module("app")
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def demo(app, space):
    return app.Demo(*app.load(json.loads((space / "space.json").read_text())))


@pytest.fixture(scope="module")
def upload(photo, uploads):
    """A request with an uploaded photo."""
    return {"path": shutil.copy(photo, uploads)}


def last(steps):
    *_, end = steps
    return end


def outputs_of(folder, photo) -> torch.Tensor:
    model = MixerForImageClassification.from_pretrained(folder)
    pixel_values = MixerImageProcessorPil.from_pretrained(folder)(Image.open(photo), return_tensors="pt").pixel_values
    with torch.no_grad():
        return model(pixel_values).logits[0]


def test_labels_come_without_the_map(demo, upload, photo, folder):
    scores = outputs_of(folder, photo).softmax(-1).tolist()
    answer, picture, scale = demo.predict(upload)
    assert answer == pytest.approx(dict(zip(["cat", "dog", "owl"], scores)), abs=1e-6)
    # What stood there of an older image goes
    assert (picture, scale) == (None, "")
    (picture, saliency), scale = last(demo.explain(upload))
    assert picture.size == saliency.size == (448, 448)
    assert max(answer, key=answer.get) in scale
    # No image clears the page
    assert demo.predict(None) == (None, None, "")
    assert list(demo.explain(None)) == [(None, "")]


def test_a_click_on_a_label_explains_that_label(demo, upload):
    passes = []
    hook = demo.model.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
    maps = {}
    for name in ("cat", "dog"):
        event = gradio.SelectData(None, {"index": 0, "value": name})
        (_, maps[name]), scale = last(demo.explain_chosen(upload, event))
        assert f"<b>{name}</b>" in scale
        assert "more likely" in scale
    hook.remove()
    assert maps["cat"] != maps["dog"]
    # The image was covered once for both: a pass for the labels, one before covering, and one for each part
    assert sum(passes) <= 2 + 9**2


def test_a_map_can_end_before_it_is_complete(app, demo, photo, uploads):
    fresh = {"path": shutil.copy(photo, uploads / "another.jpg")}
    steps = demo.explain(fresh)
    assert next(steps) == (gradio.skip(), gradio.skip())
    steps.close()
    assert fresh["path"] not in demo.falls


def test_what_was_not_uploaded_is_not_opened(app, demo, photo, uploads, monkeypatch):
    (uploads / "link.jpg").symlink_to(photo)
    os.mkfifo(uploads / "pipe.jpg")
    (uploads / "large.jpg").write_bytes(b"")
    os.truncate(uploads / "large.jpg", 60_000_000)
    for path, message in (
        ("/dev/ptmx", "only files that were uploaded"),
        (str(photo), "only files that were uploaded"),
        (f"{uploads}/../{photo.parent.name}/{photo.name}", "only files that were uploaded|not here"),
        (str(uploads / "link.jpg"), "only files that were uploaded"),
        (str(uploads / "pipe.jpg"), "only files that were uploaded"),
        (str(uploads), "only files that were uploaded"),
        (str(uploads / "large.jpg"), "60 MB. The limit is 20 MB"),
        (str(uploads / "missing.jpg"), "upload it again"),
        ("a\0b", "upload it again"),
        ("a" * 10_000, "upload it again"),
        (None, "only files that were uploaded"),
    ):
        for method in (demo.predict, lambda payload: next(demo.explain(payload))):
            with pytest.raises(gradio.Error, match=message):
                method({"path": path})


def test_bad_uploads_get_a_readable_message(app, demo, photo, uploads, upload, caplog):
    corrupt, cut, huge = (uploads / name for name in ("corrupt.png", "cut.jpg", "huge.png"))
    corrupt.write_bytes(b"\x89PNG\r\n\x1a\n nothing that follows is a PNG")
    cut.write_bytes(photo.read_bytes()[:-200])
    Image.new("1", (10_000, 10_000)).save(huge)
    Image.new("1", (20_000, 20_000)).save(uploads / "enormous.png")
    # It is read by another program
    Image.new("RGB", (8, 8)).save(uploads / "drawing.eps")
    for path, message in (
        (corrupt, "no image that can be read"),
        (cut, "damaged"),
        (huge, r"100 megapixels \(10000 x 10000\)\. The limit is 64 megapixels"),
        (uploads / "enormous.png", "far too large. The limit is 64 megapixels"),
        (uploads / "drawing.eps", "no image that can be read"),
    ):
        with pytest.raises(gradio.Error, match=message):
            demo.predict({"path": str(path)})
    # The log says what it was
    assert "An upload cannot be opened\nTraceback" in caplog.text
    assert "An upload cannot be decoded\nTraceback" in caplog.text
    # and the next visitor is served
    assert demo.predict(upload)[0]


def test_a_visitor_learns_of_images_that_the_training_had_converted(app, demo, photo, uploads, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(gradio, "Warning", warnings.append)
    Image.new("RGBA", (8, 8)).save(uploads / "transparent.png")
    Image.new("I;16", (8, 8)).save(uploads / "deep.png")
    images = (shutil.copy(photo, uploads), uploads / "transparent.png", uploads / "deep.png")
    converting = app.Demo(demo.model, demo.processor, {"flatten_transparency": "<b>white", "scale_16_bit": True})
    for each, expected in ((demo, []), (converting, ["put on &lt;b&gt;white", "scaled to 8 bits"])):
        for image in images:
            each.predict({"path": str(image)})
        assert [text in warning for text, warning in zip(expected, warnings)] == [True] * len(expected)
        assert len(warnings) == len(expected)


def test_what_the_image_processor_refuses_is_told(app, demo, upload, monkeypatch):
    monkeypatch.setattr(demo.processor, "num_channels", 4)
    with pytest.raises(gradio.Error, match="`num_channels` has to be 1"):
        app.Demo(demo.model, demo.processor).predict(upload)


def load(app, folder):
    return app.Demo(*app.load({"model": str(folder), "revision": None}))


def texts_of(app, demo, **settings) -> str:
    settings = {"title": "Mine", "name": "mine", "model": "mine", "revision": None, **settings}
    return " ".join(str(getattr(block, "value", "")) for block in app.build(demo, settings, []).blocks.values())


def test_a_multi_label_model_shows_the_labels_over_their_thresholds(app, photo, upload, tmp_path):
    save_classifier(tmp_path / "scenes", ["sea", "sky", "sand"], problem_type="multi_label_classification")
    scores = outputs_of(tmp_path / "scenes", photo).sigmoid().tolist()
    demo = load(app, tmp_path / "scenes")
    for thresholds, expected in (
        ([scores[0] - 1e-3, scores[1] + 1e-3, scores[2] - 1e-3], {"sea": scores[0], "sand": scores[2]}),
        ([1.0, 1.0, 1.0], "none of its labels"),
        (None, {name: score for name, score in zip(["sea", "sky", "sand"], scores) if score >= 0.5}),
    ):
        demo.model.config.label_thresholds = thresholds
        answer, _, _ = demo.predict(upload)
        assert answer == (expected if isinstance(expected, str) else pytest.approx(expected, abs=1e-6))
    assert "which of 3 labels an image shows" in texts_of(app, demo)


@pytest.mark.parametrize("names", [["price"], ["width", "height"]])
def test_a_regression_model_shows_its_values(names, app, photo, upload, tmp_path):
    problem_type = None if len(names) == 1 else "regression"
    save_classifier(tmp_path / "houses", names, problem_type=problem_type)
    demo = load(app, tmp_path / "houses")
    shown = dict(part.split(": ") for part in demo.predict(upload)[0].split(", "))
    assert list(shown) == names
    values = outputs_of(tmp_path / "houses", photo).tolist()
    assert [float(value) for value in shown.values()] == pytest.approx(values, rel=1e-4)
    assert f"estimates {', '.join(names)} from an image" in texts_of(app, demo)
    _, scale = last(demo.explain(upload))
    assert f"<b>{names[0]}</b>" in scale
    assert "Orange parts make the value larger" in scale


def test_names_are_never_markup(app, upload, tmp_path):
    folder = save_classifier(tmp_path / "names", MARKUP)
    demo = load(app, folder)
    page = texts_of(app, demo, title=MARKUP[0], name=MARKUP[0], model=f"me/{MARKUP[0]}", revision="1" * 40)
    scales = [
        last(demo.explain_chosen(upload, gradio.SelectData(None, {"index": 0, "value": name})))[1] for name in MARKUP
    ]
    for name, text in zip([MARKUP[0], *MARKUP], [page, *scales]):
        assert html.escape(name) in text
    assert not [text for text in (page, *scales) if "<img" in text]
    assert "&lt;img" in str(importlib.import_module("uploads").refuse(MARKUP[0]))


def test_the_page_links_to_the_card_and_the_paper(app, demo):
    text = texts_of(app, demo, title="Three kinds", name="pets", model="me/pets", revision="1" * 40)
    assert '<a href="https://huggingface.co/me/pets"' in text
    assert "https://huggingface.co/papers/2105.01601" in text
    assert "huggingface.co/mine" not in texts_of(app, demo)


@pytest.fixture
def only_loopback(monkeypatch):
    """Take down every host but this one that somebody looks up or connects to."""
    asked = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo
    here = ("127.0.0.1", "localhost", "::1", "0.0.0.0", None, "")

    def check(host):
        host = host.decode() if isinstance(host, bytes) else host
        if host not in here:
            asked.append(host)
            raise OSError(f"no way to {host}")

    def guarded_connect(self, address):
        if isinstance(address, tuple):
            check(address[0])
        return connect(self, address)

    def guarded_look_up(host, *arguments, **options):
        check(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    return asked


def test_a_server_answers_all_and_asks_nobody(app, photo, monkeypatch, only_loopback):
    """The page as it is served: what visitors and strangers get, and that no other host hears of it."""
    pages = []
    launch = gradio.Blocks.launch
    monkeypatch.setattr(gradio.processing_utils, "async_ssrf_protected_download", None)
    monkeypatch.setattr(
        gradio.Blocks,
        "launch",
        lambda page, **options: pages.append((page, *launch(page, prevent_thread_lock=True, quiet=True, **options))),
    )
    app.main()
    page, _, url, _ = pages[0]
    try:
        with httpx.Client(base_url=f"{url}gradio_api", timeout=60) as client:
            uploaded = client.post("/upload", files={"files": photo.read_bytes()}).json()[0]
            assert client.post("/upload", files={"files": bytes(21_000_000)}).status_code == 413

            def ask(name: str, request: dict) -> str:
                event = client.post(f"/call/{name}", json={"data": [request]}).json()["event_id"]
                return client.get(f"/call/{name}/{event}").text

            assert '"confidences"' in ask("predict", {"path": uploaded, **MARK})
            assert "no change" in ask("explain", {"path": uploaded, **MARK})
            for request in ({"path": "/dev/ptmx"}, {"path": str(photo)}, {"path": str(photo), **MARK}):
                for name in ("predict", "explain"):
                    assert "event: error" in ask(name, request)
            for name in ("predict", "explain", "load_example"):
                assert "opens no addresses" in ask(name, {"path": "https://example.com/a.png", **MARK})
            # Fifty at once: all wait in line
            events = [
                (name, client.post(f"/call/{name}", json={"data": [{"path": uploaded, **MARK}]}).json()["event_id"])
                for name in ("predict", "explain") * 25
            ]
            assert all("event: complete" in client.get(f"/call/{name}/{event}").text for name, event in events)
        served = httpx.get(url).text
    finally:
        page.close()
    assert only_loopback == []
    assert "fonts.googleapis.com" not in served
    assert not page.analytics_enabled


def test_the_command_shows_the_page_of_a_folder_without_code(photo, monkeypatch):
    shown = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **options: shown.append(page))
    monkeypatch.setattr(gradio.processing_utils, "async_ssrf_protected_download", None)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    main([str(ROOT / "model_cards" / "mixer-nano-cifar10"), "--examples", str(photo.parent)])
    for name in MODULES[1:]:
        sys.modules.pop(name)
    (page,) = shown
    assert page.title == "Ten kinds of CIFAR-10 images"
    kinds = [block.get_block_name() for block in page.blocks.values()]
    assert {"image", "imageslider", "label", "dataset"} <= set(kinds)
