"""The map of what a classifier looked at."""

import numpy as np
import pytest
import torch

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.demo.saliency import draw_saliency, occlusion_map


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


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_only_the_patch_that_matters_stands_out(model, pixel_values, problem_type, monkeypatch):
    monkeypatch.setattr(model.config, "problem_type", problem_type)
    monkeypatch.setattr("hf_mixer.demo.saliency.BATCH_SIZE", 5)
    saliency = occlusion_map(model, pixel_values, window=1)
    assert saliency.shape == (4, 6)
    assert saliency[ROW, COLUMN].abs() > 1e-2
    saliency[ROW, COLUMN] = 0
    assert saliency.abs().max() < 1e-5


def test_value_is_the_fall_of_the_log_probability(model, pixel_values):
    covered = pixel_values.clone()
    covered[:, :, 8:12, 16:20] = pixel_values.mean(dim=(2, 3), keepdim=True)
    with torch.no_grad():
        before, after = model(torch.cat([pixel_values, covered])).logits.log_softmax(-1)
    fall = (before - after)[before.argmax()]
    assert occlusion_map(model, pixel_values, window=1)[ROW, COLUMN] == pytest.approx(fall.item(), abs=1e-5)


def test_of_a_regression_it_is_the_fall_of_the_first_value(model, pixel_values, monkeypatch):
    monkeypatch.setattr(model.config, "problem_type", "regression")
    covered = pixel_values.clone()
    covered[:, :, 8:12, 16:20] = pixel_values.mean(dim=(2, 3), keepdim=True)
    with torch.no_grad():
        before, after = model(torch.cat([pixel_values, covered])).logits[:, 0]
    saliency = occlusion_map(model, pixel_values, window=1)
    assert saliency[ROW, COLUMN] == pytest.approx((before - after).item(), abs=1e-5)


def test_larger_windows_need_fewer_passes(model, pixel_values):
    # Windows of 4 patches on 4 x 6: the second one is cut off at the border
    saliency = occlusion_map(model, pixel_values, window=4)
    assert saliency[:, :4].abs().max() < 1e-5
    assert (saliency[:, 4:] == saliency[0, 4]).all()
    assert saliency[0, 4].abs() > 1e-2


def test_picture_colors_the_patches_by_their_sign():
    saliency = torch.zeros(4, 6)
    saliency[ROW, COLUMN], saliency[0, 0] = 2.0, -1.0
    gray = torch.zeros(1, 1, 16, 24)
    picture = np.asarray(draw_saliency(gray, saliency, image_mean=[0.5], image_std=[0.5])).astype(int)
    # Every patch has 112 x 112 pixels of the picture
    assert picture.shape == (448, 672, 3)
    assert (picture[168, 168] == 128).all()
    red, _, blue = picture[112 * ROW + 56, 112 * COLUMN + 56]
    assert red > 180 > 60 > blue
    red, _, blue = picture[56, 56]
    assert blue > red
