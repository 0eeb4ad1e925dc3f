"""The fused operators compute what the layers do. Without a GPU, Triton interprets them on the CPU, in float32."""

import copy
import importlib
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from transformers.utils import is_triton_available

from hf_mixer import MixerConfig, MixerForImageClassification, kernels
from hf_mixer.configuration_mixer import VARIANTS
from hf_mixer.kernels import use_kernels
from hf_mixer.layers_mixer import MixerLayer

from .test_modeling import ENABLE_CHECKPOINTING


if not is_triton_available():
    pytest.skip("needs triton", allow_module_level=True)

import triton
import triton.language as tl

from hf_mixer.kernels import channel_mixing, gelu, token_mixing


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On a GPU, float32 is none of the types that the operator is used for
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
OPERATORS = ("hf_mixer.token_mixing.default", "hf_mixer.channel_mixing.default")
CONFIG = dict(image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, token_mlp_dim=12, channel_mlp_dim=8)
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="compares float32, in Triton's interpreter")


def make_model(**overrides) -> MixerForImageClassification:
    torch.manual_seed(0)
    return MixerForImageClassification(MixerConfig(num_labels=3, **{**CONFIG, **overrides})).to(DEVICE, DTYPE).eval()


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 16, 16, generator=generator).to(DEVICE, DTYPE)


def count_operators(model, *args, **kwargs) -> tuple[int, int]:
    """How often the fused operators are called, for tokens and for channels."""
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    with Count(), torch.no_grad():
        model(*args, **kwargs)
    return tuple(calls.count(operator) for operator in OPERATORS)


def own_mix(axis: str, layer: MixerLayer, hidden_states: torch.Tensor) -> torch.Tensor:
    return kernels.OWN[axis](layer, hidden_states)


