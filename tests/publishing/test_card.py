"""The model card of a trained folder, and the cards of the published variants."""

import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil, MixerModel
from hf_mixer.configuration_mixer import VARIANTS
from hf_mixer.flops import estimate_flops
from hf_mixer.publishing.card import TEMPLATES, create_card
from tests.helpers import ROOT


LABELS = ["plane", "sea | lake", "`quoted`"]
RUN = {
    "command": "python scripts/train.py --dataset_name uoft-cs/cifar10 --output_dir out --token hf_" + "s3cret" * 5,
    "recipe": "cifar10",
    "base_model": "timm/mixer_b16_224.goog_in21k",
    "dataset": {
        "name": "uoft-cs/cifar10",
        "config": "plain_text",
        "train_split": "train",
        "eval_split": "validation",
        "num_train_images": 45000,
        "num_eval_images": 5000,
    },
    "hyperparameters": {"learning_rate": 0.003, "lr_scheduler_type": "cosine", "hub_token": "hf_other", "unset": None},
    "hardware": "1 x NVIDIA H200",
    "num_processes": 2,
    "versions": {"hf_mixer": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0", "python": "3.11.2"},
    "duration_seconds": 7380.0,
    "images_per_second": 12345.6,
    "num_parameters": 1,
}
EVALUATION = {
    "dataset": {"name": "uoft-cs/cifar10", "config": "plain_text", "split": "test", "num_images": 10000},
    "top1": 0.93251,
    "top5": None,
    "loss": 0.25,
    "ece": 0.0312,
    "ece_bins": 15,
    "per_class": [
        {"label": "plane", "num_images": 4000, "accuracy": 0.95},
        {"label": "sea | lake", "num_images": 6000, "accuracy": 0.875},
        {"label": "`quoted`", "num_images": 0, "accuracy": None},
    ],
    "images_per_second": 23456.7,
    "hardware": "1 x NVIDIA H200",
    "versions": {},
}
PICTURES = ("training_curves.png", "confusion_matrix.png", "calibration.png")
PATTERN = (
    r"# digits-mixer\n\nAn \[MLP-Mixer\].+images of 16 x 16 pixels into 3 labels and was "
    r"fine-tuned from \[timm/mixer_b16_224\.goog_in21k\]\(https://huggingface\.co/timm/mixer_b16_224\.goog_in21k\) on "
    r"\[CIFAR-10\]\(https://huggingface\.co/datasets/uoft-cs/cifar10\) \(`plain_text`\)\.\n"
    r".*\n## Results\n\n\| metric \| value \|\n\|---\|---\|\n"
    r"\| top-1 accuracy \| 93\.25 % \|\n\| cross-entropy \| 0\.2500 \|\n\| expected calibration error \| 3\.12 % \|\n\n"
    r"Measured on 10,000 images of the split `test` of .*87\.50 % \(`sea \\\| lake`, 6,000 images\) to 95\.00 % \(`plane`"
    r".*\(confusion_matrix\.png\).*\(calibration\.png\).*"
    r"\n## Labels\n\n`plane`, `sea \\\| lake`, `` `quoted` ``\n"
    r"\n## How to use it\n.*import hf_mixer.*trust_remote_code=True.*"
    r"\n## Preprocessing\n\nImages .*RGB.*resized to 16 x 16 pixels \(bilinear\); divided by 255; normalized with mean 0\.5"
    r".*\n## Architecture\n.*\| parameters \| 9,203 \|\n.*\| patches \| 4 x 4 of 4 x 4 pixels \|.*"
    r"\n## Training\n\n```bash\npython scripts/train\.py --dataset_name uoft-cs/cifar10 --output_dir out\n```\n"
    r".*\| training images \| 45,000 \|.*\| hardware \| 1 x NVIDIA H200 \|\n\| processes \| 2 \|\n\| duration \| 2 h 3 min \|"
    r".*\| `learning_rate` \| `0\.003` \|.*\(training_curves\.png\).*"
    r"\n## Speed\n.*\| training \| 12,346 \| 1 x NVIDIA H200 \|\n\| evaluation \| 23,457 \| 1 x NVIDIA H200 \|\n"
    r"\n## Limits and biases\n.*CIFAR-10 is made of.*ImageNet-21k.*"
    r"\n## Fine-tune it\n.*load_checkpoint.*\n## Another resolution\n.*\n## Citation\n\n```bibtex\n.*\n```$"
)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder with a model and its image processor, and nothing else."""
    folder = tmp_path_factory.mktemp("cards") / "bare-mixer"
    torch.manual_seed(0)
    config = MixerConfig(
        image_size=16,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=1,
        token_mlp_dim=32,
        channel_mlp_dim=96,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    MixerForImageClassification(config).save_pretrained(folder)
    MixerImageProcessorPil(size=16).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(bare, tmp_path):
    """The same with everything that training and evaluation leave behind."""
    folder = tmp_path / "digits-mixer"
    folder.mkdir()
    for path in bare.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "training_run.json").write_text(json.dumps(RUN))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    for picture in PICTURES:
        Image.new("RGB", (4, 4)).save(folder / picture)
    return folder


def code_blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def assert_complete(text: str):
    """No placeholder, no empty section or table, no trace of the template."""
    assert not re.search(
        r"\{\{|\}\}|\{%|%\}|\[More|More [Ii]nformation|TODO|REPO_ID|your-name|\bNone\b|<[\w -]+>", text
    )
    assert not re.search(
        r"^(#+) [^\n]*\n+(?:#|$(?![\s\S]))", re.sub(r"```.*?```", "code", text, flags=re.S), flags=re.M
    )
    assert not re.search(r"\|---\|\n(?!\|)", text)


def test_card_says_what_happened(folder):
    card = create_card(folder, "me/digits-mixer", "v1")
    assert re.search(PATTERN, card.text.strip(), flags=re.DOTALL), card.text
    assert_complete(card.text)
    assert "s3cret" not in str(card)
    assert "hf_other" not in str(card)


def test_metadata_survives_the_hub_client(folder, tmp_path):
    card = create_card(folder, "me/digits-mixer", "v1")
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    dataset = {"name": "CIFAR-10", "type": "uoft-cs/cifar10", "config": "plain_text", "split": "test"}
    metrics = [
        {"type": "accuracy", "value": 0.9325, "name": "top-1 accuracy"},
        {"type": "loss", "value": 0.25, "name": "cross-entropy"},
        {"type": "ece", "value": 0.0312, "name": "expected calibration error"},
    ]
    task = {"type": "image-classification", "name": "Image Classification"}
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "license": "apache-2.0",
        "datasets": ["uoft-cs/cifar10"],
        "base_model": "timm/mixer_b16_224.goog_in21k",
        "tags": ["image-classification", "vision", "mlp-mixer"],
        "metrics": ["accuracy"],
        "model-index": [{"name": "digits-mixer", "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}],
    }


def test_what_was_not_measured_is_absent(bare):
    card = create_card(bare)
    assert_complete(card.text)
    headings = re.findall(r"^## (.+)", card.text, flags=re.MULTILINE)
    assert headings == [
        "Labels",
        "How to use it",
        "Preprocessing",
        "Architecture",
        "Limits and biases",
        "Fine-tune it",
        "Another resolution",
        "Citation",
    ]
    assert "model-index" not in card.data.to_dict()
    assert not {"datasets", "base_model", "metrics"} & card.data.to_dict().keys()
    assert ".png" not in card.text
    assert "Look at its errors" in card.text


def test_without_evaluation_the_metrics_of_training_count(folder):
    (folder / "evaluation.json").unlink()
    (folder / "eval_results.json").write_text('{"eval_accuracy": 0.5, "eval_loss": NaN, "eval_runtime": 3.0}')
    card = create_card(folder)
    assert "| top-1 accuracy | 50.00 % |" in card.text
    assert "Measured on 5,000 images of the split `validation`" in card.text
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.5, "validation")


def test_own_images_are_no_data_set_of_the_hub(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "photos").mkdir(parents=True)
    run = {**RUN, "base_model": "weights/Mixer-B_16.npz", "dataset": {**RUN["dataset"], "name": "data/photos"}}
    (folder / "training_run.json").write_text(json.dumps(run))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "Mixer-B_16.npz").touch()
    (folder / "evaluation.json").unlink()
    card = create_card(folder, "me/photos")
    assert card.data.datasets is None
    assert card.data.base_model is None
    assert "fine-tuned from `Mixer-B_16.npz` on a folder of images, `photos`." in card.text
    assert "Look at its errors" in card.text


def test_every_block_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.model_info", lambda repo_id: SimpleNamespace(sha="0" * 40))
    monkeypatch.chdir(tmp_path)
    for repo_id, revision in ((None, None), ("me/digits-mixer", None), ("me/digits-mixer", "v1")):
        card = create_card(folder, repo_id, revision)
        blocks = code_blocks(card.text)
        assert len(blocks) == 4
        for block in blocks:
            assert ("revision=" in block) == (revision is not None or "model_info" in block)
            exec(block.replace("me/digits-mixer", str(folder)), {})
        assert capsys.readouterr().out.splitlines()[-1].startswith("32 ")


def test_the_block_for_strangers_needs_no_package(folder):
    block = code_blocks(create_card(folder).text)[1]
    script = "import sys; sys.modules['hf_mixer'] = None\n" + block
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "plane" in result.stdout


def test_commands_name_options_that_exist(folder):
    # The fields of TrainingArguments come from transformers
    sources = [ROOT / "hf_mixer" / "training" / f"{name}.py" for name in ("command_line", "arguments")]
    text = "".join(path.read_text() for path in sources)
    options = re.findall(r"^    (\w+): .* = field\(", text, flags=re.MULTILINE)
    for block in code_blocks(create_card(folder, "me/digits-mixer", "v1").text, "bash")[1:]:
        command = shlex.split(block)
        assert command[:2] == ["python", "scripts/train.py"]
        given = [word.removeprefix("--") for word in command if word.startswith("--")]
        assert set(given) <= {*options, "output_dir"}
        assert "model_revision" in given


def test_no_model_no_card(bare, folder, tmp_path):
    with pytest.raises(ValueError, match=r"holds no config.json: give the output folder of scripts/train.py"):
        create_card(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no preprocessor_config.json.*image_processor.save_pretrained"):
        create_card(folder)
    (folder / "preprocessor_config.json").write_bytes((bare / "preprocessor_config.json").read_bytes())
    (folder / "evaluation.json").write_text('{"top1": 0.9')
    with pytest.raises(ValueError, match=r"evaluation.json is no valid JSON"):
        create_card(folder)
    MixerModel(MixerConfig.from_pretrained(folder)).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"holds no image classifier.*MixerModel"):
        create_card(folder)


def test_template_travels_with_the_wheel():
    included = re.search(r'^"(.+)" = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert [ROOT / path for path in included.groups()] == [path.resolve() for path in TEMPLATES]
    assert TEMPLATES[0].is_file()


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
