# SPDX-License-Identifier: Apache-2.0
"""An exponential moving average of the weights while they train."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


TRAINED_WEIGHTS_NAME = "trained_weights.safetensors"


def checkpoint_folder(args, state) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


class EmaCallback(TrainerCallback):
    """
    Keep an exponential moving average (EMA) of the weights, and evaluate and save that.

    The averaged weights are in the model whenever it is evaluated or saved, and after the training: in the evaluation,
    in `model.safetensors` of every checkpoint, hence in the best model, and in the final folder. The weights that are
    being trained lie beside them in a checkpoint, in `trained_weights.safetensors`; resuming brings both back.

    Over the first steps the decay is `(1 + step) / (10 + step)` where that is smaller, so that the average does not
    hang on to the initial weights (as in TensorFlow's `ExponentialMovingAverage`).

    Args:
        decay (`float`):
            Share of the average that is kept at each optimizer step, in (0, 1). 0.999 averages about 1,000 steps.
        checkpoint (`str`, *optional*):
            The checkpoint that the training goes on from. By default `checkpoint-{step}` in the output folder.

    Raises:
        `ValueError`: `decay` is not in (0, 1), the model is sharded by FSDP, or the checkpoint to go on from holds no
        average.
    """

    def __init__(self, decay: float, checkpoint: str | None = None):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay has to be in (0, 1), got {decay}")
        self.decay = decay
        self.checkpoint = checkpoint
        self.average: Any = None
        self.averaged: list[torch.Tensor] = []
        self.trained: list[torch.Tensor] = []
        self.is_swapped = False
        self.saved_step = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
            raise ValueError(
                "ema_decay does not work with weights that FSDP has sharded: train with DDP, or without EMA"
            )
        self.model, self.is_swapped, self.saved_step = model, False, 0
        self.average = copy.deepcopy(model).requires_grad_(False)
        # To walk through the modules in every step takes longer than the update of a small model
        self.averaged, self.trained = (list(network.parameters()) for network in (self.average, model))
        if state.global_step > 0:
            checkpoint = self.checkpoint or checkpoint_folder(args, state)
            path = Path(checkpoint) / TRAINED_WEIGHTS_NAME
            if not path.is_file():
                raise ValueError(
                    f"{checkpoint} holds no {TRAINED_WEIGHTS_NAME}: it was saved without ema_decay, go on without it"
                )
            # The checkpoint's own weights, which the model has been given, are the average
            model.load_state_dict(load_file(path))
            if state.global_step >= state.max_steps or control.should_training_stop:
                # No step follows, after which the average would be put in
                self._swap()

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Have the average in the model, where a training has begun."""
        was_swapped = self.is_swapped or self.average is None
        if not was_swapped:
            self._swap()
        try:
            yield
        finally:
            if not was_swapped:
                self._swap()

    @torch.no_grad()
    def _swap(self):
        """Exchange the model's weights and the average in place."""
        for parameter, averaged in zip(self.model.parameters(), self.average.parameters()):
            trained = parameter.clone()
            parameter.copy_(averaged)
            averaged.copy_(trained)
        self.is_swapped = not self.is_swapped

    def _swap_in_if_needed(self, control):
        needed = control.should_evaluate or control.should_save or control.should_training_stop
        if needed and not self.is_swapped:
            self._swap()

    def on_step_begin(self, args, state, control, **kwargs):
        if self.is_swapped:
            self._swap()

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        update(self.averaged, self.trained, step)
        self._swap_in_if_needed(control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._swap_in_if_needed(control)

    def on_save(self, args, state, control, **kwargs):
        folder = checkpoint_folder(args, state)
        if args.should_save and folder.is_dir() and self.saved_step != state.global_step:
            self.save_trained_weights(folder, state.global_step)

    def save_trained_weights(self, folder: str | os.PathLike, step: int) -> None:
        """Write the weights that are being trained into the checkpoint of a step, whose model is the average."""
        trained = self.average if self.is_swapped else self.model
        weights = {name: tensor.contiguous() for name, tensor in trained.state_dict().items()}
        save_file(weights, Path(folder) / TRAINED_WEIGHTS_NAME, metadata={"format": "pt"})
        self.saved_step = step
