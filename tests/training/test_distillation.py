"""What a model learns from another one."""

import copy

import pytest
import torch

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.training import Distillation
from hf_mixer.training.command_line import ModelArguments
from hf_mixer.training.models import load_teacher
from tests.helpers import AUGMENTED, losses_of, make_trainer, same_weights


def make_model(problem_type="single_label_classification", **fields) -> MixerForImageClassification:
    sizes = dict(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, token_mlp_dim=8, channel_mlp_dim=32)
    return MixerForImageClassification(MixerConfig(problem_type=problem_type, **{**sizes, **fields}))


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_the_targets_lie_between_labels_and_answers(problem_type):
    teacher, is_multi = make_model(problem_type, num_labels=3), problem_type.startswith("multi")
    pixels = torch.randn(4, 3, 16, 16)
    logits = teacher.eval()(pixels).logits.detach()
    answers = 1 / (1 + (-logits).exp()) if is_multi else logits.exp() / logits.exp().sum(-1, keepdim=True)
    hard = torch.eye(3)[[0, 2, 1, 0]]
    labels = hard if is_multi else torch.tensor([0, 2, 1, 0])
    targets = Distillation(teacher.train(), teacher, 0.25).soften(pixels, labels)
    torch.testing.assert_close(targets, 0.75 * hard + 0.25 * answers)


def test_a_model_learns_the_answers_and_not_the_labels(tmp_path):
    # It answers as nobody labelled the images: all are of the last class
    teacher = make_trainer(tmp_path).model
    with torch.no_grad():
        teacher.classifier.bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
    before = copy.deepcopy(teacher.state_dict())
    trainer = make_trainer(tmp_path, teacher=teacher, distillation_alpha=1.0, num_train_epochs=8, **AUGMENTED)
    trainer.train()
    answers = trainer.predict(trainer.eval_dataset).predictions.argmax(-1)
    assert (answers == 2).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_a_teacher_without_weight_changes_nothing(tmp_path):
    def train(**arguments):
        trainer = make_trainer(tmp_path, max_steps=6, **AUGMENTED, **arguments)
        trainer.train()
        return losses_of(trainer.state.log_history)

    teacher = make_trainer(tmp_path).model
    assert train(teacher=teacher, distillation_alpha=0.0) == train()
    assert train(teacher=teacher, distillation_alpha=0.5) != train()


def test_accumulated_batches_are_one(tmp_path):
    def train(**arguments):
        teacher = make_trainer(tmp_path).model
        trainer = make_trainer(tmp_path, teacher=teacher, max_steps=5, **arguments)
        trainer.train()
        return losses_of(trainer.state.log_history)

    parts = train(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert parts == pytest.approx(train(per_device_train_batch_size=8), abs=1e-4)


def test_a_resumed_run_goes_on_with_its_teacher(tmp_path):
    def make(**arguments):
        teacher = make_trainer(tmp_path).model
        return make_trainer(
            tmp_path / "run",
            teacher=teacher,
            max_steps=6,
            save_strategy="steps",
            save_steps=3,
            **AUGMENTED,
            **arguments,
        )

    whole, resumed = make(), make()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert same_weights(whole.model.state_dict(), resumed.model.state_dict())


def test_a_teacher_of_something_else_is_refused(tmp_path):
    student, processor = make_model(num_labels=3), MixerImageProcessorPil(size={"height": 16, "width": 16})

    def load(model, processor=processor):
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        return load_teacher(str(tmp_path), ModelArguments(), student, student_processor)

    student_processor = processor
    assert load(make_model(num_labels=3, hidden_size=24)).config.hidden_size == 24
    for model, message in (
        (make_model(num_labels=4), "num_labels is 4, and the model's 3"),
        (make_model(num_labels=3, image_size=32), "image_size is"),
        (make_model("multi_label_classification", num_labels=3), "problem_type is"),
        (
            make_model(id2label={0: "LABEL_1", 1: "LABEL_0", 2: "LABEL_2"}),
            "label 0 is 'LABEL_1', and the model's 'LABEL_0'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load(model)
    with pytest.raises(ValueError, match="image_mean="):
        load(
            make_model(num_labels=3),
            MixerImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3]),
        )
    with pytest.raises(ValueError, match="regression"):
        make_trainer(tmp_path, problem_type="regression", teacher=make_model("regression", num_labels=2))
