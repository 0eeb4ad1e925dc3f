"""The static page that the demo exports, which runs the model in the visitor's browser."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard
from PIL import Image

from hf_mixer import MixerConfig, MixerImageProcessorPil, load_checkpoint
from hf_mixer.commands.demo import main
from hf_mixer.configuration_mixer import to_pair
from hf_mixer.demo import page as page_module
from hf_mixer.demo.page import ASSETS, PACKAGES, describe_processing, export_page
from hf_mixer.demo.saliency import find_windows, occlusion_map, read_outputs, spread_falls
from hf_mixer.deployment import image_steps
from tests.helpers import save_classifier


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node, https://nodejs.org")
LIBRARY = {name.split("/")[-1] for package in PACKAGES for name in package.files}


def pack(package) -> bytes:
    """Return an archive of a package, whose files hold their own names, and one that nobody asked for."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in (*package.files, "dist/unneeded.js"):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return buffer.getvalue()


def export_in_no_time(source, destination, format, image_processor):
    """Write the files of an export to transformers.js, without a model in them, of a network without a resize."""
    assert format == "transformers.js"
    assert not image_processor.do_resize
    assert not image_processor.do_center_crop
    load_checkpoint(source)
    (destination / "onnx").mkdir(parents=True)
    for name, size in (("model.onnx", 40), ("model_fp16.onnx", 20), ("model_quantized.onnx", 10)):
        (destination / "onnx" / name).write_bytes(bytes(size))
    for name in ("config.json", "README.md"):
        (destination / name).write_text("{}")


