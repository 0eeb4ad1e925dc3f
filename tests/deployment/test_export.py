"""An export answers as the model does, runs without this package, and is left behind whole or not at all."""

import ctypes
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hf_mixer import load_checkpoint
from hf_mixer.deployment import export, export_model, formats, load_exported
from hf_mixer.deployment.formats import DTYPES, FORMATS, missing_reason
from hf_mixer.deployment.signal_stack import SignalStack

from ..helpers import ROOT, TIMM_TINY, needs_export, save_classifier
from ..new_processes import run_without_package


LABELS = ("cat", "dog", "owl")
# ExecuTorch, whose export takes longest, in the type that also changes the model
PROGRAMS = [
    *(("onnx", "float32"), ("onnx", "float16"), ("openvino", "float32"), ("openvino", "float16")),
    *(("executorch", "float16"), ("torch", "float16")),
]
# Loads exports and prints their answers
STRANGER = """
import sys
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor
from transformers.exporters import ExportedModel

image = Image.fromarray(np.load(sys.argv[1]))
for folder in sys.argv[2:]:
    options = {"device": "cpu", "config": {"INFERENCE_PRECISION_HINT": "f32"}} if "openvino" in folder else {}
    model = ExportedModel.from_pretrained(folder, trust_remote_code=False, **options)
    inputs = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)(image, return_tensors="pt")
    print(model.config.id2label, model(**inputs).logits.tolist(), sep=";")
"""
needs_onnx = needs_export("onnx")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model") / "model", LABELS)


@pytest.fixture(scope="module")
def export_once(model_folder, tmp_path_factory):
    """Return the folder with an export of the model, and how it compares. It is made for the first test that wants it."""
    root = tmp_path_factory.mktemp("exports")

    @cache
    def make(format, dtype):
        folder = root / f"{format}-{dtype}"
        return folder, export_model(str(model_folder), folder, format, dtype, base_model="me/photos")

    return make


def pictures(count: int, size=(40, 30), seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def answers(folder, exported, images):
    """The logits of the model in `folder` and of its export."""
    model, image_processor = load_checkpoint(str(folder))
    program, exported_processor = load_exported(exported, trust_remote_code=True)
    with torch.no_grad():
        expected = model(image_processor(images, return_tensors="pt")["pixel_values"]).logits
    return expected, program(exported_processor(images, return_tensors="pt")["pixel_values"]).logits


@pytest.mark.parametrize(
    ("format", "dtype"), [pytest.param(*program, marks=needs_export(*program)) for program in PROGRAMS]
)
def test_an_export_answers_as_the_model_in_batches_of_any_size(model_folder, export_once, format, dtype):
    folder, export = export_once(format, dtype)
    tolerance = {"float32": 2e-6, "float16": 5e-3}[dtype]
    assert export.differences[dtype] <= tolerance
    for count in (1, 20):
        expected, actual = answers(model_folder, folder, pictures(count))
        error = (actual.float() - expected).abs().max() / expected.abs().max()
        assert error <= 2 * tolerance
        assert dtype == "float32" or error > 1e-5


@needs_export("onnx")
def test_onnx_moves_the_axes_of_patches_alone(export_once):
    import onnx

    folder, _ = export_once("onnx", "float32")
    operators = [node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node]
    assert operators.count("Transpose") == 1
    assert "Expand" not in operators


@needs_export("openvino")
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where OpenVINO sets a signal stack")
def test_openvino_leaves_a_thread_no_signal_stack(export_once):
    """It would free its own in an order in which the next signal ends the process."""

    def load_and_look() -> int:
        _program, _ = load_exported(folder)
        stack = SignalStack()
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
        return stack.size

    folder, _ = export_once("openvino", "float32")
    with ThreadPoolExecutor() as new_thread:  # which has none
        assert new_thread.submit(load_and_look).result() == 0


@needs_export("onnx", "float16")
def test_float16_in_onnx_takes_and_returns_float32(export_once):
    program, _ = load_exported(export_once("onnx", "float16")[0])
    assert program.dtype == program(torch.zeros(1, 3, 16, 16)).logits.dtype == torch.float32


@needs_onnx
@pytest.mark.parametrize(
    "overrides",
    [{"num_channels": 1, "image_size": (16, 24)}, {"hidden_act": "relu", "apply_layernorm": False}],
    ids=str,
)
def test_models_of_all_kinds_can_be_exported(tmp_path, overrides):
    folder = save_classifier(tmp_path / "model", LABELS, **overrides)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    height, width = np.broadcast_to(overrides.get("image_size", 16), 2).tolist()
    settings |= {"size": {"height": height, "width": width}, "num_channels": overrides.get("num_channels", 3)}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    export_model(str(folder), tmp_path / "export", "onnx")
    expected, actual = answers(folder, tmp_path / "export", pictures(3))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@needs_export("transformers.js")
def test_a_checkpoint_of_timm_can_be_exported_and_keeps_its_preprocessing(tmp_path):
    """It is resized to a shorter side, and cropped."""
    export_model(str(TIMM_TINY), tmp_path / "export", "transformers.js", "float32")
    expected, actual = answers(TIMM_TINY, tmp_path / "export", pictures(2))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@needs_onnx
@needs_export("openvino")
def test_an_export_runs_without_this_package_and_without_a_question_of_trust(model_folder, export_once, tmp_path):
    [picture] = pictures(1)
    np.save(tmp_path / "picture.npy", np.asarray(picture))
    folders = [export_once(format, "float32")[0] for format in ("onnx", "openvino")]
    output, _ = run_without_package(STRANGER, "picture.npy", *folders, folder=tmp_path)
    expected, _ = answers(model_folder, folders[0], [picture])
    for line in output.strip().splitlines()[-2:]:
        labels, logits = line.split(";")
        assert labels == str(dict(enumerate(LABELS)))
        torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, rtol=0, atol=1e-5)


