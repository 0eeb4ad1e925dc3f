# SPDX-License-Identifier: Apache-2.0
"""The arguments of a training run."""

from dataclasses import dataclass, field
from typing import Any

import torch

from transformers import TrainingArguments

from ..data.loaders import default_num_workers


# `HfArgumentParser` takes no default factories for booleans
HAS_ACCELERATOR = torch.accelerator.is_available()
HAS_BF16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
CACHE_PLACES = ("none", "memory", "device")


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
    ema_decay: float | None = field(
        default=None, metadata={"help": "Evaluate and save an exponential moving average of the weights, e.g. 0.999."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor on the learning rate from one layer to the one below it, e.g. 0.75."}
    )
    cache_images: str = field(
        default="none",
        metadata={
            "help": "Decode all images once and keep them as uint8 in the `memory` of each process, or on the `device`.",
            "choices": list(CACHE_PLACES),
        },
    )

    def __post_init__(self):
        if self.cache_images not in CACHE_PLACES:
            raise ValueError(f"cache_images has to be one of {', '.join(CACHE_PLACES)}, got {self.cache_images!r}")
        if self.dataloader_num_workers < -1:
            raise ValueError(f"dataloader_num_workers has to be at least -1, got {self.dataloader_num_workers}")
        if self.dataloader_num_workers == -1:
            # What is decoded already needs no workers
            self.dataloader_num_workers = default_num_workers() if self.cache_images == "none" else 0
        if self.cache_images == "device" and self.dataloader_num_workers:
            raise ValueError(
                f"cache_images device needs no dataloader_num_workers, got {self.dataloader_num_workers}: the images are on "
                "the device already"
            )
        if self.dataloader_num_workers:
            self.dataloader_persistent_workers = True
            self.dataloader_prefetch_factor = self.dataloader_prefetch_factor or 4
        if self.cache_images == "device":
            self.dataloader_pin_memory = False
        if self.accelerator_config is None and self.dataloader_pin_memory:
            self.accelerator_config = {"non_blocking": True}
        self.bf16 = self.bf16 and not self.fp16
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the token out of `training_args.bin`, which may be published."""
        return {**self.__dict__, "hub_token": None}
