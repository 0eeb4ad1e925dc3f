"""The fused operators compute what the layers do. Without a GPU, Triton interprets them on the CPU, in float32."""

import copy
import importlib
import os
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

from hf_mixer.kernels import gelu, selection, token_mixing


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# On a GPU, float32 is none of the types that the operator is used for
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
CONFIG = dict(image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, token_mlp_dim=12, channel_mlp_dim=8)
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="compares float32, in Triton's interpreter")


def make_model(**overrides) -> MixerForImageClassification:
    torch.manual_seed(0)
    return MixerForImageClassification(MixerConfig(num_labels=3, **{**CONFIG, **overrides})).to(DEVICE, DTYPE).eval()


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 16, 16, generator=generator).to(DEVICE, DTYPE)


def count_operators(model, *args, **kwargs) -> int:
    """How often the fused operator is called."""
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    with Count(), torch.no_grad():
        model(*args, **kwargs)
    return calls.count("hf_mixer.token_mixing.default")


def compare_with_float64(layer: MixerLayer, hidden_states: torch.Tensor, tolerance: float) -> None:
    """Compare output and gradients of token mixing with the layer's own code in float64, relative to their size."""

    def run(mix_tokens, layer, dtype):
        inputs = hidden_states.to(dtype).requires_grad_()
        output = mix_tokens(layer, inputs)
        wanted = [inputs, *layer.token_norm.parameters(), *layer.token_mixing.parameters()]
        gradients = torch.autograd.grad(
            output, wanted, torch.sin(torch.arange(output.numel())).view_as(output).to(output)
        )
        return [output, *gradients]

    expected = run(MixerLayer.mix_tokens, copy.deepcopy(layer).double(), torch.float64)
    for actual, exact in zip(run(kernels.mix_tokens, layer, hidden_states.dtype), expected):
        assert (actual - exact).abs().max() <= tolerance * exact.abs().max()


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
    compare_with_float64(random_layer(config, torch.float32), hidden_states, 5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", VARIANTS)
def test_equal_to_float64_within_rounding_on_a_gpu(name, dtype):
    config = MixerConfig.from_variant(name)
    hidden_states = torch.randn(3, config.num_patches, config.hidden_size, device=DEVICE)
    compare_with_float64(random_layer(config, dtype), hidden_states.to(dtype), 16 * torch.finfo(dtype).eps)


@interpreted
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_unchanged(drop_path_rate, checkpointing):
    reference = make_model(drop_path_rate=drop_path_rate).train()
    model = use_kernels(copy.deepcopy(reference))
    assert count_operators(model, images()) == 2
    if checkpointing:
        getattr(model, ENABLE_CHECKPOINTING)()
    for each in (reference, model):
        torch.manual_seed(1)
        each(images(), labels=torch.tensor([0, 1])).loss.backward()
    for actual, expected in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-6)


@interpreted
@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(training):
    torch._dynamo.reset()
    model = use_kernels(make_model()).train(training)
    reference = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    labels = torch.tensor([0, 1])
    losses = [each(images(), labels=labels).loss for each in (compiled, reference)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for actual, expected in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(actual.grad, expected.grad)


@interpreted
def test_exports_with_a_dynamic_batch():
    model = use_kernels(make_model())
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (), {"pixel_values": images()}, dynamic_shapes=shapes)
    assert "hf_mixer.token_mixing.default" in {str(node.target) for node in program.graph.nodes}
    pixel_values = images().repeat(2, 1, 1, 1)
    torch.testing.assert_close(
        program.module()(pixel_values=pixel_values).logits, make_model()(pixel_values).logits, rtol=1e-4, atol=1e-5
    )


def test_operator_keeps_to_the_rules_of_torch():
    layer = make_model().mixer.layers[0].float()
    weights = [*layer.token_norm.parameters(), *layer.token_mixing.parameters()]
    hidden_states = torch.randn(2, 16, 24, device=DEVICE, requires_grad=True)
    scale = torch.tensor([0.0, 2.0], device=DEVICE)
    torch.library.opcheck(torch.ops.hf_mixer.token_mixing.default, (hidden_states, *weights, scale, 1e-6, True))


def test_registering_twice_is_harmless():
    model = use_kernels(make_model())
    expected = model(images()).logits
    operator = torch.ops.hf_mixer.token_mixing.default
    importlib.reload(token_mixing)
    assert torch.ops.hf_mixer.token_mixing.default is operator
    assert torch.equal(model(images()).logits, expected)


def test_switch_goes_on_and_off():
    model = make_model()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(images()).logits
    assert count_operators(model, images()) == 0
    assert use_kernels(model) is model
    assert count_operators(model, images()) == 2
    assert count_operators(copy.deepcopy(model), images()) == 2
    assert model.state_dict().keys() == state.keys()
    use_kernels(model, enabled=False)
    assert count_operators(model, images()) == 0
    assert torch.equal(model(images()).logits, expected)


def test_copies_have_weights_of_their_own():
    model = use_kernels(make_model())
    expected = model(images()).logits
    other = copy.deepcopy(model)
    nn.init.zeros_(other.mixer.layers[0].token_mixing.fc2.weight)
    assert not torch.equal(other(images()).logits, expected)
    assert torch.equal(model(images()).logits, expected)