@needs_onnx
def test_a_program_that_differs_from_the_model_is_not_left_behind(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "BOUNDS", dict.fromkeys(DTYPES, -1.0))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"differs from the model by .*nothing was written"):
        export_model(str(model_folder), tmp_path / "out", "onnx")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'tflite': expected one of onnx, openvino"):
        export_model("missing", tmp_path / "out", "tflite")


@needs_export("onnx", "int8")
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(model_folder, export_once, tmp_path):
    source = str(model_folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no empty folder"):
        export_model(source, tmp_path / "full", "onnx")
    assert (tmp_path / "full/notes.txt").read_text() == "mine"
    for dtype, options, message in (
        ("int4", {}, "unknown dtype 'int4': expected one of float32, float16, int8"),
        ("float32", {"batch_size": 0}, "`batch_size` has to be at least 1, got 0"),
        ("float32", {"batch_size": 4}, "takes batches of any size, got `batch_size` 4: leave it out"),
        ("int8", {"calibration_images": []}, "`calibration_images` are empty"),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(source, tmp_path / "out", "onnx", dtype, **options)
    with pytest.raises(ValueError, match="is an export: give the model that it was made of"):
        export_model(str(export_once("onnx", "float32")[0]), tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_missing_packages_are_named_with_their_installation(monkeypatch, format):
    packages = FORMATS[format].packages + FORMATS[format].int8_packages
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name in packages else name)
    reason = missing_reason(format, "int8")
    if packages:
        assert reason.endswith(f"not installed: pip install {' '.join(packages)}")
    else:
        assert reason is None


def test_exports_need_a_transformers_that_runs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name.startswith("transformers") else name)
    with pytest.raises(ImportError, match=r"transformers 5\.23 or later"):
        export_model("missing", tmp_path / "out", "onnx")


@needs_export("onnx", "int8")
@pytest.mark.parametrize(("dtype", "relation"), [("int8", "quantized"), ("float32", None)])
def test_the_card_names_the_model_on_the_hub_and_no_file_a_local_path(model_folder, export_once, dtype, relation):
    folder, _ = export_once("onnx", dtype)
    for file in folder.iterdir():
        for path in (model_folder.parent, ROOT, sys.prefix):
            assert str(path).encode() not in file.read_bytes(), file.name
    card = ModelCard.load(folder / "README.md").data.to_dict()
    assert (card["base_model"], card.get("base_model_relation")) == ("me/photos", relation)
