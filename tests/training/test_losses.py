import torch
from torch.nn import functional as F

from transformers.modeling_outputs import ImageClassifierOutput

from hf_mixer.training import ClassificationLoss, MultiLabelLoss, RegressionLoss


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


def test_class_weights_are_factors_on_the_losses_of_the_classes():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0])
    loss = ClassificationLoss(class_weights=weights)
    of_images = -logits.log_softmax(1)[range(6), labels]
    torch.testing.assert_close(loss(output(logits), labels), (weights[labels] * of_images).mean())
    # With two labels that share an image, each has its own factor
    soft = 0.7 * F.one_hot(labels, 4) + 0.3 * F.one_hot(labels.flip(0), 4)
    expected = -(weights * soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss(output(logits), soft), expected)
    # What is evaluated compares with other models
    torch.testing.assert_close(loss(output(logits.detach(), False), labels), F.cross_entropy(logits, labels))

    loss = ClassificationLoss(binary_cross_entropy=True, class_weights=weights)
    of_images = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 4).float(), reduction="none").sum(1)
    torch.testing.assert_close(loss(output(logits), labels), (weights[labels] * of_images).mean())


def test_several_labels_are_decisions_of_their_own_whose_losses_are_averaged():
    logits, labels = torch.randn(5, 3), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]]).float()
    torch.testing.assert_close(
        MultiLabelLoss()(output(logits), labels), F.binary_cross_entropy_with_logits(logits, labels)
    )
    probability, weights = logits.sigmoid(), torch.tensor([1.0, 4.0, 0.5])
    smooth = 0.8 * labels + 0.1
    expected = -(weights * smooth * probability.log() + (1 - smooth) * (1 - probability).log()).mean(1)
    loss = MultiLabelLoss(label_smoothing=0.2, positive_weights=weights)
    torch.testing.assert_close(loss(output(logits), labels), expected.mean())
    # `Trainer` counts every label of 20 images
    torch.testing.assert_close(loss(output(logits), labels, num_items_in_batch=60), expected.sum() / 20)
    plain = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(loss(output(logits.detach(), False), labels), plain)


def test_errors_of_a_regression_are_measured_by_the_scale_and_evaluated_in_their_own_units():
    logits, labels = torch.randn(5, 2) * torch.tensor([100, 0.1]), torch.randn(5, 2) * torch.tensor([100, 0.1])
    scale = torch.tensor([100, 0.1])
    errors = (logits - labels) / scale
    for kind, expected, plain in (("mse", errors**2, F.mse_loss), ("l1", errors.abs(), F.l1_loss)):
        loss = RegressionLoss(kind, scale)
        torch.testing.assert_close(loss(output(logits), labels), expected.mean())
        torch.testing.assert_close(loss(output(logits), labels, num_items_in_batch=20), expected.mean(1).sum() / 10)
        torch.testing.assert_close(loss(output(logits.detach(), False), labels), plain(logits, labels))