def make_folder(path):
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry with the packages of the page, and an empty cache for them."""
    root = tmp_path / "registry"
    monkeypatch.setenv("npm_config_registry", f"{root.as_uri()}/")
    monkeypatch.setattr("hf_mixer.demo.npm.cached_assets_path", lambda *names: make_folder(tmp_path / "assets"))
    monkeypatch.setattr("hf_mixer.demo.npm.is_offline_mode", lambda: False)
    monkeypatch.setattr(page_module, "export_model", export_in_no_time)
    packages = []
    for package in PACKAGES:
        archive = pack(package)
        checksum = base64.b64encode(hashlib.sha512(archive).digest()).decode()
        packages.append(replace(package, sha512=checksum))
        path = root / package.name / "-" / package.url.split("/")[-1]
        path.parent.mkdir(parents=True)
        path.write_bytes(archive)
    monkeypatch.setattr(page_module, "PACKAGES", tuple(packages))
    return root


def run_in_node(directory, program: str, *values):
    """Run a program with the modules of the page beside it; `inputs` in it are `values`. Return what it prints as JSON."""
    shutil.copytree(ASSETS, directory, dirs_exist_ok=True)
    (directory / "package.json").write_text('{"type": "module"}')
    (directory / "test.js").write_text(
        f"const inputs = {json.dumps(values)};\n{program}\nconsole.log(JSON.stringify(result));\n"
    )
    done = subprocess.run(["node", "test.js"], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_page_is_complete(registry, folder, photo, tmp_path, capsys):
    examples = make_folder(tmp_path / "examples")
    shutil.copy(photo, examples / "my cat.JPG")
    main([str(folder), "--export-page", str(tmp_path / "page"), "--examples", str(examples), "--repo_id", "me/pets"])
    assert "http.server" in capsys.readouterr().out
    page = tmp_path / "page"
    files = {str(path.relative_to(page)) for path in page.rglob("*") if path.is_file()}
    model = {"config.json", "onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"}
    assert files == {
        *(path.name for path in ASSETS.iterdir()),
        *("README.md", "page.json", "examples/1.jpg"),
        *(f"library/{name}" for name in LIBRARY),
        *(f"model/{name}" for name in model),
    }
    assert (page / "library/transformers.min.js").read_text() == "dist/transformers.min.js"
    assert (page / "examples/1.jpg").read_bytes() == photo.read_bytes()
    # One package comes with its license, the other one without
    assert (page / "library/LICENSE").is_file()
    assert "Copyright (c) Microsoft Corporation" in (page / "LICENSE-onnxruntime-web.txt").read_text()
    settings = json.loads((page / "page.json").read_text())
    assert (settings["title"], settings["name"], settings["model"]) == ("Three kinds of images", "pets", "me/pets")
    assert (settings["labels"], settings["image_size"]) == (["cat", "dog", "owl"], [32, 32])
    assert settings["problem_type"] == "single_label_classification"
    assert settings["files"] == {"fp32": 40, "fp16": 20, "q8": 10}
    assert settings["examples"] == [{"file": "examples/1.jpg", "name": "my cat"}]


def test_page_is_a_static_space(registry, folder, tmp_path):
    export_page(tmp_path / "page", folder)
    data = RepoCard.load(tmp_path / "page" / "README.md").data.to_dict()
    assert (data["sdk"], data["app_file"], data["title"]) == ("static", "index.html", "Three kinds of images")
    assert "models" not in data
    assert len(data["short_description"]) <= 60
    # Without them the model runs on one core
    assert data["custom_headers"]["cross-origin-opener-policy"] == "same-origin"
    assert json.loads((tmp_path / "page" / "page.json").read_text())["examples"] == []


def test_page_loads_its_own_files_only():
    html = (ASSETS / "index.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]+)"', html)[1]
    assert "default-src 'self'" in policy
    allowed = {source for rule in policy.split(";") for source in rule.split()[1:]}
    assert allowed == {"'self'", "'wasm-unsafe-eval'", "blob:", "'none'"}
    needed = set(re.findall(r'(?:src|href)="([^"]+)"', html))
    for path in ASSETS.glob("*.js"):
        needed |= set(re.findall(r'(?:from|Worker\(|register\(|fetch\() ?"(?:\./)?([^"]+)"', path.read_text()))
    assert {"style.css", "page.js", "model.js", "service-worker.js", "library/transformers.min.js"} < needed
    known = {path.name for path in ASSETS.iterdir()} | {f"library/{name}" for name in LIBRARY} | {"page.json"}
    assert needed <= known
    # Names of labels and models stay text
    assert not [
        path.name for path in ASSETS.glob("*.js") if re.search("innerHTML|insertAdjacent|eval", path.read_text())
    ]


def test_what_loads_before_the_service_worker_is_kept_for_use_without_a_network():
    kept = set(re.findall(r'"([\w.-]+\.\w+)"', (ASSETS / "service-worker.js").read_text().split("];")[0]))
    page = (ASSETS / "index.html").read_text()
    modules = re.findall(r'from "\./(.+)"', (ASSETS / "page.js").read_text())
    assert {"index.html", *modules, *re.findall(r'(?:src|href)="([^"]+)"', page)} <= kept
    assert all((ASSETS / name).is_file() for name in kept)


def test_archive_with_another_checksum_is_refused(registry, folder, tmp_path, capsys):
    path = next(registry.rglob("onnxruntime-web*.tgz"))
    path.write_bytes(path.read_bytes() + b"tampered")
    with pytest.raises(SystemExit, match="is not onnxruntime-web"):
        main([str(folder), "--export-page", str(tmp_path / "page")])
    # The other one is kept
    assert [path.name for path in (tmp_path / "assets").rglob("*.tgz")] == ["transformers-4.3.1.tgz"]
    kept = next((tmp_path / "assets").rglob("*.tgz"))
    kept.write_bytes(b"damaged")
    with pytest.raises(SystemExit, match="is not @huggingface/transformers 4.3.1.* Remove .*transformers-4.3.1.tgz"):
        main([str(folder), "--export-page", str(tmp_path / "page")])
    assert not (tmp_path / "page").exists()


def test_packages_are_downloaded_once(registry, folder, tmp_path):
    export_page(tmp_path / "first", folder)
    shutil.rmtree(registry)
    export_page(tmp_path / "second", folder)
    assert (tmp_path / "second" / "library" / "transformers.min.js").is_file()


def test_without_the_network_one_line_says_what_to_do(registry, folder, tmp_path, monkeypatch):
    shutil.rmtree(registry)
    with pytest.raises(SystemExit, match="cannot download file:.*transformers-4.3.1.tgz.*put the file there as"):
        main([str(folder), "--export-page", str(tmp_path / "page")])
    monkeypatch.setattr("hf_mixer.demo.npm.is_offline_mode", lambda: True)
    with pytest.raises(SystemExit, match="HF_HUB_OFFLINE is set"):
        main([str(folder), "--export-page", str(tmp_path / "page")])
    assert not (tmp_path / "page").exists()


def test_failed_export_leaves_nothing(registry, folder, tmp_path, monkeypatch):
    def fail(source, destination, format, image_processor):
        export_in_no_time(source, destination, format, image_processor)
        raise ImportError("onnx is not installed")

    monkeypatch.setattr(page_module, "export_model", fail)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(SystemExit, match="onnx is not installed"):
        main([str(folder), "--export-page", str(tmp_path / "page")])
    assert sorted({path.name for path in tmp_path.iterdir()} - {"assets"}) == before


def test_folder_without_weights_is_refused(registry, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(SystemExit, match="no file named model.safetensors"):
        main([str(tmp_path / "bare"), "--export-page", str(tmp_path / "page")])


def test_refusals(registry, folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for arguments, message in (
        ([folder, "--export-page", tmp_path / "full"], "already exists and is no empty folder"),
        ([tmp_path, "--export-page", tmp_path / "page"], "holds no config.json"),
        ([folder, "--export-page", "page", "--export-space", "space"], "give one of them"),
        ([folder, "--export-page", "page", "--repo_id", "me/pets", "--revision", "v1"], "--revision needs"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert message in str(stopped.value) + capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_resize": False}, "`do_resize=True`"),
        ({"resample": 1}, "`resample` 2 .* got 1"),
        ({"size": {"shortest_edge": 32, "longest_edge": 48}}, "longest_edge"),
        ({"size": {"shortest_edge": 32}}, "`size=32` and `crop_size=None`"),
        ({"size": {"height": 16, "width": 32}}, r"`size=\[16, 32\]`"),
        (
            {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": 32},
            r"within \[24, 24\], got \[32, 32\]",
        ),
    ],
)
def test_image_processors_that_the_page_cannot_follow_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        describe_processing(MixerConfig(image_size=32), MixerImageProcessorPil(**{"size": 32, **settings}))


def test_page_of_several_labels_knows_their_thresholds(registry, tmp_path):
    overrides = {"problem_type": "multi_label_classification", "label_thresholds": [0.3, 0.6]}
    folder = save_classifier(tmp_path / "tags", ["sun", "sea"], **overrides)
    export_page(tmp_path / "page", folder)
    settings = json.loads((tmp_path / "page" / "page.json").read_text())
    assert (settings["problem_type"], settings["thresholds"]) == ("multi_label_classification", [0.3, 0.6])


def see_in_browser(config, processor, images, directory):
    """Return what the page makes of RGBA images for the model."""
    inputs = [
        {"height": len(image), "width": len(image[0]), "rgba": np.asarray(image).flatten().tolist()}
        for image in images
    ]
    program = """
