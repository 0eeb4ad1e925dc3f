"""Classes of very different size."""

import numpy as np
import pytest
import torch

from hf_mixer.training.balance import (
    BalancedSampler,
    balanced_class_weights,
    balanced_image_weights,
    count_classes,
    describe_imbalance,
)


# 16 images of `a`, 4 of `b`, none of `c`
LABELS = np.array([0] * 16 + [1] * 4)
# Labels `a` and `b`, and two images without any
SEVERAL = np.array([[1, 0]] * 12 + [[1, 1]] * 2 + [[0, 1]] * 4 + [[0, 0]] * 2, dtype=bool)


def test_classes_are_counted_whether_images_have_one_label_or_several():
    assert count_classes(LABELS, ["a", "b", "c"]) == {"a": 16, "b": 4, "c": 0}
    assert count_classes(SEVERAL, ["a", "b"]) == {"a": 14, "b": 6}


def test_more_than_ten_times_the_images_are_told_of_with_both_counts():
    assert describe_imbalance({"cat": 100, "dog": 10}) is None
    message = describe_imbalance({"cat": 101, "dog": 10, "emu": 50})
    assert "'cat' has 101 images, 'dog' only 10" in message
    assert "--class_weights balanced" in message
    assert "--balanced_sampling" in message
    assert "'emu' only 0" in describe_imbalance({"cat": 1, "emu": 0})


def test_class_weights_make_all_classes_count_the_same_and_keep_the_scale_of_the_loss():
    weights = balanced_class_weights(LABELS, 3)
    torch.testing.assert_close(weights, torch.tensor([20 / (2 * 16), 20 / (2 * 4), 1.0]))
    assert weights[LABELS].mean() == 1
    # Of several labels, the images that have one count as much as those that do not
    torch.testing.assert_close(balanced_class_weights(SEVERAL, 2), torch.tensor([6 / 14, 14 / 6]))
    always_or_never = np.array([[1, 0], [1, 0]])
    torch.testing.assert_close(balanced_class_weights(always_or_never, 2), torch.ones(2))


def test_class_weights_make_up_for_what_balanced_sampling_leaves_alone():
    weights = balanced_class_weights(LABELS, 3, balanced_image_weights(LABELS, 3))
    torch.testing.assert_close(weights, torch.ones(3))
    drawn = balanced_image_weights(SEVERAL, 2)
    weights = balanced_class_weights(SEVERAL, 2, drawn)
    positive = [(drawn * SEVERAL[:, label]).sum() for label in range(2)]
    expected = [(drawn.sum() - count) / count for count in positive]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_all_classes_are_drawn_equally_often():
    weights = balanced_image_weights(LABELS, 3)
    assert weights[LABELS == 0].sum() == weights[LABELS == 1].sum() == pytest.approx(1)
    # The rarest label of an image decides; images without labels are one more class
    weights = balanced_image_weights(SEVERAL, 2)
    np.testing.assert_allclose(weights, [1 / 14] * 12 + [1 / 6] * 6 + [1 / 2] * 2)

    sampler = BalancedSampler(balanced_image_weights(np.repeat(LABELS, 200), 3), seed=0)
    drawn = np.repeat(LABELS, 200)[list(sampler)]
    assert len(drawn) == len(sampler) == 4000
    # Three standard deviations
    assert abs(drawn.mean() - 0.5) < 3 * 0.5 / 4000**0.5


def test_seed_and_epoch_alone_decide_what_is_drawn():
    def draw(seed, epoch):
        torch.rand(3)  # whatever happened before
        sampler = BalancedSampler(np.ones(50), seed)
        list(sampler)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(0, 1) == draw(0, 1)
    assert draw(0, 1) != draw(0, 2)
    assert draw(0, 1) != draw(1, 1)
