"""In inference, GELU works on the hidden units where they lie, unless somebody else may look at them."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.layers_mixer import MixerLayer


CONFIG = dict(image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, token_mlp_dim=10, channel_mlp_dim=32)
ACTIVATIONS = ["gelu", "gelu_pytorch_tanh", "relu"]


def make_layer(hidden_act="gelu"):
    torch.manual_seed(0)
    return MixerLayer(MixerConfig(hidden_act=hidden_act, **CONFIG), layer_idx=0).eval()


def tokens():
    return torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))


class Buffers(TorchDispatchMode):
    """Remember the tensors of a size."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.tensors = numel, []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        output = function(*arguments, **(keywords or {}))
        if isinstance(output, torch.Tensor) and output.numel() == self.numel:
            self.tensors.append(output)
        return output

    def __len__(self):
        return len({tensor.data_ptr() for tensor in self.tensors})


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
@pytest.mark.parametrize("training", [False, True])
def test_output_is_that_of_training(hidden_act, training):
    layer, hidden_states = make_layer(hidden_act).train(training), tokens()
    expected = layer(hidden_states).detach()
    for inference in (torch.no_grad, torch.inference_mode):
        with inference():
            assert torch.equal(layer(hidden_states), expected)
    assert torch.equal(hidden_states, tokens())


@pytest.mark.parametrize("hidden_act", ACTIVATIONS[:2])
@pytest.mark.parametrize("axis", ["token", "channel"])
def test_inference_holds_the_hidden_units_once(hidden_act, axis):
    layer = make_layer(hidden_act)
    hidden_units = 3 * (10 * 24 if axis == "token" else 16 * 32)
    with torch.no_grad(), Buffers(hidden_units) as buffers:
        layer(tokens())
    assert len(buffers) == 1
    with Buffers(hidden_units) as buffers:
        layer(tokens()).sum().backward()
    assert len(buffers) > 1


@torch.no_grad()
@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("name", ["fc1", "activation_fn"])
def test_hooks_keep_what_they_have_seen(axis, name):
    layer, seen = make_layer(), []

    def remember(module, inputs, output):
        seen.extend((tensor, tensor.clone()) for tensor in (*inputs, output))

    getattr(layer, f"{axis}_mixing").get_submodule(name).register_forward_hook(remember)
    layer(tokens())
    assert len(seen) == 2
    for tensor, at_that_time in seen:
        assert torch.equal(tensor, at_that_time)


@torch.no_grad()
def test_global_hooks_keep_what_they_have_seen():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.extend((tensor, tensor.clone()) for tensor in (*inputs, output))
    )
    try:
        make_layer()(tokens())
    finally:
        handle.remove()
    assert seen
    for tensor, at_that_time in seen:
        assert torch.equal(tensor, at_that_time)


@torch.no_grad()
def test_another_activation_function_is_called():
    layer = make_layer()
    layer.channel_mixing.activation_fn = nn.Identity()
    output, norm, mlp = layer(tokens()), layer.channel_norm, layer.channel_mixing
    mixed = layer.mix_tokens(tokens())
    torch.testing.assert_close(output, mlp.fc2(mlp.fc1(norm(mixed))) + mixed)


@torch.no_grad()
@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_exported_and_compiled_inference_is_the_same(hidden_act):
    torch.manual_seed(0)
    model = MixerForImageClassification(MixerConfig(num_labels=5, hidden_act=hidden_act, **CONFIG)).eval()
    pixel_values = torch.randn(2, 3, 16, 16)
    expected = model(pixel_values).logits
    program = torch.export.export(model, (pixel_values,))
    torch.testing.assert_close(program.module()(pixel_values).logits, expected)
    torch.testing.assert_close(program.run_decompositions().module()(pixel_values).logits, expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixel_values).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_narrow_type_within_an_mlp(dtype):
    layer, seen = make_layer(), []
    for mlp in (layer.token_mixing, layer.channel_mixing):
        mlp.activation_fn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype):
        narrow = layer(tokens())
    assert seen == [dtype, dtype]
    torch.testing.assert_close(narrow.float(), layer(tokens()), atol=0.05, rtol=0.05)
