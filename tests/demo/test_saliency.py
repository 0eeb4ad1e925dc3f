"""The map of what a classifier looked at."""

import numpy as np
import pytest
import torch

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.demo.saliency import choose_stride, draw_image, draw_saliency, find_windows, occlusion_map, spread_falls


CONFIG = dict(image_size=(16, 24), patch_size=4, hidden_size=32, num_hidden_layers=2, num_labels=5, num_channels=3)
ROW, COLUMN = 2, 4


class OnePatchMixer(MixerForImageClassification):
    """A Mixer that sees one patch only."""

    def forward(self, pixel_values, **kwargs):
        seen = torch.zeros_like(pixel_values)
        part = (..., slice(4 * ROW, 4 * ROW + 4), slice(4 * COLUMN, 4 * COLUMN + 4))
        seen[part] = pixel_values[part]
        return super().forward(seen, **kwargs)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return OnePatchMixer(MixerConfig(token_mlp_dim=16, channel_mlp_dim=64, initializer_range=1.0, **CONFIG)).eval()


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def best_label(model, pixel_values) -> int:
    with torch.no_grad():
        return model(pixel_values).logits[0].argmax().item()


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_only_the_patch_that_matters_stands_out(model, pixel_values, problem_type, monkeypatch):
    monkeypatch.setattr(model.config, "problem_type", problem_type)
    monkeypatch.setattr("hf_mixer.demo.saliency.MAX_BATCH_SIZE", 5)
    saliency = occlusion_map(model, pixel_values, window=4, stride=4, index=best_label(model, pixel_values))
    assert saliency.shape == (16, 24)
    patch = saliency[4 * ROW : 4 * ROW + 4, 4 * COLUMN : 4 * COLUMN + 4]
    assert patch.abs().min() > 1e-2
    patch.zero_()
    assert saliency.abs().max() < 1e-5


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression"])
def test_every_label_and_value_has_its_own_map(model, pixel_values, problem_type, monkeypatch):
    monkeypatch.setattr(model.config, "problem_type", problem_type)
    covered = pixel_values.clone()
    covered[:, :, 8:12, 16:20] = pixel_values.mean(dim=(2, 3), keepdim=True)
    with torch.no_grad():
        outputs = model(torch.cat([pixel_values, covered])).logits
    before, after = outputs if problem_type == "regression" else outputs.log_softmax(-1)
    for index in range(2):
        saliency = occlusion_map(model, pixel_values, window=4, stride=4, index=index)
        expected = (before - after)[index].item()
        assert saliency[4 * ROW, 4 * COLUMN] == pytest.approx(expected, abs=1e-5)


def test_overlapping_windows_find_parts_of_a_patch():
    windows = find_windows(6, 9, window=4, stride=2)
    counts = torch.zeros(6, 9)
    for top, left, bottom, right in windows:
        counts[top:bottom, left:right] += 1
    assert (counts == 4).all()
    # What matters is a single pixel: the map is strongest there
    falls = torch.tensor([float(top <= 4 < bottom and left <= 3 < right) for top, left, bottom, right in windows])
    saliency = spread_falls(falls, windows, 6, 9)
    assert saliency[4, 3] == saliency.max() == 1
    assert saliency[0, 8] == 0


@pytest.mark.parametrize(
    ("sizes", "least", "most"),
    [
        # B/16, and a model of digits that sees four patches
        ((224, 16, 768, 12, 384, 3072), 9, 30),
        ((8, 4, 32, 2, 8, 32), 81, 81),
    ],
)
def test_large_models_get_coarse_maps(sizes, least, most):
    names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "token_mlp_dim", "channel_mlp_dim")
    side = sizes[0]
    stride = choose_stride(MixerConfig(**dict(zip(names, sizes))), side, side)
    assert least <= len(find_windows(side, side, 2 * stride, stride)) <= most


def test_picture_has_colors_where_something_matters_only():
    # A red image: nothing of its color is left beside the orange
    processor = MixerImageProcessorPil(size={"height": 16, "width": 24})
    pixel_values = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 24)
    picture = draw_image(pixel_values, processor)
    assert (picture.size, picture.getpixel((0, 0))) == ((672, 448), (255, 0, 0))
    saliency = torch.zeros(16, 24)
    saliency[8:12, 16:20], saliency[:4, :4] = 2.0, -1.0
    drawn = np.asarray(draw_saliency(picture, saliency, strongest=2.0)).astype(int)
    assert drawn.shape == (448, 672, 3)
    assert len(set(drawn[168, 168])) == 1
    red, _, blue = drawn[280, 504]
    assert red > 180 > 60 > blue
    red, _, blue = drawn[56, 56]
    assert blue > red
