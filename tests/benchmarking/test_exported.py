import pytest
import torch

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.benchmarking import exported
from hf_mixer.benchmarking.exported import RUNTIMES, export_model, missing_reason


@pytest.mark.parametrize(
    ("runtime", "dtype", "tolerance"),
    [
        ("onnxruntime", "float32", 1e-5),
        ("onnxruntime", "int8", 0.1),
        ("openvino", "float32", 1e-5),
        ("openvino", "bfloat16", 0.1),
    ],
)
def test_a_runtime_answers_as_the_model(runtime, dtype, tolerance):
    reason = missing_reason(runtime)
    if reason is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    sizes = dict(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, token_mlp_dim=8, channel_mlp_dim=32)
    model = MixerForImageClassification(MixerConfig(**sizes, num_labels=3)).eval()
    pixel_values, others = torch.randn(2, 2, 3, 16, 16)
    run = export_model(model, pixel_values, runtime, dtype)
    with torch.inference_mode():
        expected = model(others).logits
        torch.testing.assert_close(run(others).logits, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_runtime_is_named_with_its_installation(monkeypatch, runtime):
    monkeypatch.setattr(exported, "find_spec", lambda name: None)
    packages = RUNTIMES[runtime]
    assert all(name in missing_reason(runtime).split(" not installed")[0] for name in packages)
    assert missing_reason(runtime).endswith(f"pip install {' '.join(packages)}")


def test_exported_models_need_a_transformers_that_runs_them(monkeypatch):
    monkeypatch.setattr(exported, "find_spec", lambda name: None if name.startswith("transformers") else name)
    assert "transformers 5.23" in missing_reason("openvino")
