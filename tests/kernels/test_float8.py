"""
Channel mixing in float8. Without a GPU, Triton interprets the kernels in float32, which shows that the scales, the bias and
GELU are right; on a GPU, outputs are within what rounding to e4m3 makes.
"""

import copy
import math

import pytest
import torch
from torch import nn

from transformers.utils import is_triton_available

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.layers_mixer import MixerLayer
from hf_mixer.low_precision import has_float8, quantize


if not is_triton_available():
    pytest.skip("needs triton", allow_module_level=True)

from hf_mixer.kernels import float8, gpu_float8, suitability
from hf_mixer.kernels.float8 import use_float8
from hf_mixer.kernels.gpu_launching import INTERPRETED
from tests.helpers import record_warnings


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_FLOAT8 = has_float8(torch.device(DEVICE))
if not (INTERPRETED or HAS_FLOAT8):
    pytest.skip("needs a Hopper GPU, or Triton's interpreter", allow_module_level=True)

DTYPE = torch.float32 if INTERPRETED else torch.bfloat16
# Of what a layer adds to its tokens, in norm: two products of operands that are off by 3 % each
TOLERANCE = 1e-5 if INTERPRETED else 0.08
CONFIG = dict(
    image_size=16,
    patch_size=4,
    hidden_size=48,
    num_hidden_layers=2,
    token_mlp_dim=32,
    channel_mlp_dim=80,
    hidden_act="gelu_pytorch_tanh",
)
interpreted = pytest.mark.skipif(not INTERPRETED, reason="compares float32, in Triton's interpreter")


def random(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def make_layer(**overrides) -> MixerLayer:
    torch.manual_seed(0)
    layer = MixerLayer(MixerConfig(**{**CONFIG, **overrides}), layer_idx=0)
    for name, parameter in layer.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        nn.init.normal_(parameter, mean=float("norm.weight" in name), std=scale)
    return layer.to(DEVICE, DTYPE).eval()


def make_model(**overrides) -> MixerForImageClassification:
    torch.manual_seed(0)
    config = MixerConfig(num_labels=5, initializer_range=0.2, **{**CONFIG, **overrides})
    return MixerForImageClassification(config).to(DEVICE, DTYPE).eval()


def images(batch_size: int = 4) -> torch.Tensor:
    return random(batch_size, 3, 16, 16)


@torch.inference_mode()
def logits_of(model) -> torch.Tensor:
    return model(images()).logits.float()


@torch.no_grad()
def error_of(layer: MixerLayer, hidden_states: torch.Tensor) -> float:
    """The error of what a layer adds to its tokens, in norm, against float64."""
    exact = copy.deepcopy(layer).double()(hidden_states.double())
    output = use_float8(layer)(hidden_states)
    assert output.dtype == hidden_states.dtype
    return ((output - exact).norm() / (exact - hidden_states).norm()).item()


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        # Neither rows nor columns fill a block
        {"hidden_size": 16, "channel_mlp_dim": 16, "image_size": 4},
        {"hidden_size": 272, "channel_mlp_dim": 144, "image_size": 48},
    ],
)
def test_near_float64(sizes):
    layer = make_layer(**sizes)
    num_patches = layer.token_mixing.fc1.in_features
    assert error_of(layer, random(3, num_patches, layer.channel_mixing.fc1.in_features)) < TOLERANCE


def test_gelu_of_the_hardware_is_near_both_forms():
    assert error_of(make_layer(hidden_act="gelu"), random(3, 16, 48)) < max(TOLERANCE, 1e-3)


@pytest.mark.parametrize("what", ["large weights", "zeros", "unlike hidden units"])
def test_nothing_leaves_the_range(monkeypatch, what):
    layer, tokens = make_layer(), random(3, 16, 48)
    mlp = layer.channel_mixing
    with torch.no_grad():
        if what == "large weights":
            mlp.fc1.weight *= 1000
        elif what == "zeros":
            mlp.fc1.weight[3] = mlp.fc1.bias[3] = mlp.fc2.weight[5] = 0
        else:
            factors = torch.logspace(-2, 2, 80, device=DEVICE, dtype=DTYPE)
            mlp.fc1.weight *= factors[:, None]
            mlp.fc1.bias *= factors
            mlp.fc2.weight /= factors
    # float32 stands in for float8 in the interpreter, and would not overflow
    hidden, operator = [], torch.ops.hf_mixer.float8_linear
    monkeypatch.setattr(
        torch.ops.hf_mixer, "float8_linear", lambda *args: hidden.append(operator(*args)) or hidden[-1]
    )
    assert error_of(layer, tokens) < TOLERANCE
    assert hidden[0].float().abs().max() <= gpu_float8.LARGEST
    for weight in (mlp.float8_weight_1, mlp.float8_weight_2):
        assert weight.view(gpu_float8.FLOAT8).float().abs().max() <= gpu_float8.LARGEST