import { normalize, resizeImage } from "./prepare.js";
const [processing, images] = inputs;
const result = [];
for (const { height, width, rgba } of images) {
  const read = (top, rows) => rgba.slice(4 * top * width, 4 * (top + rows) * width);
  result.push([...normalize(await resizeImage({ height, width, read }, processing), processing)]);
}"""
    outputs = run_in_node(directory, program, describe_processing(config, processor), inputs)
    return [np.reshape(output, (config.num_channels, *to_pair(config.image_size))) for output in outputs]


@needs_node
@pytest.mark.parametrize("resample", [2, 3], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 8, "width": 12}},
        {"size": {"shortest_edge": 13}, "do_center_crop": True, "crop_size": {"height": 8, "width": 12}},
    ],
    ids=["stretch", "crop"],
)
def test_browser_sees_the_pixels_that_the_image_processor_sees(resample, num_channels, settings, tmp_path):
    config = MixerConfig(image_size=(8, 12), patch_size=4, num_channels=num_channels)
    normalization = {"image_mean": [0.5, 0.4, 0.3][:num_channels], "image_std": [0.5, 0.2, 0.3][:num_channels]}
    processor = MixerImageProcessorPil(resample=resample, num_channels=num_channels, **settings, **normalization)
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (2, 2), (8, 12), (9, 12), (31, 7), (7, 31), (64, 50)]
    images = [rng.integers(0, 256, (*size, 4), dtype=np.uint8) for size in sizes]
    for image, output in zip(images, see_in_browser(config, processor, images, tmp_path)):
        expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
        # A pixel that differs by one level would differ by 0.008
        np.testing.assert_allclose(output, expected, atol=1e-5)


@needs_node
@pytest.mark.parametrize(("is_pillow_13", "between"), [(False, (12, 31)), (True, (7, 8))])
def test_browser_resizes_a_tall_image_in_the_order_of_the_version_of_pillow(
    is_pillow_13, between, tmp_path, monkeypatch
):
    monkeypatch.setattr(image_steps, "IS_PILLOW_13", is_pillow_13)
    config = MixerConfig(image_size=(8, 12), patch_size=4)
    processor = MixerImageProcessorPil(size={"height": 8, "width": 12})
    image = np.random.default_rng(0).integers(0, 256, (31, 7, 4), dtype=np.uint8)
    (output,) = see_in_browser(config, processor, [image], tmp_path)
    resized = Image.fromarray(image).convert("RGB").resize(between, 2)
    np.testing.assert_allclose(output, processor(resized, return_tensors="np")["pixel_values"][0], atol=1e-5)


class RecordingModel:
    """Takes down the images that it is given; its outputs are the first value of every channel."""

    device = "cpu"

    def __init__(self, config):
        self.config, self.images = config, []

    def __call__(self, pixel_values):
        self.images += pixel_values
        return type("Output", (), {"logits": pixel_values[:, :, 0, 0]})


@needs_node
def test_browser_makes_the_map_that_the_gradio_demo_makes(tmp_path):
    # Parts of 6 pixels, every 3 pixels; those at the border are cut off
    model = RecordingModel(MixerConfig(image_size=(6, 18), patch_size=2, num_labels=3))
    pixel_values = torch.randn(1, 3, 6, 18, generator=torch.Generator().manual_seed(0))
    occlusion_map(model, pixel_values, window=6, stride=3, index=0)
    windows = find_windows(6, 18, window=6, stride=3)
    falls = torch.arange(len(windows)) ** 2 / 10
    program = """
