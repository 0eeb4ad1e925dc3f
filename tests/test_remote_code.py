"""A folder that we saved serves those without hf_mixer, users of hf_mixer, and both in one process."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hf_mixer import MixerBackbone, MixerConfig, MixerForImageClassification, MixerForMaskedImageModeling, MixerModel
from tests.helpers import REMOTE_CODE, ROOT, save_classifier
from tests.new_processes import run_without_package


START = """
import json, sys
import torch

def classify(folder, **kwargs):
    from transformers import pipeline
    classifier = pipeline("image-classification", folder, **kwargs)
    logits = classifier.model(torch.ones(1, 3, 16, 16)).logits.tolist()
    print(json.dumps([logits, classifier(image), type(classifier.model).__module__.partition(".")[0]]))
    return classifier
"""
PROGRAM = """
classifier = classify(folder, trust_remote_code=True)
classifier.save_pretrained(again)
classify(again, trust_remote_code=True)
print("end of the quiet part", file=sys.stderr)

import transformers
for name in ("AutoModel", "AutoModelForImageClassification", "AutoModelForMaskedImageModeling"):
    print(json.dumps(type(getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)).__name__))
backbone = transformers.AutoBackbone.from_config(classifier.model.config, trust_remote_code=True)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend="pil")
print(json.dumps([type(backbone).__name__, type(processor).__name__]))

# Importing the package after its remote code, and twice, is harmless
del sys.modules["hf_mixer"]
import hf_mixer, importlib
importlib.reload(hf_mixer)
print("quiet again", file=sys.stderr)
classify(folder)
classify(folder, trust_remote_code=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_classifier(tmp_path_factory.mktemp("saved") / "tiny-mixer", ["cat", "dog", "bird"])
    Image.new("RGB", (20, 30), (200, 10, 10)).save(folder.parent / "red.png")
    return folder


def run(folder: Path) -> tuple[list, list[str]]:
    """Run the program in a new process and return what it printed, each line read as JSON, and the lines of its log."""
    paths = {"folder": folder, "again": folder.parent / "again", "image": folder.parent / "red.png"}
    assignments = "".join(f"{name} = {str(path)!r}\n" for name, path in paths.items())
    output, log = run_without_package(assignments + START + PROGRAM, folder=ROOT)
    # Without progress bars
    lines = [line for line in log.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    return [json.loads(line) for line in output.splitlines()], lines


def assert_same_code(folder):
    assert {path.name for path in folder.glob("*.py")} == REMOTE_CODE
    for name in REMOTE_CODE:
        assert (folder / name).read_bytes() == (ROOT / "hf_mixer" / name).read_bytes()


@pytest.mark.parametrize(
    "model_class", [MixerModel, MixerForMaskedImageModeling, MixerBackbone, MixerForImageClassification]
)
def test_auto_map_names_every_class_whichever_was_saved(model_class, tmp_path):
    model_class(MixerConfig(image_size=16, hidden_size=8, num_hidden_layers=1)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_mixer.MixerConfig",
        "AutoModel": "modeling_mixer.MixerModel",
        "AutoModelForImageClassification": "modeling_mixer.MixerForImageClassification",
        "AutoModelForMaskedImageModeling": "modeling_mixer.MixerForMaskedImageModeling",
        "AutoBackbone": "modeling_mixer.MixerBackbone",
    }


def test_a_folder_serves_with_and_without_the_package(folder):
    assert_same_code(folder)
    (first, again, *classes, package, both), log = run(folder)

    # Equal logits and predictions on every way, and nothing logged
    assert first[:2] == again[:2] == package[:2] == both[:2]
    assert log[0] == "end of the quiet part"
    assert log[-1] == "quiet again"
    assert first[2] == again[2] == "transformers_modules"
    # The registered class goes first
    assert package[2] == both[2] == "hf_mixer"
    assert classes == [
        "MixerModel",
        "MixerForImageClassification",
        "MixerForMaskedImageModeling",
        ["MixerBackbone", "MixerImageProcessorPil"],
    ]
    # What was saved without the package holds the same code
    assert_same_code(folder.parent / "again")
