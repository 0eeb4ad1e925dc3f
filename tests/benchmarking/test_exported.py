import torch

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.benchmarking.exported import run_exported

from ..helpers import needs_export


@needs_export("onnx", "int8")
def test_a_runtime_answers_as_the_model():
    torch.manual_seed(0)
    sizes = dict(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, token_mlp_dim=8, channel_mlp_dim=32)
    model = MixerForImageClassification(MixerConfig(**sizes, num_labels=3)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    pixel_values = torch.randn(2, 3, 16, 16)
    run = run_exported(model, "onnxruntime", "int8")
    with torch.inference_mode():
        expected = model(pixel_values).logits
        actual = run(pixel_values).logits
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.1 * expected.abs().max().item())


@needs_export("openvino")
def test_openvino_computes_in_the_type_of_the_case():
    sizes = dict(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, token_mlp_dim=8, channel_mlp_dim=32)
    model = MixerForImageClassification(MixerConfig(**sizes, num_labels=3)).eval()
    types = {}
    for dtype in ("float32", "bfloat16"):
        (runner,) = run_exported(model, "openvino", dtype).exported.runners.values()
        types[dtype] = runner.compiled_model.get_property("INFERENCE_PRECISION_HINT").to_string()
    assert types["float32"] == "f32"
    # Without the instructions it stays with float32
    assert types["bfloat16"] in ("bf16", "f32")
