"""The kernels are used by the models that ask for them, where they apply. Elsewhere an error or a warning says why."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.kernels import gpu, suitability, use_kernels
from hf_mixer.layers_mixer import MixerLayer
from tests.helpers import record_warnings


pytest.importorskip("triton", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
CONFIG = dict(
    image_size=(8, 16), patch_size=4, hidden_size=24, num_hidden_layers=2, token_mlp_dim=16, channel_mlp_dim=8
)


def make_model(**overrides) -> MixerForImageClassification:
    torch.manual_seed(0)
    return MixerForImageClassification(MixerConfig(num_labels=3, **{**CONFIG, **overrides})).to(DEVICE, DTYPE).eval()


def images(batch_size: int = 2) -> torch.Tensor:
    return torch.randn(batch_size, 3, 8, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE, DTYPE)


class Calls(TorchDispatchMode):
    """Count the matrix products of the kernels."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function) == "hf_mixer.linear.default"
        return function(*args, **(kwargs or {}))


def count_layers(model) -> int:
    """How many layers the kernels compute, with four products each."""
    with Calls() as calls, torch.inference_mode():
        model(images())
    return calls.count / 4


@torch.inference_mode()
def logits_of(model) -> torch.Tensor:
    return model(images()).logits


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare relative to the size, within what rounding makes of some layers."""
    assert (actual - expected).abs().max() <= 64 * torch.finfo(DTYPE).eps * expected.abs().max()


def test_only_the_model_that_asks_uses_the_kernels():
    model, other = make_model(), make_model()
    state, attributes = model.state_dict(), dict(vars(MixerLayer))
    assert use_kernels(model) is model
    assert count_layers(model) == 2
    assert count_layers(other) == 0
    assert vars(MixerLayer) == attributes
    assert model.state_dict().keys() == state.keys()
    assert_near(logits_of(model), logits_of(other))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "replica"])
def test_copies_use_the_kernels_with_their_own_weights(how):
    model = use_kernels(make_model())
    expected = logits_of(model)
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:  # What `nn.DataParallel` makes of a module, on another device
        other = copy.deepcopy(model)
        for layer, original in zip(other.mixer.layers, model.mixer.layers):
            replica = original._replicate_for_data_parallel()
            layer.__dict__ = {**replica.__dict__, "_modules": layer._modules, "_parameters": layer._parameters}
    assert count_layers(other) == 2
    nn.init.zeros_(other.mixer.layers[0].token_mixing.fc2.weight)
    assert not torch.equal(logits_of(other), expected)
    assert torch.equal(logits_of(model), expected)


def test_models_from_remote_code_use_the_kernels(tmp_path):
    make_model().save_pretrained(tmp_path)
    remote_class = get_class_from_dynamic_module("modeling_mixer.MixerForImageClassification", str(tmp_path))
    assert remote_class is not MixerForImageClassification
    model = use_kernels(remote_class.from_pretrained(tmp_path).to(DEVICE, DTYPE).eval())
    assert count_layers(model) == 2
    assert_near(logits_of(model), logits_of(make_model()))


def test_training_is_computed_by_the_layers_themselves(monkeypatch):
    lines, reference = record_warnings(monkeypatch, suitability.logger), make_model(drop_path_rate=0.5)
    model = use_kernels(copy.deepcopy(reference))
    for each in (reference, model):
        torch.manual_seed(1)
        each.train()(images(), labels=torch.tensor([0, 1], device=DEVICE)).loss.backward()
        each.eval()(images(), labels=torch.tensor([0, 1], device=DEVICE)).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad)
    training, gradients = lines
    assert "in training mode" in training
    assert "computes gradients" in gradients


def keep_graph(graphs: list):
    """A backend of `torch.compile` that keeps the code of what it compiles."""
    return lambda graph, inputs: graphs.append(graph.code) or graph


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    graphs, model = [], use_kernels(make_model())
    compiled = torch.compile(model, fullgraph=True, backend=keep_graph(graphs))
    assert_near(logits_of(compiled), logits_of(make_model()))
    assert graphs[0].count("torch.ops.hf_mixer.linear") == 8


def test_what_is_compiled_warns_without_a_graph_break(monkeypatch):
    torch._dynamo.reset()
    lines, graphs, model = record_warnings(monkeypatch, suitability.logger), [], use_kernels(make_model())
    compiled = torch.compile(model, fullgraph=True, backend=keep_graph(graphs))
    with torch.autocast(DEVICE, torch.bfloat16):
        logits_of(compiled)
    assert "hf_mixer" not in graphs[0]
    assert len(lines) == 1


def test_tokens_of_another_type_than_the_weights_are_not_for_the_kernels(monkeypatch):
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    monkeypatch.setattr(gpu, "DTYPES", dtypes)
    (layer, *_), tokens = use_kernels(make_model()).mixer.layers, torch.zeros(1, 8, 24, device=DEVICE)
    with torch.no_grad():
        for dtype in dtypes:
            reason = gpu.unsupported_batch_reason(layer, tokens.to(dtype))
            assert (reason is None) == (dtype == DTYPE)


def add_adapter(layer):
    peft = pytest.importorskip("peft", reason="needs peft")
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=r".*token_mixing\.fc1"), layer)


CHANGES = {
    "`token_mixing.fc1` with hooks": lambda layer: layer.token_mixing.fc1.register_forward_hook(lambda *_: None),
    "fc1` with hooks, an adapter": add_adapter,
    # As Accelerate's offloading and kernelize do
    "`forward` set by another library": lambda layer: setattr(
        layer.token_mixing, "forward", layer.token_mixing.forward
    ),
    "other modules than a `MixerLayer`": lambda layer: setattr(layer, "token_mixing", nn.Identity()),
    "channel_norm` with hooks": lambda layer: layer.channel_norm.register_forward_hook(lambda *_: None),
    "replaced modules": lambda layer: setattr(layer.channel_mixing, "dropout", nn.AlphaDropout(0.5).eval()),
}


@pytest.mark.parametrize("message", CHANGES)
def test_changed_layers_are_refused_before_and_fall_back_after(monkeypatch, message):
    lines, model, changed = record_warnings(monkeypatch, suitability.logger), use_kernels(make_model()), make_model()
    for each in (model, changed):
        CHANGES[message](each.mixer.layers[0])
    with pytest.raises(ValueError, match=f"`mixer.layers.0` .*{message}"):
        use_kernels(changed)
    for _ in range(2):
        assert count_layers(model) == 1
    (line,) = lines
    assert message in line
    assert_near(logits_of(model), logits_of(changed))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(hidden_act="relu"), "activation ReLU, expected `gelu` or `gelu_pytorch_tanh`"),
        (dict(token_mlp_dim=18), "token_mlp_dim and channel_mlp_dim of 24, 18, 8, expected multiples of"),
    ],
)
def test_other_networks_are_refused(overrides, message):
    model = make_model(**overrides)
    with pytest.raises(ValueError, match=message):
        use_kernels(model)
    assert all(layer.kernel is None for layer in model.mixer.layers)


def test_what_cannot_run_here_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="`Linear` holds no Mixer layers"):
        use_kernels(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="weights of type torch.float64"):
        use_kernels(make_model().double())
    older_layer = type("MixerLayer", (nn.Module,), {})()
    with pytest.raises(ValueError, match="save the model again"):
        use_kernels(nn.Sequential(older_layer))
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    with pytest.raises(ValueError, match="is on meta, the kernels need a CUDA device"):
        use_kernels(make_model().to("meta"))
    monkeypatch.setattr(gpu, "HAS_TRITON", False)
    with pytest.raises(ImportError, match="pip install triton"):
        use_kernels(make_model().to("meta"))


def test_dropout_is_none_in_inference():
    assert count_layers(use_kernels(make_model(hidden_dropout_prob=0.1, drop_path_rate=0.1))) == 2
    monte_carlo = use_kernels(make_model(hidden_dropout_prob=0.1))
    monte_carlo.mixer.layers[0].token_mixing.dropout.train()
    assert count_layers(monte_carlo) == 1


@torch.no_grad()
def export_and_run(model):
    return torch.export.export(model, (), {"pixel_values": images()}).module()(pixel_values=images()).logits


@torch.no_grad()
def run_with_a_dual_number(model):
    with forward_ad.dual_level():
        logits = model(forward_ad.make_dual(images(), torch.ones_like(images()))).logits
        return forward_ad.unpack_dual(logits).tangent


@torch.no_grad()
def run_for_each_image(model):
    return torch.func.vmap(lambda pixels: model(pixels[None]).logits)(images())


@torch.inference_mode()
def run_under_autocast(model):
    with torch.autocast(DEVICE, torch.bfloat16):
        return model(images()).logits


@torch.inference_mode()
def run_with_a_global_hook(model):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        return model(images()).logits
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("message", "run"),
    [
        ("computes gradients", lambda model: model(images()).logits),
        ("torch.func", run_for_each_image),
        pytest.param(
            "forward-mode differentiation",
            run_with_a_dual_number,
            marks=pytest.mark.skipif(
                DEVICE == "cuda", reason="torch has no tangents of LayerNorm in bfloat16 on a GPU"
            ),
        ),
        ("is exported", export_and_run),
        ("an empty batch", torch.no_grad()(lambda model: model(images(0)).logits)),
        ("under autocast", run_under_autocast),
        ("hooks", run_with_a_global_hook),
    ],
)
def test_batches_that_do_not_suit_fall_back_with_one_warning(monkeypatch, message, run):
    lines, model = record_warnings(monkeypatch, suitability.logger), use_kernels(make_model())
    with monkeypatch.context() as context:
        context.setattr(torch.ops.hf_mixer, "linear", None)
        outputs = [run(model) for _ in range(2)]
    for output in outputs:
        torch.testing.assert_close(output, run(make_model()))
    (line,) = lines
    assert message in line
    assert count_layers(model) == 2
