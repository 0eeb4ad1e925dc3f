"""The Space that the demo exports."""

import json
import re

import pytest
from huggingface_hub import HfApi, RepoCard

from hf_mixer.commands.demo import main
from hf_mixer.demo.preview import draw_preview
from hf_mixer.demo.space import GRADIO_VERSION, export_space, make_title
from tests.helpers import REMOTE_CODE, ROOT, save_classifier
from tests.new_processes import run_without_package


NANO = ROOT / "model_cards" / "mixer-nano-cifar10"


def test_space_is_complete(space, folder, photo):
    # Python adds __pycache__ when another test runs the app
    files = {str(path.relative_to(space)) for path in space.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    model = {"config.json", "model.safetensors", "preprocessor_config.json", *REMOTE_CODE}
    assert files == {
        *("app.py", "answers.py", "saliency.py", "uploads.py", "style.css"),
        *("space.json", "requirements.txt", "README.md", "preview.png", "examples/1.jpg"),
        *(f"model/{name}" for name in model),
    }
    assert (space / "model/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (space / "examples/1.jpg").read_bytes() == photo.read_bytes()


def test_space_metadata(space):
    data = RepoCard.load(space / "README.md").data.to_dict()
    assert (data["sdk"], data["sdk_version"], data["app_file"]) == ("gradio", GRADIO_VERSION, "app.py")
    assert data["title"] == "Three kinds of images"
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


@pytest.mark.parametrize(
    ("number", "data", "problem_type", "title"),
    [
        (102, "me/flowers", "single_label_classification", "102 kinds of flowers"),
        (1, "me/homes", None, "One value read from homes"),
        (10, "uoft-cs/cifar10", "single_label_classification", "Ten kinds of CIFAR-10 images"),
        (13, "photos", None, "13 kinds of images"),
        (3, None, "multi_label_classification", "Three labels for images"),
        (2, None, "regression", "Two values read from images"),
    ],
)
def test_title_says_what_the_model_does(number, data, problem_type, title, tmp_path):
    save_classifier(tmp_path, [f"name {index}" for index in range(number)], problem_type=problem_type)
    if data:
        (tmp_path / "training_run.json").write_text(json.dumps({"dataset": {"name": data}}))
    assert make_title(tmp_path) == title


def test_space_says_its_license_and_how_to_push_it(cifar, folder, photo, tmp_path, capsys):
    main([str(cifar), "--export-space", str(tmp_path / "cifar"), "--examples", str(photo.parent)])
    printed = capsys.readouterr().out
    assert "mit" in printed
    assert "hf repos create NAME --repo-type space --space-sdk gradio" in printed
    assert f"hf upload NAME {tmp_path / 'cifar'} --repo-type space" in printed
    card = RepoCard.load(tmp_path / "cifar" / "README.md")
    assert (card.data.title, card.data.license) == ("Three kinds of CIFAR-10 images", "mit")
    assert "hf upload NAME . --repo-type space" in card.text
    assert "thumbnail: https://huggingface.co/spaces/NAME/resolve/main/preview.png" in card.text

    main([str(folder), "--export-space", str(tmp_path / "other")])
    assert "names none" in capsys.readouterr().out
    assert "license" not in RepoCard.load(tmp_path / "other" / "README.md").data.to_dict()


def test_preview_shows_the_model_at_work(cifar, photo, tmp_path):
    title = make_title(cifar)
    plain, shown = (draw_preview(title, cifar, example) for example in (None, photo))
    assert plain.size == shown.size == (1200, 630)
    # The title stands on the left of both, and the image and its map on the right of one
    assert len(plain.crop((0, 0, 600, 630)).getcolors(10**6)) > 2
    assert len(plain.crop((620, 55, 1140, 400)).getcolors(10**6)) < len(
        shown.crop((620, 55, 1140, 400)).getcolors(10**6)
    )


@pytest.fixture
def pets(hub, folder, tmp_path, monkeypatch):
    """A repository with the model of the folder at the tag v1, and another model after that."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_alice_write")
    api = HfApi()
    api.create_repo("alice/pets")
    names = ("*.json", "model.safetensors", "*.py")
    commit = api.upload_folder(repo_id="alice/pets", folder_path=folder, allow_patterns=names).oid
    api.create_tag("alice/pets", tag="v1", revision=commit)
    other = save_classifier(tmp_path / "other", ["cat", "dog", "owl"], hidden_size=16)
    api.upload_folder(repo_id="alice/pets", folder_path=other, allow_patterns=names)
    renamed = save_classifier(tmp_path / "renamed", ["a", "b", "c"])
    api.create_repo("alice/renamed")
    api.upload_folder(repo_id="alice/renamed", folder_path=renamed, allow_patterns=names)
    return commit


def test_space_of_a_repository_runs_one_commit(pets, folder, photo, tmp_path):
    space = tmp_path / "new" / "space"
    options = ["--export-space", str(space), "--repo_id", "alice/pets", "--revision", "v1"]
    main([str(folder), *options, "--examples", str(photo.parent)])
    settings = json.loads((space / "space.json").read_text())
    assert (settings["model"], settings["revision"], settings["name"]) == ("alice/pets", pets, "pets")
    data = RepoCard.load(space / "README.md").data.to_dict()
    assert data["models"] == ["alice/pets"]
    assert data["thumbnail"] == "https://huggingface.co/spaces/alice/pets/resolve/main/preview.png"
    assert not (space / "model").exists()
    assert (space / "examples/1.jpg").is_file()


def test_repository_with_another_model_is_refused(pets, hub, folder, tmp_path, monkeypatch):
    def refusal(*options):
        with pytest.raises(SystemExit) as stopped:
            main([str(folder), "--export-space", str(tmp_path / "space"), "--repo_id", *options])
        assert not (tmp_path / "space").exists()
        message = str(stopped.value)
        assert message.startswith("error: ")
        assert "\n" not in message
        return message

    assert "model.safetensors differs" in refusal("alice/pets")
    assert "its labels are other ones" in refusal("alice/renamed")
    assert "alice/nothing" in refusal("alice/nothing")
    assert "v2" in refusal("alice/pets", "--revision", "v2")
    hub.fail("GET /api/models/alice/pets", how=503, times=100)
    assert "503" in refusal("alice/pets", "--revision", "v1")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "Hub" in refusal("alice/pets", "--revision", "v1")


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
import os, shutil, sys
os.environ["GRADIO_TEMP_DIR"] = sys.argv[1]
import app, json
demo = app.Demo(*app.load(json.load(open("space.json"))))
upload = {"path": shutil.copy("examples/1.jpg", sys.argv[1])}
labels, _, _ = demo.predict(upload)
(_, picture), _ = list(demo.explain(upload))[-1]
print(len(labels), picture.size, type(demo.model).__module__.split(".")[0])
"""
    (tmp_path / "uploads").mkdir()
    output, _ = run_without_package(program, tmp_path / "uploads", folder=tmp_path / "space")
    assert output.splitlines()[-1] == "10 (448, 448) transformers_modules"
