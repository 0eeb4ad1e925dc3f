"""Narrower numbers: half precision keeps the answer, and quantized folders load, save and run."""

import pytest
import torch
from torch._inductor import config as inductor

from transformers import TorchAoConfig
from transformers.utils import is_torchao_available, is_triton_available

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.kernels import use_kernels
from hf_mixer.low_precision import quantize


CONFIG = dict(image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2, token_mlp_dim=16, channel_mlp_dim=64)
needs_torchao = pytest.mark.skipif(not is_torchao_available(), reason="needs torchao")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MixerForImageClassification(MixerConfig(num_labels=5, initializer_range=0.2, **CONFIG)).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def images(batch_size=64):
    return torch.randn(batch_size, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, pixel_values=None):
    return model(images() if pixel_values is None else pixel_values).logits.float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_half_precision_keeps_the_answer(folder, model, dtype, scale):
    """Also with large activations: float16 ends at 65504."""
    half = MixerForImageClassification.from_pretrained(folder, dtype=dtype).eval()
    assert half.mixer.layers[0].token_mixing.fc1.weight.dtype == dtype
    assert half(images()).logits.dtype == dtype
    torch.testing.assert_close(logits(half, images() * scale), logits(model, images() * scale), rtol=0, atol=0.02)


def test_autocast_trains(model):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(images(4), labels=torch.tensor([0, 1, 2, 3]))
    assert outputs.logits.dtype == torch.bfloat16
    outputs.loss.backward()
    gradient = model.mixer.layers[0].token_mixing.fc1.weight.grad
    assert gradient.dtype == torch.float32
    assert gradient.abs().max() > 0
    model.zero_grad()


def quantize_anyway(model):
    """Quantize a model for which int8 is no gain, on every processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_mixer.low_precision.int8_problem", lambda hidden_size, device: None)
        return quantize(model, "int8")


@pytest.fixture(scope="module")
def quantized(folder):
    pytest.importorskip("torchao", reason="needs torchao")
    return quantize_anyway(MixerForImageClassification.from_pretrained(folder))


@pytest.mark.parametrize(
    ("capabilities", "hidden_size", "message"),
    [
        ({"avx2": True, "avx512_vnni": False, "avx_vnni": False}, 768, "no VNNI instructions: take .* ONNX Runtime"),
        ({"architecture": "aarch64", "dot": True, "i8mm": True}, 768, "no VNNI instructions: take .* ONNX Runtime"),
        ({"avx512_vnni": True}, 128, "hidden_size=128, it needs at least 512: take float32"),
    ],
)
def test_int8_is_refused_where_it_is_slower_than_float32(capabilities, hidden_size, message, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    model = MixerForImageClassification(MixerConfig(**{**CONFIG, "hidden_size": hidden_size}))
    with pytest.raises(ValueError, match=message):
        quantize(model, "int8")


@needs_torchao
@pytest.mark.parametrize("name", ["avx512_vnni", "avx_vnni"])
def test_int8_is_offered_where_the_processor_multiplies_it(name, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {name: True})
    narrow = quantize(MixerForImageClassification(MixerConfig(**{**CONFIG, "hidden_size": 512})), "int8")
    assert type(narrow.mixer.layers[0].channel_mixing.fc1.weight).__name__ == "Int8Tensor"


def test_int8_keeps_the_answer(model, quantized):
    """Every linear of a layer is quantized, those of token mixing as well."""
    for linear in (quantized.mixer.layers[1].token_mixing.fc1, quantized.mixer.layers[1].channel_mixing.fc2):
        assert type(linear.weight).__name__ == "Int8Tensor"
    torch.testing.assert_close(logits(quantized), logits(model), rtol=0, atol=0.05)
    assert not torch.equal(logits(quantized), logits(model))
    assert (logits(quantized).argmax(-1) == logits(model).argmax(-1)).float().mean() >= 0.95


@pytest.mark.skipif(not is_triton_available(), reason="needs triton")
def test_kernels_are_refused_for_int8(quantized):
    with pytest.raises(ValueError, match="quantized"):
        use_kernels(quantized)


def test_int8_is_saved_and_reloaded(quantized, tmp_path):
    quantized.save_pretrained(tmp_path)
    reloaded = MixerForImageClassification.from_pretrained(tmp_path).eval()
    assert type(reloaded.mixer.layers[0].token_mixing.fc1.weight).__name__ == "Int8Tensor"
    assert torch.equal(logits(reloaded), logits(quantized))


def test_int8_compiles_without_a_graph_break(quantized):
    torch._dynamo.reset()
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled), logits(quantized))


@needs_torchao
def test_int8_weights_alone(folder, model):
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    narrow = MixerForImageClassification.from_pretrained(folder, quantization_config=config).eval()
    torch.testing.assert_close(logits(narrow), logits(model), rtol=0, atol=0.05)


@needs_torchao
@pytest.mark.gpu
def test_int8_on_a_gpu_leaves_out_what_its_matrix_units_do_not_take():
    model = MixerForImageClassification(MixerConfig(num_labels=8, **{**CONFIG, "image_size": 56})).cuda().eval()
    narrow = quantize(model, "int8")  # 14 x 14 patches
    layer = narrow.mixer.layers[0]
    assert type(layer.channel_mixing.fc1.weight).__name__ == "Int8Tensor"
    assert type(layer.token_mixing.fc1.weight) is torch.nn.Parameter
    pixel_values = torch.randn(4, 3, 56, 56, device="cuda")
    torch.testing.assert_close(logits(narrow, pixel_values), logits(model, pixel_values), rtol=0, atol=0.05)


@needs_torchao
def test_settings_of_the_compiler_stay_as_they_are(folder):
    with inductor.patch(coordinate_descent_tuning=False, force_fuse_int_mm_with_mul=False):
        quantize_anyway(MixerForImageClassification.from_pretrained(folder))
        assert not inductor.coordinate_descent_tuning
        assert not inductor.force_fuse_int_mm_with_mul


def test_what_is_quantized_already_is_refused(quantized):
    with pytest.raises(ValueError, match="quantized already"):
        quantize(quantized, "int8")


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float8", "9.0 .* the model is on cpu: take bfloat16"),
        ("int4", "has to be one of int8, float8, got 'int4'"),
    ],
)
def test_other_types_are_refused(model, dtype, message):
    with pytest.raises(ValueError, match=message):
        quantize(model, dtype)
