"""Tiny training runs for the tests, alone and as one of several processes."""

import json
from pathlib import Path

import torch

from hf_mixer.data.images import collate_images
from hf_mixer.data.loaders import CachedImages, StreamedImages
from hf_mixer.utils import end_together
from tests.helpers import NUM_EVAL_IMAGES, losses_of, make_images, make_trainer, make_transform


# On one process, 8 images make a batch, and the last one is filled up on two
OTHER_LABELS = {
    "multi_label_classification": {
        "problem_type": "multi_label_classification",
        "balanced_sampling": True,
        "class_weights": "balanced",
        "gradient_accumulation_steps": 2,
        "dataloader_drop_last": True,
        "label_threshold": "best_f1",
        "teacher": "untrained",
        "num_train_epochs": 2,
    },
    "regression": {
        "problem_type": "regression",
        "muon": True,
        "weight_decay": 0.1,
        "dataloader_drop_last": True,
        "num_train_epochs": 2,
    },
}


def run_as_one_of_several(output_dir: Path) -> None:
    """What the test of two processes launches; the main process writes down what all of them saw."""
    images = CachedImages(make_images(40), make_transform())
    trainer = make_trainer(output_dir / "halves", train_dataset=images, per_device_train_batch_size=4)
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    report = {
        "world_size": trainer.accelerator.num_processes,
        "losses": losses_of(trainer.state.log_history),
        "evaluated": metrics["eval_count"],
        "eval_loss": metrics["eval_loss"],
    }

    for problem_type, arguments in OTHER_LABELS.items():
        trainer = make_trainer(output_dir / problem_type, per_device_train_batch_size=4, **arguments)
        trainer.train()
        report[problem_type] = {"losses": losses_of(trainer.state.log_history), **trainer.evaluate()}

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