def test_normalized_values_fill_the_range():
    for num_channels in (16, 512, 768, 1280):
        assert gpu_float8.LARGEST / 2 < gpu_float8.normal_factor(num_channels) * math.sqrt(num_channels)
        x = torch.zeros(1, num_channels, device=DEVICE, dtype=DTYPE)
        x[0, 3] = 1  # as far from the others as it can be
        rows = torch.ops.hf_mixer.float8_normalize(x, 0.0).float()
        assert rows.isfinite().all()
        assert gpu_float8.LARGEST / 2.5 < rows.abs().max() <= gpu_float8.LARGEST


def test_errors_of_a_weight_make_up_for_each_other(monkeypatch):
    monkeypatch.setattr(float8, "FLOAT8", torch.float8_e4m3fn)
    weight = random(48, 64, dtype=torch.float32) * 64
    # Values that depend on each other, as those of a network do
    x = random(1024, 16, dtype=torch.float32) @ random(16, 64, dtype=torch.float32)
    nearest, rounded = float8.round_with(weight, None), float8.round_with(weight, x.T @ x)
    assert nearest.dtype == rounded.dtype == torch.float8_e4m3fn
    errors = [(x @ (narrow.float() - weight).T).norm() for narrow in (nearest, rounded)]
    assert errors[1] < 0.5 * errors[0]
    unlike = x.clone()
    unlike[:, 1:] = 0
    assert float8.round_with(weight, unlike.T @ unlike).float().isfinite().all()
    assert torch.equal(float8.round_with(weight, 0 * unlike.T @ unlike).float(), nearest.float())


def test_weights_are_rounded_for_images():
    model, reference = make_model(), make_model()
    images_like = float8.natural_noise(model.config, 8)
    assert images_like.shape == (8, 3, 16, 16)
    assert 0.3 < images_like.std() < 0.6
    assert torch.equal(images_like, float8.natural_noise(model.config, 8))
    assert use_float8(model, images_like.to(DEVICE, DTYPE)) is model
    assert float8.uses_float8(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    output, expected = logits_of(model), logits_of(reference)
    assert (output - expected).norm() < max(TOLERANCE, 0.05) * expected.norm()


@interpreted
def test_operators_keep_to_the_rules_of_torch():
    rows, weight = random(2, 16, 48), random(32, 48)
    torch.library.opcheck(torch.ops.hf_mixer.float8_normalize.default, (rows.mT, 1e-6))
    torch.library.opcheck(torch.ops.hf_mixer.float8_linear.default, (rows, weight, random(3, 32), None))
    torch.library.opcheck(torch.ops.hf_mixer.float8_linear.default, (rows, weight, random(2, 32), random(2, 16, 32)))


@pytest.mark.parametrize(
    ("weight", "factors", "residual"),
    [
        ((32, 32), (3, 32), None),
        ((32, 48), (3, 48), None),
        ((32, 48), (2, 32), None),
        ((24, 48), (3, 24), None),
        ((32, 48), (2, 32), (2, 32, 16)),
        ((32, 48), (3, 32), (2, 16, 32)),
    ],
)
def test_what_does_not_fit_is_refused(weight, factors, residual):
    x, weight = (random(*shape).to(gpu_float8.FLOAT8) for shape in ((2, 16, 48), weight))
    residual = None if residual is None else random(*residual)
    with pytest.raises(ValueError, match="tokens of shape .* do not fit"):
        torch.ops.hf_mixer.float8_linear(x, weight, random(*factors, dtype=torch.float32), residual)


def test_the_weights_stay_and_move_with_the_model(tmp_path):
    reference, model = make_model(), use_float8(make_model())
    state = reference.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    output = logits_of(model)
    assert (output - logits_of(reference)).norm() < max(TOLERANCE, 0.02) * output.norm()
    assert torch.equal(logits_of(copy.deepcopy(model)), output)
    assert torch.equal(logits_of(copy.deepcopy(model).cpu().double().to(DEVICE, DTYPE)), output)
    model.save_pretrained(tmp_path)
    reloaded = MixerForImageClassification.from_pretrained(tmp_path, dtype=DTYPE).to(DEVICE).eval()
    assert torch.equal(logits_of(reloaded), logits_of(reference))


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    graphs, model = [], use_float8(make_model())
    compiled = torch.compile(
        model, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph.code) or graph.forward
    )
    assert torch.equal(logits_of(compiled), logits_of(model))
    assert graphs[0].count("torch.ops.hf_mixer.float8_linear") == 4


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("in training mode", lambda model: model.train()),
        ("with hooks", lambda model: model.mixer.layers[0].channel_norm.register_forward_hook(lambda *_: None)),
    ],
)
def test_what_comes_later_is_computed_by_the_layers(monkeypatch, message, change):
    lines, model, plain = record_warnings(monkeypatch, suitability.logger), use_float8(make_model()), make_model()
    for each in (model, plain):
        change(each)
    torch.testing.assert_close(logits_of(model), logits_of(plain), rtol=0.02, atol=0.02)
    assert message in lines[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(hidden_act="relu"), "activation ReLU, expected `gelu`"),
        (dict(hidden_size=40), "of 40, 32, 80, expected multiples of 16"),
        (dict(channel_mlp_dim=72), "of 48, 32, 72, expected multiples of 16"),
    ],
)
def test_other_networks_are_refused(overrides, message):
    model = make_model(**overrides)
    with pytest.raises(ValueError, match=f"float8 cannot be used: `mixer.layers.0` .*{message}"):
        use_float8(model)
    assert all(layer.kernel is None for layer in model.mixer.layers)
    with pytest.raises(ValueError, match="`Linear` holds no Mixer layers"):
        use_float8(nn.Linear(2, 2))


