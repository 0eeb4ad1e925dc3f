"""The parts of the training, each on its own and with a plain `Trainer`."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset, IterableDatasetDict
from torch.nn import functional as F

from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.data.datasets import prepare_streamed_dataset
from hf_mixer.data.images import ImageDataError, open_image
from hf_mixer.data.loaders import CachedImages, NamedRows, ShardedBatchSampler, StreamedImages
from hf_mixer.training import (
    ClassificationLoss,
    EmaCallback,
    FiniteLossCallback,
    MixerTrainer,
    MixerTrainingArguments,
    TrainingError,
    parameter_groups,
)
from hf_mixer.training.command_line import read_recipe
from hf_mixer.training.record import command_line
from tests.helpers import ROOT, losses_of, make_images, make_trainer, make_transform


def make_model(num_layers=3):
    return MixerForImageClassification(
        MixerConfig(image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=num_layers, num_labels=3)
    )


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


def test_parameter_groups_shrink_the_learning_rate_and_spare_norms_and_biases():
    model = make_model(num_layers=3)
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        if "embeddings" in name:
            learning_rate = 0.5**4
        elif "layers" in name:
            learning_rate = 0.5 ** (3 - int(name.split(".")[2]))
        else:
            learning_rate = 1.0
        group = found[id(parameter)]
        assert group["lr"] == learning_rate, name
        assert group["weight_decay"] == (0.0 if name.endswith("bias") or "norm" in name else 0.1), name

    assert groups[0]["lr"] == 1.0

    model.mixer.requires_grad_(False)
    groups = parameter_groups(model, learning_rate=1.0)
    assert sum(len(group["params"]) for group in groups) == 2
    with pytest.raises(ValueError, match=r"layer_decay has to be in \(0, 1\], got 1.5"):
        parameter_groups(model, 1.0, layer_decay=1.5)


def test_layer_decay_and_sgd_reach_the_optimizer(tmp_path):
    trainer = make_trainer(tmp_path, layer_decay=0.5, optim="sgd", optim_args="momentum=0.9", weight_decay=0.1)
    trainer.create_optimizer()
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-2, 5e-3, 2.5e-3, 1.25e-3}
    assert {group["momentum"] for group in trainer.optimizer.param_groups} == {0.9}


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


def test_parts_work_with_a_plain_trainer(tmp_path):
    transform = make_transform()
    images = [
        {"pixel_values": pixels / 127.5 - 1, "labels": label}
        for pixels, label in zip(*vars_of(CachedImages(make_images(16), transform)))
    ]
    ema = EmaCallback(0.9)
    arguments = {"max_steps": 6, "save_steps": 4, "report_to": "none", "disable_tqdm": True, "use_cpu": True}

    def trainer(callbacks):
        torch.manual_seed(0)
        args = TrainingArguments(str(tmp_path), **arguments)
        loss = ClassificationLoss(0.1)
        return Trainer(make_model(), args, train_dataset=images, compute_loss_func=loss, callbacks=callbacks)

    first = trainer([ema])
    first.train()
    assert (tmp_path / "checkpoint-4" / "trained_weights.safetensors").exists()
    expected = first.model.state_dict()
    second = trainer([EmaCallback(0.9)])
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(expected[name], tensor) for name, tensor in second.model.state_dict().items())
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


def vars_of(images):
    return images.pixel_values, images.labels


@pytest.mark.parametrize(("count", "drop_last"), [(16, False), (21, False), (21, True), (17, False), (3, False)])
def test_processes_share_out_every_image(count, drop_last):
    order = list(torch.randperm(count, generator=torch.Generator().manual_seed(0)))
    shards = [list(ShardedBatchSampler(order, 2, drop_last, process, 4)) for process in range(4)]
    samplers = [ShardedBatchSampler(order, 2, drop_last, process, 4) for process in range(4)]
    assert {len(shard) for shard in shards} == {len(samplers[0])}
    assert all(batch for shard in shards for batch in shard)
    seen = [int(index) for batches in zip(*shards) for batch in batches for index in batch]
    expected = [int(index) for index in order]
    if drop_last:
        expected = expected[: count // 8 * 8]
    left_over = len(expected) % 8
    if 0 < left_over < 4:
        # Fewer images than processes: some are used twice
        assert set(seen) == set(expected)
        assert len(seen) == len(expected) - left_over + 4
    else:
        assert seen == expected


def test_images_that_cannot_be_read_are_named_by_their_row():
    examples = make_images(300)
    images = list(examples["image"])
    images[270] = {"bytes": images[270]["bytes"][:80], "path": None}
    broken = Dataset.from_dict({"image": images, "label": examples["label"]}, features=examples.features)
    transform = make_transform()
    for read in (
        lambda: CachedImages(broken, transform, num_threads=2),
        lambda: NamedRows(broken.with_transform(transform)).__getitems__([3, 270]),
    ):
        with pytest.raises(ImageDataError, match="^image 270 of the data: cannot read the image in memory: "):
            read()


def test_a_stream_of_some_images_has_the_same_in_every_pass():
    stream = IterableDatasetDict({"train": make_images(40).to_iterable_dataset(num_shards=4)})
    stream["validation"] = make_images(4).to_iterable_dataset()
    stream, labels = prepare_streamed_dataset(stream, max_train_samples=10)
    images = StreamedImages(stream["train"], make_transform(), num_passes=3)
    numbers = [int(example["pixel_values"][0, 0, 0]) for example in images]
    assert labels == ["a", "b", "c"]
    assert len(numbers) == 30
    assert len(set(numbers)) == 10


@pytest.mark.parametrize(
    ("num_examples", "arguments", "expected"),
    [
        (1000, dict(num_train_epochs=3, save_strategy="epoch"), (47, "steps", 16)),
        (1000, dict(max_steps=5, save_strategy="epoch"), (5, "steps", 16)),
        (None, dict(max_steps=5, save_strategy="steps", save_steps=2), (5, "steps", 2)),
        (None, dict(max_steps=5, save_strategy="epoch"), "give --save_strategy steps --save_steps N"),
        (None, dict(save_strategy="no"), "give --max_steps"),
    ],
)
def test_epochs_of_a_stream_are_steps(num_examples, arguments, expected, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import train

    splits = {"train": SimpleNamespace(num_examples=num_examples)} if num_examples else None
    dataset = {"train": SimpleNamespace(info=SimpleNamespace(splits=splits))}
    args = MixerTrainingArguments(
        str(tmp_path), per_device_train_batch_size=16, gradient_accumulation_steps=4, report_to="none", **arguments
    )
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            train.set_stream_length(dataset, args, None)
    else:
        train.set_stream_length(dataset, args, None)
        assert (args.max_steps, args.save_strategy, args.save_steps) == expected


@pytest.mark.parametrize("switches", [dict(do_normalize=False), dict(do_normalize=False, do_rescale=False), {}])
def test_training_sees_the_pixels_of_the_image_processor(switches, tmp_path):
    trainer = make_trainer(tmp_path)
    processor = MixerImageProcessorPil(size={"height": 16, "width": 16}, **switches)
    trainer = MixerTrainer(trainer.model, trainer.args, processor, train_dataset=trainer.train_dataset)
    image = open_image(make_images(1)["image"][0]["bytes"])
    expected = processor(image, return_tensors="pt").pixel_values.float()
    pixels = make_transform()({"image": [{"bytes": make_images(1)["image"][0]["bytes"], "path": None}], "label": [0]})
    for training in (False, True):
        trainer.model.train(training)
        inputs = {"pixel_values": pixels["pixel_values"], "labels": torch.tensor([0])}
        torch.testing.assert_close(trainer._prepare_inputs(inputs)["pixel_values"], expected, atol=1e-5, rtol=0)


def test_cached_images_are_the_images():
    images, transform = make_images(20), make_transform()
    cached = CachedImages(images, transform, num_threads=2)
    batch = cached.__getitems__([7, 2])
    assert torch.equal(batch["pixel_values"], transform(images[[7, 2]])["pixel_values"])
    assert batch["labels"].tolist() == images[[7, 2]]["label"]
    assert batch["pixel_values"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache_images": "disk"}, "cache_images has to be one of none, memory, device, got 'disk'"),
        (
            {"cache_images": "device", "dataloader_num_workers": 2},
            "cache_images device needs no dataloader_num_workers, got 2",
        ),
        ({"dataloader_num_workers": -2}, "dataloader_num_workers has to be at least -1, got -2"),
        ({"ema_decay": 1.0}, r"ema_decay has to be in \(0, 1\), got 1.0"),
        ({"label_smoothing_factor": 1.0}, r"label_smoothing has to be in \[0, 1\), got 1.0"),
        ({"horizontal_flip": 2.0}, r"`horizontal_flip` has to be a probability in \[0, 1\], got 2.0"),
        (
            {"per_device_train_batch_size": 64, "dataloader_drop_last": True},
            "45 images are fewer than one batch of 64",
        ),
    ],
)
def test_bad_arguments_name_the_value(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **arguments).train()


def test_images_that_are_decoded_need_no_workers(tmp_path):
    assert MixerTrainingArguments(str(tmp_path), cache_images="memory").dataloader_num_workers == 0
    args = MixerTrainingArguments(str(tmp_path))
    assert args.dataloader_num_workers >= 1
    assert args.dataloader_persistent_workers
    assert MixerTrainingArguments(str(tmp_path), dataloader_num_workers=0).dataloader_num_workers == 0


def test_the_recorded_command_holds_no_token(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["scripts/train.py", "--token", "hf_secret", "--hub_token=hf_secret", "--seed", "1"]
    )
    assert command_line() == "python scripts/train.py --token '***' '--hub_token=***' --seed 1"
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "--hub_tok", "hf_secret", "--token_mlp_dim", "64"])
    assert command_line() == "python scripts/train.py --hub_tok '***' --token_mlp_dim 64"


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_say_what_they_give(path):
    text = path.read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any(f"--recipe {path.stem} " in line for line in header)
    assert any("accuracy" in line for line in header)
    config = yaml.safe_load(text)
    if "variant" in config or "hidden_size" in config:
        names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "token_mlp_dim", "channel_mlp_dim")
        fields = {name: config[name] for name in names if name in config}
        fields = {name: value[0] if isinstance(value, list) else value for name, value in fields.items()}
        model = MixerForImageClassification(MixerConfig.from_variant(config.get("variant", "S/16"), **fields))
        if path.stem == "cifar10-nano":
            assert model.num_parameters() <= 700_000
        if path.stem == "cifar10-small":
            assert model.num_parameters() == 4_360_970


def test_recipes_may_be_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("eval_strategy: no\nlearning_rate: 1e-3\n")
    assert read_recipe(str(path), tmp_path) == {"eval_strategy": "no", "learning_rate": "1e-3"}
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="has to hold arguments and their values"):
        read_recipe(str(path), tmp_path)


def test_the_command_line_overrides_the_recipe(tmp_path):
    code = (
        "import sys, json; from pathlib import Path; from hf_mixer.training.command_line import parse_arguments;"
        "model, data, training = parse_arguments(Path('scripts/recipes'));"
        "values = [training.learning_rate, training.num_train_epochs, data.dataset_name, data.train_dir, data.eval_split];"
        "print(json.dumps(values))"
    )
    arguments = ["--recipe", "cifar10-small", "--learning_rate", "0.5", "--train_dir", "photos"]
    command = [sys.executable, "-c", code, *arguments, "--output_dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    epochs = yaml.safe_load((ROOT / "scripts" / "recipes" / "cifar10-small.yaml").read_text())["num_train_epochs"]
    assert json.loads(result.stdout) == [0.5, epochs, None, "photos", None], result.stderr