def compare_with_float64(axis: str, layer: MixerLayer, hidden_states: torch.Tensor, tolerance: float) -> None:
    """Compare output and gradients of mixing with the layer's own code in float64, relative to their size."""

    def run(mix, layer, dtype):
        inputs = hidden_states.to(dtype).requires_grad_()
        with torch.no_grad():
            inferred = mix(axis, layer, inputs)
        output = mix(axis, layer, inputs)
        modules = kernels.norm_and_mlp(axis, layer)
        wanted = [inputs, *(parameter for module in modules for parameter in module.parameters())]
        gradients = torch.autograd.grad(
            output, wanted, torch.sin(torch.arange(output.numel())).view_as(output).to(output)
        )
        return [inferred, output, *gradients]

    assert kernels.applies(axis, layer, hidden_states)
    expected = run(own_mix, copy.deepcopy(layer).double(), torch.float64)
    for actual, exact in zip(run(kernels.mix, layer, hidden_states.dtype), expected):
        assert (actual - exact).abs().max() <= tolerance * exact.abs().max()


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare relative to the size, within what rounding makes of some layers."""
    tolerance = 64 * torch.finfo(DTYPE).eps
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def gradients_of(model: nn.Module) -> torch.Tensor:
    """All gradients in a row: some are nothing but rounding, beside the others."""
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def random_layer(config: MixerConfig, dtype: torch.dtype) -> MixerLayer:
    torch.manual_seed(0)
    layer = MixerLayer(config, layer_idx=0).to(DEVICE)
    for name, parameter in layer.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        nn.init.normal_(parameter, mean=float("norm.weight" in name), std=scale)
    return layer.to(dtype)


@interpreted
@pytest.mark.parametrize(
    ("grid", "hidden_size", "token_mlp_dim", "hidden_act"),
    [
        # The tokens of every variant, narrower
        ((7, 7), 48, 24, "gelu"),
        ((14, 14), 40, 20, "gelu_pytorch_tanh"),
        ((16, 16), 70, 40, "gelu"),
        ((8, 8), 32, 16, "gelu"),
        # The only sizes that need no padding
        ((8, 8), 32, 128, "gelu"),
        ((4, 4), 24, 64, "gelu_pytorch_tanh"),
        # Sizes that fill no block, and one
        ((3, 7), 33, 35, "gelu"),
        ((1, 1), 3, 1, "gelu_pytorch_tanh"),
        ((4, 4), 64, 32, "gelu_pytorch_tanh"),
    ],
)
def test_equal_to_float64(grid, hidden_size, token_mlp_dim, hidden_act):
    config = MixerConfig(
        image_size=grid,
        patch_size=1,
        hidden_size=hidden_size,
        token_mlp_dim=token_mlp_dim,
        hidden_act=hidden_act,
    )
    hidden_states = torch.randn(2, config.num_patches, hidden_size)
    compare_with_float64("token", random_layer(config, torch.float32), hidden_states, 5e-6)


@interpreted
@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_of_every_variant_are_equal_to_float64(name):
    config = MixerConfig.from_variant(name, hidden_size=24)
    hidden_states = torch.randn(1, config.num_patches, 24)
    compare_with_float64("token", random_layer(config, torch.float32), hidden_states, 1e-5)


@interpreted
@pytest.mark.parametrize(
    ("grid", "hidden_size", "channel_mlp_dim", "hidden_act"),
    [
        # The tokens of every variant, narrower; many tokens for each hidden unit in the second and third
        ((7, 7), 48, 96, "gelu"),
        ((14, 14), 40, 48, "gelu_pytorch_tanh"),
        ((16, 16), 72, 36, "gelu"),
        ((8, 8), 32, 128, "gelu"),
        # Sizes that fill no block, and one
        ((3, 7), 44, 68, "gelu"),
        ((1, 1), 4, 4, "gelu_pytorch_tanh"),
        ((5, 20), 68, 100, "gelu_pytorch_tanh"),
    ],
)
def test_channels_are_equal_to_float64(grid, hidden_size, channel_mlp_dim, hidden_act):
    config = MixerConfig(
        image_size=grid,
        patch_size=1,
        hidden_size=hidden_size,
        channel_mlp_dim=channel_mlp_dim,
        hidden_act=hidden_act,
    )
    # Tokens far from zero, and channels that differ much
    hidden_states = torch.randn(1, config.num_patches, hidden_size) + 10 * torch.randn(hidden_size) + 30
    compare_with_float64("channel", random_layer(config, torch.float32), hidden_states, 1e-5)


def test_norm_goes_into_the_matrix_where_there_are_many_tokens(monkeypatch):
    folded = []
    fold_norm = channel_mixing.fold_norm
    monkeypatch.setattr(channel_mixing, "fold_norm", lambda *args: folded.append(1) or fold_norm(*args))
    layer = make_model().mixer.layers[0]
    few, many = (torch.randn(batch_size, 3, 24, device=DEVICE, dtype=DTYPE) for batch_size in (10, 11))
    with torch.no_grad():
        kernels.mix("channel", layer, few)
        assert not folded
        actual = kernels.mix("channel", layer, many)
        assert folded == [1]
    assert_near(actual, layer.mix_channels(many))
    kernels.mix("channel", layer, many)  # in training it stays what it is
    assert folded == [1]


def test_channels_have_gradients_where_nothing_was_kept():
    layer = make_model().mixer.layers[0]
    hidden_states = torch.randn(2, 16, 24, device=DEVICE, dtype=DTYPE, requires_grad=True)
    norm, mlp = layer.channel_norm, layer.channel_mixing
    weights = (norm.weight, norm.bias, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    gradients = [
        torch.autograd.grad(
            torch.ops.hf_mixer.channel_mixing(hidden_states, *weights, None, norm.eps, False, keep)[0].sum(),
            [hidden_states, *weights],
        )
        for keep in (True, False)
    ]
    for actual, expected in zip(*gradients):
        assert_near(actual, expected)


@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("stride", [1, 2])
def test_weights_may_lie_anywhere(axis, stride):
    layer = make_model().mixer.layers[0]
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    hidden_states = torch.randn(2, 24, 16, device=DEVICE, dtype=DTYPE).transpose(1, 2)
    expected = own_mix(axis, layer, hidden_states)
    expected.square().sum().backward()
    gradients = gradients_of(nn.ModuleList(kernels.norm_and_mlp(axis, layer)))
    for module in kernels.norm_and_mlp(axis, layer):
        for parameter in module.parameters():
            # As in a buffer that holds the weights of several layers, one after the other or in turn
            buffer = parameter.new_empty(stride * parameter.numel() + 1)[1::stride]
            parameter.data = buffer[: parameter.numel()].view_as(parameter).copy_(parameter.data)
            parameter.grad = None
    actual = kernels.mix(axis, layer, hidden_states)
    assert_near(actual, expected)
    actual.square().sum().backward()
    assert_near(gradients_of(nn.ModuleList(kernels.norm_and_mlp(axis, layer))), gradients)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("axis", ["token", "channel"])
def test_equal_to_float64_within_rounding_on_a_gpu(axis, name, dtype):
    if axis == "channel" and not channel_mixing.moves_tiles(DEVICE):
        pytest.skip("needs a device of compute capability 9.0")
    config = MixerConfig.from_variant(name)
    hidden_states = torch.randn(3, config.num_patches, config.hidden_size, device=DEVICE)
    compare_with_float64(axis, random_layer(config, dtype), hidden_states.to(dtype), 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_unchanged(drop_path_rate, checkpointing):
    reference = make_model(drop_path_rate=drop_path_rate).train()
    model = use_kernels(copy.deepcopy(reference))
    assert count_operators(model, images()) == (2, 2)
    if checkpointing:
        getattr(model, ENABLE_CHECKPOINTING)()
    for each in (reference, model):
        torch.manual_seed(1)
        each(images(), labels=torch.tensor([0, 1], device=DEVICE)).loss.backward()
    assert_near(gradients_of(model), gradients_of(reference))


@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(training):
    torch._dynamo.reset()
    model = use_kernels(make_model()).train(training)
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    labels = torch.tensor([0, 1], device=DEVICE)
    losses = [each(images(), labels=labels).loss for each in (compiled, reference)]
    assert_near(*losses)
    for loss in losses:
        loss.backward()
    assert_near(gradients_of(model), gradients_of(reference))


def test_exports_with_a_dynamic_batch():
    model = use_kernels(make_model())
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (), {"pixel_values": images()}, dynamic_shapes=shapes)
    assert set(OPERATORS) <= {str(node.target) for node in program.graph.nodes}
    pixel_values = images().repeat(2, 1, 1, 1)
    assert_near(program.module()(pixel_values=pixel_values).logits, make_model()(pixel_values).logits)


def test_operators_keep_to_the_rules_of_torch():
    layer = make_model().mixer.layers[0].float()
    scale = torch.tensor([0.0, 2.0], device=DEVICE)
    for axis, more in (("token", ()), ("channel", (True,))):
        weights = [parameter for module in kernels.norm_and_mlp(axis, layer) for parameter in module.parameters()]
        hidden_states = torch.randn(2, 16, 24, device=DEVICE, requires_grad=True)
        operator = getattr(torch.ops.hf_mixer, f"{axis}_mixing").default
        torch.library.opcheck(operator, (hidden_states, *weights, scale, 1e-6, True, *more))


def test_registering_twice_is_harmless():
    model = use_kernels(make_model())
    expected = model(images()).logits
    operators = torch.ops.hf_mixer.token_mixing.default, torch.ops.hf_mixer.channel_mixing.default
    for module in (token_mixing, channel_mixing):
        importlib.reload(module)
    assert operators == (torch.ops.hf_mixer.token_mixing.default, torch.ops.hf_mixer.channel_mixing.default)
    assert torch.equal(model(images()).logits, expected)


def test_switch_goes_on_and_off():
    model = make_model()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(images()).logits
    assert count_operators(model, images()) == (0, 0)
    assert use_kernels(model) is model
    assert count_operators(model, images()) == (2, 2)
    assert count_operators(make_model(), images()) == (0, 0)
    assert model.state_dict().keys() == state.keys()
    use_kernels(model, enabled=False)
    assert count_operators(model, images()) == (0, 0)
    assert torch.equal(model(images()).logits, expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "replica"])
def test_copies_have_weights_of_their_own(how):
    model = use_kernels(make_model())
    expected = model(images()).logits
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:  # What `nn.DataParallel` makes of a module, on another device
        other = copy.deepcopy(model)
        for layer, original in zip(other.mixer.layers, model.mixer.layers):
            replica = original._replicate_for_data_parallel()
            layer.__dict__ = {**replica.__dict__, "_modules": layer._modules, "_parameters": layer._parameters}
    assert count_operators(other, images()) == (2, 2)
    for mlp in (other.mixer.layers[0].token_mixing, other.mixer.layers[1].channel_mixing):
        before = other(images()).logits
        nn.init.zeros_(mlp.fc2.weight)
        assert not torch.equal(other(images()).logits, before)
    assert torch.equal(model(images()).logits, expected)


@interpreted
@pytest.mark.parametrize("tanh", [False, True])
def test_gate_without_the_error_function_is_near_it(tanh):
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
    gate = gelu._polynomial_gate(x, TANH)
    tl.store(gate_pointer + index, gate, mask=index < count)
    tl.store(slope_pointer + index, gelu.gelu_gate_slope(x, gate, TANH, False), mask=index < count)


COMPILE_FOR_HOPPER = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_mixer.kernels import products, token_mixing

FLAGS = {"TANH": False, "HAS_SCALE": True, "FOLDED": True, "KEEP": True, "BLOCK_S": 256}
FLOAT32 = ("mean_pointer", "rstd_pointer", "scale_pointer", "sums_pointer", "bias_gradient_pointer")


def kind(name):
    if name in constants:
        return "constexpr"
    if name.endswith("_pointer"):
        return "*fp32" if name in FLOAT32 else "*bf16"
    if name in (products.LEFT, products.RIGHT, products.RIGHT_TRANSPOSED, *products.PRODUCTS):
        blocks = [config.kwargs[f"BLOCK_{axis}"] for axis in "MNK"]
        return f"tensordesc<bf16{products.tile_shape(name, *blocks)}>"
    return "i32"


for kernel in (
    token_mixing._token_mixing_forward,
    token_mixing._token_mixing_backward,
    products._hidden_units,
    products._residual_sum,
    products._hidden_gradients,
):
    names, config = kernel.fn.arg_names, kernel.configs[-1]
    constants = {name: value for name, value in {**FLAGS, **config.kwargs}.items() if name in names}
    aligned = [name.endswith("_pointer") or name in ("num_columns", "depth") for name in names]
    attributes = {(index,): [["tt.divisibility", 16]] for index, is_aligned in enumerate(aligned) if is_aligned}
    source = ASTSource(kernel.fn, {name: kind(name) for name in names}, constants, attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    # A multiprocessor has 228 KiB there, of which each program takes 1 KiB for itself
    shared = config.kwargs.get("PROGRAMS", 1) * (compiled.metadata.shared + 1024)
    print("wgmma.mma_async" in compiled.asm["ptx"], shared <= 228 * 1024)
"""


def test_kernels_compile_for_hopper(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE_FOR_HOPPER]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.stdout.splitlines() == ["True True"] * 5, result.stderr


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="`Linear` holds no Mixer layers"):
        use_kernels(nn.Linear(2, 2))
    monkeypatch.setattr(kernels, "is_triton_available", lambda: False)
    with pytest.raises(ImportError, match="pip install triton"):
        use_kernels(make_model())
