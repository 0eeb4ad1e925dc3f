# SPDX-License-Identifier: Apache-2.0
"""Tokens are mixed by convolutions as they are by linear layers."""

import pytest
import torch

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.deployment.token_mixing import mix_tokens_by_convolution


@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
def test_the_answers_stay_and_the_model_does_too(hidden_act):
    sizes = {"image_size": (12, 8), "patch_size": 4, "hidden_size": 16, "token_mlp_dim": 10, "channel_mlp_dim": 24}
    model = MixerForImageClassification(MixerConfig(**sizes, num_hidden_layers=2, hidden_act=hidden_act))
    model = model.double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(3, 3, 12, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mix_tokens_by_convolution(model)(images).logits, model(images).logits)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
