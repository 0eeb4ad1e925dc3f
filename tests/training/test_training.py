"""Exactness: runs that are killed, that go wrong, that share the work."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed.fsdp
from datasets import Dataset
from safetensors.torch import load_file

from transformers import TrainerCallback

from hf_mixer import MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.data.images import ImageDataError, collate_images, open_image
from hf_mixer.data.loaders import StreamedImages
from hf_mixer.training import TrainingError
from hf_mixer.training.checkpointing import find_last_checkpoint, is_complete_checkpoint
from tests.helpers import AUGMENTED, NUM_EVAL_IMAGES, ROOT, losses_of, make_images, make_trainer, make_transform


# 6 steps in each of 4 epochs; a worker process and evaluations in between must not matter
RUN = {
    **AUGMENTED,
    "dropout": 0.1,
    "save_strategy": "steps",
    "save_steps": 5,
    "eval_strategy": "epoch",
    "cache_images": "none",
    "dataloader_num_workers": 1,
}


class KillAtStep(TrainerCallback):
    """Kill the process before a step, in the middle of an epoch."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(output_dir, at_step=None, in_save_of_step=None, resume=None):
    """Train in a process of its own, which is killed at a step, or while it saves after a step."""

    def train():
        trainer = make_trainer(output_dir, callbacks=[KillAtStep(at_step)], **RUN)
        if in_save_of_step is not None:

            def save_half(*args, **kwargs):
                if trainer.state.global_step == in_save_of_step:
                    os.kill(os.getpid(), signal.SIGKILL)
                original(*args, **kwargs)

            original, trainer._save_optimizer_and_scheduler = trainer._save_optimizer_and_scheduler, save_half
        trainer.train(resume_from_checkpoint=resume)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("uninterrupted")
    trainer = make_trainer(output_dir, **RUN)
    trainer.train()
    trainer.save_model()
    return trainer, output_dir


