"""What a model learns from another one."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.training import Distillation
from hf_mixer.training.command_line import ModelArguments
from hf_mixer.training.distillation import PixelConversion
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


def save(folder, model, processor) -> str:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def make_processor(size=16, **settings) -> MixerImageProcessorPil:
    return MixerImageProcessorPil(size={"height": size, "width": size}, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 16},
        {"size": 32, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"size": 16, "do_normalize": False, "rescale_factor": 1 / 127.5},
        {"size": 8, "do_rescale": False, "do_normalize": False},
    ],
)
def test_a_teacher_sees_the_pixels_that_its_own_processor_prepares(settings):
    # Smooth, as the one rounds between resizing and normalizing, and the other does not
    ramp = np.linspace(0, 255, 16)
    image = np.stack(np.broadcast_arrays(ramp, ramp[:, None], 255 - ramp), axis=-1).astype(np.uint8)
    student, teacher = make_processor(), make_processor(**settings)
    expected, pixels = (each(image, return_tensors="pt")["pixel_values"] for each in (teacher, student))
    found = PixelConversion(student, teacher, make_model().config)(pixels)
    step = (expected.max() - expected.min()).item() / 255
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1.5 * step)


def test_processors_that_crop_or_keep_the_shape():
    student, config = make_processor(), make_model().config
    cropping = make_processor(24, do_center_crop=True, crop_size={"height": 20, "width": 18})
    keeping = MixerImageProcessorPil(size={"shortest_edge": 24})
    pixels = torch.zeros(1, 3, 16, 16)
    assert PixelConversion(student, cropping, config)(pixels).shape[-2:] == (20, 18)
    assert PixelConversion(student, keeping, config)(pixels).shape[-2:] == (24, 24)


def test_other_channels_are_converted_as_well():
    config = make_model(num_channels=4).config
    settings = {"num_channels": 4, "do_convert_rgb": False}
    student = make_processor(image_mean=[0.5] * 4, image_std=[0.5] * 4, **settings)
    teacher = make_processor(image_mean=[0.1, 0.2, 0.3, 0.4], image_std=[0.5] * 4, **settings)
    image = np.full((16, 16, 4), (10, 90, 170, 250), dtype=np.uint8)
    options = {"input_data_format": "channels_last", "return_tensors": "pt"}
    expected, pixels = (each(image, **options)["pixel_values"] for each in (teacher, student))
    torch.testing.assert_close(PixelConversion(student, teacher, config)(pixels), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pixels: pixels.flip(1), "does more to colors"),
        (lambda pixels: F.pad(pixels, (2, 2)), "does more to colors"),
        (lambda pixels: pixels[:, :1], r"makes no images of 3 channel\(s\)"),
        (lambda pixels: pixels * float("nan"), "not finite"),
        (lambda pixels: pixels.flatten(1), "makes no images"),
        (lambda pixels: {}["pixels"], r"cannot prepare the images of the model \(KeyError: 'pixels'\)"),
    ],
)
def test_processors_that_do_something_else_are_refused(change, message):
    def process(image, **kwargs):
        return {"pixel_values": change(make_processor()(image, **kwargs)["pixel_values"])}

    with pytest.raises(ValueError, match=message):
        PixelConversion(make_processor(), process, make_model().config)


def test_a_mixer_learns_from_another_architecture(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    source = save(tmp_path / "resnet", ResNetForImageClassification(config), make_processor(32))
    teacher, processor = load_teacher(source, ModelArguments(), make_model(num_labels=3))
    assert type(teacher) is ResNetForImageClassification
    with torch.no_grad():
        teacher.classifier[1].weight.zero_()
        teacher.classifier[1].bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
    trainer = make_trainer(
        tmp_path, teacher=teacher, teacher_processing_class=processor, distillation_alpha=1.0, num_train_epochs=8
    )
    trainer.train()
    assert (trainer.predict(trainer.eval_dataset).predictions.argmax(-1) == 2).all()


def test_labels_may_be_in_another_order():
    labels = ["cat", "dog", "owl"]
    student = make_model(id2label=dict(enumerate(labels)))
    teacher = make_model(id2label=dict(enumerate(labels[::-1])))
    pixels = torch.randn(2, 3, 16, 16)
    targets = Distillation(teacher, student, 1.0).soften(pixels, torch.tensor([0, 1]))
    torch.testing.assert_close(targets, teacher(pixels).logits.softmax(-1).flip(1).detach())


def test_a_teacher_of_something_else_is_refused(tmp_path):
    student = make_model(num_labels=3)

    def load(model):
        return load_teacher(save(tmp_path, model, make_processor()), ModelArguments(), student)

    assert load(make_model(num_labels=3, image_size=32).bfloat16())[0].dtype == torch.float32
    for model, message in (
        (make_model(num_labels=4), "num_labels is 4, and the model's 3"),
        (make_model("multi_label_classification", num_labels=3), "problem_type is"),
        (make_model(id2label={0: "cat", 1: "dog", 2: "owl"}), "no label 'LABEL_0' \\(it has 'cat', 'dog', 'owl'\\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load(model)
    for model in (make_model(num_labels=3, image_size=32), make_model(num_labels=3, num_channels=1)):
        with pytest.raises(ValueError, match="does not take the images that its image processor prepares"):
            Distillation(model, student, 0.5)
    with pytest.raises(ValueError, match="regression"):
        make_trainer(tmp_path, problem_type="regression", teacher=make_model("regression", num_labels=2))


def test_a_teacher_that_was_not_trained_is_refused(tmp_path):
    def load(source):
        return load_teacher(str(source), ModelArguments(), make_model(num_labels=3))

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    source = save(tmp_path / "headless", ResNetModel(config), make_processor())
    with pytest.raises(ValueError, match=f"{source} has no weights for 'classifier"):
        load(source)
    broken = ResNetForImageClassification(config)
    with torch.no_grad():
        broken.classifier[1].bias[0] = float("nan")
    with pytest.raises(ValueError, match="values in 'classifier.1.bias' that are not finite"):
        load(save(tmp_path / "broken", broken, make_processor()))
    ResNetForImageClassification(config).save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match="cannot be loaded as an image classifier with its image processor"):
        load(tmp_path / "alone")
