# SPDX-License-Identifier: Apache-2.0
"""
Regression on labels of any scale.

A model that learns prices in thousands and one that learns shares of 1 need the same training when their labels are
standardized. The model should give its answers in the units of the labels all the same. Hence its classifier starts at the
mean of the labels, and the optimizer alone sees it standardized.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class LabelScale:
    """
    The mean and the standard deviation of labels that are numbers.

    Args:
        mean (`torch.Tensor` of shape `(num_labels,)`), std (`torch.Tensor` of shape `(num_labels,)`):
            In the units of the labels.
    """

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, labels: np.ndarray, names: list[str]) -> "LabelScale":
        """
        Measure the labels of shape `(num_images, num_labels)`, which are called `names`.

        Raises:
            `ValueError`: all images have the same label, or a label is not finite.
        """
        labels = np.asarray(labels, dtype=np.float64).reshape(len(labels), -1)
        mean, std = labels.mean(axis=0), labels.std(axis=0)
        for name, center, spread in zip(names, mean, std):
            if not np.isfinite(spread):
                raise ValueError(f"the label {name!r} is not a finite number for all images: leave those images out")
            if spread <= 1e-9 * abs(center):
                raise ValueError(f"the label {name!r} is {center:g} for all images: there is nothing to learn")
        return cls(torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32))

    def check_precision(self, dtype: torch.dtype) -> None:
        """
        Refuse labels whose differences get lost in the type that the network computes in.

        Raises:
            `ValueError`: two neighbouring numbers of `dtype` around the mean are more than a fifth of the standard
                deviation apart.
        """
        ratios = (self.mean.abs() * torch.finfo(dtype).eps / self.std).tolist()
        for mean, std, ratio in zip(self.mean.tolist(), self.std.tolist(), ratios):
            if ratio > 0.2:
                raise ValueError(
                    f"{str(dtype).removeprefix('torch.')} is too coarse for labels around {mean:g} with a standard deviation "
                    f"of {std:g}: train with --bf16 false --fp16 false, or subtract {mean:g} from the labels"
                )

    @torch.no_grad()
    def start(self, classifier: nn.Linear) -> None:
        """Let a new classifier, whose biases are all zero, start at the mean of the labels. Keep any other."""
        if not classifier.bias.any():
            classifier.weight.mul_(self.std.to(classifier.weight)[:, None])
            classifier.bias.copy_(self.mean)

    def standardize(self, classifier: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        """
        Let the optimizer see the weights, the biases and their gradients as if the labels had a standard deviation of 1.
        Hence learning rate, weight decay and the clipping of gradients work as with standardized labels. Call it once.
        """
        scales = []
        for parameter, scale in ((classifier.weight, self.std[:, None]), (classifier.bias, self.std)):
            if parameter.requires_grad:
                scale = scale.to(parameter)
                scales.append((parameter, scale))
                parameter.register_hook(lambda gradient, scale=scale: gradient * scale)

        def divide(optimizer, args, kwargs):
            with torch.no_grad():
                for parameter, scale in scales:
                    parameter.div_(scale)

        def multiply(optimizer, args, kwargs):
            with torch.no_grad():
                for parameter, scale in scales:
                    parameter.mul_(scale)

        optimizer.register_step_pre_hook(divide)
        optimizer.register_step_post_hook(multiply)
