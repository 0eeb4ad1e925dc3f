# SPDX-License-Identifier: Apache-2.0
"""The losses of image classification, with hard and soft labels."""

import torch
from torch.nn import functional as F


class ClassificationLoss:
    """
    Loss function for `Trainer(compute_loss_func=...)`.

    While training, the sum over the batch is divided by the number of images in the whole optimizer step, on all
    devices and all accumulated batches, so that neither changes the result. In evaluation, where the logits carry no
    gradients, it is the mean over the batch, without label smoothing.

    Args:
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of the target that is spread evenly over all labels, in [0, 1).
        binary_cross_entropy (`bool`, *optional*, defaults to `False`):
            Whether each label is a decision of its own: sigmoid and binary cross-entropy, summed over the labels, as
            in the pre-training of the Mixer paper on ImageNet-21k and JFT. By default softmax and cross-entropy.

    Raises:
        `ValueError`: `label_smoothing` is not in [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0, binary_cross_entropy: bool = False):
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing has to be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.binary_cross_entropy = binary_cross_entropy

    def __call__(self, outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None):
        """
        Args:
            outputs:
                The output of the model, with `logits` of shape `(batch_size, num_labels)`.
            labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`):
                Class indices, or the probability of every class.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*):
                What to divide the sum by: the number of images or, with probabilities, that times the number of labels,
                which is how `Trainer` counts them. By default the batch size.

        Returns:
            `torch.Tensor`: the loss, a scalar in float32.
        """
        logits = (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()
        smoothing = self.label_smoothing if logits.requires_grad else 0.0
        if self.binary_cross_entropy:
            targets = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[-1])
            targets = targets.to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[-1]
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        else:
            loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        if num_items_in_batch is None:
            return loss / len(labels)
        return loss / (num_items_in_batch / labels.shape[-1] if labels.is_floating_point() else num_items_in_batch)
