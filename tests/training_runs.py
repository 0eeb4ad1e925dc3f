"""Tiny training runs for the tests, alone and as one of several processes."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.data import ImageTransform, collate_images
from hf_mixer.data_loading import CachedImages, StreamedImages
from hf_mixer.scripting import end_together
from hf_mixer.training import MixerTrainer, MixerTrainingArguments


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


def run_as_one_of_several(output_dir: Path) -> None:
    """What the test of two processes launches; the main process writes down what all of them saw."""
    trainer = make_trainer(output_dir / "halves", per_device_train_batch_size=4)
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    report = {
        "world_size": trainer.accelerator.num_processes,
        "losses": losses_of(trainer.state.log_history),
        "evaluated": metrics["eval_count"],
        "eval_loss": metrics["eval_loss"],
    }

    process = (trainer.accelerator.process_index, trainer.accelerator.num_processes)
    for num_shards in (4, 1):
        stream = make_images(40).to_iterable_dataset(num_shards=num_shards).shuffle(seed=0, buffer_size=8)
        images = StreamedImages(stream, make_transform(), *process, num_passes=1)
        loader = torch.utils.data.DataLoader(images, batch_size=4, num_workers=2, collate_fn=collate_images)
        seen = torch.cat([batch["pixel_values"][:, 0, 0, 0] for batch in loader])
        seen = trainer.accelerator.gather(trainer.accelerator.pad_across_processes(seen, pad_index=255))
        report[f"streamed from {num_shards} shards"] = sorted(value for value in seen.tolist() if value != 255)

    stream = make_images(40).to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=8)
    streamed = StreamedImages(stream, make_transform(), *process)
    trainer = make_trainer(
        output_dir / "stream", train_dataset=streamed, max_steps=12, cache_images="none", dataloader_num_workers=1
    )
    trainer.eval_dataset = StreamedImages(
        make_images(NUM_EVAL_IMAGES, seed=1).to_iterable_dataset(num_shards=3), make_transform(), num_passes=1
    )
    trainer.train()
    report["steps of a stream"] = trainer.state.global_step
    report["evaluated from a stream"] = trainer.evaluate()["eval_count"]
    accelerator = trainer.accelerator
    del trainer
    end_together(accelerator)
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    report["threads that would keep the process"] = [name for name in names if "gloo" in name]
    if process[0] == 0:
        (output_dir / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_as_one_of_several(Path(sys.argv[1]))