def test_a_run_killed_twice_ends_as_if_nothing_had_happened(uninterrupted, tmp_path):
    expected, expected_dir = uninterrupted
    train_until_killed(tmp_path, at_step=8)
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    train_until_killed(tmp_path, in_save_of_step=15, resume=True)
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")

    trainer = make_trainer(tmp_path, **RUN)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    assert losses_of(trainer.state.log_history) == losses_of(expected.state.log_history)
    for name in ("model.safetensors", "checkpoint-20/model.safetensors", "checkpoint-20/trained_weights.safetensors"):
        ours, theirs = load_file(tmp_path / name), load_file(expected_dir / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not (tmp_path / "_incomplete").exists()


def test_checkpoints_and_the_final_folder_hold_the_average_of_the_weights(uninterrupted):
    trainer, output_dir = uninterrupted
    average = load_file(output_dir / "model.safetensors")
    assert all(torch.equal(average[name], tensor) for name, tensor in trainer.model.state_dict().items())
    checkpoint = output_dir / "checkpoint-20"
    average, trained = (load_file(checkpoint / f"{name}.safetensors") for name in ("model", "trained_weights"))
    assert average.keys() == trained.keys()
    assert not any(torch.equal(average[name], trained[name]) for name in average)
    # It loads like any model
    MixerForImageClassification.from_pretrained(checkpoint)


def test_the_average_is_that_of_all_weights_since_the_start(tmp_path):
    history = []

    class Remember(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            history.append(model.classifier.weight.detach().clone())

    trainer = make_trainer(tmp_path, ema_decay=0.6, max_steps=12, callbacks=[Remember()])
    # The last step's weights are in the average alone; before it they are those that the step began with
    trainer.train()
    history.append(trainer.ema.average.module.classifier.weight)
    expected = history[0]
    for step, weights in enumerate(history[1:], 1):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
    torch.testing.assert_close(trainer.model.classifier.weight, expected)


def test_seed_and_step_alone_decide(tmp_path):
    def losses(**arguments):
        torch.rand(5)  # whatever happened before
        trainer = make_trainer(tmp_path, max_steps=4, **{**AUGMENTED, **arguments})
        trainer.train()
        return losses_of(trainer.state.log_history)

    assert losses() == losses()
    assert losses() != losses(seed=1)


def test_half_written_checkpoints_are_neither_resumed_from_nor_counted(uninterrupted, tmp_path):
    _, output_dir = uninterrupted
    for step in (5, 10):
        shutil.copytree(output_dir / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    for step, name in ((15, "trainer_state.json"), (20, "optimizer.pt"), (24, "trained_weights.safetensors")):
        broken = tmp_path / f"checkpoint-{step}"
        shutil.copytree(output_dir / "checkpoint-20", broken)
        (broken / name).write_bytes((broken / name).read_bytes()[:100])
        assert not is_complete_checkpoint(broken)
    (tmp_path / "checkpoint-24" / "trained_weights.safetensors").unlink()
    assert not is_complete_checkpoint(tmp_path / "checkpoint-24")
    # As a plain `Trainer` leaves it, without the sizes of its files
    bare = tmp_path / "checkpoint-12"
    shutil.copytree(output_dir / "checkpoint-20", bare)
    (bare / "manifest.json").unlink()
    assert is_complete_checkpoint(bare)
    for path in bare.glob("*.safetensors"):
        path.unlink()
    assert not is_complete_checkpoint(bare)
    shutil.rmtree(bare)
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")

    trainer = make_trainer(tmp_path, **RUN, save_total_limit=2)
    trainer.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-20", "checkpoint-24"]
    # Set aside, for whoever wants to look at them
    assert len(list(tmp_path.glob("_damaged-checkpoint-*"))) == 3
    assert all(is_complete_checkpoint(path) for path in tmp_path.glob("checkpoint-*"))


def test_a_run_that_has_only_its_end_left_ends_the_same(uninterrupted, tmp_path):
    _, output_dir = uninterrupted
    shutil.copytree(output_dir / "checkpoint-24", tmp_path / "checkpoint-24")
    trainer = make_trainer(tmp_path, **RUN)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    assert trainer.state.global_step == 24
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(output_dir / "model.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_stream_that_has_come_to_its_end_goes_no_further(tmp_path):
    def train(resume=None):
        stream = make_images(40).to_iterable_dataset().shuffle(seed=0, buffer_size=8)
        arguments = {**RUN, "eval_strategy": "no", "max_steps": 5}
        trainer = make_trainer(tmp_path, train_dataset=StreamedImages(stream, make_transform()), **arguments)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.global_step, trainer.model.state_dict()

    (first, weights), (second, again) = train(), train(resume=True)
    assert first == second == 5
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_going_on_from_an_older_checkpoint_keeps_what_is_new(uninterrupted, tmp_path):
    _, output_dir = uninterrupted
    for step in (5, 15, 20):
        shutil.copytree(output_dir / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    trainer = make_trainer(tmp_path, **RUN, save_total_limit=2, max_steps=12)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]


def test_another_learning_rate_holds_after_resuming(uninterrupted, tmp_path):
    _, output_dir = uninterrupted

    def rates(**arguments):
        trainer = make_trainer(tmp_path, **{**RUN, "save_strategy": "no", **arguments})
        trainer.train(resume_from_checkpoint=str(output_dir / "checkpoint-20"))
        return [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry][-3:]

    assert rates(learning_rate=1e-4) == pytest.approx([rate / 100 for rate in rates()])


def test_a_checkpoint_that_another_callback_asks_for_holds_the_average(tmp_path):
    class Save(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 3

    def train(folder, callbacks, **arguments):
        trainer = make_trainer(folder, ema_decay=0.5, max_steps=3, **arguments)
        for callback in callbacks:
            trainer.add_callback(callback)  # after the average's own
        trainer.train()
        names = ("model.safetensors", "trained_weights.safetensors")
        return [load_file(folder / "checkpoint-3" / name) for name in names]

    asked = train(tmp_path / "asked", [Save()])
    usual = train(tmp_path / "usual", [], save_strategy="steps", save_steps=3)
    for ours, theirs in zip(asked, usual):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_best_model_is_kept_and_loaded_with_its_average(tmp_path):
    scores = iter([0.3, 0.9, 0.5, 0.4])
    trainer = make_trainer(
        tmp_path,
        **AUGMENTED,
        save_strategy="epoch",
        eval_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    trainer.compute_metrics = lambda prediction: {"score": next(scores)}
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-12")
    state = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-12")
    best = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in trainer.model.state_dict().items())


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path):
    class Overflow(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 7:
                model.classifier.weight.data.fill_(float("nan"))

    trainer = make_trainer(tmp_path, callbacks=[Overflow()], save_strategy="steps", save_steps=4, logging_steps=3)
    with pytest.raises(TrainingError, match=r"not finite at step 8.*checkpoint-4: go on .*--resume_from_checkpoint"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Overflow(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                model.classifier.weight.data.fill_(float("inf"))

    trainer = make_trainer(tmp_path, callbacks=[Overflow()], save_strategy="steps", save_steps=2, save_total_limit=1)
    with pytest.raises(TrainingError, match=r"weights are not finite after step 4.*checkpoint-2"):
        trainer.train()
    assert is_complete_checkpoint(tmp_path / "checkpoint-2")


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4, save_total_limit=1)
    save = torch.save

    def full(obj, path, *args, **kwargs):
        if trainer.state.global_step == 8:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(obj, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*last good checkpoint is .*checkpoint-4"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    assert is_complete_checkpoint(tmp_path / "checkpoint-4")

    # Nor does a final model that cannot be written harm the one that is there
    monkeypatch.undo()
    trainer.save_model()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        trainer.save_model()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_broken_stream_says_how_far_it_got_and_what_is_kept(tmp_path):
    def break_off(example, index):
        if index == 30:
            raise OSError("shard 3 is truncated")
        return example

    stream = make_images(40).to_iterable_dataset().map(break_off, with_indices=True)
    with pytest.raises(ImageDataError, match="in pass 1, after 30 images of this reader: shard 3 is truncated"):
        list(StreamedImages(stream, make_transform()))
    trainer = make_trainer(
        tmp_path,
        train_dataset=StreamedImages(stream, make_transform()),
        max_steps=9,
        save_strategy="steps",
        save_steps=2,
        cache_images="none",
        dataloader_num_workers=1,
    )
    with pytest.raises(
        TrainingError,
        match=r"^the data stream broke .*shard 3 is truncated\. .*leave it out\. The last good checkpoint",
    ):
        trainer.train()


def test_a_stream_goes_on_in_another_order(tmp_path):
    stream = make_images(12).to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=8)
    images = StreamedImages(stream, make_transform(), num_passes=2)
    numbers = [int(example["pixel_values"][0, 0, 0]) for example in images]
    assert sorted(numbers[:12]) == sorted(numbers[12:]) == list(range(12))
    assert numbers[:12] != numbers[12:]


def test_images_without_labels_are_refused_in_a_stream():
    images = make_images(4).remove_columns("label").add_column("label", [0, 1, -1, 2])
    with pytest.raises(ImageDataError, match="an image has no label"):
        list(StreamedImages(Dataset.to_iterable_dataset(images), make_transform()))


def test_evaluation_does_not_augment(tmp_path):
    trainer = make_trainer(tmp_path, **AUGMENTED)
    first, second = (trainer.predict(trainer.eval_dataset).predictions for _ in range(2))
    assert (first == second).all()
    images = [open_image(image["bytes"]) for image in make_images(NUM_EVAL_IMAGES, seed=1)["image"]]
    with torch.no_grad():
        logits = trainer.model.eval()(**trainer.processing_class(images, return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(first), logits, atol=1e-6, rtol=0)


def test_two_processes_do_the_work_of_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "scripts/accelerate/cpu.yaml"]
    command = [*launch, "-m", "tests.training.processes", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["world_size"] == 2

    trainer = make_trainer(tmp_path / "one")
    trainer.train()
    assert report["losses"] == pytest.approx(losses_of(trainer.state.log_history), abs=1e-5)
    # Adam takes steps of full size where the gradient is nothing but rounding, so that only what the model does agrees
    together = MixerForImageClassification.from_pretrained(tmp_path / "halves")
    pixel_values = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = (model.eval()(pixel_values).logits for model in (together, trainer.model))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)

    assert report["evaluated"] == report["evaluated from a stream"] == 23
    assert report["eval_loss"] == pytest.approx(together_loss(together), abs=1e-6)
    for num_shards in (4, 1):
        assert report[f"streamed from {num_shards} shards"] == list(range(40))
    assert report["steps of a stream"] == 12
    assert report["threads that would keep the process"] == []


def together_loss(model) -> float:
    """The mean loss over the images that are evaluated on, each counted once."""
    examples = make_images(NUM_EVAL_IMAGES, seed=1)
    images = [open_image(image["bytes"]) for image in examples["image"]]
    processor = MixerImageProcessorPil(size={"height": 16, "width": 16})
    with torch.no_grad():
        logits = model.eval()(**processor(images, return_tensors="pt")).logits
    return torch.nn.functional.cross_entropy(logits, torch.tensor(examples["label"])).item()


def test_weights_that_fsdp_has_sharded_are_saved_as_a_model(tmp_path):
    trainer = make_trainer(tmp_path)
    expected = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        torch.distributed.fsdp.fully_shard(trainer.model, mesh=mesh)
        trainer.is_fsdp_enabled = True
        trainer.save_model()
    finally:
        torch.distributed.destroy_process_group()
    assert {"modeling_mixer.py", "resizing_mixer.py", "preprocessor_config.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert not list(tmp_path.glob("_fsdp*"))
    saved = MixerForImageClassification.from_pretrained(tmp_path)
    assert saved.config.architectures == ["MixerForImageClassification"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in saved.state_dict().items())


def test_batches_of_a_data_loader_are_collated_once(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["pixel_values"].shape == (8, 3, 16, 16)
    assert collate_images(batch) is batch
