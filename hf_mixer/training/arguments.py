# SPDX-License-Identifier: Apache-2.0
"""The arguments of a training run."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from ..data.loaders import default_num_workers
from ..evaluation.metrics import METRICS
from .augmentation import BatchAugmentation
from .losses import RegressionLoss


# `HfArgumentParser` takes no default factories for booleans
HAS_ACCELERATOR = torch.accelerator.is_available()
HAS_BF16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
BEST_F1 = "best_f1"
DEFAULT_SAVING = ("steps", 500)

CHOICES = {
    "cache_images": ["none", "memory", "device"],
    "class_weights": ["none", "balanced"],
    "regression_loss": list(RegressionLoss.FUNCTIONS),
}
# What a number has to be, and the arguments that have to be it
RANGES: list[tuple[str, Callable[[float], bool], tuple[str, ...]]] = [
    (
        "a positive integer",
        lambda value: value >= 1,
        (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "early_stopping_patience",
        ),
    ),
    ("at least -1", lambda value: value >= -1, ("dataloader_num_workers",)),
    ("-1 or a positive integer", lambda value: value == -1 or value >= 1, ("max_steps",)),
    (
        "a number of at least 0",
        lambda value: 0 <= value < math.inf,
        (
            "learning_rate",
            "weight_decay",
            "warmup_steps",
            "max_grad_norm",
            "seed",
            "data_seed",
            "mixup_alpha",
            "cutmix_alpha",
        ),
    ),
    ("in [0, 1]", lambda value: 0 <= value <= 1, ("distillation_alpha",)),
    ("a positive number", lambda value: 0 < value < math.inf, ("logging_steps", "eval_steps", "save_steps")),
    ("in [0, 1)", lambda value: 0 <= value < 1, ("label_smoothing_factor", "adam_beta1", "adam_beta2")),
    ("in (0, 1)", lambda value: 0 < value < 1, ("ema_decay",)),
    ("in (0, 1]", lambda value: 0 < value <= 1, ("layer_decay",)),
]


@dataclass
class MixerTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with what a Mixer needs besides: augmentation, an average of the weights, learning rates by
    layer and a data path that keeps up. Some defaults differ from those of `TrainingArguments`: bfloat16 on CUDA devices
    that have it, loader workers that stay alive, and a run that stops at a loss that is not finite.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Remove the columns that the model's forward does not take."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave losses that are not finite out of the log. They stop the run."}
    )
    bf16: bool = field(
        default=HAS_BF16,
        metadata={"help": "Train in bfloat16 mixed precision. Default: on CUDA devices that have it, unless fp16."},
    )
    use_cpu: bool = field(
        default=not HAS_ACCELERATOR,
        metadata={"help": "Stay on the CPU. Default: where there is no accelerator, so that several processes join."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Let DDP look for parameters without a gradient. A Mixer has none."}
    )
    dataloader_pin_memory: bool = field(
        default=HAS_ACCELERATOR,
        metadata={"help": "Pin the memory of batches. Default: where there is an accelerator."},
    )
    dataloader_num_workers: int = field(
        default=-1,
        metadata={"help": "Worker processes that decode images. Default (-1): one per CPU core, at most 8."},
    )

    crop_padding: int = field(
        default=0, metadata={"help": "Pixels to put around an image before a random crop of its own size."}
    )
    random_resized_crop: bool = field(
        default=False, metadata={"help": "Crop a box of random size and shape, and resize it to the image size."}
    )
    scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0], metadata={"help": "Smallest and largest area of that box, as a share."}
    )
    ratio: list[float] = field(
        default_factory=lambda: [3 / 4, 4 / 3],
        metadata={"help": "Smallest and largest ratio of its width to its height."},
    )
    horizontal_flip: float = field(default=0.0, metadata={"help": "Probability of a horizontal flip."})
    auto_augment: str | None = field(
        default=None, metadata={"help": "`randaugment` or `trivialaugment`: random operations on every image."}
    )
    randaugment_num_ops: int = field(default=2, metadata={"help": "Operations of RandAugment on an image."})
    randaugment_magnitude: int = field(default=9, metadata={"help": "Strength of RandAugment, from 0 to 30."})
    color_jitter: float = field(
        default=0.0, metadata={"help": "Change brightness, contrast and saturation by up to this share."}
    )
    random_erasing: float = field(default=0.0, metadata={"help": "Probability that a box of the image is erased."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "Mixup draws its share from Beta(alpha, alpha)."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "CutMix draws its share from Beta(alpha, alpha)."})
    mixup_prob: float = field(default=1.0, metadata={"help": "Probability that an image is mixed with another."})
    mixup_switch_prob: float = field(default=0.5, metadata={"help": "Probability of CutMix where both are in use."})

    binary_cross_entropy: bool = field(
        default=False, metadata={"help": "Sigmoid and binary cross-entropy in place of softmax and cross-entropy."}
    )
    distillation_alpha: float = field(
        default=0.5, metadata={"help": "With a teacher_model, the weight of its answers in the loss, from 0 to 1."}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Evaluate and save an exponential moving average of the weights, e.g. 0.999."}
    )
    muon: bool = field(
        default=False, metadata={"help": "Muon for the matrices of the layers, and AdamW for all else."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor on the learning rate from one layer to the one below it, e.g. 0.75."}
    )
    logging_steps: float = field(
        default=0.02,
        metadata={"help": "Steps between entries in the log, or below 1 their share of the run. Default: 50 entries."},
    )
    regression_loss: str = field(
        default="mse",
        metadata={"help": "Loss for numbers as labels: `mse` or `l1`.", "choices": CHOICES["regression_loss"]},
    )
    label_threshold: str = field(
        default="0.5",
        metadata={
            "help": "With several labels for an image, the probability from which a label counts as present, or "
            f"`{BEST_F1}`: chosen for each label on the validation images after the training."
        },
    )
    class_weights: str = field(
        default="none",
        metadata={
            "help": "Weights of the classes in the loss: `none`, or `balanced` to make all of them count the same.",
            "choices": CHOICES["class_weights"],
        },
    )
    balanced_sampling: bool = field(
        default=False, metadata={"help": "Draw images, with replacement, such that all classes come equally often."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations in a row without a better metric_for_best_model (default: the loss), "
            "and end with the best model. Saves whenever it evaluates."
        },
    )
    cache_images: str = field(
        default="none",
        metadata={
            "help": "Decode all images once and keep them as uint8 in the `memory` of each process, or on the `device`.",
            "choices": CHOICES["cache_images"],
        },
    )

    def __post_init__(self):
        self.check_values()
        if self.dataloader_num_workers == -1:
            # What is decoded already needs no workers
            self.dataloader_num_workers = default_num_workers() if self.cache_images == "none" else 0
        if self.cache_images == "device":
            if self.dataloader_num_workers:
                raise ValueError(
                    f"--cache_images device needs no --dataloader_num_workers, got {self.dataloader_num_workers}: the "
                    "images are on the device already"
                )
            self.dataloader_pin_memory = False
        if self.dataloader_num_workers:
            self.dataloader_persistent_workers = True
            self.dataloader_prefetch_factor = self.dataloader_prefetch_factor or 4
        if self.accelerator_config is None and self.dataloader_pin_memory:
            self.accelerator_config = {"non_blocking": True}
        self.bf16 = self.bf16 and not self.fp16
        if self.early_stopping_patience is not None or self.load_best_model_at_end:
            self.prepare_best_model()
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            # By default `TrainingArguments` takes everything for better when it is greater, apart from losses
            name = self.metric_for_best_model.removeprefix("eval_")
            known = [metrics[name] for metrics in METRICS.values() if name in metrics]
            self.greater_is_better = known[0].greater_is_better if known else None
        super().__post_init__()

    def check_values(self) -> None:
        """
        Refuse values that no run can have.

        Raises:
            `ValueError`: the message names the argument, what it has to be, and its value.
        """
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"--{name} has to be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for expectation, is_right, names in RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not is_right(value):
                    raise ValueError(f"--{name} has to be {expectation}, got {value}")
        if self.max_steps == -1 and not 0 < self.num_train_epochs < math.inf:
            raise ValueError(
                f"--num_train_epochs has to be a positive number, got {self.num_train_epochs}: give it, or --max_steps"
            )
        optimizers = [name.value for name in OptimizerNames]
        if self.optim not in optimizers:
            raise ValueError(f"--optim has to be one of {', '.join(optimizers)}, got {self.optim!r}")
        if self.muon and self.optim not in ("adamw_torch", "adamw_torch_fused"):
            raise ValueError(
                f"--muon takes AdamW for all but matrices: leave out --optim {OptimizerNames(self.optim).value}"
            )
        _ = self.fixed_label_threshold
        BatchAugmentation(1, 0.0, 1.0, num_labels=2, **self.augmentation_settings())

    def prepare_best_model(self) -> None:
        """Save whenever the model is evaluated, unless said otherwise, and load the best one at the end."""
        evaluation, saving = IntervalStrategy(self.eval_strategy).value, SaveStrategy(self.save_strategy).value
        reason = "load_best_model_at_end" if self.early_stopping_patience is None else "early_stopping_patience"
        if evaluation == "no":
            raise ValueError(
                f"--{reason} needs evaluations while the model trains: give --eval_strategy epoch, or steps"
            )
        self.load_best_model_at_end = True
        if (saving, self.save_steps) == DEFAULT_SAVING:
            saving = evaluation
            steps = (self.eval_steps or self.logging_steps) if evaluation == "steps" else self.save_steps
            self.__dict__.update(save_strategy=evaluation, save_steps=steps)
        if saving not in (evaluation, "best"):
            raise ValueError(
                f"--{reason} needs --save_strategy {evaluation}, like --eval_strategy, or best, got {saving}"
            )

    def augmentation_settings(self) -> dict[str, Any]:
        """Return those of the arguments that [`BatchAugmentation`] takes."""
        names = inspect.signature(BatchAugmentation).parameters
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    @property
    def fixed_label_threshold(self) -> float | None:
        """`float` or `None`: the number that `label_threshold` gives, `None` where it asks for the best ones."""
        if self.label_threshold == BEST_F1:
            return None
        try:
            threshold = float(self.label_threshold)
        except ValueError:
            threshold = math.nan
        if not 0 <= threshold <= 1:
            raise ValueError(
                f"--label_threshold has to be a probability in [0, 1] or {BEST_F1}, got {self.label_threshold!r}"
            )
        return threshold

    def __getstate__(self) -> dict[str, Any]:
        """Leave the token out of `training_args.bin`, which may be published."""
        return {**self.__dict__, "hub_token": None}
