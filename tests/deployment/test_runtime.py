# SPDX-License-Identifier: Apache-2.0
"""An export is called like the model that it was made of, in its own runtime, and says what it cannot do."""

import json
import logging
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from transformers import pipeline

from hf_mixer import load_checkpoint
from hf_mixer.deployment import export_model, load_exported
from hf_mixer.deployment.runtime import MANIFEST_NAME, RECORD_KEY, names_export
from tests.helpers import needs_export, save_classifier


LABELS = ["ant", "bee", "cat", "dog"]


needs_onnx = needs_export("onnx")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"), LABELS)


@pytest.fixture(scope="module")
def onnx_folder(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    export_model(str(model_folder), folder, "onnx")
    return folder


def photographs(count):
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (16 + index, 30 - index, 3), dtype=np.uint8)) for index in range(count)
    ]


@pytest.mark.parametrize("format", [pytest.param(format, marks=needs_export(format)) for format in ("onnx", "torch")])
def test_a_program_of_one_batch_size_takes_others_filled_up_and_in_parts(format, model_folder, tmp_path):
    export_model(str(model_folder), tmp_path / "export", format, dynamic=False, batch_size=3)
    model, image_processor = load_exported(tmp_path / "export", trust_remote_code=True)
    assert (model.format, model.program_dtype) == (format, "float32")
    original, _ = load_checkpoint(str(model_folder))
    for count in (1, 3, 5):
        inputs = image_processor(photographs(count), return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, original(**inputs).logits, rtol=1e-5, atol=1e-5)


@needs_onnx
@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_a_pipeline_takes_an_export_without_a_word_of_warning(
    problem_type, onnx_folder, tmp_path, monkeypatch, caplog, recwarn
):
    source, folder = tmp_path / "model", edit_record(onnx_folder, tmp_path / "export")
    save_classifier(source, LABELS, problem_type=problem_type)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": problem_type}))
    images = photographs(5)
    expected = pipeline("image-classification", str(source), device="cpu")(images, batch_size=2)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    recwarn.clear()
    caplog.clear()
    model, image_processor = load_exported(folder)
    classifier = pipeline("image-classification", model, image_processor=image_processor)
    actual = classifier(images, batch_size=2)
    assert [record.getMessage() for record in caplog.records] == []
    assert [str(warning.message) for warning in recwarn] == []
    for ours, theirs in zip(actual, expected, strict=True):
        assert [entry["label"] for entry in ours] == [entry["label"] for entry in theirs]
        scores = [entry["score"] for entry in theirs]
        assert [entry["score"] for entry in ours] == pytest.approx(scores, abs=1e-5)
    assert classifier(images[0]) == actual[0]


@needs_onnx
def test_several_threads_call_a_model_at_a_time(onnx_folder, model_folder):
    model, _ = load_exported(onnx_folder, num_callers=2)
    original, _ = load_checkpoint(str(model_folder))
    batches = torch.randn(16, 4, 3, 16, 16)
    outputs = {}

    def work(first):
        for index in range(first, len(batches), 2):
            outputs[index] = model(batches[index]).logits

    threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        for index, batch in enumerate(batches):
            torch.testing.assert_close(outputs[index], original(batch).logits, rtol=1e-5, atol=1e-5)


@needs_onnx
@pytest.mark.parametrize(("num_callers", "expected"), [(1, 6), (4, 2), (8, 1)])
def test_callers_share_the_threads_of_onnx_runtime(num_callers, expected, onnx_folder):
    model, _ = load_exported(onnx_folder, num_threads=6, num_callers=num_callers)
    (runner,) = model.exported.runners.values()
    assert runner.session.get_session_options().intra_op_num_threads == expected


def edit_record(folder, target, **changes):
    """Copy an export, with another record of it in its manifest."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((target / MANIFEST_NAME).read_text())
    manifest[RECORD_KEY] |= changes
    (target / MANIFEST_NAME).write_text(json.dumps(manifest))
    return target


@needs_onnx
def test_one_of_several_programs_is_chosen_by_its_type(onnx_folder, tmp_path):
    folder = edit_record(onnx_folder, tmp_path / "a", programs={"int8": "q8.onnx", "float32": "model.onnx"})
    model, _ = load_exported(folder, "float32")
    assert model.program_dtype == "float32"
    assert model.files[0] == folder / "model.onnx"
    assert not any("q8" in path.name for path in model.files)
    with pytest.raises(ValueError, match="holds no program in float16: it has int8, float32"):
        load_exported(folder, "float16")
    with pytest.raises(ValueError, match=r"lacks q8\.onnx, .*export again"):
        load_exported(folder)


@needs_onnx
def test_images_are_resized_where_the_program_would_do_it(onnx_folder, model_folder, tmp_path):
    """As in the layout of transformers.js, whose own settings say that images are not resized."""
    _, processor = load_checkpoint(str(model_folder))
    settings = json.loads((onnx_folder / "preprocessor_config.json").read_text())
    folder = edit_record(onnx_folder, tmp_path / "a", image_processor=settings)
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "do_resize": False}))
    _, image_processor = load_exported(folder)
    (image,) = photographs(1)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(image_processor(image, return_tensors="pt")["pixel_values"], expected)


@needs_onnx
def test_what_an_export_cannot_do_is_said(onnx_folder, tmp_path):
    model, _ = load_exported(onnx_folder)
    with pytest.raises(
        ValueError, match=r"Expected pixel_values of shape \(batch_size, 3, 16, 16\), got \(1, 3, 8, 8\)"
    ):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="computes no loss"):
        model(torch.zeros(1, 3, 16, 16), labels=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"holds no export\.json: expected a folder that `hf-mixer export` wrote"):
        load_exported(tmp_path)
    with pytest.raises(ValueError, match="no folder here, and no name of a repository"):
        load_exported(tmp_path / "nothing")


@needs_onnx
def test_a_missing_runtime_is_named_with_its_installation(onnx_folder, monkeypatch):
    monkeypatch.setattr(
        "hf_mixer.deployment.formats.find_spec", lambda name: None if name == "onnxruntime" else object()
    )
    with pytest.raises(ImportError, match="^onnxruntime is not installed: pip install onnxruntime$"):
        load_exported(onnx_folder)


@needs_onnx
def test_pickled_programs_need_trust(onnx_folder, tmp_path):
    with pytest.raises(ValueError, match="--trust_remote_code") as error:
        load_exported(edit_record(onnx_folder, tmp_path / "a", format="torch"))
    assert "\n" not in str(error.value)


@needs_onnx
def test_exports_are_told_from_models(onnx_folder, model_folder):
    assert names_export(onnx_folder)
    assert not names_export(model_folder)
    assert not names_export(model_folder / "model.safetensors")
    assert names_export("me/photos", "onnx")


@needs_onnx
def test_exports_come_from_the_hub_with_what_they_need_and_no_more(onnx_folder, monkeypatch):
    asked = []

    def download(repo_id, patterns, revision=None, **hub):
        asked.append((repo_id, patterns, revision, hub))
        return onnx_folder.parent

    monkeypatch.setattr("hf_mixer.deployment.runtime.download", download)
    model, _ = load_exported("me/photos", subfolder="onnx", revision="v2")
    assert model.config.num_labels == 4
    ((repo_id, patterns, revision, _),) = asked
    assert (repo_id, revision) == ("me/photos", "v2")
    assert "onnx/*.onnx" in patterns
    assert all(pattern.startswith("onnx/") for pattern in patterns)
