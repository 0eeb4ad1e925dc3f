"""What the tests share: images, checkpoints of the original implementations, tiny training runs."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.numpy import load_file

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil, MixerModel
from hf_mixer.data import ImageTransform, collate_images
from hf_mixer.data.loaders import CachedImages
from hf_mixer.deployment.formats import missing_reason
from hf_mixer.training import MixerTrainer, MixerTrainingArguments


ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
# transformers 5.23 renames it
ENABLE_CHECKPOINTING = (
    "activation_checkpointing_enable"
    if hasattr(MixerModel, "activation_checkpointing_enable")
    else "gradient_checkpointing_enable"
)
# Inductor makes C++ of a model for the CPU
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
GOOGLE_SQUARE = FIXTURES / "flax/a_sq16_p4_tok_gt"
GOOGLE_RECTANGLE = FIXTURES / "flax/e_rect8x16_p4"
TIMM_TINY = FIXTURES / "timm/b16_tiny_cls"
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


def make_folder(root, classes=("cat", "dog"), images_per_class=6):
    """Images of several sizes, modes and formats, one folder per class."""
    for shade, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(images_per_class):
            mode, suffix = [("RGB", "jpg"), ("L", "jpeg"), ("RGBA", "png"), ("P", "png"), ("CMYK", "JPG")][index % 5]
            image = Image.new("RGB", (10 + index, 20), (200 * shade, 100, 100)).convert(mode)
            image.save(root / name / f"{index}.{suffix}")
    return root


def save_classifier(folder, labels, **overrides):
    """Save a tiny classifier, by default of images of 16 x 16 pixels, with its image processor, whose answers vary."""
    torch.manual_seed(0)
    sizes = {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "token_mlp_dim": 8,
        "channel_mlp_dim": 32,
        **overrides,
    }
    names = dict(enumerate(labels))
    config = MixerConfig(**sizes, id2label=names, label2id={label: index for index, label in names.items()})
    model = MixerForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    MixerImageProcessorPil(size=config.image_size).save_pretrained(folder)
    return folder


def make_dataset(labels, feature, splits=("train",), columns=("image", "label")) -> DatasetDict:
    images = [Image.new("RGB", (4, 4), (index, 0, 0)) for index in range(len(labels))]
    features = Features({columns[0]: ImageFeature(), columns[1]: feature})
    data = Dataset.from_dict({columns[0]: images, columns[1]: labels}, features=features)
    return DatasetDict(dict.fromkeys(splits, data))


def make_label_config(*labels, problem_type=None) -> MixerConfig:
    return MixerConfig(id2label=dict(enumerate(labels)), problem_type=problem_type)


def make_label_columns(**columns) -> DatasetDict:
    """Images with several columns of labels, as `train` and `validation`."""
    count = len(next(iter(columns.values())))
    data = make_dataset([0] * count, Value("int64"))["train"].remove_columns("label")
    for name, values in columns.items():
        data = data.add_column(name, values)
    return DatasetDict(train=data, validation=data)


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


def make_labelled_images(count: int, problem_type: str, seed: int = 0) -> Dataset:
    """The images of `make_images`, with several labels each that are seen in them, or two numbers of different scales."""
    images = make_images(count, seed)
    if problem_type == "single_label_classification":
        return images
    shades = np.array(images["label"])
    if problem_type == "multi_label_classification":
        labels, kind = np.stack([shades > 0, shades > 1, np.arange(count) % 7 == 0], axis=1), "bool"
    else:
        labels, kind = np.stack([1000 + 50 * shades, 0.01 * shades - 0.05], axis=1), "float32"
    return images.remove_columns("label").add_column("label", labels.tolist(), feature=List(Value(kind)))


def make_trainer(
    output_dir,
    dropout: float = 0.0,
    train_dataset=None,
    callbacks=None,
    problem_type: str = "single_label_classification",
    teacher=None,
    teacher_processing_class=None,
    **arguments,
) -> MixerTrainer:
    torch.manual_seed(0)
    config = MixerConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        token_mlp_dim=8,
        channel_mlp_dim=32,
        num_labels=2 if problem_type == "regression" else 3,
        problem_type=problem_type,
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
    images, transform = make_labelled_images(NUM_IMAGES, problem_type), make_transform()
    has_classes = problem_type == "single_label_classification"
    return MixerTrainer(
        MixerForImageClassification(config),
        args,
        MixerImageProcessorPil(size={"height": 16, "width": 16}),
        train_dataset=train_dataset or CachedImages(images, transform),
        eval_dataset=CachedImages(make_labelled_images(NUM_EVAL_IMAGES, problem_type, seed=1), transform),
        data_collator=collate_images,
        train_labels=np.array(images["label"]) if train_dataset is None else None,
        callbacks=callbacks,
        teacher=MixerForImageClassification(config) if teacher == "untrained" else teacher,
        teacher_processing_class=teacher_processing_class,
        **({"compute_metrics": lambda prediction: {"count": len(prediction.label_ids)}} if has_classes else {}),
    )


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts agree to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses_of(log_history) -> list[float]:
    return [entry["loss"] for entry in log_history if "loss" in entry]


def read_npz(path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def record_warnings(monkeypatch, logger) -> list[str]:
    """Return a list that gets the warnings of one of transformers' loggers, also those that it has given before."""
    lines: list[str] = []
    type(logger).warning_once.cache_clear()
    monkeypatch.setattr(logger, "warning", lines.append)
    return lines


def read_io(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the recorded images and outputs of one of the `fixtures`."""
    arrays = load_file(folder / "io.safetensors")
    return torch.from_numpy(arrays.get("input_nchw", arrays.get("input"))), torch.from_numpy(arrays["output"])


def needs_export(format: str, dtype: str = "float32"):
    """Skip a test where models cannot be exported to this format here, with the reason."""
    reason = missing_reason(format, dtype)
    return pytest.mark.skipif(reason is not None, reason=str(reason))
