"""The trained models that are kept in model_cards."""

import ast
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from transformers import pipeline

from hf_mixer.commands.publish import main
from hf_mixer.publishing import create_card
from hf_mixer.publishing.merging import parse_card
from hf_mixer.publishing.saving import CARD_NAME, merge_cards, read_cards
from tests.helpers import REMOTE_CODE, ROOT


FOLDERS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folder_is_complete_without_code_and_answers_in_float32(folder, monkeypatch):
    # Where this fails: python scripts/make_model_folder.py FOLDER FOLDER
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "model.safetensors", "preprocessor_config.json", "evaluation.json"} <= names
    assert not list(folder.glob("*.py"))
    # A clone brings them along
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3e6
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}
    # The examples in the card name the folder from the root of the repository
    monkeypatch.chdir(ROOT)
    cards = read_cards(folder)
    card = str(create_card(Path("model_cards") / folder.name))
    assert merge_cards(card, {}, cards) == cards
    # Nobody edited them, a formatter included, or the model could not be published
    assert parse_card(cards[CARD_NAME]).sections == parse_card(card).sections

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    classifier = pipeline("image-classification", str(folder))
    assert classifier.model.dtype == torch.float32
    answers = classifier(image, top_k=10)
    labels = json.loads((folder / "config.json").read_text())["id2label"].values()
    assert {answer["label"] for answer in answers} == set(labels)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)


def test_the_published_model_runs_without_the_package_even_if_a_first_attempt_was_killed(hub, tmp_path, capsys):
    folder = ROOT / "model_cards" / "mixer-nano-cifar10"
    arguments = [str(folder), "alice/nano", "--private", "--tag", "v1"]
    # A fork speaks to the same Hub
    killed = multiprocessing.get_context("fork").Process(target=main, args=(arguments,))
    hub.fail("^POST .*/commit/", killed.kill)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert hub.files("alice/nano").keys() == {".gitattributes"}
    arrived = dict(hub.uploads)

    main(arguments)
    printed = capsys.readouterr().out
    assert "They load, and predict the same." in printed
    assert "layers_mixer.py  (from hf_mixer)\n" in printed
    files = hub.files("alice/nano", "v1")
    assert files.keys() == {path.name for path in folder.iterdir()} | REMOTE_CODE | {".gitattributes"}
    assert len(hub.repos["alice/nano"].commits) == 2
    assert arrived
    assert hub.uploads == arrived

    # The block of the published card for those who do not have this package
    block = re.findall(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)[0]
    assert 'revision="v1", trust_remote_code=True' in block
    program = "import sys; sys.modules['hf_mixer'] = None\n" + block
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_alice_write"}
    loaded = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    answers = ast.literal_eval(loaded.stdout.splitlines()[-1])
    assert {answer["label"] for answer in answers} < set(json.loads(files["config.json"])["id2label"].values())
