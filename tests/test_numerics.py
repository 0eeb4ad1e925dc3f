"""The network computes what Google's, Edifice's and timm's compute."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_mixer import MixerBackbone, load_checkpoint
from hf_mixer.checkpoints.layouts import GOOGLE
from tests.helpers import FIXTURES


FILES = {"flax": "linen.npz", "edifice": "params.safetensors", "timm": "model.safetensors"}
FLAX = ["flax/a_sq16_p4_tok_gt", "flax/c_nohead_none", "flax/e_rect8x16_p4"]
EDIFICE = ["edifice/cls_rgb", "edifice/dropout_cls", "edifice/pooled_rgb"]
TIMM = ["timm/b16_tiny_cls", "timm/l16_tiny_features"]


def load_oracle(name: str):
    """Return a model with the weights of an original, and the inputs and outputs that were recorded there."""
    folder = FIXTURES / name
    image_size = json.loads((folder / "config.json").read_text()).get("image_size")
    model, _ = load_checkpoint(str(folder / FILES[folder.parent.name]), source_image_size=image_size)
    return model, load_file(folder / "io.safetensors")


def assert_within(actual, expected, tolerance):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FLAX)
@torch.no_grad()
def test_google_outputs_and_every_block(name):
    model, io = load_oracle(name)
    outputs = model(io["input_nchw"], output_hidden_states=True)
    assert_within(outputs.logits, io["output_f64"], 2e-6)

    base = model.mixer(io["input_nchw"])
    assert_within(base.last_hidden_state, io["tokens_f64"], 1e-5)
    assert_within(base.pooler_output, io["pooled"], 2e-6)
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    assert_within(outputs.hidden_states[0], io["input_tokens"], 1e-5)
    for index in range(model.config.num_hidden_layers):
        assert_within(outputs.hidden_states[index + 1], io[f"block_{index}"], 1e-5)


@pytest.mark.parametrize("name", ["flax/a_sq16_p4_tok_gt", "flax/e_rect8x16_p4"])
def test_google_gradients(name):
    model, io = load_oracle(name)
    arrays = load_file(FIXTURES / name / "grad.safetensors")
    pixel_values = io["input_nchw"].requires_grad_()

    loss = model(pixel_values, labels=arrays["labels"].long()).loss
    loss.backward()

    assert_within(loss, arrays["loss_f64"].reshape(()), 1e-5)
    names = dict(GOOGLE.keys(model.config.num_hidden_layers, has_head=True))
    patch_size = model.mixer.embeddings.patch_embeddings.patch_size
    for ours, parameter in model.named_parameters():
        theirs = arrays[f"grad/{names[ours]}"]
        assert_within(parameter.grad, GOOGLE.import_tensor(ours, theirs, model.config.num_channels, patch_size), 1e-5)
    assert_within(pixel_values.grad, arrays["grad_input_nhwc_f64"].movedim(-1, 1), 1e-5)


@pytest.mark.parametrize("name", EDIFICE + TIMM)
@torch.no_grad()
def test_edifice_and_timm_outputs_and_tokens(name):
    model, io = load_oracle(name)
    assert_within(model(io["input"]).logits, io["output"], 5e-6)
    base = model.mixer(io["input"])
    if name in TIMM:
        assert_within(base.last_hidden_state, io["tokens"], 5e-6)
    assert_within(base.pooler_output, io["pooled" if name in TIMM else "features"], 5e-6)


@pytest.mark.parametrize(
    ("name", "field", "wrong"),
    [("flax/a_sq16_p4_tok_gt", "hidden_act", "gelu"), ("edifice/cls_rgb", "layer_norm_eps", 1e-6)],
)
@torch.no_grad()
def test_activation_and_eps_are_those_of_the_source(name, field, wrong):
    model, io = load_oracle(name)
    pixel_values = io["input_nchw" if "input_nchw" in io else "input"]
    error = (model(pixel_values).logits - io["output"]).abs().max()

    setattr(model.config, field, wrong)
    other = type(model)(model.config).eval()
    other.load_state_dict(model.state_dict())
    assert (other(pixel_values).logits - io["output"]).abs().max() > 3 * error


@torch.no_grad()
def test_backbone_feature_maps_are_the_blocks_on_the_grid():
    model, io = load_oracle("flax/e_rect8x16_p4")
    model.config.out_indices = [0, 1, 2]
    model.config.apply_layernorm = False
    backbone = MixerBackbone(model.config).eval()
    backbone.load_state_dict(model.mixer.state_dict())

    maps = backbone(io["input_nchw"]).feature_maps
    assert len(maps) == 3
    assert_within(maps[0].permute(0, 2, 3, 1), io["stem"], 1e-5)
    for index in (1, 2):
        expected = io[f"block_{index - 1}"].reshape(-1, 2, 4, 12).permute(0, 3, 1, 2)
        assert_within(maps[index], expected, 1e-5)

    backbone.config.apply_layernorm = True
    backbone.config.out_indices = None
    expected = io["tokens"].reshape(-1, 2, 4, 12).permute(0, 3, 1, 2)
    assert_within(backbone(io["input_nchw"]).feature_maps[-1], expected, 1e-5)
