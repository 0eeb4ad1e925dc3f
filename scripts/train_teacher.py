# SPDX-License-Identifier: Apache-2.0
"""
Train a ResNet-18 on small images, for Mixers to learn from.

    python scripts/train_teacher.py --dataset_name uoft-cs/cifar10 --output_dir outputs/cifar10-resnet
    hf-mixer train --recipe cifar10-nano --teacher_model outputs/cifar10-resnet --output_dir outputs/cifar10-nano

The images are augmented as a Mixer's, and enlarged for the ResNet on the device. Prints the accuracy on the split `test`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed
from transformers.utils import is_torchvision_available

from hf_mixer import MixerConfig, MixerImageProcessor, MixerImageProcessorPil
from hf_mixer.data.datasets import load_image_dataset, prepare_image_dataset
from hf_mixer.data.images import ImageTransform, collate_images
from hf_mixer.data.loaders import CachedImages
from hf_mixer.output_folder import refuse_foreign_files
from hf_mixer.training.augmentation import BatchAugmentation, normalize_pixels
from hf_mixer.training.distillation import PixelConversion
from hf_mixer.utils import one_line_errors


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset_name", required=True, help="with the splits `train` and `test`, as for hf-mixer train"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--image_size", type=int, default=32, help="of the Mixers, in pixels (default: 32)")
    parser.add_argument("--teacher_image_size", type=int, default=96, help="of the ResNet (default: 96)")
    parser.add_argument("--num_train_epochs", type=float, default=60)
    parser.add_argument("--per_device_train_batch_size", type=int, default=1024)
    parser.add_argument("--learning_rate", type=float, default=0.4, help="of SGD with Nesterov's momentum of 0.9")
    parser.add_argument("--weight_decay", type=float, default=5e-4)
    parser.add_argument("--mixup_prob", type=float, default=0.5, help="share of images under mixup or CutMix")
    parser.add_argument("--max_train_samples", type=int)
    parser.add_argument("--max_eval_samples", type=int)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args(arguments)


def make_processor(size: int):
    """Return an image processor for square images."""
    processor_class = MixerImageProcessor if is_torchvision_available() else MixerImageProcessorPil
    return processor_class(size={"height": size, "width": size})


def build_model(labels: list[str]) -> ResNetForImageClassification:
    """Return a ResNet-18 with random weights."""
    config = ResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return ResNetForImageClassification(config)


@torch.no_grad()
def measure_accuracy(model, images: CachedImages, normalization: dict, convert: PixelConversion) -> float:
    """Return the share of images that a model classifies correctly."""
    model.eval()
    num_right = 0
    for pixels, labels in zip(images.pixel_values.split(500), images.labels.split(500)):
        logits = model(convert(normalize_pixels(pixels, **normalization).to(model.device))).logits
        num_right += (logits.argmax(-1) == labels.to(model.device)).sum().item()
    return num_right / len(images)


def main():
    with one_line_errors():
        train_teacher(parse_arguments())


def train_teacher(parsed: argparse.Namespace) -> None:
    """
    Train a ResNet, and write it, its image processor and its accuracy into the output folder.

    Raises:
        `ValueError`: the output folder holds a model, or there are fewer images than a batch has.
    """
    refuse_foreign_files(parsed.output_dir)
    set_seed(parsed.seed)
    on_gpu = torch.cuda.is_available()
    args = TrainingArguments(
        str(parsed.output_dir),
        num_train_epochs=parsed.num_train_epochs,
        per_device_train_batch_size=parsed.per_device_train_batch_size,
        learning_rate=parsed.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_grad_norm=0.0,
        bf16=on_gpu,
        torch_compile=on_gpu,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=100,
        report_to="none",
        seed=parsed.seed,
    )
    small, large = make_processor(parsed.image_size), make_processor(parsed.teacher_image_size)
    dataset, labels = prepare_image_dataset(
        load_image_dataset(parsed.dataset_name, check_test=True),
        seed=parsed.seed,
        eval_split="test",
        max_train_samples=parsed.max_train_samples,
        max_eval_samples=parsed.max_eval_samples,
    )
    batch_size = parsed.per_device_train_batch_size
    if len(dataset["train"]) < batch_size:
        raise ValueError(
            f"{len(dataset['train'])} images are fewer than one batch of {batch_size}: lower --per_device_train_batch_size"
        )
    transform = ImageTransform(small, do_rescale=False, do_normalize=False)
    device = args.device if on_gpu else "cpu"
    images = {split: CachedImages(dataset[split], transform, device) for split in ("train", "validation")}
    normalization = {"mean": small.image_mean, "std": small.image_std, "rescale_factor": small.rescale_factor}
    augmentation = BatchAugmentation(
        parsed.image_size,
        **normalization,
        num_labels=len(labels),
        crop_padding=parsed.image_size // 8,
        horizontal_flip=0.5,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        mixup_prob=parsed.mixup_prob,
    )
    convert = PixelConversion(small, large, MixerConfig(image_size=parsed.image_size))

    def collate(rows) -> dict[str, torch.Tensor]:
        batch = augmentation(collate_images(rows))
        return {**batch, "pixel_values": convert(batch["pixel_values"])}

    def soft_cross_entropy(outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        return F.cross_entropy(outputs["logits"].float(), labels)

    model = build_model(labels)
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in model.parameters() if parameter.ndim > 1]},
        {"params": [parameter for parameter in model.parameters() if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(
        groups, lr=parsed.learning_rate, momentum=0.9, nesterov=True, weight_decay=parsed.weight_decay
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=images["train"],
        data_collator=collate,
        processing_class=large,
        optimizers=(optimizer, None),
        compute_loss_func=soft_cross_entropy,
    )
    result = trainer.train()
    trainer.save_model()
    accuracy = measure_accuracy(model, images["validation"], normalization, convert)
    metrics = {
        "accuracy": accuracy,
        "num_images": len(images["validation"]),
        "seconds": result.metrics["train_runtime"],
    }
    (parsed.output_dir / "results.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"{accuracy:.2%} of {len(images['validation']):,} test images, after {metrics['seconds']:.0f} s of training")


if __name__ == "__main__":
    main()
