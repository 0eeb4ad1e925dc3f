"""A small classifier, a photo and the Space made of them, for the tests of this room."""

import pytest
import torch
from PIL import Image

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.demo.space import export_space


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "my-mixer"
    torch.manual_seed(0)
    config = MixerConfig(
        image_size=32,
        patch_size=2,
        hidden_size=16,
        num_hidden_layers=1,
        token_mlp_dim=16,
        channel_mlp_dim=32,
        initializer_range=1.0,
        id2label={0: "cat", 1: "dog", 2: "owl"},
        label2id={"cat": 0, "dog": 1, "owl": 2},
    )
    MixerForImageClassification(config).save_pretrained(folder)
    MixerImageProcessorPil(size=32).save_pretrained(folder)
    for leftover in ("optimizer.pt", "training_args.bin", ".env"):
        (folder / leftover).write_text("not for the Hub")
    return folder


@pytest.fixture(scope="session")
def photo(folder):
    path = folder.parent / "photo.JPG"
    Image.radial_gradient("L").convert("RGB").resize((80, 60)).save(path)
    return path


@pytest.fixture(scope="session")
def space(folder, photo):
    export_space(folder.parent / "space", folder, examples=[photo])
    return folder.parent / "space"
