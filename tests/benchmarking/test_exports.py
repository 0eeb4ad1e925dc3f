import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_mixer import load_checkpoint
from hf_mixer.benchmarking import exports
from hf_mixer.benchmarking.exports import measure_exports
from hf_mixer.benchmarking.results import keep_exports, make_export_table

from ..helpers import needs_export, save_classifier


LABELS = ["ant", "bee", "cat", "dog"]
ABOUT = {
    "device": "Intel(R) Xeon(R) Processor, 2 cores, AMX",
    "threads": 2,
    "date": "2026-01-31",
    "versions": {"hf_mixer": "0.1", "transformers": "5.24.0", "torch": "2.13.0+cpu", "openvino": "2026.4"},
}
ROW = {
    "runtime": "OpenVINO",
    "dtype": "int8",
    "bytes": 812_345,
    "top1": 0.7956,
    "num_images": 5000,
    "step_time_1": 0.5678,
    "step_time_32": 12.35,
    "spread_1": 0.01,
    "spread_32": 0.02,
    "threads_1": 1,
    "threads_32": 2,
}


@pytest.fixture
def only_onnx(monkeypatch):
    """In float32 and float16, without the minute that compilers and the clock take: every step takes 2 seconds."""
    monkeypatch.setattr(exports, "RUN_HERE", ["onnx"])
    monkeypatch.setattr(exports, "DTYPES", ("float32", "float16"))
    monkeypatch.setattr(exports, "compile_for_inference", lambda model, batch_size: model)
    monkeypatch.setattr(exports, "time_interleaved", lambda steps, *_: dict.fromkeys(steps, [2.0] * 3))


@needs_export("onnx")
def test_every_way_to_run_a_model_has_its_size_accuracy_and_time(tmp_path, only_onnx):
    folder = save_classifier(tmp_path / "model", LABELS)
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(8)]
    model, image_processor = load_checkpoint(str(folder))
    with torch.no_grad():
        labels = model(**image_processor(images, return_tensors="pt")).logits.argmax(dim=1)
    labels[0] = (labels[0] + 1) % 4
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=LABELS)})
    dataset = Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)
    rows = measure_exports(str(folder), 3, dataset.cast_column("image", ImageFeature(decode=False)))
    assert [(row["runtime"], row["dtype"]) for row in rows] == [
        ("PyTorch, eager", "float32"),
        ("PyTorch, compiled", "float32"),
        ("PyTorch, eager", "bfloat16"),
        ("PyTorch, compiled", "bfloat16"),
        ("ONNX Runtime", "float32"),
        ("ONNX Runtime", "float16"),
    ]
    assert all(row["step_time_1"] == row["step_time_32"] == 2000 for row in rows)
    assert rows[0]["bytes"] == 2 * rows[2]["bytes"] == 4 * model.num_parameters()
    assert rows[4]["bytes"] > 4 * model.num_parameters()
    assert [row["top1"] for row in rows if row["dtype"] == "float32"] == [7 / 8] * 3


@needs_export("onnx")
def test_what_cannot_be_exported_is_left_out_with_its_reason(tmp_path, only_onnx, monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("no recipe keeps the answers")

    monkeypatch.setattr(exports, "export_model", refuse)
    folder = save_classifier(tmp_path / "model", LABELS)
    with pytest.warns(UserWarning, match=r"ONNX Runtime in float\d\d is left out: no recipe keeps the answers"):
        rows = measure_exports(str(folder), 1)
    assert {row["runtime"] for row in rows} == {"PyTorch, eager", "PyTorch, compiled"}
    assert {row["top1"] for row in rows} == {None}


def test_figures_become_a_table(tmp_path):
    unmeasured = {**ROW, "runtime": "PyTorch, eager", "dtype": "float32", "top1": None}
    path = keep_exports(tmp_path, [unmeasured, ROW], "Mixer nano", "cifar10", ABOUT)
    assert path.name == "exports-mixer_nano-pt213-intel_xeon_processor_2_cores_amx.csv"
    head, _, names, _, first, second = make_export_table(path).splitlines()
    assert head == (
        "Exports of Mixer nano, top-1 on 5,000 images of cifar10, on Intel(R) Xeon(R) Processor, 2 cores, AMX, with 2 "
        "threads (torch 2.13.0+cpu, transformers 5.24.0, hf_mixer 0.1, openvino 2026.4; 2026-01-31):"
    )
    assert names == "| runs in | type | size | top-1 | ms, batch 1 | ms, batch 32 |"
    assert first == "| PyTorch, eager | float32 | 0.8 MB |  | 0.57 | 12.35 |"
    assert second == "| OpenVINO | int8 | 0.8 MB | 79.56 % | 0.57 | 12.35 |"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="holds no results of exports"):
        make_export_table(path)
