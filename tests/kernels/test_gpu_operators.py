"""The operators of the kernels compute what torch does. Without a GPU, Triton interprets them on the CPU, in float32."""

import copy
import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from transformers.utils import is_triton_available

from hf_mixer import MixerConfig
from hf_mixer.configuration_mixer import VARIANTS
from hf_mixer.layers_mixer import MixerLayer
from tests.helpers import ROOT


if not is_triton_available():
    pytest.skip("needs triton", allow_module_level=True)

import triton
import triton.language as tl

from hf_mixer.kernels import gpu_gelu as gelu
from hf_mixer.kernels import gpu_linear as linear
from hf_mixer.kernels.gpu import compute_layer


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On a GPU, float32 is none of the types that the operators take
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="compares float32, in Triton's interpreter")


def random(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def make_layer(config: MixerConfig, dtype: torch.dtype = DTYPE) -> MixerLayer:
    torch.manual_seed(0)
    layer = MixerLayer(config, layer_idx=0).to(DEVICE)
    for name, parameter in layer.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        nn.init.normal_(parameter, mean=float("norm.weight" in name), std=scale)
    return layer.to(dtype).eval()


@torch.no_grad()
def compare_with_float64(layer: MixerLayer, hidden_states: torch.Tensor, tolerance: float) -> None:
    exact = copy.deepcopy(layer).double()(hidden_states.double())
    output = compute_layer(layer, hidden_states)
    # The residual connection would hide an error
    difference = (output - exact).abs().max()
    assert difference <= tolerance * (exact - hidden_states).abs().max()


@interpreted
@pytest.mark.parametrize(
    ("variant", "sizes"),
    [
        # All numbers of tokens that the variants have, and sizes that fill no block of a kernel
        ("S/32", {"hidden_size": 24, "channel_mlp_dim": 40}),
        ("B/16", {"hidden_size": 24, "channel_mlp_dim": 136, "hidden_act": "gelu_pytorch_tanh"}),
        ("H/14", {"hidden_size": 8, "channel_mlp_dim": 16}),
        ("cifar10", {"hidden_size": 24, "channel_mlp_dim": 96}),
        # Tokens in no multiple of anything, and more than others have
        ("cifar10", {"hidden_size": 8, "channel_mlp_dim": 16, "image_size": (12, 28), "token_mlp_dim": 40}),
        ("cifar10", {"hidden_size": 4, "channel_mlp_dim": 4, "image_size": 4, "token_mlp_dim": 4}),
        ("cifar10", {"hidden_size": 8, "channel_mlp_dim": 8, "image_size": 72, "token_mlp_dim": 8}),
    ],
)
def test_equal_to_float64(variant, sizes):
    config = MixerConfig.from_variant(variant, **sizes)
    compare_with_float64(make_layer(config), random(2, config.num_patches, config.hidden_size), 1e-5)


@interpreted
@pytest.mark.parametrize("tile", linear.TILES)
@pytest.mark.parametrize("over_tokens", [False, True])
def test_every_tile_computes_the_same(monkeypatch, tile, over_tokens):
    monkeypatch.setattr(linear, "TILES", [tile])
    x, weight, bias = random(2, 140, 140), random(300, 140), random(300)
    residual = random(2, 300, 140) if over_tokens else random(2, 140, 300)
    output = torch.ops.hf_mixer.linear(x, weight, bias, residual, None, over_tokens)
    expected = (F.linear(x.mT, weight, bias).mT if over_tokens else F.linear(x, weight, bias)) + residual
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_float64_within_rounding_on_a_gpu(name, batch_size, dtype):
    config = MixerConfig.from_variant(name)
    hidden_states = random(batch_size, config.num_patches, config.hidden_size, dtype=dtype)
    compare_with_float64(make_layer(config, dtype), hidden_states, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("stride", [1, 2])
def test_weights_may_lie_anywhere(stride):
    layer = make_layer(MixerConfig(image_size=4, patch_size=1, hidden_size=24, token_mlp_dim=16, channel_mlp_dim=8))
    hidden_states = random(2, 24, 16).transpose(1, 2)
    with torch.no_grad():
        expected = compute_layer(layer, hidden_states)
        for parameter in layer.parameters():
            # As in a buffer that holds the weights of several layers, one after the other or in turn
            buffer = parameter.new_empty(stride * parameter.numel() + 1)[1::stride]
            parameter.data = buffer[: parameter.numel()].view_as(parameter).copy_(parameter.data)
        assert torch.equal(compute_layer(layer, hidden_states), expected)


@torch.no_grad()
def test_one_image_may_have_any_stride():
    layer = make_layer(MixerConfig(image_size=4, patch_size=1, hidden_size=24, token_mlp_dim=16, channel_mlp_dim=8))
    hidden_states = random(1, 16, 24)
    view = hidden_states.as_strided(hidden_states.shape, (1, 24, 1))
    assert torch.equal(compute_layer(layer, view), compute_layer(layer, hidden_states))


@pytest.mark.parametrize("over_tokens", [False, True])
def test_operators_keep_to_the_rules_of_torch(over_tokens):
    x, weight, bias = random(2, 16, 16), random(24, 16), random(24)
    residual = random(2, 24, 16) if over_tokens else random(2, 16, 24)
    torch.library.opcheck(torch.ops.hf_mixer.linear.default, (x, weight, bias, residual, "tanh", over_tokens))
    torch.library.opcheck(torch.ops.hf_mixer.layer_norm.default, (x.mT, random(16), random(16), 1e-6))


@pytest.mark.parametrize(
    ("weight", "bias", "residual"), [((24, 8), (24,), None), ((24, 16), (16,), None), ((24, 16), (24,), (2, 16, 24))]
)
def test_sizes_that_do_not_fit_are_refused(weight, bias, residual):
    residual = None if residual is None else random(*residual)
    with pytest.raises(ValueError, match="tokens of shape .* do not fit"):
        torch.ops.hf_mixer.linear(random(2, 16, 16), random(*weight), random(*bias), residual, None, True)


def test_a_second_import_leaves_the_operator_of_the_first():
    operator = torch.ops.hf_mixer.linear.default
    importlib.reload(linear)
    assert torch.ops.hf_mixer.linear.default is operator


@interpreted
@pytest.mark.parametrize("tanh", [False, True])
def test_gate_of_narrow_types_is_near_gelu(tanh):
    x = torch.cat([torch.linspace(-8, 8, 20_001), torch.tensor([-1e4, -100.0, 100.0, 1e4])])
    output = F.gelu(x.double(), approximate="tanh" if tanh else "none")
    gate = torch.empty_like(x)
    evaluate_gate[(1,)](x, gate, len(x), tanh, triton.next_power_of_2(len(x)))
    within = x.abs() <= 8
    assert (x * gate - output)[within].abs().max() < 5e-5
    assert ((x * gate - output) / x)[~within].abs().max() < 1e-5


@triton.jit
def evaluate_gate(x_pointer, gate_pointer, count, TANH: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    x = tl.load(x_pointer + index, mask=index < count, other=0.0)
    tl.store(gate_pointer + index, gelu.gelu_gate(x, TANH, False), mask=index < count)


def test_kernels_compile_for_hopper(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.kernels.compile_for_hopper"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == 4
    for _, uses_matrix_units, shared in lines:
        assert uses_matrix_units == "True"
        # A program can have 227 KiB of a multiprocessor's shared memory
        assert int(shared) <= 227 * 1024


def test_tiles_fill_a_gpu_and_not_with_padding():
    def choose(*sizes):
        return linear._choose_tile(*sizes, 132)[:2]

    large, flat, small = (tile[:2] for tile in linear.TILES)
    assert choose(256, 196, 768) == large  # B/16, 256 images
    assert choose(256, 49, 768) == flat  # B/32: half of the large tile would be padding
    assert choose(1, 196, 3072) == small  # B/16, one image
