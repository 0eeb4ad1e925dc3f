"""The Space that the demo exports."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, RepoCard

from hf_mixer.commands.demo import main
from hf_mixer.demo.space import GRADIO_VERSION, export_space
from tests.helpers import REMOTE_CODE, ROOT


NANO = ROOT / "model_cards" / "mixer-nano-cifar10"


def test_space_is_complete(space, folder, photo):
    # Python adds __pycache__ when another test runs the app
    files = {str(path.relative_to(space)) for path in space.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    model = {"config.json", "model.safetensors", "preprocessor_config.json", *REMOTE_CODE}
    assert files == {
        *("app.py", "saliency.py", "space.json", "requirements.txt", "README.md", "examples/1.jpg"),
        *(f"model/{name}" for name in model),
    }
    assert (space / "model/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (space / "examples/1.jpg").read_bytes() == photo.read_bytes()


def test_space_metadata(space):
    data = RepoCard.load(space / "README.md").data.to_dict()
    assert (data["sdk"], data["sdk_version"], data["app_file"]) == ("gradio", GRADIO_VERSION, "app.py")
    assert data["title"] == "my-mixer"
    assert len(data["short_description"]) <= 60
    assert data["colorFrom"] in {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert "models" not in data
    requirements = (space / "requirements.txt").read_text().splitlines()
    assert all(re.match(r"[\w-]+\S*>=\d", line) for line in requirements)
    assert {"torch", "transformers", "pillow", "joblib", "gradio"} <= {
        re.match(r"[\w-]+", line)[0] for line in requirements
    }
    minimum = re.search(r'"gradio>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert GRADIO_VERSION.startswith(minimum)


def test_space_of_a_repository_runs_one_commit(folder, photo, tmp_path, monkeypatch):
    commits = {("me/pets", "v1"): "0123456789abcdef0123456789abcdef01234567"}
    monkeypatch.setattr(
        HfApi, "model_info", lambda self, repo_id, revision=None: SimpleNamespace(sha=commits[repo_id, revision])
    )
    space = tmp_path / "new" / "space"
    options = ["--export-space", str(space), "--repo_id", "me/pets", "--revision", "v1"]
    main([str(folder), *options, "--examples", str(photo.parent)])
    settings = json.loads((space / "space.json").read_text())
    assert settings == {"model": "me/pets", "revision": commits["me/pets", "v1"], "title": "pets", "conversion": {}}
    assert RepoCard.load(space / "README.md").data.to_dict()["models"] == ["me/pets"]
    assert not (space / "model").exists()
    assert (space / "examples/1.jpg").is_file()


def test_refusals_leave_everything_alone(folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for arguments, message in (
        ([folder, "--export-space", tmp_path / "full"], "already exists and is no empty folder"),
        ([tmp_path, "--export-space", tmp_path / "space"], "holds no config.json"),
        ([folder, "--export-space", tmp_path / "space", "--examples", tmp_path / "full"], "holds no images"),
        ([folder, "--repo_id", "me/pets"], "--repo_id is for --export-space"),
        (
            [folder, "--export-space", tmp_path / "space", "--repo_id", "me/pets"],
            "error: HF_HUB_OFFLINE is set: unset",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert message in str(stopped.value) + capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_space_of_a_folder_without_code_runs_where_the_package_is_missing(photo, tmp_path):
    pytest.importorskip("gradio", reason="pip install '.[demo]'")
    assert not list(NANO.glob("*.py"))
    export_space(tmp_path / "space", NANO, examples=[photo])
    program = """
import sys
sys.modules["hf_mixer"] = None
sys.path.insert(0, ".")
import app, json
demo = app.Demo(*app.load(json.load(open("space.json"))))
labels, picture = list(demo.predict("examples/1.jpg"))[-1]
print(len(labels), picture.size, type(demo.model).__module__.split(".")[0])
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "space", env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "10 (448, 448) transformers_modules"
