"""What the tests share: images, checkpoints of the original implementations, tiny training runs, and how to run a script."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.numpy import load_file

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.checkpoints.layouts import EDIFICE, GOOGLE, TIMM
from hf_mixer.data import ImageTransform, collate_images
from hf_mixer.data.loaders import CachedImages
from hf_mixer.training import MixerTrainer, MixerTrainingArguments


ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
# The files of a published model that run where hf_mixer is missing
REMOTE_CODE = {
    "configuration_mixer.py",
    "modeling_mixer.py",
    "layers_mixer.py",
    "resizing_mixer.py",
    "image_processing_mixer.py",
    "image_processing_pil_mixer.py",
}
NUM_IMAGES = 45
NUM_EVAL_IMAGES = 23
AUGMENTED = {
    "crop_padding": 2,
    "horizontal_flip": 0.5,
    "random_erasing": 0.3,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "ema_decay": 0.9,
    "label_smoothing_factor": 0.1,
    "layer_decay": 0.8,
}


def run(script, *arguments, launcher=()):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def make_folder(root, classes=("cat", "dog"), images_per_class=6):
    """Images of several sizes, modes and formats, one folder per class."""
    for shade, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(images_per_class):
            mode, suffix = [("RGB", "jpg"), ("L", "jpeg"), ("RGBA", "png"), ("P", "png"), ("CMYK", "JPG")][index % 5]
            image = Image.new("RGB", (10 + index, 20), (200 * shade, 100, 100)).convert(mode)
            image.save(root / name / f"{index}.{suffix}")
    return root


def make_dataset(labels, feature, splits=("train",), columns=("image", "label")) -> DatasetDict:
    images = [Image.new("RGB", (4, 4), (index, 0, 0)) for index in range(len(labels))]
    features = Features({columns[0]: ImageFeature(), columns[1]: feature})
    data = Dataset.from_dict({columns[0]: images, columns[1]: labels}, features=features)
    return DatasetDict(dict.fromkeys(splits, data))


def make_images(count: int, seed: int = 0) -> Dataset:
    """Noisy images of three shades; the value of the first pixel is the number of the image."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = []
    for index, label in enumerate(labels):
        pixels = rng.integers(0, 60, (16, 16, 3)) + 60 * label
        pixels[0, 0] = index
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{index}.png"})
    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(names=["a", "b", "c"])})
    return Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)


def make_transform() -> ImageTransform:
    processor = MixerImageProcessorPil(size={"height": 16, "width": 16})
    return ImageTransform(processor, do_rescale=False, do_normalize=False)


def make_trainer(output_dir, dropout: float = 0.0, train_dataset=None, callbacks=None, **arguments) -> MixerTrainer:
    torch.manual_seed(0)
    config = MixerConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        token_mlp_dim=8,
        channel_mlp_dim=32,
        num_labels=3,
        hidden_dropout_prob=dropout,
        drop_path_rate=dropout,
    )
    defaults = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "num_train_epochs": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "cache_images": "memory",
    }
    args = MixerTrainingArguments(str(output_dir), **{**defaults, **arguments})
    transform = make_transform()
    return MixerTrainer(
        MixerForImageClassification(config),
        args,
        MixerImageProcessorPil(size={"height": 16, "width": 16}),
        train_dataset=train_dataset or CachedImages(make_images(NUM_IMAGES), transform),
        eval_dataset=CachedImages(make_images(NUM_EVAL_IMAGES, seed=1), transform),
        data_collator=collate_images,
        compute_metrics=lambda prediction: {"count": len(prediction.label_ids)},
        callbacks=callbacks,
    )


def losses_of(log_history) -> list[float]:
    return [entry["loss"] for entry in log_history if "loss" in entry]


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
