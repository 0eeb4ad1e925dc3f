# SPDX-License-Identifier: Apache-2.0
"""Training: each concern in its own module, joined by `MixerTrainer`."""

from .arguments import MixerTrainingArguments
from .augmentation import BatchAugmentation
from .checkpointing import FiniteLossCallback, SafeCheckpointTrainer, TrainingError
from .distillation import Distillation
from .ema import EmaCallback
from .losses import ClassificationLoss, MultiLabelLoss, RegressionLoss
from .muon import Muon
from .optimization import parameter_groups
from .trainer import MixerTrainer


__all__ = [
    "BatchAugmentation",
    "ClassificationLoss",
    "Distillation",
    "EmaCallback",
    "FiniteLossCallback",
    "MixerTrainer",
    "MixerTrainingArguments",
    "MultiLabelLoss",
    "Muon",
    "RegressionLoss",
    "SafeCheckpointTrainer",
    "TrainingError",
    "parameter_groups",
]
