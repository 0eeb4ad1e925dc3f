"""The model card of a trained folder, and the cards of the published variants."""

import ast
import json
import re
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from transformers import Trainer, TrainingArguments, pipeline
from transformers.modelcard import TrainingSummary

from hf_mixer import (
    MixerBackbone,
    MixerConfig,
    MixerForImageClassification,
    MixerForMaskedImageModeling,
    MixerImageProcessorPil,
    MixerModel,
    load_checkpoint,
)
from hf_mixer.commands import read_command
from hf_mixer.configuration_mixer import VARIANTS
from hf_mixer.data.images import ImageConversion
from hf_mixer.evaluation.metrics import METRICS
from hf_mixer.flops import estimate_flops
from hf_mixer.publishing import create_card
from tests.helpers import REMOTE_CODE, ROOT, save_classifier


DATASET = {"name": "uoft-cs/cifar10", "config": "plain_text"}
RUN = {
    "command": "hf-mixer train --dataset_name uoft-cs/cifar10 --output_dir out --token hf_" + "s3cret" * 5,
    "base_model": "timm/mixer_b16_224.goog_in21k",
    "dataset": {**DATASET, "eval_split": "validation", "num_train_images": 45000, "num_eval_images": 5000},
    "hyperparameters": {"learning_rate": 0.003, "lr_scheduler_type": "cosine", "hub_token": "hf_other", "unset": None},
    "hardware": "1 x NVIDIA H200",
    "num_processes": 2,
    "versions": {"hf_mixer": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0", "python": "3.11.2"},
    "duration_seconds": 7380.0,
    "images_per_second": 12345.6,
}
EVALUATION = {
    "dataset": {**DATASET, "split": "test", "num_images": 10000},
    **{"problem_type": "single_label_classification", "accuracy": 0.93251, "f1_macro": 0.9, "ece": 0.0312},
    **{"loss": 0.25, "ece_bins": 15},
    "example": {"file": "example.png", "label": "plane"},
    "per_class": [
        {"label": "plane", "num_images": 4000, "accuracy": 0.95},
        {"label": "sea | lake", "num_images": 6000, "accuracy": 0.875},
        {"label": "`quoted`", "num_images": 0, "accuracy": None},
    ],
    "images_per_second": 23456.7,
    "hardware": "1 x NVIDIA H200",
}
# What the card of all that says, from top to bottom
PASSAGES = """
# digits-mixer
It sorts images of 16 x 16 pixels into 3 labels and was fine-tuned from
[timm/mixer_b16_224.goog_in21k](https://huggingface.co/timm/mixer_b16_224.goog_in21k) on
[CIFAR-10](https://huggingface.co/datasets/uoft-cs/cifar10) (`plain_text`).
## About this model
## Quick start
It takes `pip install "
from huggingface_hub import hf_hub_download
classifier = pipeline("image-classification", "me/digits-mixer", revision="v1", trust_remote_code=True)
hf_hub_download("me/digits-mixer", "example.png", revision="v1")
![plane](example.png)
[{'label': '
pin the commit that you have read
## Results
| accuracy | 93.25 % (92.74 to 93.73 %) |
| macro F1 | 90.00 % |
| expected calibration error | 3.12 % |
| loss | 0.25 |
Measured on 10,000 images of the split `test` of [CIFAR-10]
in brackets with 95 % intervals
from 87.5 % (<code>sea &#124; lake</code>, 6,000 images) to 95.0 % (`plane`, 4,000 images)
(confusion_matrix.png)
(calibration.png)
## Labels
`plane`, <code>sea &#124; lake</code>, <code>&#96;quoted&#96;</code>
## Features
## Preprocessing
converted to RGB; resized to 16 x 16 pixels (bilinear); divided by 255; normalized with mean 0.5
transparency is dropped
## Architecture
| parameters | 8,655 |
| patches | 2 x 2 of 8 x 8 pixels |
| weights | float32,
## Training
hf-mixer train --dataset_name uoft-cs/cifar10 --output_dir out --token ***
| training images | 45,000 |
| hardware | 1 x NVIDIA H200 |
| processes | 2 |
| duration | 2 h 3 min |
(training_curves.png)
<summary>Hyperparameters</summary>
| `learning_rate` | `0.003` |
## Speed
| training | 12,346 | 1 x NVIDIA H200 |
| evaluation | 23,457 | 1 x NVIDIA H200 |
## Limits and biases
CIFAR-10 is made of
ImageNet-21k
## Fine-tune it
## Another resolution
## Citation
"""


@pytest.fixture
def trained(folder):
    """The folder with everything that training and evaluation leave behind."""
    (folder / "training_run.json").write_text(json.dumps(RUN))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    for picture in ("training_curves.png", "calibration.png", "example.png"):
        Image.new("RGB", (4, 4)).save(folder / picture)
    return folder


def code_blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def assert_complete(text: str):
    """No placeholder, no empty section or table, no trace of the template."""
    for placeholder in ("{{", "}}", "{%", "%}", "[More", "TODO", "REPO_ID", "your-name", "None"):
        assert placeholder not in text
    lines = [line for line in re.sub(r"```.*?```", "code", text, flags=re.DOTALL).splitlines() if line]
    for line, following in zip(lines, [*lines[1:], "#"]):
        assert not (line.startswith("#") and following.startswith("#")), f"{line} is empty"
        assert not line.endswith("---|") or following.startswith("|"), f"a table before {following} is empty"


def test_card_says_what_happened(trained):
    card = create_card(trained, "me/digits-mixer", "v1")
    position, text = 0, " ".join(card.text.split())
    for passage in PASSAGES.strip().splitlines():
        assert passage in text[position:]
        position = text.index(passage, position) + len(passage)
    assert_complete(card.text)
    assert "s3cret" not in str(card)
    assert "hf_other" not in str(card)


def test_metadata_survives_the_hub_client(trained, tmp_path):
    card = create_card(trained, "me/digits-mixer", "v1")
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    dataset = {"name": "CIFAR-10", "type": "uoft-cs/cifar10", "config": "plain_text", "split": "test"}
    metrics = [
        {"type": "accuracy", "value": 0.9325, "name": "accuracy"},
        {"type": "f1", "value": 0.9, "name": "macro F1"},
        {"type": "ece", "value": 0.0312, "name": "expected calibration error"},
        {"type": "loss", "value": 0.25, "name": "loss"},
    ]
    task = {"type": "image-classification", "name": "Image Classification"}
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "datasets": ["uoft-cs/cifar10"],
        "base_model": "timm/mixer_b16_224.goog_in21k",
        "base_model_relation": "finetune",
        "tags": ["image-classification", "vision", "mlp-mixer", "custom_code"],
        "widget": [
            {
                "src": "https://huggingface.co/me/digits-mixer/resolve/v1/example.png",
                "example_title": "plane",
            }
        ],
        "metrics": ["accuracy", "f1", "ece"],
        "model-index": [{"name": "digits-mixer", "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}],
    }


def test_what_was_not_measured_is_absent(folder):
    card = create_card(folder)
    assert_complete(card.text)
    headings = re.findall(r"^## (.+)", card.text, flags=re.MULTILINE)
    assert (
        headings
        == """
About this model, Quick start, Labels, Features, Preprocessing, Architecture, Limits and biases, Fine-tune it,
Another resolution, Citation
""".replace("\n", " ")
        .strip()
        .split(", ")
    )
    assert not {"model-index", "license", "datasets", "base_model", "metrics", "widget"} & card.data.to_dict().keys()
    assert ".png" not in card.text
    assert "Look at its errors" in card.text


def test_without_evaluation_the_metrics_of_training_count(trained):
    (trained / "evaluation.json").unlink()
    (trained / "eval_results.json").write_text('{"eval_accuracy": 0.5, "eval_loss": NaN, "eval_runtime": 3.0}')
    card = create_card(trained)
    assert "| accuracy | 50.0 % (48.6 to 51.4 %) |" in card.text
    assert "Measured on the 5,000 validation images of the training, in brackets" in card.text
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.5, "validation")


def between(text: str, heading: str) -> str:
    """Return the section of a card under a heading, as one line."""
    return " ".join(text.split(f"\n## {heading}\n")[1].split("\n<!-- hf-mixer: ")[0].split())


def add_results(folder, per_class: list[dict], **metrics):
    """Add what the evaluation of a model leaves behind."""
    dataset = {"name": "me/photos", "split": "test", "num_images": 30}
    (folder / "evaluation.json").write_text(json.dumps({"dataset": dataset, "per_class": per_class, **metrics}))


def test_card_of_a_multi_label_model(tmp_path):
    thresholds = [0.5, 0.25, 0.75]
    options = {"problem_type": "multi_label_classification", "label_thresholds": thresholds}
    folder = save_classifier(tmp_path / "scenes", ["sea", "sky", "sand"], **options)
    per_class = [
        {"label": "sea", "num_images": 20, "average_precision": 0.5, "threshold": 0.5},
        {"label": "sky", "num_images": 1, "average_precision": 1.0, "threshold": 0.25},
        {"label": "sand", "num_images": 0, "average_precision": None, "threshold": 0.75},
    ]
    add_results(folder, per_class, mean_average_precision=0.75, f1_micro=0.5, subset_accuracy=0.25, loss=0.1)
    (folder / "per_class.png").touch()
    card = create_card(folder, "me/scenes")
    assert_complete(card.text)
    assert "It tells which of 3 labels images of 16 x 16 pixels show." in " ".join(card.text.split())
    results = between(card.text, "Results")
    assert (
        "| mean average precision | 75 % | | micro F1 | 50 % | | subset accuracy | 25 % (14 to 44 %) | | loss | 0.1 |"
        in results
    )
    assert "By label the average precision goes from 50 % (`sea`, 20 images) to 100 % (`sky`, 1 image)." in results
    assert "(per_class.png)" in results
    labels = between(card.text, "Labels")
    assert "| `sea` | 0.5 | | `sky` | 0.25 | | `sand` | 0.75 |" in labels
    assert {result.metric_type for result in card.data.eval_results} >= {"mean_average_precision", "f1"}
    assert "multi-label" in card.data.tags

    assert "chosen on these images" not in results
    for eval_split in ("test", "validation"):
        data = {"name": "me/photos", "eval_split": eval_split}
        run = {"dataset": data, "hyperparameters": {"label_threshold": "best_f1"}}
        (folder / "training_run.json").write_text(json.dumps(run))
        results = between(create_card(folder).text, "Results")
        assert ("thresholds of the labels were chosen on these images" in results) == (eval_split == "test")

    MixerConfig.from_pretrained(folder, label_thresholds=None).save_pretrained(folder)
    assert "from a probability of 0.5 on" in between(create_card(folder).text, "Labels")


def test_the_example_of_a_multi_label_card_keeps_what_is_over_its_threshold(tmp_path, capsys):
    folder = save_classifier(tmp_path / "scenes", list("abcdefgh"), problem_type="multi_label_classification")
    image = Image.new("RGB", (640, 480), "tan")
    scores = {
        answer["label"]: answer["score"] for answer in pipeline("image-classification", str(folder))(image, top_k=8)
    }
    thresholds = [scores[label] + (1e-3 if label in "bd" else -1e-3) for label in "abcdefgh"]
    for label_thresholds in (thresholds, [sorted(scores.values())[2]] * 8, None):
        MixerConfig.from_pretrained(folder, label_thresholds=label_thresholds).save_pretrained(folder)
        exec(code_blocks(create_card(folder).text)[0], {})
        answers = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
        limits = dict(zip("abcdefgh", label_thresholds or [0.5] * 8))
        assert {answer["label"] for answer in answers} == {name for name in limits if scores[name] >= limits[name]}


def test_card_of_a_regression_model(tmp_path, capsys):
    # Its configuration does not name the problem: one output is a value, as for transformers
    folder = save_classifier(tmp_path / "houses", ["price"])
    add_results(folder, [{"label": "price", "r2": 0.5, "mae": 12345.6}], r2=0.5, mae=12345.6, mse=2e8, loss=0.01234)
    card = create_card(folder)
    assert_complete(card.text)
    assert "It estimates `price` from images of 16 x 16 pixels." in " ".join(card.text.split())
    assert "sorts" not in card.text
    results = between(card.text, "Results")
    assert (
        "| R² | 0.5 | | mean absolute error | 12,346 | | mean squared error | 200,000,000 | | loss | 0.01234 |"
        in results
    )
    assert "By output" not in results
    assert "units of the training data" in between(card.text, "Outputs")
    assert "regression" in card.data.tags
    exec(code_blocks(card.text)[0], {})
    (answer,) = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    model, processor = load_checkpoint(folder)
    expected = model(**processor(Image.new("RGB", (640, 480), "tan"), return_tensors="pt")).logits.item()
    assert answer == {"label": "price", "score": pytest.approx(expected, rel=1e-5)}

    save_classifier(tmp_path / "sizes", ["width", "height"], problem_type="regression")
    add_results(tmp_path / "sizes", [{"label": "width", "r2": 0.5}, {"label": "height", "r2": -0.25}], r2=0.125)
    card = create_card(tmp_path / "sizes")
    assert "It estimates `width` and `height` from images" in " ".join(card.text.split())
    assert "By output R² goes from -0.25 (`height`) to 0.5 (`width`)." in card.text


def test_card_says_what_was_done_to_the_data(trained):
    data = {
        **RUN["dataset"],
        "class_counts": {"plane": 500, "sea | lake": 20, "`quoted`": 50},
        "num_skipped_images": 3,
    }
    data["image_conversion"] = {"flatten_transparency": "white", "scale_16_bit": True}
    (trained / "training_run.json").write_text(json.dumps({**RUN, "dataset": data}))
    text = create_card(trained).text
    assert_complete(text)
    assert "| training images by label | 20 (<code>sea &#124; lake</code>) to 500 (`plane`) |" in text
    assert "| unreadable images left out | 3 |" in text
    assert "Its training images are uneven" in between(text, "Limits and biases")
    preprocessing = between(text, "Preprocessing")
    assert (
        "transparent images were put on `white` and images of 16 bits were scaled to 8. Do the same" in preprocessing
    )
    assert "Before," not in between(text, "Results")

    data |= {"class_counts": {"plane": 20, "sea | lake": 20}, "image_conversion": {"flatten_transparency": "#ff0000"}}
    (trained / "training_run.json").write_text(json.dumps({**RUN, "dataset": data}))
    text = create_card(trained).text
    assert "| training images by label | 20 of each |" in text
    assert "uneven" not in text
    assert "16 bits were scaled" not in text
    dataset = {**EVALUATION["dataset"], "image_conversion": {"scale_16_bit": True}}
    (trained / "evaluation.json").write_text(json.dumps({**EVALUATION, "dataset": dataset}))
    assert "Before, images of 16 bits were scaled to 8." in between(create_card(trained).text, "Results")


@pytest.mark.parametrize("kind", ["RGBA", "P", "I;16", "RGB"])
def test_the_conversion_that_a_card_shows_is_that_of_the_training(kind, trained):
    conversion = {"flatten_transparency": "#ff0000", "scale_16_bit": True}
    data = {**RUN["dataset"], "image_conversion": conversion}
    (trained / "training_run.json").write_text(json.dumps({**RUN, "dataset": data}))
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    image = Image.fromarray(ramp)
    if kind != "I;16":
        image = Image.fromarray((ramp // 257).astype(np.uint8)).convert("RGB")
        image.putalpha(Image.linear_gradient("L").resize((16, 16)))
        image = image.quantize(8) if kind == "P" else image.convert(kind)
    block = next(block for block in code_blocks(create_card(trained).text) if "16 bits" in block or "/ 257" in block)
    namespace = {"given": image}
    exec(block.replace('Image.new("RGBA", (640, 480))', "given"), namespace)
    expected = ImageConversion(**conversion)(image)
    assert np.array_equal(namespace["image"].convert("RGB"), expected.convert("RGB"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("data/photos", "the folder `photos`"),
        ("data/photos/train", "the folder `photos/train`"),
        ("data/train.csv", "the list `data/train.csv`"),
    ],
)
def test_own_images_are_no_data_set_of_the_hub(name, shown, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("weights/Mixer-B_16.npz", name):
        (tmp_path / path).mkdir(parents=True)
    run = {**RUN, "base_model": "weights/Mixer-B_16.npz", "dataset": {**RUN["dataset"], "name": name}}
    (trained / "training_run.json").write_text(json.dumps(run))
    (trained / "evaluation.json").unlink()
    card = create_card(trained, "me/photos")
    assert card.data.datasets is None
    assert card.data.base_model is None
    assert f"fine-tuned from `Mixer-B_16.npz` on {shown}." in card.text
    assert "Look at its errors" in card.text


@pytest.fixture
def backbones(monkeypatch):
    """`AutoBackbone.from_pretrained` asks the Hub for what it loads, also for a folder."""
    monkeypatch.setattr(
        "transformers.models.auto.auto_factory.hf_api",
        lambda: SimpleNamespace(repo_exists=lambda name: True),
        raising=False,
    )


def run_blocks(card: ModelCard, folder) -> int:
    """Run the code of a card as if `folder` were its repository, and return how many blocks it has."""
    blocks = code_blocks(card.text)
    for block in blocks:
        # A folder has no tags
        local = block.replace("me/digits-mixer", str(folder)).replace('"v1"', '"main"').replace("=commit", '="main"')
        exec(local, {})
    return len(blocks)


@pytest.mark.parametrize("problem_type", METRICS)
def test_every_block_runs(problem_type, trained, tmp_path, monkeypatch, capsys, backbones):
    MixerConfig.from_pretrained(trained, problem_type=problem_type).save_pretrained(trained)
    monkeypatch.setattr("huggingface_hub.model_info", lambda repo_id, revision=None: SimpleNamespace(sha="0" * 40))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo_id, name, revision=None: str(trained / name))
    monkeypatch.chdir(tmp_path)
    for repo_id, revision in ((None, None), ("me/digits-mixer", None), ("me/digits-mixer", "v1")):
        card = create_card(trained, repo_id, revision)
        assert run_blocks(card, trained) == (5 if repo_id is None else 6)
        output = capsys.readouterr().out.splitlines()
        assert output[-1].startswith("32 ")
        # What the quick start prints is what the card says, rounded
        stated = ast.literal_eval(code_blocks(card.text, "text")[0])
        for answer, expected in zip(ast.literal_eval(output[0]), stated, strict=True):
            assert answer == {**expected, "score": pytest.approx(expected["score"], rel=5e-3)}


@pytest.mark.parametrize(
    ("model_class", "words", "task"),
    [
        (MixerModel, "features", "features"),
        (MixerBackbone, "feature maps, for detection", "maps"),
        (MixerForMaskedImageModeling, "fills in the hidden patches", "reconstruction"),
    ],
)
def test_models_without_classifier_have_cards_of_their_own(model_class, words, task, trained, backbones, monkeypatch):
    model, _ = load_checkpoint(trained, model_class)
    model.save_pretrained(trained)
    (trained / "evaluation.json").unlink()
    monkeypatch.setattr("huggingface_hub.model_info", lambda repo_id, revision=None: SimpleNamespace(sha="0" * 40))
    card = create_card(trained, "me/digits-mixer")
    assert_complete(card.text)
    assert words in card.text.split("## About")[0]
    assert "abel" not in between(card.text, "Quick start") + card.text.split("## About")[0]
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert f"| parameters | {model.num_parameters():,} |" in card.text
    assert run_blocks(card, trained) >= 3
    assert ("## Masked image modeling" in card.text) == (task == "reconstruction")


def test_figures_say_which_images_they_are_from(trained):
    dataset = {**EVALUATION["dataset"], "num_images": 5000, "image_format": "JPEG"}
    (trained / "evaluation.json").write_text(json.dumps({**EVALUATION, "dataset": dataset}))
    results = between(create_card(trained).text, "Results")
    assert "Measured on 5,000 of the 10,000 images of the split `test` of [CIFAR-10]" in results
    assert "(https://huggingface.co/datasets/uoft-cs/cifar10) (`plain_text`), JPEG-compressed" in results
    assert "| accuracy | 93.3 % (92.5 to 93.9 %) |" in results

    # The split that a training is measured on may be that of the test
    data = {**RUN["dataset"], "eval_split": "test"}
    run = {**RUN, "dataset": data, "hyperparameters": {"load_best_model_at_end": True}}
    (trained / "training_run.json").write_text(json.dumps(run))
    (trained / "evaluation.json").unlink()
    (trained / "eval_results.json").write_text('{"eval_accuracy": 0.5}')
    text = create_card(trained).text
    assert "alidation" not in between(text, "Results") + between(text, "Training")
    assert "5,000 of the 10,000 images of the split `test`" in between(text, "Results")
    assert "The weights were chosen on these images as well" in between(text, "Results")


@pytest.mark.parametrize(
    ("num_images", "accuracy", "shown"),
    [
        (162, 159 / 162, "98 % (95 to 99 %)"),
        (999, 996 / 999, "99.7 % (99.1 to 99.9 %)"),
        (2000, 1999 / 2000, "99.95 % (99.72 to 99.99 %)"),
        (30, 1.0, "100 % (89 to 100 %)"),
    ],
)
def test_figures_have_the_digits_that_their_images_carry(num_images, accuracy, shown, trained):
    dataset = {"name": "acme/cifar10-hard", "split": "test", "num_images": num_images}
    (trained / "evaluation.json").write_text(json.dumps({**EVALUATION, "dataset": dataset, "accuracy": accuracy}))
    results = between(create_card(trained).text, "Results")
    assert f"| accuracy | {shown} |" in results
    # It is not the data that its name speaks of
    assert f"Measured on {num_images:,} images of the split `test` of" in results


def test_what_a_record_says_stays_in_its_place(trained):
    command = "x\n```\n<!-- hf-mixer: end of training -->\n# Owned"
    run = {**RUN, "command": command, "versions": {"a|b": "<b>\n## Owned"}}
    (trained / "training_run.json").write_text(json.dumps(run))
    text = create_card(trained).text
    assert text.count("<!-- hf-mixer: end of training -->") == 1
    assert not re.search(r"^#+ Owned", text, re.MULTILINE)
    assert "<b>" not in text.replace("\\<b\\>", "")


def test_a_commit_is_pinned_and_a_branch_is_not(trained):
    for revision, is_pinned in (("a" * 40, True), ("v1", False), (None, False)):
        text = create_card(trained, "me/digits-mixer", revision).text
        assert ("is pinned" in " ".join(text.split())) == is_pinned
        assert ("model_info" in text) != is_pinned


def test_the_command_of_the_card_is_one(trained, monkeypatch):
    assert "hf-mixer train --model_name_or_path" not in create_card(trained, "me/digits-mixer", "v1").text
    monkeypatch.setattr("hf_mixer.publishing.card.find_home_page", lambda: "https://example.org/hf_mixer")
    text = create_card(trained, "me/digits-mixer", "v1").text
    assert '`pip install "hf_mixer[train] @ git+https://example.org/hf_mixer"`' in text
    (command,) = code_blocks(text, "bash")[1:]
    name, *arguments = shlex.split(command.replace("\\\n", " "))
    assert name == "hf-mixer"
    assert ["--model_revision", "v1"] == arguments[3:5]
    monkeypatch.setattr("sys.argv", [])
    # Ends the program where an option does not exist
    read_command(arguments)


def test_only_what_comes_from_the_hub_needs_trust(trained):
    card = create_card(trained)
    assert "trust_remote_code" not in card.text
    assert "import hf_mixer" in card.text
    card = create_card(trained, "me/digits-mixer")
    assert "trust_remote_code" in card.text
    assert "import hf_mixer" not in card.text


def test_push_to_hub_works_as_for_any_model_and_the_card_follows(hub, folder, tmp_path, monkeypatch):
    # Before huggingface_hub 2.2 it asks huggingface.co, whatever HF_ENDPOINT says
    monkeypatch.setattr(ModelCard, "validate", lambda card, repo_type=None: None)
    model = MixerForImageClassification.from_pretrained(folder)
    processor = MixerImageProcessorPil.from_pretrained(folder)
    model.push_to_hub("alice/pushed", private=True)
    processor.push_to_hub("alice/pushed")
    create_card(folder, "alice/pushed").push_to_hub("alice/pushed")
    assert hub.repos["alice/pushed"].private
    pushed = hub.files("alice/pushed")
    assert pushed.keys() == REMOTE_CODE | {
        *("config.json", "model.safetensors", "preprocessor_config.json", "README.md", ".gitattributes")
    }
    assert pushed["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert 'pipeline("image-classification", "alice/pushed", trust_remote_code=True)' in pushed["README.md"].decode()
    # The card that Trainer writes by itself knows the task
    arguments = TrainingArguments(tmp_path / "trained", push_to_hub=True, hub_model_id="alice/trained", report_to=[])
    trainer = Trainer(model, arguments, processing_class=processor)
    trainer.push_to_hub()
    assert hub.files("alice/trained").keys() >= REMOTE_CODE
    assert TrainingSummary.from_trainer(trainer).tasks == "image-classification"


def test_no_model_no_card(folder, tmp_path):
    with pytest.raises(ValueError, match=r"holds no config.json: give the output folder of `hf-mixer train`"):
        create_card(tmp_path)
    (folder / "evaluation.json").write_text('{"accuracy": 0.9')
    with pytest.raises(ValueError, match=r"evaluation.json is not valid JSON"):
        create_card(folder)
    (folder / "evaluation.json").unlink()
    settings = (folder / "config.json").read_text()
    (folder / "config.json").write_text(settings.replace("MixerForImageClassification", "ViTModel"))
    with pytest.raises(ValueError, match=r"holds no Mixer: .*ViTModel.*MixerForMaskedImageModeling"):
        create_card(folder)
    MixerForImageClassification(MixerConfig.from_pretrained(folder, num_labels=0)).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"holds no image classifier: the model in it has no labels"):
        create_card(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no preprocessor_config.json.*image_processor.save_pretrained"):
        create_card(folder)


PAPER_VARIANTS = [variant for variant in VARIANTS if "/" in variant]
# Repositories of timm, as its `mlp_mixer.py` registers them
TIMM = {f"timm/mixer_{name}" for name in ("b16_224.goog_in21k", "b16_224.miil_in21k", "l16_224.goog_in21k")}
TIMM |= {f"{name}_ft_in1k" for name in TIMM}


def read_variant_card(variant: str) -> ModelCard:
    return ModelCard.load(ROOT / "model_cards" / f"mixer-{variant.lower().replace('/', '')}.md")


@pytest.mark.parametrize("variant", PAPER_VARIANTS)
def test_variant_card_has_the_numbers_of_the_model(variant):
    card = read_variant_card(variant)
    assert_complete(card.text)
    assert f"# Mixer-{variant}\n" in card.text
    config = MixerConfig.from_variant(variant, num_labels=1000)
    with torch.device("meta"):
        bare, full = MixerModel(config), MixerForImageClassification(config)
    for row in (
        f"| layers | {config.num_hidden_layers} |",
        f"| hidden size | {config.hidden_size} |",
        f"| patch | {config.patch_size} x {config.patch_size} pixels |",
        f"| tokens | {config.num_patches} |",
        f"| width of the token-mixing MLPs | {config.token_mlp_dim} |",
        f"| width of the channel-mixing MLPs | {config.channel_mlp_dim} |",
        f"| parameters without classifier | {bare.num_parameters():,} |",
        f"| parameters with 1,000 labels | {full.num_parameters():,} |",
        f"| multiply-accumulates per image | {estimate_flops(config) / 2e9:.2f} G |",
    ):
        assert row in card.text
    index = (ROOT / "model_cards" / "README.md").read_text()
    assert re.search(rf"\[{variant}\]\(mixer-\w+\.md\) \| {bare.num_parameters() / 1e6:.1f} M \|", index)


@pytest.mark.parametrize("variant", PAPER_VARIANTS)
def test_variant_card_loads_what_it_lists(variant):
    text = read_variant_card(variant).text
    weights = set(re.findall(r"^\| `(\S+)` \|", text, flags=re.MULTILINE))
    blocks = code_blocks(text)
    loaded = set(re.findall(r'load_checkpoint\("(.+?)"\)|mixer_models/(\S+\.npz)"', "".join(blocks)))
    assert {repository or file for repository, file in loaded} <= weights
    assert bool(loaded) == bool(weights)
    for block in blocks:
        compile(block, variant, "exec")
    with torch.device("meta"):
        namespace: dict = {}
        exec(blocks[-1], namespace)
    assert namespace["model"].config.hidden_size == VARIANTS[variant]["hidden_size"]


def test_variant_cards_name_timms_repositories():
    texts = "".join(read_variant_card(variant).text for variant in PAPER_VARIANTS)
    assert set(re.findall(r"^\| `(timm/\S+)` \|", texts, flags=re.MULTILINE)) == TIMM