def test_triton_is_needed(monkeypatch):
    monkeypatch.setattr(float8.gpu, "HAS_TRITON", False)
    with pytest.raises(ImportError, match="pip install triton"):
        use_float8(make_model())


def test_what_is_in_float8_is_not_quantized_again():
    with pytest.raises(ValueError, match="quantized already"):
        quantize(use_float8(make_model()), "float8")


needs_float8 = pytest.mark.skipif(not HAS_FLOAT8, reason="needs a Hopper GPU")


@needs_float8
@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["S/16", "B/16", "B/32"])
def test_a_layer_of_a_variant_on_a_gpu(variant):
    config = MixerConfig.from_variant(variant).to_dict()
    sizes = ("image_size", "patch_size", "hidden_size", "token_mlp_dim", "channel_mlp_dim", "hidden_act")
    layer = make_layer(**{name: config[name] for name in sizes})
    tokens = random(8, layer.token_mixing.fc1.in_features, config["hidden_size"])
    assert error_of(layer, tokens) < TOLERANCE


@needs_float8
@pytest.mark.gpu
@torch.no_grad()
def test_products_are_those_of_the_rounded_operands_on_a_gpu():
    x, weight = (random(*shape).to(torch.float8_e4m3fn) for shape in ((300, 768), (3072, 768)))
    scale, bias = 0.03 * random(3072, dtype=torch.float32).abs(), random(3072, dtype=torch.float32)
    before = (x.double() @ weight.double().T) * scale + bias
    output = torch.ops.hf_mixer.float8_linear(x, weight, torch.stack([scale, bias, torch.full_like(scale, 8)]), None)
    expected = 16 * nn.functional.gelu(before, approximate="tanh")
    assert ((output.double() - expected).abs() <= 0.07 * expected.abs() + 0.05).all()
    residual = random(300, 3072)
    output = torch.ops.hf_mixer.float8_linear(x, weight, torch.stack([scale, bias]), residual)
    expected = before + residual
    assert (output - expected).norm() <= 5e-3 * expected.norm()


@needs_float8
@pytest.mark.gpu
def test_quantize_returns_a_copy_in_bfloat16():
    model = make_model().float()
    narrow = quantize(model, "float8")
    assert model.dtype == torch.float32
    assert narrow.dtype == torch.bfloat16
    assert all(layer.kernel is None for layer in model.mixer.layers)
    output = logits_of(narrow)
    with torch.no_grad():
        expected = model(images().float()).logits
    assert (output - expected).norm() < 0.05 * expected.norm()


@needs_float8
@pytest.mark.gpu
def test_compiled_on_a_gpu():
    torch._dynamo.reset()
    model = quantize(make_model(), "float8")
    compiled = torch.compile(model, fullgraph=True)
    output = logits_of(model)
    assert (logits_of(compiled) - output).norm() < 0.02 * output.norm()
