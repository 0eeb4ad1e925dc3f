"""
The layers compute the formula on the tokens as they lie. Linears that are more than their weights are called, and what
a hook may have kept stays as it was.
"""

import copy

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mixer import MixerConfig, MixerForImageClassification, layers_mixer
from hf_mixer.layers_mixer import MixerLayer


CONFIG = dict(image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, token_mlp_dim=10, channel_mlp_dim=32)


def make_layer(hidden_act="gelu", **overrides):
    torch.manual_seed(0)
    return MixerLayer(MixerConfig(hidden_act=hidden_act, **CONFIG, **overrides), layer_idx=0).eval()


def tokens():
    return torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MixerForImageClassification(MixerConfig(num_labels=5, **CONFIG)).eval()


def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def token_linears(model):
    return [linear for layer in model.mixer.layers for linear in (layer.token_mixing.fc1, layer.token_mixing.fc2)]


def test_token_mixing_and_its_gradients_are_those_of_the_formula():
    mlp = make_layer().double().token_mixing
    hidden_states = tokens().double().requires_grad_()
    hidden = torch.einsum("ds,bsc->bdc", mlp.fc1.weight, hidden_states) + mlp.fc1.bias[:, None]
    expected = torch.einsum("sd,bdc->bsc", mlp.fc2.weight, nn.functional.gelu(hidden)) + mlp.fc2.bias[:, None]
    output = mlp(hidden_states)
    torch.testing.assert_close(output, expected)
    inputs, weights = [hidden_states, *mlp.parameters()], torch.randn_like(output)
    actual, wanted = (torch.autograd.grad(result, inputs, weights) for result in (output, expected))
    torch.testing.assert_close(actual, wanted)


def test_an_exported_layer_has_all_weights_on_the_right_and_transposes_its_tokens_once_each_way():
    layer = make_layer()
    program = torch.export.export(layer, (tokens(),))
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert operators.count("aten.linear.default") == 4
    assert operators.count("aten.transpose.int") == 2
    assert not {"aten.baddbmm.default", "aten.bmm.default", "aten.expand.default"} & set(operators)
    torch.testing.assert_close(program.module()(tokens()), layer(tokens()))


def test_hooks_see_the_linears_called(model):
    """With the patches on the last axis, as an `nn.Linear` has them."""
    expected, seen = model(images()).logits, []
    for linear in token_linears(model):
        linear.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    torch.testing.assert_close(model(images()).logits, expected)
    assert seen == [(3, 24, 16), (3, 24, 10)] * 2


