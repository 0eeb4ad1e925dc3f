# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints that are complete or do not count, and what stops a run that goes wrong.

A checkpoint is complete when its manifest is there, a file that is written last and holds the sizes of all others. A folder
without it, as a killed run leaves it, is never resumed from, and the next run sets it aside.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..utils import read_json


logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
# In the output folder. The underscore keeps both out of what `Trainer` pushes to the Hub.
STAGING_DIR = "_incomplete"
DAMAGED_PREFIX = "_damaged-"
CHECKPOINT_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")
# What writing raises: the libraries do not agree on `OSError`
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
# Losses that stay on an accelerator before it is asked in any case
MAX_UNSEEN_LOSSES = 1000


class TrainingError(RuntimeError):
    """A run cannot go on; the message says why, what is kept and how to go on from there."""


def write_manifest(folder: Path) -> None:
    """Declare a checkpoint complete."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    (folder / MANIFEST_NAME).write_text(json.dumps(sizes, indent=2) + "\n")


def is_complete_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint has its manifest, and all files have the sizes that the manifest says."""
    try:
        sizes = read_json(Path(folder) / MANIFEST_NAME)
        return all((Path(folder) / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Return the folders `checkpoint-{step}` in `output_dir` in the order of their steps, whatever is in them."""
    paths = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    folders = [path for path in paths if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")))


def find_last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Return the complete checkpoint in `output_dir` with the highest step, or `None`."""
    complete = [path for path in list_checkpoints(output_dir) if is_complete_checkpoint(path)]
    return str(complete[-1]) if complete else None


def find_checkpoint_to_resume(output_dir: str | os.PathLike, resume_from_checkpoint: str | bool | None) -> str | None:
    """
    Return the checkpoint that `resume_from_checkpoint` names: a folder, or with `True` the last complete one.

    Raises:
        `ValueError`: there is none, or files of it are missing or cut off. A checkpoint without a manifest, as a plain
            `Trainer` writes it, is accepted where it is named.
    """
    if resume_from_checkpoint is True:
        last = find_last_checkpoint(output_dir)
        if last is None:
            raise ValueError(
                f"output_dir {output_dir} holds no complete checkpoint to resume from: leave out --resume_from_checkpoint, "
                "and remove what an interrupted run has left there"
            )
        return last
    if not resume_from_checkpoint:
        return None
    folder = Path(resume_from_checkpoint)
    is_whole = is_complete_checkpoint(folder) if (folder / MANIFEST_NAME).exists() else is_state_of_trainer(folder)
    if not is_whole:
        raise ValueError(f"{folder} is no complete checkpoint of a training run")
    return os.fspath(resume_from_checkpoint)


def is_state_of_trainer(folder: Path) -> bool:
    """Whether `folder` holds the file that `Trainer` writes last, to its end."""
    try:
        return bool(read_json(folder / TRAINER_STATE_NAME))
    except (OSError, ValueError):
        return False


def set_incomplete_checkpoints_aside(output_dir: str | os.PathLike, keep: str | None = None) -> None:
    """Rename the checkpoints in `output_dir` that are not complete, apart from `keep`, and remove half-written models."""
    for path in list_checkpoints(output_dir):
        if is_complete_checkpoint(path) or (keep is not None and path.resolve() == Path(keep).resolve()):
            continue
        aside = path.with_name(DAMAGED_PREFIX + path.name)
        logger.warning(f"{path} lacks files, or parts of them, and is renamed to {aside.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
    shutil.rmtree(Path(output_dir) / STAGING_DIR, ignore_errors=True)


def describe_last_checkpoint(output_dir: str | os.PathLike) -> str:
    """Return a sentence on the last complete checkpoint in `output_dir`."""
    checkpoint = find_last_checkpoint(output_dir)
    if checkpoint is None:
        return "There is no checkpoint to go on from"
    return f"The last good checkpoint is {checkpoint}: go on from it with --resume_from_checkpoint true"


def describe_write_error(output_dir: Path, error: Exception) -> TrainingError:
    """Say why nothing can be written to `output_dir`, and what is kept."""
    is_full = output_dir.is_dir() and shutil.disk_usage(output_dir).free < 2**20
    reason = f"the disk is full ({error})" if is_full else str(error)
    return TrainingError(f"cannot write to {output_dir}: {reason}. {describe_last_checkpoint(output_dir)}")


class CheckpointCallback(TrainerCallback):
    """
    Complete each checkpoint with its manifest, and then remove the oldest ones.

    The age of checkpoints is known from the run itself: what it has written is newer than the checkpoint that it went on
    from, and that one is newer than all others, whatever their numbers. Add it after the callbacks that write into
    checkpoints, and call `start` before each run.
    """

    def __init__(self):
        self.save_total_limit: int | None = None
        self.by_age: list[Path] = []
        # The checkpoint that is being written
        self.unfinished: Path | None = None
        # What the optimizer's groups should start from, which a checkpoint overwrites
        self.learning_rates: list[float] = []

    def start(self, output_dir: str | os.PathLike, resumed: str | None, save_total_limit: int | None) -> None:
        """
        Take note of the checkpoints that are there before a run, and of how many to keep: the newest ones, and the best one
        where there is a best one.
        """
        self.save_total_limit = save_total_limit
        self.by_age = [path.resolve() for path in list_checkpoints(output_dir)]
        if resumed is not None and Path(resumed).resolve() in self.by_age:
            self.set_newest(Path(resumed).resolve())
        self.unfinished = None

    def set_newest(self, checkpoint: Path) -> None:
        self.by_age = [path for path in self.by_age if path != checkpoint] + [checkpoint]

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        for group, rate in zip(optimizer.param_groups, self.learning_rates):
            if rate and group["initial_lr"] != rate:
                group["lr"] *= rate / group["initial_lr"]
                group["initial_lr"] = rate
        if hasattr(lr_scheduler, "base_lrs"):
            lr_scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def on_save(self, args, state, control, **kwargs):
        if self.unfinished is None:
            return
        # Every process writes its own files
        args.distributed_state.wait_for_everyone()
        if args.should_save:
            write_manifest(self.unfinished)
            self.set_newest(self.unfinished.resolve())
            self.remove_oldest(self.by_age[-1], state.best_model_checkpoint)
        self.unfinished = None

    def on_train_end(self, args, state, control, **kwargs):
        # As `Trainer` does: of the best one and the last one, only the best one is needed from now on
        if args.should_save and state.best_model_checkpoint is not None and self.save_total_limit == 1:
            self.remove_oldest(state.best_model_checkpoint)

    def remove_oldest(self, *needed: str | os.PathLike | None) -> None:
        """Remove the checkpoints beyond the limit, but none of those that are needed."""
        if self.save_total_limit is None or self.save_total_limit <= 0:
            return
        kept = {Path(path).resolve() for path in needed if path is not None}
        removable = [path for path in self.by_age if path not in kept]
        for path in removable[: max(0, len(self.by_age) - self.save_total_limit)]:
            shutil.rmtree(path, ignore_errors=True)
            self.by_age.remove(path)


class SafeCheckpointTrainer(Trainer):
    """
    [`~transformers.Trainer`] that goes on from complete checkpoints only, and never saves weights that are not finite.

    A run that is killed, or whose disk is full, leaves its last complete checkpoint. What it has written of the next one is
    not counted by `save_total_limit`, and set aside as `_damaged-checkpoint-{step}` when the next run starts. Final weights
    are written to a folder of their own first and then replaced file by file, and written as one model also where FSDP has
    sharded them.

    Resuming with another `learning_rate` than the checkpoint's goes on with the new one.

    Raises:
        [`TrainingError`]: a checkpoint cannot be written, or the weights are not finite.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.checkpoints = CheckpointCallback()
        # The state of the checkpoint that the run goes on from
        self.resumed_state: TrainerState | None = None

    def train(self, resume_from_checkpoint=None, **kwargs):
        args, output_dir = self.args, Path(self.args.output_dir)
        checkpoint = find_checkpoint_to_resume(output_dir, resume_from_checkpoint)
        if args.should_save:
            set_incomplete_checkpoints_aside(output_dir, keep=checkpoint)
        self.accelerator.wait_for_everyone()
        state_file = Path(checkpoint or "", TRAINER_STATE_NAME)
        self.resumed_state = TrainerState.load_from_json(str(state_file)) if checkpoint else None
        # Last, so that a checkpoint is complete when all others have written what belongs into it
        self.pop_callback(self.checkpoints)
        self.add_callback(self.checkpoints)
        self.checkpoints.start(output_dir, checkpoint, args.save_total_limit)
        # `Trainer` would judge the age of checkpoints by the clock of the file system
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        except WRITE_ERRORS as error:
            unfinished = self.checkpoints.unfinished
            if unfinished is None or isinstance(error, TrainingError):
                raise
            if args.should_save:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise describe_write_error(output_dir, error) from error
        finally:
            args.save_total_limit = limit

    def set_initial_training_values(self, args, dataloader):
        num_train_epochs, *others, max_steps = super().set_initial_training_values(args, dataloader)
        if self.resumed_state is not None and self.is_finished(self.resumed_state, max_steps):
            # `Trainer` would start another epoch, and take one step before it looks at `max_steps`
            num_train_epochs = 0
        return num_train_epochs, *others, max_steps

    def is_finished(self, state: TrainerState, max_steps: int) -> bool:
        """Whether a run in this state, which may take `max_steps` steps, has come to its end."""
        return state.global_step >= max_steps

    def create_scheduler(self, num_training_steps, **kwargs):
        scheduler = super().create_scheduler(num_training_steps, **kwargs)
        self.checkpoints.learning_rates = [group.get("initial_lr") for group in self.optimizer.param_groups]
        return scheduler

    def save_model(self, output_dir=None, _internal_call=False):
        folder = Path(output_dir or self.args.output_dir)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise TrainingError(
                f"the weights are not finite after step {self.state.global_step}. "
                f"{describe_last_checkpoint(self.args.output_dir)}"
            )
        if _internal_call and CHECKPOINT_NAME.fullmatch(folder.name):
            # The checkpoint of an earlier run may be there; while it is written over, it is not complete
            self.checkpoints.unfinished = folder
            if self.args.should_save:
                (folder / MANIFEST_NAME).unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            self.write_model(folder)
            return

        staging = folder / STAGING_DIR
        try:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            self.write_model(staging)
            if self.args.should_save:
                for path in staging.iterdir():
                    os.replace(path, folder / path.name)
                staging.rmdir()
        except WRITE_ERRORS as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise describe_write_error(folder, error) from error
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def write_model(self, folder: Path) -> None:
        """Write the model, its image processor and the arguments into a folder; all processes take part."""
        if not self.is_fsdp_enabled:
            super().save_model(str(folder), _internal_call=True)
            return
        # `Trainer` writes the shards of some processes alone, or nothing
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state_dict = get_model_state_dict(self.model, options=options)
        if self.args.should_save:
            # The class that FSDP makes would be saved along, with its code in torch in place of the model's
            with torch.device("meta"):
                model = plain_class(self.model)(self.model.config)
            model.save_pretrained(folder, state_dict=state_dict)
            self.processing_class.save_pretrained(folder)
            torch.save(self.args, folder / TRAINING_ARGS_NAME)


def plain_class(model: torch.nn.Module) -> type:
    """Return the class that a model had before FSDP gave it another one."""
    return next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))


class FiniteLossCallback(TrainerCallback):
    """
    Stop a run whose loss is not finite.

    Give every loss to `watch`. Nothing waits for the device: an accelerator is asked whenever the loss is logged, before
    anything is evaluated or saved, and after 1,000 losses, a CPU at every step.

    Raises:
        [`TrainingError`]: a loss was NaN or infinite; the message names the step.
    """

    def __init__(self):
        self.step = 0
        # The losses that were not looked at yet, and their steps
        self.losses: list[torch.Tensor] = []
        self.steps: list[int] = []

    def watch(self, loss: torch.Tensor) -> torch.Tensor:
        """Take note of the loss of a batch, and return it."""
        self.losses.append(loss.detach())
        self.steps.append(self.step + 1)
        return loss

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        if not self.losses:
            return
        asked = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        if not (asked or self.losses[0].device.type == "cpu" or len(self.losses) >= MAX_UNSEEN_LOSSES):
            return
        bad = (~torch.stack(self.losses).isfinite()).nonzero()
        if len(bad):
            raise TrainingError(
                f"the loss is not finite at step {self.steps[int(bad[0])]}: lower --learning_rate, clip gradients "
                f"(--max_grad_norm), or train in float32 or bfloat16. {describe_last_checkpoint(args.output_dir)}"
            )
        self.losses.clear()
        self.steps.clear()
