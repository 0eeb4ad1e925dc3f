import re

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from hf_mixer import MixerBackbone, MixerConfig, MixerForImageClassification, MixerForMaskedImageModeling, MixerModel
from hf_mixer.resizing_mixer import token_resampling


MODEL_CLASSES = [MixerModel, MixerForImageClassification, MixerForMaskedImageModeling, MixerBackbone]
TILE = dict(image_size=(16, 24), patch_size=(4, 8))  # a grid of 4 x 3


def build(model_class=MixerForImageClassification, **overrides):
    """A tiny model in which no bias is 0 and no LayerNorm is the identity."""
    sizes = dict(hidden_size=16, num_hidden_layers=3, token_mlp_dim=8, channel_mlp_dim=32, num_labels=5)
    torch.manual_seed(0)
    model = model_class(MixerConfig(**{**TILE, **sizes, **overrides})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def images(height, width, batch_size=2):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same_outputs(model, other, pixel_values):
    torch.testing.assert_close(model(pixel_values), other(pixel_values), rtol=0, atol=0)


def enlarge_patches(pixel_values, patch_size, new_patch_size):
    """Enlarge every patch of the images on its own, by bilinear interpolation."""
    batch_size, num_channels, height, width = pixel_values.shape
    rows, columns = height // patch_size[0], width // patch_size[1]
    patches = pixel_values.view(batch_size, num_channels, rows, patch_size[0], columns, patch_size[1])
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    patches = interpolate(patches, size=new_patch_size, mode="bilinear", align_corners=False)
    patches = patches.view(batch_size, rows, columns, num_channels, *new_patch_size).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch_size, num_channels, rows * new_patch_size[0], columns * new_patch_size[1])


def snapshot(model):
    """What a refused call must not change: the configuration, and the size of every tensor."""
    return model.config.to_dict(), {name: value.shape for name, value in model.state_dict().items()}


def split_rows(pixel_values, height, width):
    """The sub-images of a size, row by row."""
    return [rows.split(width, dim=3) for rows in pixel_values.split(height, dim=2)]


@pytest.mark.parametrize("times", [(2, 3), (1, 2), (3, 1)])
@pytest.mark.parametrize("size", [dict(), dict(image_size=8, patch_size=4)])
def test_block_diagonal_averages_the_logits_of_the_sub_images(times, size):
    model = build(**size).double()
    height, width = model.mixer.embeddings.patch_embeddings.image_size
    pixel_values = images(height * times[0], width * times[1]).double()
    crops = [crop for row in split_rows(pixel_values, height, width) for crop in row]
    expected = torch.stack([model(crop).logits for crop in crops]).mean(dim=0)
    assert model.resize_image_size((height * times[0], width * times[1])) is model
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=1e-6)
    assert model.config.token_mlp_dim == 8 * times[0] * times[1]


def test_block_diagonal_acts_on_each_sub_image_alone():
    """The feature map of the large image is that of its sub-images, each at its place."""
    model = build(MixerBackbone)
    pixel_values = images(32, 72)
    rows = [
        torch.cat([model(crop).feature_maps[0] for crop in row], dim=3) for row in split_rows(pixel_values, 16, 24)
    ]
    feature_map = model.resize_image_size((32, 72))(pixel_values).feature_maps[0]
    torch.testing.assert_close(feature_map, torch.cat(rows, dim=2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize(("image_size", "token_mlp_dim"), [((32, 24), 16), ((24, 16), 8), (8, 8)])
def test_every_class_resizes_and_reloads(model_class, image_size, token_mlp_dim, tmp_path):
    model = build(model_class)
    assert model.resize_image_size(image_size) is model
    assert model.config.image_size == image_size
    assert type(model.config.image_size) is type(image_size)
    assert model.config.token_mlp_dim == token_mlp_dim
    patch_embeddings = model.base_model.embeddings.patch_embeddings
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert patch_embeddings.image_size == (height, width)
    assert patch_embeddings.num_patches == model.config.num_patches == height // 4 * (width // 8)
    for layer in model.base_model.layers:
        fc1, fc2 = layer.token_mixing.fc1, layer.token_mixing.fc2
        assert fc1.in_features == fc2.out_features == model.config.num_patches
        assert fc1.out_features == fc2.in_features == token_mlp_dim

    model.save_pretrained(tmp_path)
    loaded, loading_info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading_info.values())
    assert_same_outputs(loaded.eval(), model, images(height, width))


@pytest.mark.parametrize(
    ("image_size", "method", "token_mlp_dim"),
    [
        ((16, 48), None, 16),
        ((16, 48), "interpolate", 8),
        ((32, 72), "block_diagonal", 48),
        ((32, 32), None, 8),  # one axis is no multiple
        ((8, 48), None, 8),  # one axis shrinks
    ],
)
def test_the_method_follows_from_the_grid(image_size, method, token_mlp_dim):
    model = build().resize_image_size(image_size, method=method)
    assert model.config.token_mlp_dim == token_mlp_dim
    assert model(images(*image_size)).logits.isfinite().all()


@pytest.mark.parametrize("method", [None, "block_diagonal", "interpolate"])
def test_the_same_size_changes_nothing(method):
    model = build()
    parameters, config = dict(model.named_parameters()), model.config.to_dict()
    assert model.resize_image_size((16, 24), method=method) is model
    assert model.resize_patch_size((4, 8)) is model
    assert model.config.to_dict() == config
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())


