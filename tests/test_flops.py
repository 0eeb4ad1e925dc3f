import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.configuration_mixer import to_pair
from hf_mixer.flops import estimate_flops


CONFIGS = {
    "variant": MixerConfig.from_variant("S/32", num_labels=1000),
    "cifar10": MixerConfig.from_variant("cifar10"),
    "rectangles": MixerConfig(
        image_size=(16, 24),
        patch_size=(4, 8),
        num_channels=1,
        hidden_size=24,
        num_hidden_layers=3,
        token_mlp_dim=10,
        channel_mlp_dim=40,
        num_labels=5,
    ),
    "no classifier": MixerConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_labels=0),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_estimate_is_what_torch_counts(name, training):
    config = CONFIGS[name]
    with torch.device("meta"):
        model = MixerForImageClassification(config)
        pixel_values = torch.empty(2, config.num_channels, *to_pair(config.image_size))
    with FlopCounterMode(display=False) as counter:
        logits = model(pixel_values).logits
        if training:
            logits.sum().backward()
    assert counter.get_total_flops() == 2 * estimate_flops(config, training=training)
