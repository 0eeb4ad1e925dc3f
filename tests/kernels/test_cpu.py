"""
The kernels for processors compute what the layers do, and only where they can. Without matrix units the same code multiplies in
float32, so that these tests need a compiler only.
"""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from hf_mixer import MixerConfig, MixerForImageClassification, compilation, compile_for_inference
from hf_mixer.kernels import cpu, cpu_library, cpu_operators, gpu, suitability, use_kernels
from hf_mixer.kernels.cpu_operators import CpuLayer, cpu_layer, pack, pack_matrices
from hf_mixer.layers_mixer import MixerLayer
from tests.helpers import needs_compiler, record_warnings


pytestmark = needs_compiler

CONFIG = dict(image_size=24, patch_size=4, hidden_size=64, num_hidden_layers=2, token_mlp_dim=32, channel_mlp_dim=96)
# How far an output in bfloat16 may be off, in norm: twice what rounding once makes of it
TOLERANCE = 2**-7


VARIANTS = {
    "native": [],
    "without matrix units": ["-mno-amx-bf16", "-O1"],  # which compiles in half the time
    "without bfloat16": ["-mno-amx-bf16", "-mno-avx512bf16", "-O1"],
}


@pytest.fixture(scope="module", params=VARIANTS)
def library(request):
    if request.param == "native":
        return cpu_library.cpu_library()
    if not cpu.has_matrix_units():
        pytest.skip("this processor has no matrix units to go without")
    return cpu_library.build_library(VARIANTS[request.param])


@pytest.fixture
def on_processors(monkeypatch):
    """Models on the CPU take the kernels for processors, whatever this processor has."""
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    monkeypatch.setattr(cpu, "has_matrix_units", lambda: True)
    monkeypatch.setattr(cpu, "require", cpu_library.cpu_library)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def make_layer(**overrides) -> MixerLayer:
    torch.manual_seed(0)
    layer = MixerLayer(MixerConfig(**{**CONFIG, **overrides}), layer_idx=0)
    for name, parameter in layer.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        nn.init.normal_(parameter, mean=float("norm.weight" in name), std=scale)
    return layer


def make_model(**overrides) -> MixerForImageClassification:
    torch.manual_seed(0)
    return MixerForImageClassification(MixerConfig(num_labels=3, **{**CONFIG, **overrides}))


def images(batch_size: int = 3) -> torch.Tensor:
    return random(batch_size, 3, 24, 24)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= tolerance


def compute_exactly(layer: MixerLayer, x: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """Compute a layer in float64, with scales of the residual branches."""
    first, second = (torch.ones(2, len(x)) if scales is None else scales).double()[..., None, None]
    x = x + first * layer.token_mixing(layer.token_norm(x))
    return x + second * layer.channel_mixing(layer.channel_norm(x))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    ("batch_size", "dtype", "overrides"),
    [
        (1, torch.float32, dict(image_size=8)),  # fewer tokens than a product takes at once
        (9, torch.float32, dict()),  # more images than are taken at once
        (10, torch.bfloat16, dict(hidden_act="gelu_pytorch_tanh", image_size=(28, 32), channel_mlp_dim=544)),
        (3, torch.bfloat16, dict(hidden_size=32, token_mlp_dim=544, image_size=96)),
    ],
)
def test_outputs_and_gradients_are_those_of_float64_within_rounding(
    library, monkeypatch, batch_size, dtype, overrides, num_threads
):
    monkeypatch.setattr(cpu_operators, "cpu_library", lambda: library)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    layer = make_layer(**overrides).to(dtype)
    exact = copy.deepcopy(layer).double()
    matrices, vectors = cpu.parameters_of(layer)
    parameters = [*matrices, *vectors]
    x = random(batch_size, layer.token_mixing.fc1.in_features, layer.token_norm.weight.shape[0]).bfloat16()
    grad_output, scales = torch.randn_like(x), torch.rand(2, batch_size) + 0.5

    x, exact_x = x.requires_grad_(), x.detach().double().requires_grad_()
    output = CpuLayer.apply(x, scales, 1e-6, "hidden_act" in overrides, *parameters)
    expected = compute_exactly(exact, exact_x, scales)
    assert_near(output, expected)

    exact_matrices, exact_vectors = cpu.parameters_of(exact)
    gradients = torch.autograd.grad(output, [x, *parameters], grad_output)
    exact_parameters = [exact_x, *exact_matrices, *exact_vectors]
    for gradient, exact_gradient in zip(
        gradients, torch.autograd.grad(expected, exact_parameters, grad_output.double())
    ):
        assert_near(gradient, exact_gradient)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh"])
