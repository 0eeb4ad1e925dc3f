# SPDX-License-Identifier: Apache-2.0
"""Runs that go wrong: what stops them, and what they leave behind."""

import json
import logging
import math
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints


logger = logging.getLogger(__name__)

# In the output folder. The underscore keeps them out of what `Trainer` pushes to the Hub.
STAGING_DIR = "_incomplete"
DAMAGED_PREFIX = "_damaged-"
# In a checkpoint: the sizes of its files in bytes, by their names
MANIFEST_NAME = "manifest.json"


class TrainingError(RuntimeError):
    """A run cannot go on; the message says why, what is kept and how to go on from there."""


def is_complete_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether all files of a checkpoint are there to their end; without a manifest, as far as the files tell."""
    folder = Path(folder)
    try:
        if (folder / MANIFEST_NAME).exists():
            sizes = json.loads((folder / MANIFEST_NAME).read_text())
            return all((folder / name).stat().st_size == size for name, size in sizes.items())
        # The last file that `Trainer` writes
        json.loads((folder / "trainer_state.json").read_text())
        weights = list(folder.glob("*.safetensors"))
        for path in weights:
            with safe_open(path, "pt"):
                pass
        if not weights and not any(folder.glob("pytorch_model*")):
            return False
    except (OSError, ValueError, SafetensorError):
        return False
    return all(zipfile.is_zipfile(path) for pattern in ("*.pt", "*.pth") for path in folder.glob(pattern))


def list_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Return the folders `checkpoint-{step}` in `output_dir` in the order of their steps."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    found = [path for path in found if path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def find_last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Return the last complete checkpoint in `output_dir`, where `Trainer` would take the last one."""
    complete = [path for path in list_checkpoints(output_dir) if is_complete_checkpoint(path)]
    return str(complete[-1]) if complete else None


