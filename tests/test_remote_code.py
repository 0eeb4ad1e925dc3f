"""A folder that we saved serves strangers without hf_mixer, users of hf_mixer, and both in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import hf_mixer
from hf_mixer import (
    MixerBackbone,
    MixerConfig,
    MixerForImageClassification,
    MixerForMaskedImageModeling,
    MixerImageProcessorPil,
    MixerModel,
)


PACKAGE = Path(hf_mixer.__file__).parent
CODE = {
    "configuration_mixer.py",
    "modeling_mixer.py",
    "layers_mixer.py",
    "resizing_mixer.py",
    "image_processing_mixer.py",
    "image_processing_pil_mixer.py",
}
CONFIG = dict(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, token_mlp_dim=8, channel_mlp_dim=32)
LOGITS = "print(classifier.model(torch.ones(1, 3, 16, 16)).logits.tolist()[0])"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny-mixer"
    torch.manual_seed(0)
    MixerForImageClassification(MixerConfig(num_labels=3, **CONFIG)).save_pretrained(folder)
    MixerImageProcessorPil(size=16).save_pretrained(folder)
    Image.new("RGB", (20, 30), (200, 10, 10)).save(folder.parent / "red.png")
    return folder


def run(code: str, folder: Path, without_package: bool = False) -> tuple[list, str]:
    """Run `code` in a fresh process and return what it printed, each line read as JSON, and its log."""
    block = "import sys; sys.modules['hf_mixer'] = None\n" if without_package else ""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder.parent / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    script = block + f"import torch\nfolder, image = {str(folder)!r}, {str(folder.parent / 'red.png')!r}\n" + code
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def log_lines(log: str) -> list[str]:
    """What was logged, without progress bars and what torchao, where it is installed, says without a GPU."""
    others = ("%|", "torchao", "torch/utils/_pytree.py")
    return [
        line
        for line in log.replace("\r", "\n").splitlines()
        if line.strip() and not any(other in line for other in others)
    ]


def test_folder_holds_the_packages_code(folder):
    assert {path.name for path in folder.glob("*.py")} == CODE
    for name in CODE:
        assert (folder / name).read_bytes() == (PACKAGE / name).read_bytes()


@pytest.mark.parametrize(
    "model_class", [MixerModel, MixerForMaskedImageModeling, MixerBackbone, MixerForImageClassification]
)
def test_auto_map_names_every_class_whichever_was_saved(model_class, tmp_path):
    model_class(MixerConfig(**CONFIG)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_mixer.MixerConfig",
        "AutoModel": "modeling_mixer.MixerModel",
        "AutoModelForImageClassification": "modeling_mixer.MixerForImageClassification",
        "AutoModelForMaskedImageModeling": "modeling_mixer.MixerForMaskedImageModeling",
        "AutoBackbone": "modeling_mixer.MixerBackbone",
    }


def test_three_routes_give_equal_logits_and_log_nothing(folder):
    pipeline = "from transformers import pipeline\nclassifier = pipeline('image-classification', folder{})\n"
    report = (
        LOGITS
        + "\nimport json\nprint(json.dumps(classifier(image)))\nprint(json.dumps(type(classifier.model).__module__))"
    )
    routes = {
        "package": run("import hf_mixer\n" + pipeline.format("") + report, folder),
        "remote": run(pipeline.format(", trust_remote_code=True") + report, folder, without_package=True),
        "both": run("import hf_mixer\n" + pipeline.format(", trust_remote_code=True") + report, folder),
    }
    for printed, log in routes.values():
        assert log_lines(log) == []
        assert printed[:2] == routes["package"][0][:2]
    assert routes["package"][0][2] == routes["both"][0][2] == "hf_mixer.modeling_mixer"
    assert routes["remote"][0][2].startswith("transformers_modules.")


def test_a_stranger_loads_every_class_from_one_folder(folder):
    code = """
import json
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling
from transformers import AutoBackbone
from transformers.models.auto.image_processing_auto import AutoImageProcessor
for auto_class in (AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling):
    print(json.dumps(type(auto_class.from_pretrained(folder, trust_remote_code=True)).__name__))
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
print(json.dumps(type(AutoBackbone.from_config(config, trust_remote_code=True)).__name__))
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend="pil")
print(json.dumps(type(processor).__name__))
"""
    printed, _ = run(code, folder, without_package=True)
    assert printed == [
        "MixerModel",
        "MixerForImageClassification",
        "MixerForMaskedImageModeling",
        "MixerBackbone",
        "MixerImageProcessorPil",
    ]


def test_a_stranger_saves_a_folder_that_serves_the_next_stranger(folder, tmp_path):
    code = f"""
from transformers import pipeline
classifier = pipeline("image-classification", folder, trust_remote_code=True)
classifier.save_pretrained({str(tmp_path / "again")!r})
{LOGITS}
"""
    first, _ = run(code, folder, without_package=True)
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == CODE
    for name in CODE:
        assert (tmp_path / "again" / name).read_bytes() == (PACKAGE / name).read_bytes()
    second, _ = run(
        f"from transformers import pipeline\nclassifier = pipeline('image-classification', {str(tmp_path / 'again')!r}, trust_remote_code=True)\n{LOGITS}",
        folder,
        without_package=True,
    )
    assert first == second


def test_importing_twice_and_after_the_remote_code_is_harmless(folder):
    code = f"""
from transformers import pipeline
pipeline("image-classification", folder, trust_remote_code=True)
import hf_mixer, importlib
importlib.reload(hf_mixer)
classifier = pipeline("image-classification", folder)
{LOGITS}
"""
    run(code, folder)