def test_gelu_and_its_slope_are_right_far_from_zero(hidden_act):
    layer = make_layer(hidden_act=hidden_act)
    exact = copy.deepcopy(layer).double()
    for each in (layer, exact):
        nn.init.zeros_(each.token_mixing.fc2.weight)
        each.channel_norm.weight.data *= 20
    x = random(2, 36, 64).bfloat16()
    (matrices, vectors), tanh = cpu.parameters_of(layer), hidden_act != "gelu"
    output = CpuLayer.apply(x, None, 1e-6, tanh, *matrices, *vectors)
    expected = compute_exactly(exact, x.double(), None)
    assert_near(output, expected)
    (gradient,) = torch.autograd.grad(output, layer.channel_mixing.fc1.weight, torch.ones_like(output))
    (exact_gradient,) = torch.autograd.grad(expected, exact.channel_mixing.fc1.weight, torch.ones_like(expected))
    assert_near(gradient, exact_gradient, 2 * TOLERANCE)


def test_an_image_that_is_not_a_number_spoils_no_other_and_no_later_one():
    matrices, vectors = cpu.parameters_of(make_layer(image_size=28))
    packed = pack_matrices(matrices)
    x = random(4, 49, 64).bfloat16()
    expected = cpu_layer(x, packed, vectors, None, 1e-6, False)
    spoiled = x.clone()
    spoiled[1, 5, 7] = torch.nan
    output = cpu_layer(spoiled, packed, vectors, None, 1e-6, False)
    assert output[1].isnan().any()
    assert torch.equal(output[[0, 2, 3]], expected[[0, 2, 3]])

    # A smaller layer, whose tokens are filled up, computes where the larger one did
    smaller, smaller_vectors = cpu.parameters_of(make_layer(image_size=20))
    cpu_layer(torch.full_like(x, torch.nan), packed, vectors, None, 1e-6, False)
    assert not cpu_layer(x[:, :25], pack_matrices(smaller), smaller_vectors, None, 1e-6, False).isnan().any()


def test_the_same_training_step_gives_the_same_bits(monkeypatch):
    matrices, vectors = cpu.parameters_of(make_layer())
    parameters = [*matrices, *vectors]
    x = random(11, 36, 64).bfloat16()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def gradients():
        output = CpuLayer.apply(x, None, 1e-6, False, *parameters)
        return torch.autograd.grad(output, parameters, torch.ones_like(output))

    first = gradients()
    for _ in range(3):
        assert all(map(torch.equal, first, gradients()))


def test_operators_keep_to_the_rules_of_torch():
    matrices, vectors = cpu.parameters_of(make_layer())
    matrices, vectors = [each.detach() for each in matrices], [each.detach() for each in vectors]
    x = random(2, 36, 64).bfloat16()
    for transposed in (False, True):
        torch.library.opcheck(pack, (matrices[0], True, transposed))
    torch.library.opcheck(cpu_layer, (x, pack_matrices(matrices), vectors, None, 1e-6, True))
    for tokens in (x, random(2, 64, 36).bfloat16().transpose(1, 2)):
        arguments = (x, tokens, matrices, vectors, torch.ones(2, 2), 1e-6, False)
        torch.library.opcheck(cpu_operators.cpu_layer_backward, arguments)


