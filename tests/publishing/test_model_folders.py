"""The trained models that are kept in model_cards."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from transformers import pipeline

import hf_mixer
from hf_mixer.publishing.card import create_card
from tests.helpers import ROOT


PACKAGE = Path(hf_mixer.__file__).parent
MODEL_CARDS = ROOT / "model_cards"
FOLDERS = sorted(path.parent for path in MODEL_CARDS.glob("*/config.json"))
MAX_MEGABYTES = {"mixer-nano-cifar10": 1.5, "mixer-small-cifar10": 9.0}


def test_there_is_a_trained_model():
    assert "mixer-nano-cifar10" in {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folder_is_complete_and_its_code_is_the_package(folder, monkeypatch):
    # Where this fails: python scripts/make_model_folder.py FOLDER FOLDER
    names = {path.name for path in folder.iterdir()}
    code = {name for name in names if name.endswith(".py")}
    assert "modeling_mixer.py" in code
    for name in code:
        assert (folder / name).read_text() == (PACKAGE / name).read_text(), f"{folder.name}/{name} is out of date"
    assert {"README.md", "model.safetensors", "preprocessor_config.json", "evaluation.json"} <= names
    assert (folder / "model.safetensors").stat().st_size <= MAX_MEGABYTES[folder.name] * 1e6
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} <= {"BF16", "F16"}
    # The examples in the card name the folder from the root of the repository
    monkeypatch.chdir(MODEL_CARDS.parent)
    assert (folder / "README.md").read_text().strip() == str(create_card(Path("model_cards") / folder.name)).strip()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folder_answers(folder):
    classifier = pipeline("image-classification", str(folder))
    config = json.loads((folder / "config.json").read_text())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    answers = classifier(image, top_k=10)
    assert {answer["label"] for answer in answers} == set(config["id2label"].values())
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-2)
