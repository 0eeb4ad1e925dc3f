"""Token mixing works on the tokens as they lie, and leaves linears that are more than their weights to themselves."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.layers_mixer import MixerLayer


CONFIG = dict(image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, token_mlp_dim=10, channel_mlp_dim=32)


def images(batch_size=3):
    return torch.randn(batch_size, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MixerForImageClassification(MixerConfig(num_labels=5, **CONFIG)).eval()


def linears(model):
    return [linear for layer in model.mixer.layers for linear in (layer.token_mixing.fc1, layer.token_mixing.fc2)]


def test_output_and_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    layer = MixerLayer(MixerConfig(**CONFIG), layer_idx=0).double()
    hidden_states = torch.randn(3, 16, 24, dtype=torch.float64, requires_grad=True)
    mlp = layer.token_mixing
    hidden = torch.einsum("ds,bsc->bdc", mlp.fc1.weight, hidden_states) + mlp.fc1.bias[:, None]
    expected = torch.einsum("sd,bdc->bsc", mlp.fc2.weight, nn.functional.gelu(hidden)) + mlp.fc2.bias[:, None]
    output = mlp(hidden_states)
    torch.testing.assert_close(output, expected)

    weights = torch.randn_like(output)
    inputs = [hidden_states, *mlp.parameters()]
    for actual, wanted in zip(
        torch.autograd.grad(output, inputs, weights), torch.autograd.grad(expected, inputs, weights)
    ):
        torch.testing.assert_close(actual, wanted)


def test_exported_graph_transposes_nothing(model):
    program = torch.export.export(model.mixer.layers[0], (torch.randn(3, 16, 24),))
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.baddbmm.default" in operators
    assert not {"aten.transpose.int", "aten.permute.default", "aten.clone.default"} & operators


def test_hooks_see_the_linear_called(model):
    """With the patches on the last axis, as an `nn.Linear` has them."""
    expected = model(images()).logits
    seen = []
    for linear in linears(model):
        linear.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    torch.testing.assert_close(model(images()).logits, expected)
    assert seen == [(3, 24, 16), (3, 24, 10)] * 2

    linears(model)[1].register_forward_hook(lambda module, inputs, output: output * 2)
    assert not torch.allclose(model(images()).logits, expected)


def test_backward_hooks_see_the_gradients(model):
    seen = []
    linears(model)[0].register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].shape))
    model(images(), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert seen == [(3, 24, 10)]


def test_replaced_linears_are_called(model):
    class Doubled(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) * 2

    fc1 = linears(model)[0]
    with torch.no_grad():
        fc1.weight.mul_(2)
    expected = model(images()).logits
    doubled = Doubled(16, 10)
    doubled.weight, doubled.bias = nn.Parameter(fc1.weight.detach() / 2), nn.Parameter(torch.zeros(10))
    model.mixer.layers[0].token_mixing.fc1 = doubled
    torch.testing.assert_close(model(images()).logits, expected)

    model.mixer.layers[0].token_mixing.fc1 = nn.Linear(16, 10, bias=False)
    model.mixer.layers[0].token_mixing.fc1.weight = fc1.weight
    torch.testing.assert_close(model(images()).logits, expected)


def test_parametrized_linears_are_called(model):
    class Doubled(nn.Module):
        def forward(self, weight):
            return weight * 2

    with torch.no_grad():
        linears(model)[0].weight.mul_(2)
    expected = model(images()).logits
    with torch.no_grad():
        linears(model)[0].weight.div_(2)
    parametrize.register_parametrization(linears(model)[0], "weight", Doubled())
    torch.testing.assert_close(model(images()).logits, expected)


def test_offloaded_weights_are_fetched(model):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    expected = model(images()).logits
    accelerate.cpu_offload(model, execution_device="cpu")
    assert linears(model)[0].weight.device.type == "meta"
    torch.testing.assert_close(model(images()).logits, expected)


def test_lora_on_all_linears_trains_and_merges(model):
    peft = pytest.importorskip("peft", reason="needs peft")
    expected = model(images()).logits
    config = peft.LoraConfig(target_modules=["fc1", "fc2"], modules_to_save=["classifier"], init_lora_weights=True)
    lora = peft.get_peft_model(model, config).train()
    token_mixing = lora.get_base_model().mixer.layers[0].token_mixing
    assert isinstance(token_mixing.fc1, peft.tuners.lora.Linear)
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
    for linear in (token_mixing.fc1, token_mixing.fc2):
        assert linear.lora_B["default"].weight.abs().max() > 0

    trained = lora.eval()(images()).logits
    merged = lora.merge_and_unload()
    assert type(linears(merged)[0]) is nn.Linear
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
        assert type(linears(model)[0].weight).__name__ == "DTensor"
        torch.testing.assert_close(model(images()).logits, expected)
    finally:
        distributed.destroy_process_group()