def test_backward_hooks_see_the_gradients(model):
    seen = []
    token_linears(model)[0].register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
    model(images(), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert seen == [(3, 24, 10)]


class DoubledLinear(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) * 2


@torch.no_grad()
def test_linears_of_another_class_are_called(model):
    linear = token_linears(model)[0]
    expected = model(images()).logits
    for parameter in linear.parameters():
        parameter /= 2
    linear.__class__ = DoubledLinear
    torch.testing.assert_close(model(images()).logits, expected)


def test_linears_without_bias_are_called(model):
    token_mixing = model.mixer.layers[0].token_mixing
    nn.init.zeros_(token_mixing.fc1.bias)
    expected = model(images()).logits
    token_mixing.fc1.bias = None
    torch.testing.assert_close(model(images()).logits, expected)


def test_offloaded_weights_are_fetched(model):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    expected = model(images()).logits
    accelerate.cpu_offload(model, execution_device="cpu")
    assert token_linears(model)[0].weight.device.type == "meta"
    torch.testing.assert_close(model(images()).logits, expected)


def test_lora_on_all_linears_trains_and_merges(model):
    peft = pytest.importorskip("peft", reason="needs peft")
    expected = model(images()).logits
    config = peft.LoraConfig(target_modules=["fc1", "fc2"], modules_to_save=["classifier"], init_lora_weights=True)
    lora = peft.get_peft_model(model, config).train()
    torch.testing.assert_close(lora(images()).logits, expected)

    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(5):
        loss = lora(pixel_values=images(), labels=torch.tensor([0, 1, 2])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for linear in token_linears(lora.get_base_model()):
        assert linear.lora_B["default"].weight.abs().max() > 0

    trained = lora.eval()(images()).logits
    merged = lora.merge_and_unload()
    assert type(token_linears(merged)[0]) is nn.Linear
    torch.testing.assert_close(merged(images()).logits, trained, rtol=1e-4, atol=1e-5)


def test_tensor_parallel_linears_are_called(model, tmp_path):
    distributed = pytest.importorskip("torch.distributed", reason="needs torch.distributed")
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    expected = model(images()).logits
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        plan = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}
        for layer in model.mixer.layers:
            parallelize_module(layer.token_mixing, mesh, plan)
        assert type(token_linears(model)[0].weight).__name__ == "DTensor"
        torch.testing.assert_close(model(images()).logits, expected)
    finally:
        distributed.destroy_process_group()


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


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("hidden_units", [3 * 10 * 24, 3 * 16 * 32])
def test_inference_holds_the_hidden_units_once(hidden_act, hidden_units):
    layer = make_layer(hidden_act)
    with torch.no_grad(), Buffers(hidden_units) as buffers:
        layer(tokens())
    assert len(buffers) == 1
    with Buffers(hidden_units) as buffers:
        layer(tokens()).sum().backward()
    assert len(buffers) > 1


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("training", [False, True])
def test_inference_computes_what_training_does(hidden_act, training):
    layer, hidden_states = make_layer(hidden_act).train(training), tokens()
    expected = layer(hidden_states).detach()
    for inference in (torch.no_grad, torch.inference_mode):
        with inference():
            torch.testing.assert_close(layer(hidden_states), expected)
    assert torch.equal(hidden_states, tokens())


@torch.no_grad()
@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("name", ["fc1", "activation_fn", "everywhere"])
def test_hooks_keep_what_they_have_seen(axis, name):
    layer, seen = make_layer(), []

    def remember(module, inputs, output):
        seen.extend((tensor, tensor.clone()) for tensor in (*inputs, output))

    if name == "everywhere":
        handle = nn.modules.module.register_module_forward_hook(remember)
    else:
        handle = getattr(layer, f"{axis}_mixing").get_submodule(name).register_forward_hook(remember)
    try:
        layer(tokens())
    finally:
        handle.remove()
    assert seen
    for tensor, at_that_time in seen:
        assert torch.equal(tensor, at_that_time)


@torch.no_grad()
def test_another_activation_function_is_called():
    layer = make_layer()
    layer.channel_mixing.activation_fn = nn.Identity()
    mixed, norm, mlp = layer.mix_tokens(tokens()), layer.channel_norm, layer.channel_mixing
    torch.testing.assert_close(layer(tokens()), mlp.fc2(mlp.fc1(norm(mixed))) + mixed)


@torch.no_grad()
def test_exported_and_compiled_inference_is_the_same(model):
    expected = model(images()).logits
    shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (), {"pixel_values": images()}, dynamic_shapes=shapes).run_decompositions()
    torch.testing.assert_close(program.module()(pixel_values=images()[:2]).logits, expected[:2])
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()).logits, expected)


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


def set_processor(monkeypatch, *capabilities: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(capabilities, True))


@pytest.mark.parametrize("capability", ["amx_bf16", "avx512_bf16", "bf16", "avx2"])
def test_bfloat16_is_multiplied_as_suits_the_processor(monkeypatch, capability):
    set_processor(monkeypatch, capability)
    program = make_fx(make_layer().bfloat16())(tokens().bfloat16())
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert ("aten.baddbmm.default" in operators) == (capability != "avx2")


