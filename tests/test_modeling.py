import re

import pytest
import torch
from safetensors import safe_open
from torch import nn

from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling

from hf_mixer import MixerBackbone, MixerConfig, MixerForImageClassification, MixerForMaskedImageModeling, MixerModel
from hf_mixer.layers_mixer import MixerDropPath, MixerLayer
from tests.helpers import ENABLE_CHECKPOINTING


def tiny_config(**overrides) -> MixerConfig:
    sizes = dict(hidden_size=16, num_hidden_layers=3, token_mlp_dim=8, channel_mlp_dim=32, num_labels=5)
    return MixerConfig(**{"image_size": (16, 24), "patch_size": (4, 8), **sizes, **overrides})


def images(batch_size=2, num_channels=3, size=(16, 24)):
    return torch.randn(batch_size, num_channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, MixerModel),
        (AutoModelForImageClassification, MixerForImageClassification),
        (AutoModelForMaskedImageModeling, MixerForMaskedImageModeling),
        (AutoBackbone, MixerBackbone),
    ],
)
def test_auto_classes_build_our_classes(auto_class, model_class):
    assert type(auto_class.from_config(tiny_config())) is model_class


def test_shapes_of_every_output():
    config = tiny_config(out_indices=[0, 3])
    outputs = MixerModel(config)(images())
    assert outputs.last_hidden_state.shape == (2, 12, 16)
    assert outputs.pooler_output.shape == (2, 16)
    assert MixerForImageClassification(config)(images()).logits.shape == (2, 5)
    assert MixerForMaskedImageModeling(config)(images()).reconstruction.shape == (2, 3, 16, 24)
    assert [tuple(m.shape) for m in MixerBackbone(config)(images()).feature_maps] == [(2, 16, 4, 3)] * 2
    assert MixerForImageClassification(tiny_config(num_labels=0))(images()).logits.shape == (2, 16)


def test_one_patch_and_one_layer():
    config = tiny_config(image_size=8, patch_size=8, num_hidden_layers=1, drop_path_rate=0.5, num_channels=1)
    model = MixerForImageClassification(config).train()
    model(images(size=(8, 8), num_channels=1), labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (images(size=(16, 16)), r"16x16\) doesn't match model \(16x24\).*image processor"),
        (
            images()[0],
            r"Expected `pixel_values` of shape \(batch_size, .*\), got \(3, 16, 24\).*`pixel_values\[None\]`",
        ),
        (images().to(torch.uint8), r"got torch.uint8. Rescale and normalize the images"),
        (images(num_channels=1), r"Expected 3 but got 1"),
        (None, "specify `pixel_values`"),
    ],
)
@pytest.mark.parametrize("model_class", [MixerModel, MixerForImageClassification, MixerBackbone])
def test_wrong_images_are_refused(model_class, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        model_class(tiny_config())(pixel_values)


@pytest.mark.parametrize(
    ("problem_type", "labels", "loss_function"),
    [
        ("single_label_classification", torch.tensor([1, 4]), nn.functional.cross_entropy),
        ("multi_label_classification", torch.eye(5)[:2], nn.functional.binary_cross_entropy_with_logits),
        ("regression", torch.randn(2, 5), nn.functional.mse_loss),
        (None, torch.tensor([1, 4]), nn.functional.cross_entropy),
    ],
)
def test_loss_by_problem_type(problem_type, labels, loss_function):
    model = MixerForImageClassification(tiny_config(problem_type=problem_type)).eval()
    outputs = model(images(), labels=labels)
    torch.testing.assert_close(outputs.loss, loss_function(outputs.logits, labels))


def test_masked_image_modeling_loss_is_the_error_of_the_masked_pixels():
    model = MixerForMaskedImageModeling(tiny_config()).eval()
    pixel_values = images()
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, 4] = True  # second row, second column: rows 4 to 7, columns 8 to 15
    outputs = model(pixel_values, bool_masked_pos=mask)
    error = (outputs.reconstruction - pixel_values)[:, :, 4:8, 8:16].abs().mean()
    torch.testing.assert_close(outputs.loss, error, rtol=1e-4, atol=0)

    # A masked patch is not seen, the others are
    changed = pixel_values.clone()
    changed[:, :, 4:8, 8:16] += 1
    torch.testing.assert_close(model(changed, bool_masked_pos=mask).reconstruction, outputs.reconstruction)
    assert (model(changed + 1, bool_masked_pos=mask).reconstruction != outputs.reconstruction).any()


