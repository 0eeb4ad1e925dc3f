"""An export answers as the model does, runs without this package, and is left behind whole or not at all."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hf_mixer import load_checkpoint
from hf_mixer.deployment import export, export_model, formats, load_exported
from hf_mixer.deployment.formats import DTYPES, FORMATS, missing_reason

from ..helpers import ROOT, TIMM_TINY, save_classifier


LABELS = ("cat", "dog", "owl")
RUNTIMES = ("onnx", "openvino", "executorch", "torch")
# Loads an export where there is no hf_mixer, and prints its answer
STRANGER = """
import sys
sys.modules["hf_mixer"] = None
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor
from transformers.exporters import ExportedModel

image = Image.fromarray(np.load(sys.argv[2]))
options = {"device": "cpu", "config": {"INFERENCE_PRECISION_HINT": "f32"}} if "openvino" in sys.argv[1] else {}
model = ExportedModel.from_pretrained(sys.argv[1], trust_remote_code=False, **options)
inputs = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=False)(image, return_tensors="pt")
print(model.config.id2label, model(**inputs).logits.tolist(), sep=";")
"""


def need(format: str, dtype: str = "float32") -> None:
    reason = missing_reason(format, dtype)
    if reason is not None:
        pytest.skip(reason)


def pictures(count: int, size=(40, 30), seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def answers(folder, images, **options):
    """The logits of the model in `folder` and of its export beside it."""
    model, image_processor = load_checkpoint(str(folder))
    program, exported_processor = load_exported(f"{folder}-export", **options)
    with torch.no_grad():
        expected = model(image_processor(images, return_tensors="pt")["pixel_values"]).logits
    return expected, program(exported_processor(images, return_tensors="pt")["pixel_values"]).logits


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float16", 5e-3)])
@pytest.mark.parametrize("format", RUNTIMES)
def test_an_export_answers_as_the_model_in_batches_of_any_size(tmp_path, format, dtype, tolerance):
    need(format, dtype)
    folder = save_classifier(tmp_path / "model", LABELS)
    difference = export_model(str(folder), f"{folder}-export", format, dtype).differences[dtype]
    assert difference <= tolerance
    for count in (1, 20):
        expected, actual = answers(folder, pictures(count), trust_remote_code=format == "torch")
        error = (actual.float() - expected).abs().max() / expected.abs().max()
        assert error <= 2 * tolerance


@pytest.mark.parametrize(
    "overrides",
    [{"num_channels": 1}, {"image_size": (16, 24)}, {"hidden_act": "relu"}, {"apply_layernorm": False}],
    ids=str,
)
def test_models_of_all_kinds_can_be_exported(tmp_path, overrides):
    need("onnx")
    folder = save_classifier(tmp_path / "model", LABELS, **overrides)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    height, width = np.broadcast_to(overrides.get("image_size", 16), 2).tolist()
    settings |= {"size": {"height": height, "width": width}, "num_channels": overrides.get("num_channels", 3)}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    export_model(str(folder), f"{folder}-export", "onnx")
    expected, actual = answers(folder, pictures(3))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "transformers.js"])
def test_a_checkpoint_of_timm_can_be_exported_and_keeps_its_preprocessing(tmp_path, format):
    """It is resized to a shorter side, and cropped."""
    need(format)
    (tmp_path / "model").symlink_to(TIMM_TINY)
    export_model(str(tmp_path / "model"), tmp_path / "model-export", format, "float32")
    expected, actual = answers(tmp_path / "model", pictures(2))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_a_program_of_one_batch_size_takes_others_filled_up_and_in_parts(tmp_path):
    need("onnx")
    folder = save_classifier(tmp_path / "model", LABELS)
    export_model(str(folder), f"{folder}-export", "onnx", dynamic=False, batch_size=4)
    for count in (3, 9):
        expected, actual = answers(folder, pictures(count))
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_export_runs_without_this_package_and_without_a_question_of_trust(tmp_path, format):
    need(format)
    folder = save_classifier(tmp_path / "model", LABELS)
    export_model(str(folder), f"{folder}-{format}", format)
    [picture] = pictures(1)
    np.save(tmp_path / "picture.npy", np.asarray(picture))
    result = subprocess.run(
        [sys.executable, "-c", STRANGER, f"{folder}-{format}", tmp_path / "picture.npy"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    labels, logits = result.stdout.strip().splitlines()[-1].split(";")
    assert labels == str(dict(enumerate(LABELS)))
    model, image_processor = load_checkpoint(str(folder))
    with torch.no_grad():
        expected = model(**image_processor(picture, return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, rtol=0, atol=1e-5)


def test_all_33_products_of_nano_are_quantized(tmp_path):
    need("onnx", "int8")
    import onnx

    export_model(str(ROOT / "model_cards/mixer-nano-cifar10"), tmp_path / "nano", "onnx", "int8")
    graph = onnx.load(tmp_path / "nano/model.onnx", load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["MatMulInteger"] == 33
    assert not {"MatMul", "Gemm", "Expand"} & operators.keys()


def test_a_program_that_differs_from_the_model_is_not_left_behind(tmp_path, monkeypatch):
    need("onnx")
    folder = save_classifier(tmp_path / "model", LABELS)
    monkeypatch.setattr(export, "BOUNDS", dict.fromkeys(DTYPES, -1.0))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"differs from the model by .*nothing was written"):
        export_model(str(folder), tmp_path / "out", "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    assert not any((tmp_path / "out").iterdir())


def test_what_cannot_be_exported_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'tflite': expected one of onnx, openvino"):
        export_model("missing", tmp_path / "out", "tflite")
    need("onnx")
    with pytest.raises(ValueError, match="unknown dtype 'int4': expected one of float32, float16, int8"):
        export_model("missing", tmp_path / "out", "onnx", "int4")
    folder = save_classifier(tmp_path / "model", LABELS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no empty folder"):
        export_model(str(folder), tmp_path / "full", "onnx")
    assert (tmp_path / "full/notes.txt").read_text() == "mine"
    for options in ({"batch_size": 0}, {"batch_size": 4}):
        with pytest.raises(ValueError, match="`batch_size`"):
            export_model(str(folder), tmp_path / "out", "onnx", **options)
    with pytest.raises(ValueError, match="`calibration_images` are empty"):
        export_model(str(folder), tmp_path / "out", "onnx", "int8", calibration_images=[])
    assert not (tmp_path / "out").exists()


def test_an_export_is_not_exported_again(tmp_path):
    need("onnx")
    folder = save_classifier(tmp_path / "model", LABELS)
    export_model(str(folder), tmp_path / "once", "onnx")
    with pytest.raises(ValueError, match="is an export: give the model that it was made of"):
        export_model(str(tmp_path / "once"), tmp_path / "twice", "onnx")


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


def test_the_card_names_the_model_on_the_hub_and_no_file_a_local_path(tmp_path):
    need("onnx")
    folder = save_classifier(tmp_path / "model", LABELS)
    export_model(str(folder), tmp_path / "program", "onnx", "int8", base_model="me/photos")
    for file in (tmp_path / "program").iterdir():
        for path in (tmp_path, ROOT, sys.prefix):
            assert str(path).encode() not in file.read_bytes(), file.name
    card = ModelCard.load(tmp_path / "program/README.md").data.to_dict()
    assert (card["base_model"], card["base_model_relation"]) == ("me/photos", "quantized")
    export_model(str(folder), tmp_path / "exact", "onnx", "float32", base_model="me/photos")
    assert "base_model_relation" not in ModelCard.load(tmp_path / "exact/README.md").data.to_dict()