@pytest.mark.parametrize("capability", ["amx_bf16", "avx2"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_and_its_gradients_are_right_on_every_processor(monkeypatch, model, capability, autocast):
    def gradients(model, dtype):
        pixel_values = images().to(dtype).requires_grad_()
        loss = model(pixel_values, labels=torch.tensor([0, 1, 2])).loss
        gradients = torch.autograd.grad(loss, [pixel_values, *model.parameters()])
        return torch.cat([gradient.double().flatten() for gradient in gradients])

    expected = gradients(copy.deepcopy(model).double(), torch.float64)
    set_processor(monkeypatch, capability)
    dtype = torch.float32 if autocast else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual = gradients(model.to(dtype), dtype)
    assert (actual - expected).norm() < 0.02 * expected.norm()


@torch.no_grad()
def test_patches_are_embedded_as_the_convolution_does_it(monkeypatch, model):
    set_processor(monkeypatch, "amx_bf16")
    embeddings, seen = model.bfloat16().mixer.embeddings.patch_embeddings, []
    product = embeddings(images().bfloat16())
    embeddings.projection.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(product, embeddings(images().bfloat16()), atol=0.02, rtol=0.02)
    assert len(seen) == 1


@pytest.mark.parametrize("hidden_dropout_prob", [0.0, 0.5])
def test_what_is_computed_anew_leaves_gradients_as_they_are(monkeypatch, hidden_dropout_prob):
    layer, hidden_states = make_layer(hidden_dropout_prob=hidden_dropout_prob).train(), tokens()
    weights, results, kept = list(layer.parameters()), [], []
    for recomputes in (False, True):
        monkeypatch.setattr(layers_mixer, "is_worth_recomputing", lambda *_, recomputes=recomputes: recomputes)
        storages: dict[int, int] = {}

        def count(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = layer(hidden_states)
        results.append(torch.autograd.grad(output.square().sum(), weights))
        kept.append(sum(storages.values()))
    torch.testing.assert_close(results[1], results[0])
    assert kept[1] < kept[0]


def test_a_gpu_computes_large_hidden_units_anew_where_they_need_gradients():
    class OnGpu(torch.Tensor):
        is_cuda = True

    large = torch.empty(2**24, dtype=torch.bfloat16)
    assert not layers_mixer.is_worth_recomputing(large)
    large = large.as_subclass(OnGpu)
    assert layers_mixer.is_worth_recomputing(large)
    assert not layers_mixer.is_worth_recomputing(large[1:])
    with torch.no_grad():
        assert not layers_mixer.is_worth_recomputing(large)


@pytest.mark.parametrize("capability", [None, "amx_bf16"])
def test_autocast_converts_a_weight_once_and_not_for_every_image(monkeypatch, capability):
    set_processor(monkeypatch, *filter(None, [capability]))
    mlp, hidden_states = make_layer().token_mixing, tokens()

    class Conversions(TorchDispatchMode):
        sizes = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            if function is torch.ops.aten._to_copy.default:
                self.sizes.append(output.numel())
            return output

    with torch.autocast("cpu", torch.bfloat16), Conversions() as conversions:
        mlp(hidden_states)
    assert conversions.sizes.count(mlp.fc1.weight.numel()) == 2  # as large as that of fc2
    assert set(conversions.sizes) <= {hidden_states.numel(), *(parameter.numel() for parameter in mlp.parameters())}


@pytest.mark.parametrize("name", ["fc1", "activation_fn", "fc2", "dropout"])
def test_what_has_hooks_is_not_computed_anew(monkeypatch, name):
    mlp, seen = make_layer().channel_mixing, []
    getattr(mlp, name).register_forward_hook(lambda *_: seen.append(name))
    mlp(tokens())
    calls = len(seen)
    monkeypatch.setattr(layers_mixer, "is_worth_recomputing", lambda hidden_states: True)
    mlp(tokens()).sum().backward()
    assert len(seen) == 2 * calls
