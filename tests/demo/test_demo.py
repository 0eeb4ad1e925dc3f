"""The demo page and the Space that it exports."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import pytest
import torch
from huggingface_hub import HfApi, RepoCard
from PIL import Image

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.demo.space import GRADIO_VERSION, export_space
from tests.helpers import ROOT


COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What the app needs of Gradio up to the page itself, where Gradio is not installed
STUB = """
import sys, types
gradio = types.ModuleType("gradio")
gradio.Blocks = None
gradio.Error = type("Error", (Exception,), {"__init__": lambda self, message, **kwargs: Exception.__init__(self, message)})
sys.modules["gradio"] = gradio
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "my-mixer"
    torch.manual_seed(0)
    config = MixerConfig(
        image_size=32,
        patch_size=2,
        hidden_size=16,
        num_hidden_layers=1,
        token_mlp_dim=16,
        channel_mlp_dim=32,
        initializer_range=1.0,
        id2label={0: "cat", 1: "dog", 2: "owl"},
        label2id={"cat": 0, "dog": 1, "owl": 2},
    )
    MixerForImageClassification(config).save_pretrained(folder)
    MixerImageProcessorPil(size=32).save_pretrained(folder)
    for leftover in ("optimizer.pt", "training_args.bin", ".env"):
        (folder / leftover).write_text("not for the Hub")
    return folder


@pytest.fixture(scope="module")
def photo(folder):
    path = folder.parent / "photo.JPG"
    Image.radial_gradient("L").convert("RGB").resize((80, 60)).save(path)
    return path


@pytest.fixture(scope="module")
def space(folder, photo):
    export_space(folder.parent / "space", folder, examples=[photo])
    return folder.parent / "space"