def test_operators_refuse_what_does_not_fit():
    matrices, vectors = cpu.parameters_of(make_layer())
    with pytest.raises(
        ValueError, match=r"tokens of shape \(2, 35, 64\) do not fit a layer for 36 tokens of 64 channels"
    ):
        cpu_layer(random(2, 35, 64).bfloat16(), pack_matrices(matrices), vectors, None, 1e-6, False)
    with pytest.raises(ValueError, match="tokens of type torch.bfloat16, got torch.float16"):
        cpu_layer(random(2, 36, 64).half(), pack_matrices(matrices), vectors, None, 1e-6, False)
    with pytest.raises(ValueError, match=r"at least one image, got tokens of shape \(0, 36, 64\)"):
        cpu_layer(random(0, 36, 64).bfloat16(), pack_matrices(matrices), vectors, None, 1e-6, False)
    with pytest.raises(ValueError, match="a matrix of type torch.float32 or torch.bfloat16, got torch.float64"):
        pack(matrices[0].double(), False, False)


def step(model: nn.Module, dtype: torch.dtype | None = torch.bfloat16) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of a training step, under autocast to `dtype`."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(images(), labels=torch.tensor([0, 1, 2])).loss
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("compiled", [False, True])
def test_training_under_autocast_uses_the_kernels(on_processors, monkeypatch, compiled):
    torch._dynamo.reset()
    lines = record_warnings(monkeypatch, suitability.logger)
    reference, model = (make_model(drop_path_rate=0.5).train() for _ in range(2))
    use_kernels(model)
    expected, expected_gradients = step(reference, dtype=None)
    if compiled:
        model.compile(fullgraph=True, backend="aot_eager")
    loss, gradients = step(model)
    # With other images dropped than in the layers themselves, it would be far off
    assert_near(loss, expected, 0.01)
    for name, gradient in gradients.items():
        # That of `token_mixing.fc2.bias` is zero: every LayerNorm takes away what it adds to all channels of a token
        if "layers" in name and not name.endswith("token_mixing.fc2.bias"):
            assert_near(gradient, expected_gradients[name], 0.05)
    assert lines == []


def test_inference_in_bfloat16_uses_the_kernels(on_processors, monkeypatch):
    model, calls = use_kernels(make_model().bfloat16().eval()), []
    monkeypatch.setattr(cpu, "CpuLayer", type("Counted", (), {"apply": lambda *inputs: calls.append(1) or inputs[0]}))
    with torch.inference_mode():
        model(images())
    assert len(calls) == 2


def test_compiled_inference_uses_the_kernels(on_processors, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "multiplies", lambda dtype: True)
    model = make_model().bfloat16()
    compiled = compile_for_inference(copy.deepcopy(model), batch_size=4)
    assert all(type(layer.kernel) is cpu.PackedLayer for layer in compiled.mixer.layers)
    with torch.inference_mode():
        for batch_size in (1, 4, 5):
            expected = model(images(batch_size)).logits
            assert_near(compiled(images(batch_size)).logits, expected, 0.02)
            # What is compiled computes in bfloat16, whatever autocast says
            with torch.autocast("cpu", torch.float16):
                assert_near(compiled(images(batch_size)).logits, expected, 0.02)


@torch.no_grad()
def run_with_a_dual_number(model):
    with forward_ad.dual_level():
        model(forward_ad.make_dual(images().bfloat16(), torch.ones(3, 3, 24, 24).bfloat16()))