import { cover, findWindows } from "./classify.js";
import { spreadFalls } from "./map.js";
const values = Float32Array.from(inputs[0]);
const windows = findWindows(6, 18);
const result = [windows.map((window) => [...cover(values, 6, 18, window)]), [...spreadFalls(windows, inputs[1], 6, 18)]];"""
    covered, map_ = run_in_node(tmp_path, program, pixel_values.flatten().tolist(), falls.tolist())
    expected = torch.stack(model.images[1:])
    torch.testing.assert_close(torch.tensor(covered).view(-1, 3, 6, 18), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(map_).view(6, 18), spread_falls(falls, windows, 6, 18))


@needs_node
@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_browser_reads_the_outputs_as_the_gradio_demo_does(problem_type, tmp_path):
    model = RecordingModel(MixerConfig(image_size=2, patch_size=2, num_labels=3, problem_type=problem_type))
    logits = torch.tensor([-90.0, 1.5, 88.0])
    expected = read_outputs(model, logits.view(1, 3, 1, 1))[0]
    program = 'import { readOutputs } from "./classify.js"; const result = [...readOutputs(...inputs)];'
    outputs = run_in_node(tmp_path, program, logits.tolist(), problem_type)
    torch.testing.assert_close(torch.tensor(outputs), expected, rtol=1e-6, atol=1e-6)


@needs_node
def test_browser_lists_the_labels_that_reach_their_thresholds(tmp_path):
    labels = [f"tag {index}" for index in range(8)]
    probabilities = [0.9, 0.1, 0.2, 0.3, 0.35, 0.36, 0.37, 0.38]
    thresholds = [0.95, 0.05, *[0.5] * 6]
    program = """
import { rankLabels, summarize } from "./answer.js";
const entries = rankLabels(inputs[0].map(Math.log), inputs[1]);
const result = [entries.map(({ name, text, isStrong }) => [name, text, isStrong]), summarize(entries, inputs[1].problem_type)];"""
    settings = {"problem_type": "multi_label_classification", "labels": labels, "thresholds": thresholds}
    entries, summary = run_in_node(tmp_path, program, probabilities, settings)
    # The five most likely, and below them the one that reaches its threshold
    assert [name for name, _, _ in entries] == ["tag 0", "tag 7", "tag 6", "tag 5", "tag 4", "tag 1"]
    assert [name for name, _, is_strong in entries if is_strong] == ["tag 1"]
    assert entries[0][1] == "90.0%"
    assert summary == "The model sees: tag 1, 10.0%"