@pytest.mark.parametrize("new_grid", [(6, 5), (3, 2), (7, 2), (1, 1), (8, 9)])
def test_a_constant_image_keeps_its_response(new_grid):
    """Tokens that are all alike give the same hidden units, and equal outputs stay equal."""
    model = build()
    tokens = torch.randn(2, 16, 1).double()
    before = model.mixer.layers[0].token_mixing.double().fc1(tokens.expand(2, 16, 12))
    model.resize_image_size((new_grid[0] * 4, new_grid[1] * 8), method="interpolate")
    after = model.mixer.layers[0].token_mixing.fc1(tokens.expand(2, 16, new_grid[0] * new_grid[1]))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)

    to_old, to_new = token_resampling((4, 3), new_grid)
    for matrix in (to_old, to_new):
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(len(matrix), dtype=torch.float64))


def test_enlarged_weights_are_interpolated_weights():
    """The output side is what bicubic interpolation makes of it over the grid; the input side answers to it alike."""
    model = build().double()
    mlp = model.mixer.layers[1].token_mixing
    tokens = torch.randn(2, 16, 4, 3).double()
    hidden = mlp.fc1(tokens.flatten(2))
    outputs = mlp.fc2(hidden).unflatten(2, (4, 3))
    model.resize_image_size((24, 40))
    larger = interpolate(tokens, size=(6, 5), mode="bicubic", align_corners=False)
    new_hidden = mlp.fc1(larger.flatten(2))
    torch.testing.assert_close(new_hidden, hidden, rtol=0, atol=1e-6)
    new_outputs = interpolate(outputs, size=(6, 5), mode="bicubic", align_corners=False)
    torch.testing.assert_close(mlp.fc2(hidden).unflatten(2, (6, 5)), new_outputs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("image_size", [(24, 40), (20, 32), (32, 48)])
def test_there_and_back_is_the_identity(image_size):
    model = build().double()
    pixel_values = images(16, 24).double()
    expected = model(pixel_values).logits
    model.resize_image_size(image_size, method="interpolate")
    assert not torch.allclose(model(images(*image_size).double()).logits, expected, atol=1e-3)
    model.resize_image_size((16, 24))
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=1e-6)


