# SPDX-License-Identifier: Apache-2.0
"""Which parameters an optimizer treats alike."""

from typing import Any

from transformers import PreTrainedModel


def layer_depth(name: str, num_layers: int) -> int:
    """
    Return the depth of a parameter: 0 in the patch embedding, `i + 1` in Mixer layer `i`, and one more than in the last
    layer for all that follows.
    """
    parts = name.split(".")
    if "layers" in parts:
        return int(parts[parts.index("layers") + 1]) + 1
    return 0 if "embeddings" in parts else num_layers + 1


def parameter_groups(
    model: PreTrainedModel,
    learning_rate: float,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    muon: bool = False,
) -> list[dict[str, Any]]:
    """
    Sort the trainable parameters of a Mixer into groups for an optimizer: norms, biases and the mask token go without
    weight decay, and the learning rate shrinks towards the input.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A Mixer, or a model that holds one.
        learning_rate (`float`):
            The learning rate of the classifier and the last LayerNorm.
        weight_decay (`float`, *optional*, defaults to 0.0):
            Weight decay of the weight matrices.
        layer_decay (`float`, *optional*, defaults to 1.0):
            Factor on the learning rate from one layer to the one below it, in (0, 1], as in
            [BEiT](https://huggingface.co/papers/2106.08254).
        muon (`bool`, *optional*, defaults to `False`):
            Whether the matrices of the layers get groups of their own, for [`~hf_mixer.training.muon.Muon`].

    Returns:
        `list[dict]`: groups with `params`, `lr`, `weight_decay` and, with `muon`, that, those with `learning_rate` itself first.

    Raises:
        `ValueError`: `layer_decay` is not in (0, 1].

    Example:

    ```python
    >>> from torch.optim import AdamW

    >>> optimizer = AdamW(parameter_groups(model, learning_rate=1e-3, weight_decay=0.05, layer_decay=0.75))
    >>> trainer = Trainer(model, args, optimizers=(optimizer, None))
    ```"""
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay has to be in (0, 1], got {layer_decay}")
    top = model.config.num_hidden_layers + 1
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = layer_depth(name, model.config.num_hidden_layers) if layer_decay < 1 else top
        decays = parameter.ndim > 1 and not name.endswith("mask_token")
        is_for_muon = muon and parameter.ndim == 2 and "layers" in name.split(".")
        key = depth, decays, is_for_muon
        if key not in groups:
            rate = learning_rate * layer_decay ** (top - depth)
            groups[key] = {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
            if muon:
                groups[key]["muon"] = is_for_muon
        groups[key]["params"].append(parameter)
    # `Trainer` logs the learning rate of the first one
    return [groups[key] for key in sorted(groups, reverse=True)]