class SafeCheckpointTrainer(Trainer):
    """
    [`~transformers.Trainer`] whose checkpoints get their names only when they are written to their end, and never with
    weights that are not finite.

    Files are written to the folder `_incomplete` in the output folder and renamed from there. A run that is killed, or
    whose disk is full, leaves nothing that could be taken for a checkpoint, nor counted by `save_total_limit`. A
    checkpoint that is damaged all the same is set aside as `_damaged-checkpoint-{step}`. Final weights are replaced file
    by file in the same way, and written as one model also where FSDP has sharded them.

    Resuming with another `learning_rate` than the checkpoint's goes on with the new one.

    Raises:
        [`TrainingError`]: a checkpoint cannot be written, or the weights are not finite.
    """

    _staging: Path | None = None

    def train(self, resume_from_checkpoint=None, **kwargs):
        if self.args.should_save:
            self._set_damaged_checkpoints_aside()
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = find_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"output_dir {self.args.output_dir} holds no complete checkpoint to resume from")
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _set_damaged_checkpoints_aside(self):
        for path in list_checkpoints(self.args.output_dir):
            if not is_complete_checkpoint(path):
                aside = path.with_name(DAMAGED_PREFIX + path.name)
                logger.warning(f"{path} lacks files, or parts of them, and is renamed to {aside.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(path, aside)
        shutil.rmtree(Path(self.args.output_dir) / STAGING_DIR, ignore_errors=True)

    def _run_epoch(self, **kwargs):
        # A stream has no last epoch, after which a finished run would stop
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        wanted = [group.get("initial_lr") for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        for group, rate in zip(self.optimizer.param_groups, wanted):
            if rate and group.get("initial_lr") and group["initial_lr"] != rate:
                group["lr"] *= rate / group["initial_lr"]
                group["initial_lr"] = rate
        if hasattr(self.lr_scheduler, "base_lrs"):
            self.lr_scheduler.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]

    def save_model(self, output_dir=None, _internal_call=False):
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        # `Trainer` writes the shards of some processes alone, or nothing
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state_dict = get_model_state_dict(self.model, options=options)
        if self.args.should_save:
            # The class that FSDP makes would be saved along, with its code in torch in place of the model's
            model, model_class = self.model, plain_class(self.model)
            with torch.device("meta"):
                self.model = model_class(model.config)
            try:
                self._save(output_dir, state_dict)
            finally:
                self.model = model
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _get_output_dir(self, trial):
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    @contextmanager
    def _stage(self, output_dir: Path) -> Iterator[Path]:
        """Write to a folder of its own, which is removed if that fails."""
        self._staging = output_dir / STAGING_DIR
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        try:
            yield self._staging
        except (OSError, RuntimeError, SafetensorError) as error:
            # The libraries that write do not all say so
            is_full = shutil.disk_usage(output_dir).free < 2**20 if output_dir.is_dir() else False
            shutil.rmtree(self._staging, ignore_errors=True)
            if isinstance(error, TrainingError):
                raise
            reason = f"the disk is full ({error})" if is_full else str(error)
            raise TrainingError(f"cannot write to {output_dir}: {reason}. {what_is_kept(output_dir)}") from error
        finally:
            self._staging = None

    def _save_checkpoint(self, model, trial):
        run_dir = Path(self._get_output_dir(trial))
        checkpoint = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise TrainingError(
                f"the weights are not finite after step {self.state.global_step}. {what_is_kept(run_dir)}"
            )
        with self._stage(run_dir) as staging:
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            staged = staging / checkpoint.name
            self.complete_checkpoint(staged)
            if self.state.best_global_step is not None:
                best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
                if best == checkpoint or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(staged / "trainer_state.json"))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                sizes = {
                    str(path.relative_to(staged)): path.stat().st_size for path in staged.rglob("*") if path.is_file()
                }
                (staged / MANIFEST_NAME).write_text(json.dumps(sizes, indent=2) + "\n")
                if checkpoint.exists():
                    os.replace(checkpoint, staging / "replaced")
                os.replace(staged, checkpoint)
                shutil.rmtree(staging)
            self.accelerator.wait_for_everyone()

        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,  # a run that went on from an older checkpoint writes smaller numbers
            )

    def complete_checkpoint(self, folder: Path) -> None:
        """Write what belongs into a checkpoint besides what `Trainer` writes. Nothing by default."""

    def _push_from_checkpoint(self, checkpoint_folder):
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir=None, state_dict=None):
        # The arguments are saved as well, and may be published
        token, self.args.hub_token = self.args.hub_token, None
        try:
            self._save_safely(output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def _save_safely(self, output_dir, state_dict):
        if self._staging is not None:
            super()._save(output_dir, state_dict)
            return
        output_dir = Path(output_dir or self.args.output_dir)
        with self._stage(output_dir) as staging:
            super()._save(str(staging), state_dict)
            if self.args.should_save:
                for path in staging.iterdir():
                    os.replace(path, output_dir / path.name)
                staging.rmdir()


def plain_class(model: torch.nn.Module) -> type:
    """Return the class that a model had before FSDP gave it another one."""
    return next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))


def what_is_kept(output_dir: str | os.PathLike) -> str:
    """Return a sentence on the last good checkpoint in `output_dir`."""
    checkpoint = find_last_checkpoint(output_dir)
    if checkpoint is None:
        return "There is no checkpoint to go on from"
    return f"The last good checkpoint is {checkpoint}: go on from it with --resume_from_checkpoint true"


class FiniteLossCallback(TrainerCallback):
    """
    Stop a run whose loss is not finite.

    Give every loss to `watch`. Nothing waits for the device: an accelerator is asked whenever the loss is logged and
    before anything is evaluated or saved, a CPU at every step.

    Raises:
        [`TrainingError`]: a loss was NaN or infinite; the message names the step.
    """

    def __init__(self):
        self.step = 0
        self.first_bad_step: torch.Tensor | None = None

    def watch(self, loss: torch.Tensor) -> torch.Tensor:
        """Take note of the loss of a batch, and return it."""
        bad_step = torch.where(torch.isfinite(loss.detach()), math.inf, float(self.step + 1))
        self.first_bad_step = bad_step if self.first_bad_step is None else torch.minimum(self.first_bad_step, bad_step)
        return loss

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        if self.first_bad_step is None:
            return
        asked = control.should_log or control.should_evaluate or control.should_save or control.should_training_stop
        if (asked or self.first_bad_step.device.type == "cpu") and torch.isfinite(self.first_bad_step):
            raise TrainingError(
                f"the loss is not finite at step {int(self.first_bad_step)}: lower --learning_rate, clip gradients "
                f"(--max_grad_norm), or train in float32 or bfloat16. {what_is_kept(args.output_dir)}"
            )
