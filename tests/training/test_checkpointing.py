"""Runs that are killed, that go wrong and that go on."""

import errno
import json
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
import torch.distributed.fsdp
from safetensors.torch import load_file

from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_mixer import MixerForImageClassification
from hf_mixer.data.loaders import StreamedImages
from hf_mixer.training import TrainingError, checkpointing
from hf_mixer.training.checkpointing import find_checkpoint_to_resume, find_last_checkpoint, is_complete_checkpoint
from tests.helpers import AUGMENTED, NUM_IMAGES, losses_of, make_images, make_trainer, make_transform, same_weights


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


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class KillAtStep(TrainerCallback):
    """Kill the process before a step, in the middle of an epoch."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            kill()


def train_until_killed(output_dir, at_step=None, before_file=None, resume=None, run=RUN):
    """Train in a process of its own, which is killed before a step, or before it writes a file of a checkpoint."""

    def train():
        save, complete = torch.save, checkpointing.write_manifest

        def save_or_kill(obj, path, *args, **kwargs):
            kill() if str(path).endswith(str(before_file)) else save(obj, path, *args, **kwargs)

        def complete_or_kill(folder):
            kill() if f"{folder.name}/manifest.json" == before_file else complete(folder)

        torch.save, checkpointing.write_manifest = save_or_kill, complete_or_kill
        trainer = make_trainer(output_dir, callbacks=[KillAtStep(at_step)], **run, save_total_limit=2)
        trainer.train(resume_from_checkpoint=resume)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join()  # with a timeout, it would wait for the workers of the loader as well
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The output folder of a run that was not killed."""
    output_dir = tmp_path_factory.mktemp("uninterrupted")
    trainer = make_trainer(output_dir, **RUN)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return output_dir


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(uninterrupted, tmp_path):
    train_until_killed(tmp_path, at_step=8)
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    # In the middle of a checkpoint, then with all its files there but the manifest
    for before_file in ("checkpoint-15/optimizer.pt", "checkpoint-15/manifest.json"):
        train_until_killed(tmp_path, before_file=before_file, resume=True)
        assert (tmp_path / "checkpoint-15").is_dir()
        assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")

    trainer = make_trainer(tmp_path, **RUN, save_total_limit=2)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    expected = json.loads((uninterrupted / "trainer_state.json").read_text())
    assert losses_of(trainer.state.log_history) == losses_of(expected["log_history"])
    for name in ("model.safetensors", "checkpoint-20/model.safetensors", "checkpoint-20/trained_weights.safetensors"):
        assert same_weights(load_file(tmp_path / name), load_file(uninterrupted / name))
    # The half-written one was not counted, and is there for whoever wants to look at it
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["_damaged-checkpoint-15", "checkpoint-20", "checkpoint-24"]


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_a_killed_run_with_other_labels_ends_as_if_nothing_had_happened(problem_type, tmp_path):
    run = {**RUN, "problem_type": problem_type, "num_train_epochs": 2}
    if problem_type == "regression":
        run |= {
            "cutmix_alpha": 0.0,
            "label_smoothing_factor": 0.0,
            "cache_images": "memory",
            "dataloader_num_workers": 0,
        }
    else:
        run |= {"balanced_sampling": True, "class_weights": "balanced", "label_threshold": "best_f1"}
    expected = make_trainer(tmp_path / "whole", **run)
    expected.train()
    train_until_killed(tmp_path / "killed", at_step=8, run=run)
    trainer = make_trainer(tmp_path / "killed", **run)
    trainer.train(resume_from_checkpoint=True)
    assert losses_of(trainer.state.log_history) == losses_of(expected.state.log_history)
    assert same_weights(trainer.model.state_dict(), expected.model.state_dict())
    assert trainer.model.config.label_thresholds == expected.model.config.label_thresholds


class Scores:
    """Evaluations whose score gets worse after the second one; the learning rate is not to matter."""

    def __init__(self, first=0):
        self.values = iter([0.3, 0.9, 0.5, 0.4, 0.3, 0.2][first:])

    def __call__(self, prediction):
        return {"score": next(self.values)}