def test_shrinking_keeps_what_a_smaller_grid_can_tell():
    """Of images that are smooth over the grid, the hidden units stay as they were."""
    model = build().double()
    fc1 = model.mixer.layers[0].token_mixing.fc1
    tokens = torch.randn(2, 16, 3, 2).double()
    larger = interpolate(tokens, size=(4, 3), mode="bicubic", align_corners=False)
    expected = fc1(larger.flatten(2))
    model.resize_image_size((12, 16))
    torch.testing.assert_close(fc1(tokens.flatten(2)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("patch_size", [(6, 8), (7, 11), (16, 16)])
def test_enlarged_patches_give_the_same_tokens(model_class, patch_size, tmp_path):
    model = build(model_class)
    pixel_values = images(16, 24)
    patch_embeddings = model.base_model.embeddings.patch_embeddings
    expected = patch_embeddings(pixel_values)
    pooled = MixerModel.forward(model.base_model, pixel_values).last_hidden_state
    larger = enlarge_patches(pixel_values, (4, 8), patch_size)
    assert model.resize_patch_size(patch_size) is model
    image_size = (4 * patch_size[0], 3 * patch_size[1])
    assert (model.config.patch_size, model.config.image_size) == (patch_size, image_size)
    assert (patch_embeddings.patch_size, patch_embeddings.image_size) == (patch_size, image_size)
    assert patch_embeddings.projection.kernel_size == patch_embeddings.projection.stride == patch_size
    torch.testing.assert_close(patch_embeddings(larger), expected, rtol=0, atol=1e-4)
    tokens = MixerModel.forward(model.base_model, larger).last_hidden_state
    torch.testing.assert_close(tokens, pooled, rtol=0, atol=1e-4)

    model.save_pretrained(tmp_path)
    assert_same_outputs(model_class.from_pretrained(tmp_path).eval(), model, larger)


def test_smaller_patches_come_closest():
    """No other smaller kernel is closer on patches of white noise: the rest is orthogonal to what they can tell."""
    model = build(image_size=(32, 18), patch_size=(8, 6)).double()
    patch_embeddings = model.mixer.embeddings.patch_embeddings
    old = patch_embeddings.projection.weight.detach()
    assert model.resize_patch_size((4, 3)) is model
    assert (model.config.patch_size, model.config.image_size) == ((4, 3), (16, 9))
    new = patch_embeddings.projection.weight.detach()

    def shrink(patches):
        return interpolate(patches, size=(4, 3), mode="bilinear", antialias=True, align_corners=False)

    basis = torch.eye(48, dtype=torch.float64).view(48, 1, 8, 6)
    resize = shrink(basis).flatten(1)  # (48, 12): every pixel of a patch on the pixels of a smaller one
    error = old.flatten(2) - new.flatten(2) @ resize.T
    assert error.abs().max() > 1e-2
    torch.testing.assert_close(error @ resize, torch.zeros_like(new.flatten(2)), rtol=0, atol=1e-6)


def test_integers_stay_integers():
    model = build(image_size=32, patch_size=8)
    assert model.resize_patch_size(4) is model
    assert (model.config.patch_size, model.config.image_size) == (4, 16)
    model.resize_patch_size((6, 4))
    assert (model.config.patch_size, model.config.image_size) == ((6, 4), (24, 16))
    model.resize_image_size([12, 12])
    assert model.config.image_size == (12, 12)


@pytest.mark.parametrize("stride", [None, (4, 8)])
def test_the_decoder_draws_the_resized_patches(stride, tmp_path):
    model = build(MixerForMaskedImageModeling, encoder_stride=stride)
    pixel_values = images(16, 24)
    mask = torch.arange(12).expand(2, 12) % 3 == 0
    expected = model(pixel_values, bool_masked_pos=mask).reconstruction
    model.resize_patch_size((6, 10))
    assert model.encoder_stride == (6, 10)
    assert model.config.encoder_stride == (None if stride is None else (6, 10))
    larger = enlarge_patches(pixel_values, (4, 8), (6, 10))
    outputs = model(larger, bool_masked_pos=mask)
    assert outputs.loss.isfinite()
    expected = enlarge_patches(expected, (4, 8), (6, 10))
    torch.testing.assert_close(outputs.reconstruction, expected, rtol=0, atol=1e-4)

    model.save_pretrained(tmp_path)
    assert_same_outputs(MixerForMaskedImageModeling.from_pretrained(tmp_path).eval(), model, larger)


def test_a_decoder_of_another_stride_stays():
    model = build(MixerForMaskedImageModeling, encoder_stride=2)
    weight = model.decoder.weight
    model.resize_patch_size(8)
    assert model.decoder.weight is weight
    assert (model.encoder_stride, model.config.encoder_stride) == ((2, 2), 2)
    assert model(images(32, 24)).reconstruction.shape == (2, 3, 8, 6)


@pytest.mark.parametrize("image_size", [(32, 24), (24, 40)])
def test_mode_dtype_and_trainability_are_kept(image_size):
    model = build(MixerForMaskedImageModeling).to(torch.bfloat16).train()
    model.mixer.layers[0].requires_grad_(False)
    model.decoder.eval()
    model.decoder.bias.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    model.resize_image_size(image_size).resize_patch_size((6, 8))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("image_size", [(32, 48), (24, 16)])
def test_gradients_flow_and_half_precision_is_rounded_once(image_size):
    model = build().resize_image_size(image_size).resize_patch_size((6, 8)).train()
    pixel_values = images(image_size[0] // 4 * 6, image_size[1])
    model(pixel_values, labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())

    half = build().to(torch.bfloat16)
    exact = build().to(torch.bfloat16).double().resize_image_size(image_size)
    half.resize_image_size(image_size)
    for first, second in zip(half.parameters(), exact.parameters()):
        assert torch.equal(first, second.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("image_size", "method", "message"),
    [
        ((18, 24), None, r"multiple of the patch size \(4, 8\) along each axis, got \(18, 24\).*resize_patch_size"),
        (12, None, r"multiple of the patch size \(4, 8\) along each axis, got 12"),
        ((16, -8), None, r"`image_size` has to be a positive integer or a pair .*, got \(16, -8\)"),
        (
            (24, 24),
            "block_diagonal",
            r'"block_diagonal"` needs .* a multiple of \(4, 3\), got \(6, 3\). Use `method="interpolate"`',
        ),
        ((8, 24), "block_diagonal", r"multiple of \(4, 3\), got \(2, 3\)"),
        ((16, 24), "nearest", r"Unknown method 'nearest', expected one of 'block_diagonal', 'interpolate' or None"),
    ],
)
def test_bad_image_sizes_and_methods_are_refused(image_size, method, message):
    model = build()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        model.resize_image_size(image_size, method=method)
    assert snapshot(model) == before


@pytest.mark.parametrize("model_class", [MixerModel, MixerForMaskedImageModeling])
@pytest.mark.parametrize("patch_size", [0, -4, (4, 0), 4.0, "4", None, True, (4,), [4, 4, 4]])
def test_bad_patch_sizes_are_refused(model_class, patch_size):
    message = rf"`patch_size` has to be a positive integer or a pair .*, got {re.escape(repr(patch_size))}\."
    with pytest.raises(ValueError, match=message):
        build(model_class).resize_patch_size(patch_size)


def test_layers_that_are_not_plain_are_refused_before_anything_changes():
    """A subclass stands for a quantized layer or one with LoRA."""
    model = build(MixerForMaskedImageModeling)
    before = snapshot(model)
    model.mixer.layers[2].token_mixing.fc2.__class__ = type("Wrapped", (nn.Linear,), {})
    message = r"`layers.2.token_mixing.fc2` has to be a plain `nn.Linear` .* got `Wrapped`. Merge or dequantize first"
    for image_size in ((32, 24), (8, 8)):
        with pytest.raises(ValueError, match=message):
            model.resize_image_size(image_size)
    model.mixer.embeddings.patch_embeddings.projection.__class__ = type("WrappedConv", (nn.Conv2d,), {})
    with pytest.raises(ValueError, match=r"patch_embeddings.projection` has to be a plain `nn.Conv2d`"):
        model.resize_patch_size(8)
    model.decoder.__class__ = type("Wrapped", (nn.Linear,), {})
    with pytest.raises(ValueError, match=r"`decoder` has to be a plain `nn.Linear`"):
        model.resize_patch_size(8)
    assert snapshot(model) == before


def test_a_wrong_image_size_names_the_call_that_helps():
    model = build()
    with pytest.raises(ValueError, match=r"image processor, or .* `model.resize_image_size\(\(32, 40\)\)`\.") as error:
        model(images(32, 40))
    call = re.search(r"`(model\.resize_image_size\(.*\))`", str(error.value)).group(1)
    assert eval(call, {"model": model})(images(32, 40)).logits.shape == (2, 5)
    # No call helps where the patches do not tile the image
    with pytest.raises(ValueError, match=r"image processor\.$"):
        model(images(18, 24))


def test_a_compiled_model_follows():
    torch._dynamo.reset()
    model = build()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(images(16, 24))
    model.resize_image_size((24, 40)).resize_patch_size((6, 8))
    pixel_values = images(36, 40)
    torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits)