def test_masked_image_modeling_refuses_what_it_cannot_do():
    mask = torch.zeros(2, 12, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`patch_size` = \(4, 8\) and `encoder_stride` = \(2, 2\)"):
        MixerForMaskedImageModeling(tiny_config(encoder_stride=2))(images(), bool_masked_pos=mask)
    with pytest.raises(ValueError, match=r"\(2, 12\), got \(2, 6\)"):
        MixerForMaskedImageModeling(tiny_config())(images(), bool_masked_pos=mask[:, :6])
    with pytest.raises(ValueError, match="use_mask_token=True"):
        MixerModel(tiny_config())(images(), bool_masked_pos=mask)


def test_reconstruction_lays_tokens_out_in_raster_order():
    model = MixerForMaskedImageModeling(tiny_config()).eval()
    nn.init.zeros_(model.decoder.weight)
    with torch.no_grad():
        model.decoder.bias.copy_(torch.arange(96.0))
    reconstruction = model(images(1)).reconstruction[0]
    patch = torch.arange(96.0).view(3, 4, 8)
    for row in range(4):
        for column in range(3):
            assert torch.equal(reconstruction[:, row * 4 : row * 4 + 4, column * 8 : column * 8 + 8], patch)


def test_initialization_is_googles():
    """Lecun-normal kernels: variance 1 / fan_in, cut off at two standard deviations. Zero biases, normal head."""
    torch.manual_seed(0)
    model = MixerForImageClassification(MixerConfig(num_labels=1000, num_hidden_layers=1, initializer_range=0.05))
    for name, parameter in model.named_parameters():
        if name == "classifier.weight":
            assert parameter.std().item() == pytest.approx(0.05, rel=0.02)
        elif parameter.ndim > 1:
            scale = parameter[0].numel() ** -0.5
            assert parameter.std().item() == pytest.approx(scale, rel=0.02), name
            assert parameter.abs().max().item() <= 2.28 * scale, name
        elif "norm.weight" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert torch.equal(parameter, torch.zeros_like(parameter)), name


def test_a_new_head_is_initialized_and_the_rest_is_kept(tmp_path):
    model = MixerForImageClassification(tiny_config())
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MixerForImageClassification.from_pretrained(tmp_path, num_labels=3)
    new = MixerForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert new.classifier.weight.shape == (3, 16)
    assert 0.01 < new.classifier.weight.std() < 0.03
    torch.testing.assert_close(new.mixer.state_dict(), model.mixer.state_dict(), rtol=0, atol=0)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = MixerDropPath(0.25).train()
    output = drop_path(torch.ones(4000, 2, 3)).flatten(1)
    assert ((output == 0).all(dim=1) | torch.isclose(output, torch.tensor(4 / 3)).all(dim=1)).all()
    assert (output[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drop_path.eval()(torch.ones(5, 2, 3)), torch.ones(5, 2, 3))


def test_drop_path_rises_linearly_and_differs_between_the_mlps():
    model = MixerModel(tiny_config(drop_path_rate=0.5, num_hidden_layers=3))
    assert [layer.drop_path.drop_prob for layer in model.layers] == [0.0, 0.25, 0.5]

    torch.manual_seed(0)
    layer = MixerLayer(tiny_config(drop_path_rate=0.5), layer_idx=2).train()
    for parameter in (layer.token_mixing.fc2.weight, layer.channel_mixing.fc2.weight):
        nn.init.zeros_(parameter)
    nn.init.constant_(layer.token_mixing.fc2.bias, 1.0)
    nn.init.constant_(layer.channel_mixing.fc2.bias, 10.0)
    change = layer(torch.zeros(400, 12, 16))[:, 0, 0]
    # 2 from token mixing and 20 from channel mixing, each kept half of the time on its own
    assert {round(value) for value in change.tolist()} == {0, 2, 20, 22}


def test_dropout_acts_after_the_activation_and_after_the_second_linear():
    torch.manual_seed(0)
    mlp = MixerLayer(tiny_config(dropout=0.5), layer_idx=0).channel_mixing.train()
    inputs = torch.randn(200, 16)
    output = mlp(inputs)
    assert (output == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    # Were the hidden units not dropped, what is kept would be exactly twice the output of evaluation
    kept = output[output != 0]
    expected = 2 * mlp.eval()(inputs)[output != 0]
    assert not torch.allclose(kept, expected, atol=1e-3)


@pytest.mark.parametrize("kwargs", [{}, {"labels": torch.tensor([0, 1])}, {"return_dict": False}])
@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(kwargs, training):
    torch._dynamo.reset()
    model = MixerForImageClassification(tiny_config(drop_path_rate=0.1 if training else 0.0)).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    outputs = compiled(images(), **kwargs)
    torch.manual_seed(0)
    torch.testing.assert_close(outputs, model(images(), **kwargs))


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model = MixerForImageClassification(tiny_config(dropout=0.1, drop_path_rate=0.1)).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            getattr(model, ENABLE_CHECKPOINTING)()
            assert all(layer.gradient_checkpointing for layer in model.mixer.layers)
        model.zero_grad()
        torch.manual_seed(1)
        model(images(), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_saved_names_are_plain_linears(tmp_path):
    """Quantizers, LoRA and tensor-parallel plans find ordinary `nn.Linear` modules with weights of `(out, in)`."""
    model = MixerForImageClassification(tiny_config())
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    assert shapes["mixer.layers.0.token_mixing.fc1.weight"] == (8, 12)
    assert shapes["mixer.layers.0.token_mixing.fc2.weight"] == (12, 8)
    assert shapes["mixer.layers.0.channel_mixing.fc1.weight"] == (32, 16)
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert len(linears) == 3 * 4 + 1
    plan = re.compile(
        "|".join(key.replace(".", r"\.").replace("*", r"\d+") for key in model.config.base_model_tp_plan)
    )
    assert sum(bool(plan.fullmatch(name.removeprefix("mixer."))) for name in linears) == 12


def test_classes_load_from_each_others_folders(tmp_path):
    model = MixerForImageClassification(tiny_config()).eval()
    model.save_pretrained(tmp_path)
    base = MixerModel.from_pretrained(tmp_path).eval()
    backbone = MixerBackbone.from_pretrained(tmp_path).eval()
    tokens = model.mixer(images()).last_hidden_state
    assert torch.equal(base(images()).last_hidden_state, tokens)
    assert torch.equal(backbone(images()).feature_maps[0].flatten(2).transpose(1, 2), tokens)
