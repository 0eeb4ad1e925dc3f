import torch
from torch.nn import functional as F

from transformers.modeling_outputs import ImageClassifierOutput

from hf_mixer.training import ClassificationLoss


def output(logits, requires_grad=True):
    return ImageClassifierOutput(logits=logits.requires_grad_(requires_grad))


def test_loss_is_cross_entropy_with_hard_and_soft_labels():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    soft = torch.rand(6, 4).softmax(1)
    loss = ClassificationLoss(label_smoothing=0.1)
    smooth = 0.9 * F.one_hot(labels, 4) + 0.025
    expected = -(smooth * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(loss(output(logits), labels), expected.mean())
    # Accumulated batches and other processes count in the denominator
    torch.testing.assert_close(loss(output(logits), labels, num_items_in_batch=24), expected.sum() / 24)
    torch.testing.assert_close(loss(output(logits), F.one_hot(labels, 4).float()), expected.mean())
    # `Trainer` counts every probability
    soft_labels = F.one_hot(labels, 4).float()
    torch.testing.assert_close(
        loss(output(logits), soft_labels, num_items_in_batch=torch.tensor(24 * 4)), expected.sum() / 24
    )
    expected = -((0.9 * soft + 0.025) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(output(logits), soft), expected)
    # Evaluation compares models, whatever they were smoothed with
    torch.testing.assert_close(loss(output(logits.detach(), False), labels), F.cross_entropy(logits, labels))


def test_binary_cross_entropy_decides_on_each_label():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    probability, target = logits.sigmoid(), F.one_hot(labels, 3)
    expected = -(target * probability.log() + (1 - target) * (1 - probability).log()).sum(1).mean()
    loss = ClassificationLoss(binary_cross_entropy=True)
    torch.testing.assert_close(loss(output(logits), labels), expected)
    torch.testing.assert_close(loss(output(logits), target.float()), expected)
