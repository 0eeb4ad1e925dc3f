"""Regression on labels of any scale."""

import numpy as np
import pytest
import torch

from hf_mixer.training.regression import LabelScale
from tests.helpers import losses_of, make_labelled_images, make_trainer


REGRESSION = "regression"
LABELS = np.array(make_labelled_images(45, REGRESSION)["label"])


def standardize(trainer):
    """Have a trainer learn the same labels with a mean of 0 and a standard deviation of 1, without any help."""
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (LABELS.mean(0), LABELS.std(0)))
    for images in (trainer.train_dataset, trainer.eval_dataset):
        images.labels = (images.labels - mean) / std
    trainer.label_scale = None
    trainer.compute_loss_func.scale = None
    return mean, std


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": 0.1, "regression_loss": "l1"},
        {"optim": "sgd", "optim_args": "momentum=0.9", "max_grad_norm": 0.5, "mixup_alpha": 0.5},
    ],
)
def test_labels_of_any_scale_are_learned_like_standardized_ones(arguments, tmp_path):
    raw, standardized = (
        make_trainer(tmp_path, problem_type=REGRESSION, num_train_epochs=2, **arguments) for _ in range(2)
    )
    mean, std = standardize(standardized)
    assert (std / std.min()).max() > 1000
    raw.train()
    standardized.train()
    predictions = [trainer.predict(trainer.eval_dataset).predictions for trainer in (raw, standardized)]
    np.testing.assert_allclose((predictions[0] - mean.numpy()) / std.numpy(), predictions[1], atol=1e-4)
    expected = losses_of(standardized.state.log_history)
    assert losses_of(raw.state.log_history) == pytest.approx(expected, abs=1e-5)
    norms = [[entry.get("grad_norm") for entry in trainer.state.log_history] for trainer in (raw, standardized)]
    assert norms[0][:-1] == pytest.approx(norms[1][:-1], abs=1e-4)


def test_a_new_classifier_starts_at_the_mean_and_a_trained_one_is_kept():
    scale = LabelScale.of(LABELS, ["price", "share"])
    classifier = torch.nn.Linear(4, 2)
    trained = classifier.weight.clone(), classifier.bias.clone()
    scale.start(classifier)
    assert torch.equal(classifier.weight, trained[0])
    assert torch.equal(classifier.bias, trained[1])
    torch.nn.init.zeros_(classifier.bias)
    scale.start(classifier)
    np.testing.assert_allclose(classifier.bias.detach(), LABELS.mean(0), rtol=1e-6)
    expected = trained[0].detach() * torch.tensor(LABELS.std(0)[:, None])
    np.testing.assert_allclose(classifier.weight.detach(), expected, rtol=1e-5)


def test_labels_without_any_difference_are_refused():
    with pytest.raises(ValueError, match="label 'price' is 7.5 for all images"):
        LabelScale.of(np.full((5, 1), 7.5), ["price"])
    with pytest.raises(ValueError, match="label 'price' is not a finite number"):
        LabelScale.of(np.array([[1.0], [np.nan]]), ["price"])


def test_labels_that_bfloat16_cannot_tell_apart_are_refused():
    years = LabelScale.of(np.array([[1980.0], [2000.0]]), ["year"])
    years.check_precision(torch.float32)
    with pytest.raises(ValueError, match="bfloat16 is too coarse for labels around 1990 .* of 10: .*--bf16 false"):
        years.check_precision(torch.bfloat16)
    LabelScale.of(np.array([[0.0], [100.0]]), ["price"]).check_precision(torch.bfloat16)


def test_without_the_labels_of_all_images_numbers_are_taken_as_they_are(tmp_path):
    trainer = make_trainer(tmp_path, problem_type=REGRESSION, max_steps=1)
    images = trainer.train_dataset
    trainer = make_trainer(tmp_path, problem_type=REGRESSION, max_steps=1, train_dataset=images)
    trainer.train()
    first = losses_of(trainer.state.log_history)[0]
    # Two labels, one around 1050 and one around 0
    assert first == pytest.approx((LABELS[:, 0] ** 2).mean() / 2, rel=0.05)
