# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of an MLP-Mixer."""

from .configuration_mixer import MixerConfig, to_pair


def estimate_flops(config: MixerConfig, training: bool = False) -> int:
    """
    Return the floating-point operations that `MixerForImageClassification` needs for one image.

    Matrix products are counted, a multiplication and an addition as two operations, as
    `torch.utils.flop_counter.FlopCounterMode` does; norms, activations and sums are less than one percent of it.

    Args:
        config (`MixerConfig`):
            The network. Without labels there is no classifier to count.
        training (`bool`, *optional*, defaults to `False`):
            Whether to count the backward pass as well: two more products per product, one for the gradient of each
            operand. The pixels need none.

    Example:

    ```python
    >>> from hf_mixer import MixerConfig
    >>> from hf_mixer.flops import estimate_flops

    >>> estimate_flops(MixerConfig.from_variant("B/16", num_labels=1000))
    25203535872
    ```"""
    num_patches, hidden_size = config.num_patches, config.hidden_size
    patch_height, patch_width = to_pair(config.patch_size)
    patch_embedding = num_patches * hidden_size * config.num_channels * patch_height * patch_width
    token_mixing = 2 * num_patches * hidden_size * config.token_mlp_dim
    channel_mixing = 2 * num_patches * hidden_size * config.channel_mlp_dim
    rest = config.num_hidden_layers * (token_mixing + channel_mixing) + hidden_size * config.num_labels
    return 2 * (2 * patch_embedding + 3 * rest if training else patch_embedding + rest)
