"""The fused operator computes what the layer does. Without a GPU, Triton interprets it on the CPU, in float32."""

import copy
import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from transformers.utils import is_triton_available

from hf_mixer import MixerConfig
from hf_mixer.configuration_mixer import VARIANTS
from hf_mixer.layers_mixer import MixerLayer
from tests.helpers import ROOT, record_warnings


if not is_triton_available():
    pytest.skip("needs triton", allow_module_level=True)

import triton
import triton.language as tl

from hf_mixer.kernels import gelu, mix_tokens, token_mixing


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On a GPU, float32 is none of the types that the operator takes
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="compares float32, in Triton's interpreter")


def make_layer(config: MixerConfig, dtype: torch.dtype = DTYPE) -> MixerLayer:
    torch.manual_seed(0)
    layer = MixerLayer(config, layer_idx=0).to(DEVICE)
    for name, parameter in layer.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        nn.init.normal_(parameter, mean=float("norm.weight" in name), std=scale)
    return layer.to(dtype)


def small_layer() -> MixerLayer:
    return make_layer(MixerConfig(image_size=4, patch_size=1, hidden_size=24, token_mlp_dim=12))


def tokens(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)


def weights_of(layer: MixerLayer) -> list[nn.Parameter]:
    return [*layer.token_norm.parameters(), *layer.token_mixing.parameters()]


def run(mix, layer: MixerLayer, hidden_states: torch.Tensor) -> list[torch.Tensor]:
    """The output without gradients, with them, and the gradients."""
    inputs = hidden_states.detach().requires_grad_()
    with torch.no_grad():
        inferred = mix(layer, inputs)
    output = mix(layer, inputs)
    gradient = tokens(*output.shape, dtype=output.dtype)
    return [inferred, output, *torch.autograd.grad(output, [inputs, *weights_of(layer)], gradient)]


def assert_near(actual: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    """Compare relative to the size of each tensor."""
    for value, exact in zip(actual, expected, strict=True):
        assert (value - exact).abs().max() <= tolerance * exact.abs().max()


def compare_with_float64(layer: MixerLayer, hidden_states: torch.Tensor, tolerance: float) -> None:
    exact = run(MixerLayer.mix_tokens, copy.deepcopy(layer).double(), hidden_states.double())
    assert_near(run(mix_tokens, layer, hidden_states), exact, tolerance)


@interpreted
@pytest.mark.parametrize(
    ("variant", "sizes"),
    [
        # All numbers of tokens that the variants have, and channels that fill a block and a half
        ("S/32", {"hidden_size": 24}),
        ("B/16", {"hidden_size": 24, "hidden_act": "gelu_pytorch_tanh"}),
        ("H/14", {"hidden_size": 8}),
        ("cifar10", {"hidden_size": 24}),
        # Nothing to pad, sizes that fill no block, and one
        ("cifar10", {"hidden_size": 16, "image_size": 16, "token_mlp_dim": 64, "hidden_act": "gelu_pytorch_tanh"}),
        ("cifar10", {"hidden_size": 33, "image_size": (12, 28), "token_mlp_dim": 35}),
        ("cifar10", {"hidden_size": 3, "image_size": 4, "token_mlp_dim": 1}),
    ],
)
def test_equal_to_float64(variant, sizes):
    config = MixerConfig.from_variant(variant, **sizes)
    compare_with_float64(make_layer(config), tokens(2, config.num_patches, config.hidden_size), 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_float64_within_rounding_on_a_gpu(name, dtype):
    config = MixerConfig.from_variant(name)
    hidden_states = tokens(3, config.num_patches, config.hidden_size, dtype=dtype)
    compare_with_float64(make_layer(config, dtype), hidden_states, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("stride", [1, 2])
def test_weights_may_lie_anywhere(stride):
    layer, hidden_states = small_layer(), tokens(2, 24, 16).transpose(1, 2)
    expected = run(MixerLayer.mix_tokens, layer, hidden_states)
    for parameter in weights_of(layer):
        # As in a buffer that holds the weights of several layers, one after the other or in turn
        buffer = parameter.new_empty(stride * parameter.numel() + 1)[1::stride]
        parameter.data = buffer[: parameter.numel()].view_as(parameter).copy_(parameter.data)
    assert_near(run(mix_tokens, layer, hidden_states), expected, 64 * torch.finfo(DTYPE).eps)


@interpreted
def test_gradients_have_gradients_and_a_warning_says_how(monkeypatch):
    layer, lines = small_layer(), record_warnings(monkeypatch, token_mixing.logger)

    def penalty_gradients(mix):
        inputs = tokens(2, 16, 24).requires_grad_()
        (gradient,) = torch.autograd.grad(mix(layer, inputs).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [inputs, *weights_of(layer)])

    for _ in range(2):
        assert_near(penalty_gradients(mix_tokens), penalty_gradients(MixerLayer.mix_tokens), 1e-5)
    assert len(lines) == 1
    assert "gradients of gradients" in lines[0]


def test_operator_keeps_to_the_rules_of_torch():
    inputs = [tokens(2, 16, 24, dtype=torch.float32).requires_grad_(), *weights_of(small_layer().float())]
    scale = torch.tensor([0.0, 2.0], device=DEVICE)
    torch.library.opcheck(torch.ops.hf_mixer.token_mixing.default, (*inputs, scale, 1e-6, True))


def test_weights_of_other_sizes_are_refused():
    layer = small_layer()
    for shape in ((2, 20, 24), (2, 16, 32)):
        with pytest.raises(ValueError, match="need weights of shapes"):
            mix_tokens(layer, tokens(*shape))


def test_a_second_import_leaves_the_operator_of_the_first():
    operator = torch.ops.hf_mixer.token_mixing.default
    importlib.reload(token_mixing)
    assert torch.ops.hf_mixer.token_mixing.default is operator


@interpreted
@pytest.mark.parametrize("tanh", [False, True])
def test_gate_of_narrow_types_is_near_gelu(tanh):
    x = torch.cat([torch.linspace(-8, 8, 20_001), torch.tensor([-1e4, -100.0, 100.0, 1e4])])
    exact = x.double().requires_grad_()
    output = nn.functional.gelu(exact, approximate="tanh" if tanh else "none")
    output.sum().backward()
    gate, slope = torch.empty_like(x), torch.empty_like(x)
    evaluate_gate[(1,)](x, gate, slope, len(x), tanh, triton.next_power_of_2(len(x)))
    within = x.abs() <= 8
    assert (x * gate - output)[within].abs().max() < 5e-5
    assert ((x * gate - output) / x)[~within].abs().max() < 1e-5
    assert (gate + x * slope - exact.grad).abs().max() < 2e-4


@triton.jit
def evaluate_gate(x_pointer, gate_pointer, slope_pointer, count, TANH: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    x = tl.load(x_pointer + index, mask=index < count, other=0.0)
    gate = gelu.gelu_gate(x, TANH, False)
    tl.store(gate_pointer + index, gate, mask=index < count)
    tl.store(slope_pointer + index, gelu.gelu_gate_slope(x, gate, TANH, False), mask=index < count)


def test_kernels_compile_for_hopper(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.kernels.compile_for_hopper"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [name for name, *_ in lines] == ["_token_mixing_forward", "_token_mixing_backward"]
    for _, uses_matrix_units, shared in lines:
        assert uses_matrix_units == "True"
        # A program can have 227 KiB of a multiprocessor's shared memory
        assert int(shared) <= 227 * 1024
