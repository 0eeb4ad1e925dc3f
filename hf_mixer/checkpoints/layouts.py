# SPDX-License-Identifier: Apache-2.0
"""
How other implementations name and lay out the weights of a Mixer.

One table per layout maps our modules to theirs; everything else in the package asks these tables. Tensors are only
renamed, transposed and reshaped, so that a round trip gives back the same bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


STEM = "mixer.embeddings.patch_embeddings.projection"


@dataclass(frozen=True)
class Layout:
    """The layout of one implementation's checkpoints."""

    name: str
    # For model cards; where the weights come from may state another license
    origin: str
    license: str | None
    # The suffix of the file that holds the weights, "" for a folder
    suffix: str
    # The modules of `MixerForImageClassification` and theirs; `{}` stands for the number of the layer
    modules: dict[str, str]
    # What stands between a module and its parameter
    separator: str
    # What they call `weight` and `bias` of linear layers, the stem included, and of LayerNorms
    linear_names: tuple[str, str]
    norm_names: tuple[str, str]
    # Axes of the patch embedding: "OIHW", "HWIO", or "(IHW)O", a matrix
    stem: str
    # Whether the other kernels are `(in, out)` instead of torch's `(out, in)`
    transposed: bool
    # What the implementation computes with
    hidden_act: str
    layer_norm_eps: float

    def keys(self, num_layers: int, has_head: bool) -> Iterator[tuple[str, str]]:
        """Yield our and their name of every parameter."""
        for ours, theirs in self.modules.items():
            if ours == "classifier" and not has_head:
                continue
            names = self.norm_names if ours.endswith("norm") else self.linear_names
            for index in range(num_layers if "{}" in ours else 1):
                for our_name, their_name in zip(("weight", "bias"), names):
                    yield f"{ours.format(index)}.{our_name}", f"{theirs.format(index)}{self.separator}{their_name}"

    def import_tensor(
        self, our_key: str, tensor: torch.Tensor, num_channels: int, patch_size: tuple[int, int]
    ) -> torch.Tensor:
        """Bring one of their tensors into the layout of our parameter `our_key`."""
        if our_key == f"{STEM}.weight":
            if self.stem == "HWIO":
                return tensor.permute(3, 2, 0, 1)
            if self.stem == "(IHW)O":
                return tensor.T.reshape(-1, num_channels, *patch_size)
            return tensor
        return tensor.T if self.transposed and tensor.ndim == 2 else tensor

    def export_tensor(self, our_key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Bring our parameter `our_key` into their layout."""
        if our_key == f"{STEM}.weight":
            if self.stem == "HWIO":
                return tensor.permute(2, 3, 1, 0)
            if self.stem == "(IHW)O":
                return tensor.reshape(len(tensor), -1).T
            return tensor
        return tensor.T if self.transposed and tensor.ndim == 2 else tensor


# vit_jax/models_mixer.py
GOOGLE = Layout(
    name="google",
    origin="Google's MLP-Mixer (https://github.com/google-research/vision_transformer)",
    license="apache-2.0",
    suffix=".npz",
    modules={
        STEM: "stem",
        "mixer.layers.{}.token_norm": "MixerBlock_{}/LayerNorm_0",
        "mixer.layers.{}.token_mixing.fc1": "MixerBlock_{}/token_mixing/Dense_0",
        "mixer.layers.{}.token_mixing.fc2": "MixerBlock_{}/token_mixing/Dense_1",
        "mixer.layers.{}.channel_norm": "MixerBlock_{}/LayerNorm_1",
        "mixer.layers.{}.channel_mixing.fc1": "MixerBlock_{}/channel_mixing/Dense_0",
        "mixer.layers.{}.channel_mixing.fc2": "MixerBlock_{}/channel_mixing/Dense_1",
        "mixer.norm": "pre_head_layer_norm",
        "classifier": "head",
    },
    separator="/",
    linear_names=("kernel", "bias"),
    norm_names=("scale", "bias"),
    stem="HWIO",
    transposed=True,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
)

# timm/models/mlp_mixer.py
TIMM = Layout(
    name="timm",
    origin="timm (https://github.com/huggingface/pytorch-image-models)",
    license="apache-2.0",
    suffix="",
    modules={
        STEM: "stem.proj",
        "mixer.layers.{}.token_norm": "blocks.{}.norm1",
        "mixer.layers.{}.token_mixing.fc1": "blocks.{}.mlp_tokens.fc1",
        "mixer.layers.{}.token_mixing.fc2": "blocks.{}.mlp_tokens.fc2",
        "mixer.layers.{}.channel_norm": "blocks.{}.norm2",
        "mixer.layers.{}.channel_mixing.fc1": "blocks.{}.mlp_channels.fc1",
        "mixer.layers.{}.channel_mixing.fc2": "blocks.{}.mlp_channels.fc2",
        "mixer.norm": "norm",
        "classifier": "head",
    },
    separator=".",
    linear_names=("weight", "bias"),
    norm_names=("weight", "bias"),
    stem="OIHW",
    transposed=False,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
)

# Edifice.Checkpoint.export_safetensors of an Edifice.Vision.MLPMixer
EDIFICE = Layout(
    name="edifice",
    origin="Edifice (https://hex.pm/packages/edifice)",
    license=None,
    suffix=".safetensors",
    modules={
        STEM: "patch_embed_proj",
        "mixer.layers.{}.token_norm": "mixer_{}_token_norm",
        "mixer.layers.{}.token_mixing.fc1": "mixer_{}_token_fc1",
        "mixer.layers.{}.token_mixing.fc2": "mixer_{}_token_fc2",
        "mixer.layers.{}.channel_norm": "mixer_{}_channel_norm",
        "mixer.layers.{}.channel_mixing.fc1": "mixer_{}_channel_fc1",
        "mixer.layers.{}.channel_mixing.fc2": "mixer_{}_channel_fc2",
        "mixer.norm": "final_norm",
        "classifier": "classifier",
    },
    separator=".",
    linear_names=("kernel", "bias"),
    norm_names=("gamma", "beta"),
    stem="(IHW)O",
    transposed=True,
    hidden_act="gelu",
    layer_norm_eps=1e-5,
)

LAYOUTS = {layout.name: layout for layout in (GOOGLE, TIMM, EDIFICE)}