@pytest.mark.parametrize("overrides", [dict(hidden_act="relu"), dict(image_size=20, patch_size=1)])
def test_steps_aside_for_other_networks(overrides):
    model = use_kernels(make_model(**overrides))
    pixel_values = torch.randn(2, 3, model.config.image_size, model.config.image_size).to(DEVICE, DTYPE)
    assert count_operators(model, pixel_values) == 0


def test_steps_aside_for_dropout_in_training():
    model = use_kernels(make_model(dropout=0.1))
    assert count_operators(model, images()) == 2
    assert count_operators(model.train(), images()) == 0


def test_steps_aside_for_hooks_and_adapters():
    peft = pytest.importorskip("peft", reason="needs peft")
    model = make_model()
    layer = model.mixer.layers[0]
    for module in (layer.token_norm, layer.token_mixing, layer.token_mixing.fc1, layer.token_mixing.fc2):
        use_kernels(model)
        seen = []
        handle = module.register_forward_hook(lambda *_: seen.append(1))  # noqa: B023
        assert count_operators(model, images()) == 1
        assert seen
        handle.remove()
    assert count_operators(model, images()) == 2
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=r".*layers\.0\.token_mixing\.fc1"))
    assert count_operators(lora, images()) == 1


KIND = ("cpu", torch.float32, torch.float32, None, 2, 16, 24, 12)


@interpreted
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("seconds", "expected"), [(0.5, True), (0.99, False), (2.0, False)])
def test_kernels_are_chosen_where_they_are_faster(monkeypatch, training, seconds, expected):
    monkeypatch.setattr(
        selection, "time_interleaved", lambda steps, *_, **__: [{"own": 1.0, "fused": seconds} for _ in range(3)]
    )
    state = torch.get_rng_state()
    assert selection.is_faster.__wrapped__(kernels.mix_tokens, *KIND, False, training) is expected
    assert torch.equal(torch.get_rng_state(), state)


@interpreted
def test_kernels_that_fail_or_compute_something_else_are_left_out(monkeypatch, caplog):
    monkeypatch.setattr(
        selection, "time_interleaved", lambda steps, *_, **__: [{"own": 1.0, "fused": 0.1} for _ in range(3)]
    )

    def fail(layer, hidden_states):
        raise RuntimeError("out of registers")

    def forget_the_residual(layer, hidden_states):
        return kernels.mix_tokens(layer, hidden_states) - hidden_states

    for fused, message in ((fail, "out of registers"), (forget_the_residual, "the results would differ by")):
        assert selection.is_faster.__wrapped__(fused, *KIND, False, False) is False
        assert message in caplog.text


@interpreted
@pytest.mark.parametrize("faster", [False, True])
def test_models_of_the_package_choose_by_themselves(monkeypatch, faster):
    asked, graphs = [], []

    def is_faster(fused, *kind):
        asked.append(kind)
        torch.randn(2).sum().item()  # of a real tensor, also while a graph is captured
        return faster

    def keep_graph(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    monkeypatch.setattr(kernels, "is_on_gpu", lambda hidden_states: True)
    monkeypatch.setattr(selection, "is_faster", is_faster)
    model = make_model()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=keep_graph)
    expected = use_kernels(make_model(), enabled=False)(images()).logits
    for each in (model, compiled):
        torch.testing.assert_close(each(images()).logits, expected)
    assert set(asked) == {("cpu", torch.float32, torch.float32, None, 1, 16, 24, 12, False, True)}
    assert count_operators(model, images()) == (2 if faster else 0)
    assert graphs[0].count("torch.ops.hf_mixer.token_mixing") == (2 if faster else 0)
    # What is exported is for other machines
    program = torch.export.export(model, (), {"pixel_values": images()})
    assert "hf_mixer.token_mixing.default" not in {str(node.target) for node in program.graph.nodes}


def test_on_a_cpu_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(selection, "is_faster", None)
    assert count_operators(make_model().to("cpu", torch.float32), images().to("cpu", torch.float32)) == 0


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
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
import triton.language as tl

from hf_mixer.kernels import token_mixing

for kernel in (token_mixing._token_mixing_forward, token_mixing._token_mixing_backward):
    config, names = kernel.configs[-1], kernel.fn.arg_names
    constants = {"TANH": False, "HAS_SCALE": True, "BLOCK_S": 256, **config.kwargs}
    constants = {name: value for name, value in constants.items() if name in names}
    kinds = {"mean_pointer": "*fp32", "rstd_pointer": "*fp32", "scale_pointer": "*fp32"}
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "*bf16" if name.endswith("_pointer") else "i32")
        for name in names
    }
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name.endswith("_pointer")}
    source = ASTSource(kernel.fn, signature, constants, aligned)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    # 227 KiB is what a block may have there
    print("wgmma.mma_async" in compiled.asm["ptx"], compiled.metadata.shared <= 227 * 1024)
"""


def test_kernels_compile_for_hopper(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE_FOR_HOPPER]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.stdout.splitlines() == ["True True"] * 2, result.stderr


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="`Linear` holds no Mixer layers"):
        use_kernels(nn.Linear(2, 2))
    monkeypatch.setattr(kernels, "is_triton_available", lambda: False)
    with pytest.raises(ImportError, match="pip install triton"):
        use_kernels(make_model())
