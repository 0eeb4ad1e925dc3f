# SPDX-License-Identifier: Apache-2.0
"""Mixup and CutMix on a batch, drawn anew for every sample."""

import numpy as np
import torch
from torch.nn import functional as F


def to_device(drawn: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy what was drawn on the CPU to `device`, without waiting for a GPU."""
    tensor = torch.from_numpy(drawn)
    if device.type != "cuda":
        return tensor.to(device)
    # Before it copies more than 64 KB of ordinary memory, CUDA waits for all that the stream has to do
    return tensor.pin_memory().to(device, non_blocking=True)


def check_shares(**shares: float) -> None:
    """Refuse probabilities and shares that are not in [0, 1]."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"`{name}` has to be in [0, 1], got {share}")


def box_masks(boxes: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return which rows, `(batch_size, 1, height, 1)`, and which columns, `(batch_size, 1, 1, width)`, lie inside `boxes` of
    shape `(batch_size, 4)`: top, left, bottom and right in pixels, the last two exclusive.
    """
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    row, column = (torch.arange(size, device=boxes.device) for size in (height, width))
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return rows[:, None, :, None], columns[:, None, None, :]


class MixupCutmix:
    """
    [Mixup](https://huggingface.co/papers/1710.09412) and [CutMix](https://huggingface.co/papers/1905.04899) with soft
    targets. Every sample has its own partner, its own choice between the two and its own `lam`, drawn from Beta(alpha,
    alpha): the share of the sample itself, while the partner has `1 - lam`. The arguments are named as in timm.

    The box of CutMix has a share of `1 - lam` of the area before it is clipped at the border, and its center is
    uniform over the image. The target follows the pixels that are really replaced.

    Labels that are numbers already, one or more for each sample, are mixed as they are: mixup takes the targets of several
    labels, or of a regression, to lie between those of the two samples as well.

    Args:
        num_labels (`int`):
            Number of labels.
        mixup_alpha (`float`, *optional*, defaults to 0.0), cutmix_alpha (`float`, *optional*, defaults to 0.0):
            Parameter of the Beta distribution of mixup and of CutMix. 0 leaves it out.
        mixup_prob (`float`, *optional*, defaults to 1.0):
            Probability that a sample is mixed at all.
        mixup_switch_prob (`float`, *optional*, defaults to 0.5):
            Probability of CutMix instead of mixup for a mixed sample, where both are in use.
        problem_type (`str`, *optional*, defaults to `"single_label_classification"`):
            What the labels are, by the names of transformers. `"regression"` goes without CutMix: a part of an image does
            not have its share of the value.

    Raises:
        `ValueError`: an argument is out of range, or does not fit the labels.
    """

    def __init__(
        self,
        num_labels: int,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
        problem_type: str = "single_label_classification",
    ):
        if problem_type == "single_label_classification" and num_labels < 2:
            raise ValueError(f"mixing needs `num_labels` of at least 2, got {num_labels}")
        if problem_type == "regression" and cutmix_alpha:
            raise ValueError(
                f"`cutmix_alpha` does not go with regression, got {cutmix_alpha}: a part of an image does not have its "
                "share of the value. Leave it out, or use `mixup_alpha`"
            )
        for name, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            if not 0 <= alpha < float("inf"):
                raise ValueError(f"`{name}` has to be a number of at least 0, got {alpha}")
        check_shares(mixup_prob=mixup_prob, mixup_switch_prob=mixup_switch_prob)
        self.num_labels, self.has_classes = num_labels, problem_type == "single_label_classification"
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.mixup_prob = mixup_prob
        self.cutmix_share = mixup_switch_prob if mixup_alpha and cutmix_alpha else float(cutmix_alpha > 0)

    def sample(self, batch_size: int, height: int, width: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """
        Draw what happens to a batch.

        Returns:
            `dict[str, np.ndarray]`: by sample, its `partner` (index into the batch), the partner's weight in the pixels
            of the whole image, `mixup`, and in the target, `target`, and the `box` that is replaced as (top, left,
            bottom, right), empty without CutMix.
        """
        partner = rng.permutation(batch_size)
        is_mixed = rng.random(batch_size) < self.mixup_prob
        is_cutmix = is_mixed & (rng.random(batch_size) < self.cutmix_share)
        # `1 - lam`, which has the distribution of `lam`
        mixup, cutmix = (
            rng.beta(alpha, alpha, batch_size) if alpha else np.zeros(batch_size)
            for alpha in (self.mixup_alpha, self.cutmix_alpha)
        )
        mixup = np.where(is_mixed & ~is_cutmix, mixup, 0)
        cutmix = np.where(is_cutmix, cutmix, 0)

        size = np.array([[height, width]])
        center = rng.integers(size, size=(batch_size, 2))
        extent = (np.sqrt(cutmix)[:, None] * size).astype(np.int64)
        start, end = (center + offset for offset in (-(extent // 2), extent - extent // 2))
        start, end = start.clip(0, size), end.clip(0, size)
        share = (end - start).prod(1) / (height * width)
        return {
            "partner": partner,
            "box": np.concatenate([start, end], axis=1),
            "mixup": mixup.astype(np.float32),
            "target": np.where(is_cutmix, share, mixup).astype(np.float32),
        }

    def __call__(
        self, pixel_values: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mix floating-point images of shape `(batch_size, num_channels, height, width)` with their labels: classes of shape
        `(batch_size,)`, or with another problem type floats of shape `(batch_size, num_labels)`. Return them with targets
        of shape `(batch_size, num_labels)` in float32, whose rows sum to 1 for classes.

        Raises:
            `ValueError`: `labels` are not one integer, or `num_labels` floats, for each sample.
        """
        expected = (len(pixel_values),) if self.has_classes else (len(pixel_values), self.num_labels)
        if labels.shape != expected or labels.is_floating_point() == self.has_classes:
            of_each = "one integer label" if self.has_classes else f"{self.num_labels} floats as labels"
            raise ValueError(
                f"mixing needs {of_each} for each of {len(pixel_values)} samples, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        height, width = pixel_values.shape[-2:]
        drawn = self.sample(len(pixel_values), height, width, rng)
        partner, box, mixup, target = (
            to_device(drawn[name], pixel_values.device) for name in ("partner", "box", "mixup", "target")
        )
        weight = mixup[:, None, None, None]
        if self.cutmix_share:
            rows, columns = box_masks(box, height, width)
            # Where there is a box, the weight of mixup is 0
            weight = torch.addcmul(weight, rows.float(), columns.float())

        targets = (F.one_hot(labels.long(), self.num_labels) if self.has_classes else labels).float()
        # `lerp` returns its ends exactly at the weights 0 and 1
        pixel_values = torch.lerp(pixel_values, pixel_values.index_select(0, partner), weight.to(pixel_values.dtype))
        return pixel_values, torch.lerp(targets, targets.index_select(0, partner), target[:, None])
