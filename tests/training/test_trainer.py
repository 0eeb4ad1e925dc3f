"""What the trainer does with images, on one process and on two."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from transformers import Trainer, TrainingArguments

from hf_mixer import MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.data import ImageDataError, collate_images
from hf_mixer.data.images import open_image
from hf_mixer.data.loaders import CachedImages, StreamedImages
from hf_mixer.evaluation.metrics import METRICS, best_thresholds
from hf_mixer.flops import estimate_flops
from hf_mixer.kernels import cpu
from hf_mixer.training import (
    ClassificationLoss,
    EmaCallback,
    FiniteLossCallback,
    MixerTrainer,
    MixerTrainingArguments,
    TrainingError,
)
from hf_mixer.training.objective import measure
from tests.helpers import (
    AUGMENTED,
    NUM_EVAL_IMAGES,
    NUM_IMAGES,
    losses_of,
    make_images,
    make_trainer,
    make_transform,
    same_weights,
)
from tests.new_processes import run_on_two_processes
from tests.training.processes import OTHER_LABELS, run_as_one_of_several


MULTI_LABEL = "multi_label_classification"


def evaluation_logits(model) -> torch.Tensor:
    """What a model says of the images to evaluate on, prepared by its image processor."""
    images = [open_image(image["bytes"]) for image in make_images(NUM_EVAL_IMAGES, seed=1)["image"]]
    processor = MixerImageProcessorPil(size={"height": 16, "width": 16})
    with torch.no_grad():
        return model.eval()(**processor(images, return_tensors="pt")).logits


def test_seed_and_step_alone_decide(tmp_path):
    def losses(**arguments):
        torch.rand(5)  # whatever happened before
        trainer = make_trainer(tmp_path, max_steps=4, **{**AUGMENTED, **arguments})
        trainer.train()
        return losses_of(trainer.state.log_history)

    assert losses() == losses()
    assert losses() != losses(seed=1)


def test_evaluation_does_not_augment(tmp_path):
    trainer = make_trainer(tmp_path, **AUGMENTED)
    first, second = (trainer.predict(trainer.eval_dataset).predictions for _ in range(2))
    assert (first == second).all()
    torch.testing.assert_close(torch.tensor(first), evaluation_logits(trainer.model), atol=1e-6, rtol=0)


def test_two_processes_do_the_work_of_one(tmp_path):
    run_on_two_processes(run_as_one_of_several, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["world_size"] == 2

    trainer = make_trainer(tmp_path / "one", train_dataset=CachedImages(make_images(40), make_transform()))
    trainer.train()
    assert report["losses"] == pytest.approx(losses_of(trainer.state.log_history), abs=1e-5)
    # Adam takes steps of full size where the gradient is nothing but rounding, so that only what the model does agrees
    together = MixerForImageClassification.from_pretrained(tmp_path / "halves")
    logits = evaluation_logits(together)
    torch.testing.assert_close(logits, evaluation_logits(trainer.model), atol=1e-4, rtol=0)

    # Each image counts once
    assert report["evaluated"] == report["evaluated from a stream"] == 23
    labels = torch.tensor(make_images(NUM_EVAL_IMAGES, seed=1)["label"])
    assert report["eval_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)
    for num_shards in (4, 1):
        assert report[f"streamed from {num_shards} shards"] == list(range(40))
    assert report["steps of a stream"] == 12
    assert report["threads that would keep the process"] == []

    for problem_type, arguments in OTHER_LABELS.items():
        trainer = make_trainer(tmp_path / problem_type, **arguments)
        trainer.train()
        together, alone = report[problem_type], trainer.evaluate()
        assert together["losses"] == pytest.approx(losses_of(trainer.state.log_history), abs=1e-5)
        for name in ("eval_loss", *(f"eval_{metric}" for metric in METRICS[problem_type])):
            assert together[name] == pytest.approx(alone[name], rel=1e-3), name


def test_batches_of_a_data_loader_are_collated_once(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["pixel_values"].shape == (8, 3, 16, 16)
    assert collate_images(batch) is batch


def test_layer_decay_and_sgd_reach_the_optimizer(tmp_path):
    trainer = make_trainer(tmp_path, layer_decay=0.5, optim="sgd", optim_args="momentum=0.9", weight_decay=0.1)
    trainer.create_optimizer()
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-2, 5e-3, 2.5e-3, 1.25e-3}
    assert {group["momentum"] for group in trainer.optimizer.param_groups} == {0.9}


@pytest.mark.parametrize(
    ("arguments", "takes"),
    [({"torch_compile": True, "bf16": True}, True), ({"bf16": True}, False), ({"torch_compile": True}, False)],
)
def test_compiled_training_in_bfloat16_takes_the_kernels(tmp_path, monkeypatch, arguments, takes):
    asked = []
    monkeypatch.setattr(cpu, "use_where_possible", asked.append)
    trainer = make_trainer(tmp_path, use_cpu=True, **arguments)
    assert asked == [trainer.model] * takes


def test_teachers_that_go_to_another_device_do_not_take_the_kernels_for_processors(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cpu, "use_where_possible", asked.append)
    teacher = make_trainer(tmp_path, bf16=True, use_cpu=True).model
    device = property(lambda args: TrainingArguments.device.fget(args) and torch.device("meta"))
    monkeypatch.setattr(MixerTrainingArguments, "device", device)
    make_trainer(tmp_path, teacher=teacher, torch_compile=True, bf16=True)
    assert teacher.device.type == "meta"
    assert asked == []


def test_accumulated_batches_train_like_one(tmp_path):
    runs = []
    for name, batch_size, accumulation in (("one", 8, 1), ("four", 2, 4)):
        trainer = make_trainer(
            tmp_path / name,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=5,
        )
        trainer.train()
        runs.append(losses_of(trainer.state.log_history))
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


@pytest.mark.parametrize("switches", [dict(do_normalize=False), dict(do_normalize=False, do_rescale=False), {}])
def test_training_sees_the_pixels_of_the_image_processor(switches, tmp_path):
    trainer = make_trainer(tmp_path)
    processor = MixerImageProcessorPil(size={"height": 16, "width": 16}, **switches)
    trainer = MixerTrainer(trainer.model, trainer.args, processor, train_dataset=trainer.train_dataset)
    images = make_images(1)[:1]
    expected = processor(open_image(images["image"][0]["bytes"]), return_tensors="pt").pixel_values.float()
    batch = {"pixel_values": make_transform()(images)["pixel_values"], "labels": torch.tensor([0])}
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    for training in (False, True):
        trainer.model.train(training)
        trainer.compute_loss(trainer.model, batch)
        torch.testing.assert_close(seen.pop(), expected, atol=1e-5, rtol=0)


def test_a_broken_stream_says_how_far_it_got_and_what_is_kept(tmp_path):
    def break_off(example, index):
        if index == 30:
            raise OSError("shard 3 is truncated")
        return example

    stream = make_images(40).to_iterable_dataset().map(break_off, with_indices=True)
    with pytest.raises(ImageDataError, match="in pass 1, after 30 images of this reader: shard 3 is truncated"):
        list(StreamedImages(stream, make_transform()))
    trainer = make_trainer(
        tmp_path,
        train_dataset=StreamedImages(stream, make_transform()),
        max_steps=9,
        save_strategy="steps",
        save_steps=2,
        cache_images="none",
        dataloader_num_workers=1,
    )
    with pytest.raises(
        TrainingError,
        match=r"^the data stream broke .*shard 3 is truncated\. .*leave it out\. The last good checkpoint",
    ):
        trainer.train()


def test_fewer_images_than_one_batch_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=64, dataloader_drop_last=True)
    with pytest.raises(ValueError, match="45 images are fewer than one batch of 64"):
        trainer.train()


def test_all_images_are_evaluated_also_where_training_drops_the_last_batch(tmp_path):
    trainer = make_trainer(tmp_path, dataloader_drop_last=True)
    assert len(trainer.get_train_dataloader()) == NUM_IMAGES // 8
    assert trainer.evaluate()["eval_count"] == NUM_EVAL_IMAGES
    assert len(trainer.predict(trainer.eval_dataset).predictions) == NUM_EVAL_IMAGES


@pytest.mark.parametrize("problem_type", METRICS)
def test_evaluation_gives_the_metrics_of_the_labels(problem_type, tmp_path):
    trainer = make_trainer(tmp_path, problem_type=problem_type)
    trainer.compute_metrics = partial(measure, trainer.model.config)
    metrics = trainer.evaluate()
    expected = {f"eval_{name}" for name in METRICS[problem_type] if name != "top5_accuracy"}
    assert expected | {"eval_loss"} <= metrics.keys()
    if problem_type == "regression":
        assert metrics["eval_loss"] == pytest.approx(metrics["eval_mse"], rel=1e-5)


def test_a_number_that_transformers_leaves_out_of_texts_is_a_label_like_any_other(tmp_path):
    def first_loss(shift):
        trainer = make_trainer(tmp_path, problem_type="regression", max_steps=1)
        images, model = trainer.train_dataset, trainer.model
        images.labels = torch.full_like(images.labels, -100.0 + shift)
        trainer.label_scale = None
        trainer.compute_loss_func.scale = None
        torch.nn.init.zeros_(model.classifier.weight)
        model.classifier.bias.data.fill_(-101.0 + shift)
        trainer.train()
        return losses_of(trainer.state.log_history)[0]

    assert first_loss(0.0) == pytest.approx(first_loss(1.0)) == pytest.approx(1)


def test_thresholds_of_several_labels_are_chosen_on_the_validation_images_and_saved(tmp_path):
    trainer = make_trainer(tmp_path, problem_type=MULTI_LABEL, max_steps=3, label_threshold="best_f1")
    before = trainer.evaluate()
    trainer.train()
    trainer.save_model()
    thresholds = MixerForImageClassification.from_pretrained(tmp_path).config.label_thresholds
    prediction = trainer.predict(trainer.eval_dataset)
    assert thresholds == best_thresholds(prediction.predictions, prediction.label_ids)
    # The metrics are those of the chosen thresholds
    assert prediction.metrics["test_f1_macro"] > before["eval_f1_macro"]

    again = make_trainer(tmp_path, problem_type=MULTI_LABEL, max_steps=1, label_threshold="0.3")
    again.model.config.label_thresholds = thresholds
    again.evaluate()
    assert again.model.config.label_thresholds == thresholds
    again.train()
    assert again.model.config.label_thresholds == [0.3] * 3


def test_an_optimizer_whose_library_is_missing_is_refused_before_the_run(tmp_path, monkeypatch):
    def missing(args, model=None):
        raise ImportError("You need to install `lomo_optim`\nin order to use LOMO optimizers")

    monkeypatch.setattr(MixerTrainer, "get_optimizer_cls_and_kwargs", staticmethod(missing))
    with pytest.raises(ValueError, match="--optim lomo cannot be used: You need to install `lomo_optim`"):
        make_trainer(tmp_path, optim="lomo")


def test_a_run_of_one_step_has_a_curve(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, logging_steps=MixerTrainingArguments(str(tmp_path)).logging_steps)
    trainer.train()
    assert len(losses_of(trainer.state.log_history)) == 1


def test_classes_of_very_different_size_are_told_of_unless_they_are_balanced(tmp_path, caplog):
    labels = np.array([0] * 40 + [1] * 3 + [2] * 2)
    for arguments in ({}, {"class_weights": "balanced"}, {"balanced_sampling": True}):
        trainer = make_trainer(tmp_path, max_steps=1, **arguments)
        trainer.train_labels = labels
        trainer.train()
    (message,) = [record.getMessage() for record in caplog.records if "differ in size" in record.getMessage()]
    assert "'LABEL_0' has 40 images, 'LABEL_2' only 2" in message


@pytest.mark.parametrize("arguments", [{}, {"dataloader_drop_last": True, "dataloader_num_workers": 1}])
def test_balanced_sampling_draws_an_epoch_of_the_usual_length(arguments, tmp_path):
    trainer = make_trainer(tmp_path, balanced_sampling=True, **arguments)
    trainer.train_labels = np.array([0] * 44 + [1])
    loader = trainer.get_train_dataloader()
    assert len(loader) == (NUM_IMAGES // 8 if arguments else 6)
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append(torch.cat([batch["pixel_values"][:, 0, 0, 0] for batch in loader]))
    assert not torch.equal(*epochs)
    # The one image of its class is half of all images
    assert 0.35 < (torch.cat(epochs) == 44).float().mean() < 0.65


def test_parts_work_with_a_plain_trainer(tmp_path):
    cached = CachedImages(make_images(16), make_transform())
    images = [
        {"pixel_values": pixels / 127.5 - 1, "labels": label}
        for pixels, label in zip(cached.pixel_values, cached.labels)
    ]
    arguments = {"max_steps": 6, "save_steps": 4, "report_to": "none", "disable_tqdm": True, "use_cpu": True}

    def trainer(callbacks):
        args = TrainingArguments(str(tmp_path), **arguments)
        model, loss = make_trainer(tmp_path).model, ClassificationLoss(0.1)
        return Trainer(model, args, train_dataset=images, compute_loss_func=loss, callbacks=callbacks)

    first = trainer([EmaCallback(0.9)])
    first.train()
    assert (tmp_path / "checkpoint-4" / "trained_weights.safetensors").exists()
    second = trainer([EmaCallback(0.9)])
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same_weights(second.model.state_dict(), first.model.state_dict())
    (tmp_path / "checkpoint-4" / "trained_weights.safetensors").unlink()
    with pytest.raises(ValueError, match="was saved without ema_decay"):
        trainer([EmaCallback(0.9)]).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))

    finite = FiniteLossCallback()
    broken = trainer([finite])
    broken.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: finite.watch(
        outputs.logits.sum() * (float("nan") if finite.step == 2 else 1.0)
    )
    with pytest.raises(TrainingError, match="not finite at step 3"):
        broken.train()


def test_the_state_counts_the_operations_of_the_images(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.train()
    num_images = 3 * trainer.args.per_device_train_batch_size
    assert trainer.state.total_flos == num_images * estimate_flops(trainer.model.config, training=True)