def run_script(*arguments, monkeypatch):
    """Run scripts/demo.py in this process."""
    monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, arguments)])
    spec = importlib.util.spec_from_file_location("demo_script", ROOT / "scripts" / "demo.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main()


@pytest.fixture(scope="module")
def app(space):
    """The app of the exported Space, on a stand-in for Gradio where that is missing."""
    before = set(sys.modules)
    if importlib.util.find_spec("gradio") is None:
        exec(STUB, {})
    sys.path.insert(0, str(space))
    spec = importlib.util.spec_from_file_location("space_app", space / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(space))
    for name in ("saliency", *(["gradio"] if "gradio" not in before else [])):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def demo(app, space):
    return app.Demo(*app.load(json.loads((space / "space.json").read_text())))


def test_space_is_complete(space, folder, photo):
    files = {str(path.relative_to(space)) for path in space.rglob("*") if path.is_file()}
    code = {path.name for path in folder.glob("*.py")}
    assert files == {
        *{"app.py", "saliency.py", "space.json", "requirements.txt", "README.md", "examples/1.jpg"},
        *{f"model/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json", *code)},
    }
    assert (space / "model/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (space / "examples/1.jpg").read_bytes() == photo.read_bytes()


def test_space_needs_no_package(space):
    for name in ("app.py", "saliency.py"):
        tree = ast.parse((space / name).read_text())
        imported = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert not any(module.startswith("hf_mixer") for module in imported)


def test_space_metadata(space):
    data = RepoCard.load(space / "README.md").data.to_dict()
    assert (data["sdk"], data["sdk_version"], data["app_file"]) == ("gradio", GRADIO_VERSION, "app.py")
    assert data["title"] == "my-mixer"
    assert len(data["short_description"]) <= 60
    assert data["colorFrom"] in {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert "models" not in data
    requirements = (space / "requirements.txt").read_text().splitlines()
    assert all(re.match(r"[\w-]+\S*>=\d", line) for line in requirements)
    assert {"torch", "transformers", "pillow", "gradio"} <= {re.match(r"[\w-]+", line)[0] for line in requirements}
    minimum = re.search(r'"gradio>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert GRADIO_VERSION.startswith(minimum)


def test_space_of_a_repository_runs_one_commit(folder, photo, tmp_path, monkeypatch):
    asked = []

    def model_info(self, repo_id, revision=None):
        asked.append((repo_id, revision))
        return types.SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(HfApi, "model_info", model_info)
    arguments = ["--export-space", tmp_path / "new" / "space", "--repo_id", "me/pets", "--revision", "v1"]
    run_script(folder, *arguments, "--examples", photo.parent, monkeypatch=monkeypatch)
    space = tmp_path / "new" / "space"
    assert asked == [("me/pets", "v1")]
    settings = json.loads((space / "space.json").read_text())
    assert settings == {"model": "me/pets", "revision": COMMIT, "title": "pets"}
    assert RepoCard.load(space / "README.md").data.to_dict()["models"] == ["me/pets"]
    assert not (space / "model").exists()
    assert (space / "examples/1.jpg").is_file()


def test_refusals_leave_everything_alone(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for arguments, message in (
        ([folder, "--export-space", tmp_path / "full"], "already exists and is not an empty directory"),
        ([tmp_path, "--export-space", tmp_path / "space"], "holds no config.json"),
        ([folder, "--export-space", tmp_path / "space", "--examples", tmp_path / "full"], "holds no images"),
        ([folder, "--repo_id", "me/pets"], "--repo_id is for --export-space"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_script(*arguments, monkeypatch=monkeypatch)
        assert message in str(stopped.value) + capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_labels_come_first_then_the_map(demo, photo, folder):
    steps = list(demo.predict(str(photo)))
    assert [picture is None for _, picture in steps] == [True, False]
    model = MixerForImageClassification.from_pretrained(folder)
    pixel_values = MixerImageProcessorPil.from_pretrained(folder)(Image.open(photo), return_tensors="pt").pixel_values
    with torch.no_grad():
        scores = model(pixel_values).logits.softmax(-1)[0].tolist()
    for labels, _ in steps:
        assert labels == pytest.approx(dict(zip(["cat", "dog", "owl"], scores)), abs=1e-6)
    assert steps[1][1].size == (448, 448)


def test_no_image_clears_the_page(demo):
    assert list(demo.predict(None)) == [(None, None)]


def test_bad_uploads_get_a_readable_message(app, demo, photo, tmp_path, caplog):
    corrupt, cut, huge, odd = (tmp_path / name for name in ("corrupt.png", "cut.jpg", "huge.png", "odd.tiff"))
    corrupt.write_bytes(b"\x89PNG\r\n\x1a\n nothing that follows is a PNG")
    cut.write_bytes(photo.read_bytes()[:-200])
    Image.new("1", (10_000, 10_000)).save(huge)
    Image.new("F", (4, 4), -5).save(odd)
    for path, message in (
        (corrupt, "no image that can be read"),
        (cut, "damaged"),
        (huge, r"100 megapixels \(10000 x 10000\)\. The limit is 64 megapixels"),
        (odd, "floating-point image"),
    ):
        with pytest.raises(app.gr.Error, match=message):
            next(demo.predict(str(path)))
    # The log says what it was
    assert "An upload cannot be opened\nTraceback" in caplog.text
    assert "An upload cannot be decoded\nTraceback" in caplog.text
    # and the next visitor is served
    assert len(list(demo.predict(str(photo)))) == 2


def test_number_of_passes_is_bounded(app, demo, photo, monkeypatch):
    sizes = []
    hook = demo.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    list(demo.predict(str(photo)))
    hook.remove()
    assert demo.model.config.num_patches == 256
    assert sum(sizes) <= app.MAX_WINDOWS**2 + 2


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs Gradio: pip install '.[demo]'")
def test_page_is_built(app, demo, space):
    page = app.build(demo, "my-mixer", [str(space / "examples" / "1.jpg")])
    kinds = [block.get_block_name() for block in page.blocks.values()]
    assert kinds.count("image") >= 2
    assert "label" in kinds
    assert "dataset" in kinds


def test_exported_space_runs_where_the_package_is_missing(space):
    code = f"""
{STUB}
sys.modules["hf_mixer"] = None
sys.path.insert(0, ".")
import app, json
demo = app.Demo(*app.load(json.load(open("space.json"))))
labels, picture = list(demo.predict("examples/1.jpg"))[-1]
print(sorted(labels), picture.size, type(demo.model).__module__.split(".")[0])
"""
    environment = {**os.environ, "HF_HOME": str(space.parent / "home"), "PYTHONPATH": ""}
    result = subprocess.run([sys.executable, "-c", code], cwd=space, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == "['cat', 'dog', 'owl'] (448, 448) transformers_modules"