def test_a_run_counts_on_after_a_checkpoint_until_it_is_stopped_early(tmp_path):
    arguments = {
        "num_train_epochs": 6,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "early_stopping_patience": 3,
        "metric_for_best_model": "score",
        "greater_is_better": True,
        "ema_decay": 0.9,
    }

    def train(first_score, resume=None, **changed):
        trainer = make_trainer(tmp_path, **{**arguments, **changed})
        trainer.compute_metrics = Scores(first_score)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    trainer = train(0)
    assert trainer.state.global_step == 5 * 6
    best = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert same_weights(best, trainer.model.state_dict())

    # Two evaluations were no better by then, and one more follows
    shutil.rmtree(tmp_path / "checkpoint-30")
    trainer = train(4, resume=True)
    assert trainer.state.global_step == 30
    assert same_weights(best, trainer.model.state_dict())
    # A run that has been stopped takes no further step
    trainer = train(5, resume=True)
    trainer.save_model()
    assert trainer.state.global_step == 30
    assert same_weights(best, load_file(tmp_path / "model.safetensors"))
    # With more patience, it goes on
    assert train(5, resume=True, early_stopping_patience=9).state.global_step == 36


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "optimizer.pt", "trained_weights.safetensors", "manifest.json"]
)
def test_a_checkpoint_with_a_file_cut_off_or_missing_is_not_complete(name, uninterrupted, tmp_path):
    for step in (10, 20):
        shutil.copytree(uninterrupted / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    broken = tmp_path / "checkpoint-20"
    assert is_complete_checkpoint(broken)
    (broken / name).write_bytes((broken / name).read_bytes()[:100])
    assert not is_complete_checkpoint(broken)
    (broken / name).unlink()
    assert not is_complete_checkpoint(broken)
    assert find_checkpoint_to_resume(tmp_path, True) == str(tmp_path / "checkpoint-10")


def test_a_checkpoint_of_a_plain_trainer_is_resumed_from_where_it_is_named(uninterrupted, tmp_path):
    plain = shutil.copytree(uninterrupted / "checkpoint-20", tmp_path / "checkpoint-20")
    (plain / "manifest.json").unlink()
    with pytest.raises(ValueError, match="holds no complete checkpoint to resume from"):
        make_trainer(tmp_path, **RUN).train(resume_from_checkpoint=True)
    trainer = make_trainer(tmp_path, **RUN)
    trainer.train(resume_from_checkpoint=str(plain))
    assert trainer.state.global_step == 24
    (plain / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="is no complete checkpoint of a training run"):
        find_checkpoint_to_resume(tmp_path, str(plain))


def test_the_speed_of_a_run_that_goes_on_is_that_of_its_own_steps(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "checkpoint-20", tmp_path / "checkpoint-20")
    metrics = make_trainer(tmp_path, **RUN).train(resume_from_checkpoint=True).metrics
    assert metrics["train_steps_per_second"] * metrics["train_runtime"] == pytest.approx(4, rel=0.01)
    share = 4 / 24 * 4 * NUM_IMAGES
    assert metrics["train_samples_per_second"] * metrics["train_runtime"] == pytest.approx(share, rel=0.01)


def test_a_run_that_has_only_its_end_left_ends_the_same(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "checkpoint-24", tmp_path / "checkpoint-24")
    trainer = make_trainer(tmp_path, **RUN)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    assert trainer.state.global_step == 24
    assert same_weights(load_file(tmp_path / "model.safetensors"), load_file(uninterrupted / "model.safetensors"))


def test_a_stream_that_has_come_to_its_end_goes_no_further(tmp_path):
    def train(resume=None):
        stream = make_images(40).to_iterable_dataset().shuffle(seed=0, buffer_size=8)
        arguments = {**RUN, "eval_strategy": "no", "max_steps": 5}
        trainer = make_trainer(tmp_path, train_dataset=StreamedImages(stream, make_transform()), **arguments)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.global_step, trainer.model.state_dict()

    (first, weights), (second, again) = train(), train(resume=True)
    assert first == second == 5
    assert same_weights(weights, again)


def test_going_on_from_an_older_checkpoint_keeps_what_is_new(uninterrupted, tmp_path):
    for step in (5, 15, 20):
        shutil.copytree(uninterrupted / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    trainer = make_trainer(tmp_path, **RUN, save_total_limit=2, max_steps=10)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]


def test_another_learning_rate_holds_after_resuming(uninterrupted, tmp_path):
    def rates(**arguments):
        trainer = make_trainer(tmp_path, **{**RUN, "save_strategy": "no", **arguments})
        trainer.train(resume_from_checkpoint=str(uninterrupted / "checkpoint-20"))
        return [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry][-3:]

    assert rates(learning_rate=1e-4) == pytest.approx([rate / 100 for rate in rates()])


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
    assert same_weights(load_file(tmp_path / "checkpoint-12" / "model.safetensors"), trainer.model.state_dict())


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path):
    class Overflow(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 7:
                model.classifier.weight.data.fill_(float("nan"))

    trainer = make_trainer(tmp_path, callbacks=[Overflow()], save_strategy="steps", save_steps=4, logging_steps=3)
    with pytest.raises(TrainingError, match=r"not finite at step 8.*checkpoint-4: go on .*--resume_from_checkpoint"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_an_accelerator_is_asked_for_its_losses_when_they_are_logged():
    args, state, finite = None, TrainerState(), checkpointing.FiniteLossCallback()
    for step in range(3):
        state.global_step = step
        finite.on_step_begin(args, state, TrainerControl())
        # It has no value that anybody could look at
        finite.watch(torch.empty((), device="meta"))
        finite.on_step_end(args, state, TrainerControl())
    with pytest.raises(NotImplementedError, match="meta"):
        finite.on_step_end(args, state, TrainerControl(should_log=True))


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
    assert same_weights(saved.state_dict(), expected)
