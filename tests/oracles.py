"""Tiny checkpoints and outputs of the original implementations, kept under `fixtures/`."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.checkpoints.layouts import EDIFICE, GOOGLE, TIMM


FIXTURES = Path(__file__).parent / "fixtures"


def load_oracle(name: str):
    """Return the model of `fixtures/<name>` with the original's weights, and the recorded inputs and outputs."""
    folder = FIXTURES / name
    case = json.loads((folder / "config.json").read_text())
    io = {key: torch.from_numpy(value) for key, value in load_file(folder / "io.safetensors").items()}
    if name.startswith("flax"):
        layout, arrays = GOOGLE, dict(np.load(folder / "linen.npz"))
        sizes = dict(
            image_size=case["image_size"],
            patch_size=case["patch_size"],
            num_channels=case["in_chans"],
            hidden_size=case["hidden_dim"],
            num_hidden_layers=case["num_blocks"],
            token_mlp_dim=case["tokens_mlp_dim"],
            channel_mlp_dim=case["channels_mlp_dim"],
            num_labels=case["num_classes"] or 0,
        )
    elif name.startswith("edifice"):
        layout, arrays = EDIFICE, load_file(folder / "params.safetensors")
        sizes = {"num_classes": None, **case["options"]}
    else:
        layout, arrays = TIMM, load_file(folder / "model.safetensors")
        args = case["model_args"]
        sizes = dict(
            image_size=args["img_size"],
            patch_size=args["patch_size"],
            hidden_size=args["embed_dim"],
            num_hidden_layers=args["num_blocks"],
            token_mlp_dim=len(arrays["blocks.0.mlp_tokens.fc1.weight"]),
            channel_mlp_dim=len(arrays["blocks.0.mlp_channels.fc1.weight"]),
            num_labels=case["num_classes"],
        )
    config = MixerConfig(hidden_act=layout.hidden_act, layer_norm_eps=layout.layer_norm_eps, **sizes)
    model = MixerForImageClassification(config).eval()
    model.load_state_dict(to_state_dict(layout, arrays, model))
    return model, io


def to_state_dict(layout, arrays, model) -> dict[str, torch.Tensor]:
    """Their arrays (weights or gradients) under our names."""
    embeddings, config = model.mixer.embeddings.patch_embeddings, model.config
    state = {}
    for ours, theirs in layout.keys(config.num_hidden_layers, config.num_labels > 0):
        tensor = layout.import_tensor(
            ours, torch.as_tensor(arrays[theirs]), config.num_channels, embeddings.patch_size
        )
        prefix = "" if ours.startswith("classifier") else "mixer."
        state[prefix + ours] = tensor.contiguous()
    return state