@pytest.mark.parametrize(
    ("message", "run"),
    [
        ("another type than bfloat16", lambda model: model.float()(images())),
        ("an empty batch", torch.no_grad()(lambda model: model(images(0)))),
        (
            "torch.func",
            torch.no_grad()(lambda model: torch.func.vmap(lambda image: model(image[None]).logits)(images())),
        ),
        ("forward-mode differentiation", run_with_a_dual_number),
        ("is exported", torch.no_grad()(lambda model: torch.export.export(model, (), {"pixel_values": images()}))),
        ("has hooks, or a `forward`", lambda model: hook(model.mixer.layers[0].drop_path) or model(images())),
        (
            "`channel_mixing.fc2` with hooks",
            lambda model: hook(model.mixer.layers[0].channel_mixing.fc2) or model(images()),
        ),
    ],
)
def test_batches_that_do_not_suit_are_computed_by_the_layers(on_processors, monkeypatch, message, run):
    lines, model = record_warnings(monkeypatch, suitability.logger), use_kernels(make_model().bfloat16().eval())
    run(model)
    (line,) = lines
    assert message in line


def hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


def test_dropout_and_small_batches_are_computed_by_the_layers(on_processors, monkeypatch):
    lines = record_warnings(monkeypatch, suitability.logger)
    model = use_kernels(make_model(hidden_dropout_prob=0.1).bfloat16())
    model.train()(images())
    monkeypatch.setattr(cpu, "num_threads", lambda: 4)
    model.eval()(images())
    dropout, small = lines
    assert "set `hidden_dropout_prob` to 0" in dropout
    assert "fewer images in a batch than the 4 threads" in small


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(hidden_act="relu"), "activation ReLU, expected `gelu` or `gelu_pytorch_tanh`"),
        (dict(token_mlp_dim=16), "token_mlp_dim and channel_mlp_dim of 64, 16, 96, expected multiples of 32"),
    ],
)
def test_other_networks_are_refused(on_processors, overrides, message):
    with pytest.raises(ValueError, match=message):
        use_kernels(make_model(**overrides))


def test_replaced_modules_are_refused(on_processors):
    model = make_model()
    model.mixer.layers[1].drop_path = nn.Identity()
    with pytest.raises(ValueError, match=r"`mixer.layers.1` holds other modules than a `MixerLayer`"):
        use_kernels(model)
    model = use_kernels(make_model().bfloat16())
    model.mixer.layers[0].token_mixing.fc1 = nn.Linear(36, 64).bfloat16()
    with pytest.raises(RuntimeError, match="size"):  # of the layer itself
        model(images())
    with pytest.raises(ValueError, match=r"weights that do not fit each other, .*'token_mixing.fc1': \(64, 36\)"):
        use_kernels(model)


def test_other_processors_and_types_are_refused(on_processors, monkeypatch):
    with pytest.raises(ValueError, match="weights of type torch.float16"):
        use_kernels(make_model().half())
    monkeypatch.setattr(cpu, "has_matrix_units", lambda: False)
    with pytest.raises(ValueError, match="without matrix units for bfloat16"):
        use_kernels(make_model())


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("no-such-compiler", "there is no no-such-compiler"), ("false", "false cannot compile the kernels")],
)
def test_without_a_compiler_it_is_an_error_where_asked_for_and_a_warning_elsewhere(monkeypatch, compiler, message):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(ImportError, match=message):
        cpu_library.build_library()
    monkeypatch.setattr(cpu, "has_matrix_units", lambda: True)
    monkeypatch.setattr(cpu, "cpu_library", cpu_library.build_library)
    lines, model = record_warnings(monkeypatch, suitability.logger), make_model()
    assert not cpu.use_where_possible(model)
    assert all(layer.kernel is None for layer in model.mixer.layers)
    (line,) = lines
    assert message in line


def test_kernels_are_taken_where_they_suit(on_processors, monkeypatch):
    lines, suitable, other = (
        record_warnings(monkeypatch, suitability.logger),
        make_model(),
        make_model(token_mlp_dim=16),
    )
    assert cpu.use_where_possible(suitable)
    assert all(layer.kernel is not None for layer in suitable.mixer.layers)
    assert not cpu.use_where_possible(other)
    assert all(layer.kernel is None for layer in other.mixer.layers)
    monkeypatch.setattr(cpu, "has_matrix_units", lambda: False)
    assert not cpu.use_where_possible(make_model())
    assert lines == []
