"""Exports and the handler of Inference Endpoints, published beside a model."""

import ast
import json
import re
import shutil

import pytest
import torch
from PIL import Image

from transformers import AutoImageProcessor, pipeline

from hf_mixer import MixerImageProcessorPil, load_checkpoint
from hf_mixer.commands.publish import main
from hf_mixer.deployment import export_model, load_exported
from hf_mixer.publishing import create_card
from hf_mixer.publishing.release import prepare_release
from tests.helpers import needs_export, save_classifier
from tests.publishing.conftest import LABELS


ONNX_FILES = {f"onnx/{name}" for name in ("export.json", "config.json", "preprocessor_config.json", "model.onnx")}
needs_onnx = needs_export("onnx")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An export of the model in `folder`, which has the same weights wherever it is made."""
    root = tmp_path_factory.mktemp("exports")
    export_model(str(save_classifier(root / "model", LABELS)), root / "onnx", "onnx")
    return root / "onnx"


@pytest.fixture
def with_onnx(folder, made):
    """The folder with an export in the place where publishing looks for it."""
    shutil.copytree(made, folder / "onnx")
    return folder


def logits_of(model, image_processor):
    image = Image.linear_gradient("L").convert("RGB")
    with torch.no_grad():
        return model(pixel_values=image_processor(image, return_tensors="pt")["pixel_values"]).logits


@needs_onnx
def test_an_export_runs_from_its_folder_in_the_repository_and_the_rest_is_as_without_it(publish, hub, folder):
    publish("alice/plain")
    output = publish("alice/mixer", "--with", "onnx", "handler")
    assert re.search(r"kB  onnx/model.onnx  \(exported\)\n", output)
    files, plain = hub.files("alice/mixer"), hub.files("alice/plain")
    assert files.keys() - {"onnx/model.onnx.data"} == plain.keys() | ONNX_FILES | {"handler.py", "requirements.txt"}
    for name in plain.keys() - {"README.md"}:
        assert files[name] == plain[name]
    assert json.loads(files["onnx/config.json"])["id2label"] == dict(zip("012", LABELS))
    assert b"\ntransformers" in files["requirements.txt"]
    assert publish("alice/mixer", "--with", "onnx", "handler").count("nothing was sent") == 1

    from transformers.exporters import ExportedModel

    expected = logits_of(*load_checkpoint(str(folder)))
    assert torch.allclose(logits_of(*load_exported("alice/mixer", subfolder="onnx")), expected, atol=1e-5)
    assert torch.equal(logits_of(*load_checkpoint("alice/mixer")), expected)
    image_processor = AutoImageProcessor.from_pretrained("alice/mixer", subfolder="onnx")
    model = ExportedModel.from_pretrained("alice/mixer", subfolder="onnx")
    assert torch.allclose(logits_of(model, image_processor), expected, atol=1e-5)
    assert list(model.config.id2label.values()) == LABELS


@needs_onnx
def test_an_export_in_the_folder_goes_up_as_it_is(publish, hub, with_onnx):
    manifest = json.loads((with_onnx / "onnx" / "export.json").read_text())
    manifest["hf_mixer"]["programs"] = {"int8": "model.onnx"}
    (with_onnx / "onnx" / "export.json").write_text(json.dumps(manifest))
    (with_onnx / "onnx" / "notes.txt").write_text("not for others")
    output = publish("alice/mixer", "--with", "onnx")
    assert "onnx/README.md, onnx/notes.txt, optimizer.pt" in output
    published = {name: content for name, content in hub.files("alice/mixer").items() if name.startswith("onnx/")}
    assert published.keys() - {"onnx/model.onnx.data"} == ONNX_FILES
    for name, content in published.items():
        assert content == (with_onnx / name).read_bytes()
    assert "| `onnx` | ONNX Runtime | int8 |" in hub.files("alice/mixer")["README.md"].decode()


@needs_onnx
def test_an_export_without_being_asked_for_stays_behind(publish, hub, with_onnx):
    assert "onnx/, optimizer.pt" in publish("alice/mixer")
    assert not any(name.startswith("onnx/") for name in hub.files("alice/mixer"))


@needs_onnx
@pytest.mark.parametrize("damage", ["weights", "labels", "format", "half", "no export", "elsewhere", "above"])
def test_what_is_no_export_of_this_model_is_refused(damage, publish, hub, with_onnx, tmp_path):
    export = with_onnx / "onnx"
    manifest = json.loads((export / "export.json").read_text())
    if damage == "weights":
        torch.manual_seed(1)
        model, _ = load_checkpoint(str(with_onnx))
        torch.nn.init.normal_(model.classifier.weight)
        model.save_pretrained(with_onnx)
    elif damage == "labels":
        config = json.loads((export / "config.json").read_text())
        (export / "config.json").write_text(json.dumps({**config, "id2label": {0: "a", 1: "b", 2: "c"}}))
    elif damage == "format":
        manifest["hf_mixer"]["format"] = "openvino"
    elif damage == "half":
        (export / "model.onnx").unlink()
    elif damage == "no export":
        shutil.rmtree(export)
        export.mkdir()
    elif damage == "elsewhere":
        (export / "model.onnx").rename(tmp_path / "model.onnx")
        (export / "model.onnx").symlink_to(tmp_path / "model.onnx")
    elif damage == "above":
        manifest["hf_mixer"]["programs"]["float32"] = "../.env"
    if export.is_dir() and damage != "no export":
        (export / "export.json").write_text(json.dumps(manifest))
    message = publish("alice/mixer", "--with", "onnx", refused=True)
    expected = {
        "weights": "was made of other weights than those of the model",
        "labels": "has other labels than the model",
        "half": "lacks model.onnx",
        "elsewhere": f"is a link to {tmp_path / 'model.onnx'}",
        "above": "lies elsewhere, at",
    }
    assert expected.get(damage, "holds no export that `hf-mixer export --format onnx` wrote") in message
    assert not hub.repos


@needs_onnx
def test_exports_of_an_earlier_publication_are_named(publish, hub, with_onnx):
    publish("alice/mixer", "--with", "onnx")
    before = hub.files("alice/mixer")
    output = publish("alice/mixer")
    assert "Also in the repository, not from this folder: onnx/config.json, onnx/export.json" in output
    assert 'hf repos delete-files alice/mixer "onnx/*"' in output
    after = hub.files("alice/mixer")
    assert {name for name in before if before[name] != after[name]} == {"README.md"}
    assert "In other runtimes" not in after["README.md"].decode()


@needs_onnx
def test_secrets_are_looked_for_in_exports(with_onnx, release):
    program = with_onnx / "onnx" / "model.onnx"
    # A field that readers of the format do not know, as whatever wrote the file may add
    secret = b"hf_" + b"a1" * 12
    program.write_bytes(program.read_bytes() + b"\xa2\x06" + bytes([len(secret)]) + secret)
    with pytest.raises(ValueError, match="onnx/model.onnx, line .* holds a Hugging Face token"):
        prepare_release(with_onnx, release, "alice/mixer", extras=["onnx"])


def test_a_handler_of_your_own_goes_up_where_you_trust_it(publish, hub, folder):
    (folder / "handler.py").write_text("class EndpointHandler: ...\n")
    refusal = publish("alice/mixer", "--with", "handler", refused=True)
    assert (
        "handler.py is not the code of this version of hf_mixer: remove it, and that of this version goes up, or"
        in refusal
    )
    assert hub.requests == []
    publish("alice/mixer", "--with", "handler", "--trust-code")
    assert hub.files("alice/mixer")["handler.py"] == b"class EndpointHandler: ...\n"
    assert "## On a server" in hub.files("alice/mixer")["README.md"].decode()


def test_what_cannot_be_published_is_one_line(folder, release):
    with pytest.raises(ValueError, match="'torch' cannot be published: expected onnx, openvino, executorch"):
        prepare_release(folder, release, "alice/mixer", extras=["torch"])
    with pytest.raises(SystemExit, match="^error: 'torch' cannot be published"):
        main([str(folder), "alice/mixer", "--with", "torch"])


def run_block(release, capsys) -> str:
    """Run what the card of a release for `me/mixer` at `v1` says on ONNX Runtime, and return what it prints."""
    (block,) = re.findall(r"```python\n([^`]*exporters.*?)```", (release / "README.md").read_text(), re.DOTALL)
    assert block.count('"me/mixer", subfolder="onnx", revision="v1"') == 2
    exec(block.replace("me/mixer", str(release)).replace('"v1"', '"main"'), {})
    return capsys.readouterr().out


@needs_onnx
@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_block_of_the_card_gives_the_answer_of_the_model(problem_type, with_onnx, release, capsys):
    for path in (with_onnx / "config.json", with_onnx / "onnx" / "config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "problem_type": problem_type}))
    prepare_release(with_onnx, release, "me/mixer", "v1", extras=["onnx"])
    printed = ast.literal_eval(run_block(release, capsys).replace("plane\n", "'plane'"))
    answers = pipeline("image-classification", str(with_onnx))(Image.new("RGB", (640, 480), "tan"))
    scores = {answer["label"]: answer["score"] for answer in answers}
    if problem_type == "single_label_classification":
        assert printed == answers[0]["label"]
    elif problem_type == "multi_label_classification":
        assert printed == pytest.approx(scores, rel=1e-5)
    else:
        assert printed[0] == pytest.approx([scores[label] for label in LABELS], rel=1e-5)


@needs_onnx
def test_the_block_of_a_card_runs_on_grey_images(tmp_path, release, capsys):
    folder = save_classifier(tmp_path / "mixer", LABELS, num_channels=1)
    MixerImageProcessorPil(size=16, num_channels=1).save_pretrained(folder)
    prepare_release(folder, release, "me/mixer", "v1", extras=["onnx"])
    answers = pipeline("image-classification", str(folder))(Image.new("L", (640, 480), 128))
    assert run_block(release, capsys) == f"{answers[0]['label']}\n"


@needs_onnx
@needs_export("openvino")
def test_the_card_lists_what_runs_where(folder, release):
    def add(format, programs):
        (release / format / "onnx").mkdir(parents=True)
        record = {"format": format, "programs": {dtype: name for dtype, (name, _) in programs.items()}}
        (release / format / "export.json").write_text(json.dumps({"hf_mixer": record}))
        for name, size in programs.values():
            (release / format / name).write_bytes(bytes(size))

    add("transformers.js", {"float32": ("onnx/model.onnx", 4000), "int8": ("onnx/model_quantized.onnx", 999)})
    add("openvino", {"float16": ("openvino_model.xml", 1500)})
    (release / "openvino" / "openvino_model.bin").write_bytes(bytes(2_000_000))
    add("onnx", {"float32": ("model.onnx", 1_234_567)})
    card = create_card(folder, "me/mixer", "v1", release)
    position, text = 0, " ".join(card.text.split())
    for passage in (
        "| `onnx` | ONNX Runtime | float32 | 1.2 MB |",
        "| `openvino` | OpenVINO | float16 | 2.0 MB |",
        "| `transformers.js` | transformers.js | fp32, q8 | 4.0 kB, 999 B |",
        'model = ExportedModel.from_pretrained("me/mixer", subfolder="onnx", revision="v1") ',
        "With OpenVINO, `pip install openvino`, it is ",
        'subfolder="openvino", revision="v1", device="cpu", config={"INFERENCE_PRECISION_HINT": "f32"})',
        'env.remotePathTemplate = "{model}/resolve/v1/transformers.js/";',
        'pipeline("image-classification", "me/mixer", { dtype: "q8" });',
    ):
        assert passage in text[position:]
        position = text.index(passage, position)
    # The Hub would show how to load the root of a repository with that tag
    assert {"onnx", "openvino"} <= set(card.data.tags)
    assert "transformers.js" not in card.data.tags


def test_the_card_of_a_release_without_exports_is_that_of_before(folder, release):
    plain = create_card(folder, "me/mixer", "v1")
    assert str(create_card(folder, "me/mixer", "v1", release)) == str(plain)
    for absent in ("other runtimes", "On a server", "ExportedModel", "handler.py"):
        assert absent not in plain.text
