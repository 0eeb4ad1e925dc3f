"""Publishing: what goes to the Hub, what comes back, and what happens when it goes wrong."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from transformers import Trainer, TrainingArguments
from transformers.modelcard import TrainingSummary

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.publishing.release import prepare_release
from hf_mixer.publishing.remote_code import check_as_stranger
from tests.helpers import ROOT
from tests.hub_server import LoopbackHub


SCRIPT = ROOT / "scripts" / "publish.py"
CONFIG = dict(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, token_mlp_dim=8, channel_mlp_dim=32)
CODE = {
    "configuration_mixer.py",
    "modeling_mixer.py",
    "layers_mixer.py",
    "resizing_mixer.py",
    "image_processing_mixer.py",
    "image_processing_pil_mixer.py",
}
FILES = CODE | {
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "all_results.json",
    "confusion_matrix.png",
    "README.md",
}
STRAY = {".env", "optimizer.pt", "training_args.bin", "notes.py", "checkpoint-3", "README.md"}


def make_folder(folder: Path) -> Path:
    """A folder as training leaves it behind, with what must not leave the machine."""
    torch.manual_seed(0)
    MixerForImageClassification(MixerConfig(num_labels=3, **CONFIG)).save_pretrained(folder)
    MixerImageProcessorPil(size=16).save_pretrained(folder)
    (folder / "all_results.json").write_text('{"eval_accuracy": 0.9}')
    Image.new("RGB", (30, 30), "red").save(folder / "confusion_matrix.png")
    for name in STRAY - {"checkpoint-3"}:
        (folder / name).write_text("not for others")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_text("not for others")
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blob(folder: Path, name: str = "model.safetensors") -> str:
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "folder")


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("publish_script", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process speaks to, as alice, who may write. Nobody waits before another try."""
    with LoopbackHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        address = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", "hf_alice_write")
        yield hub


@pytest.fixture
def publish(hub, script, folder, monkeypatch, capsys):
    """Run the script here, without the process of a stranger, and return what it printed, or its one line."""
    monkeypatch.setattr(script, "check_as_stranger", lambda folder, files: None)

    def run(*arguments, refused=False):
        monkeypatch.setattr(sys, "argv", ["publish.py", str(folder), *arguments])
        before = read(folder)
        if refused:
            with pytest.raises(SystemExit) as exit:
                script.main()
            output = exit.value.code
            assert output.startswith("error: ")
            assert "\n" not in output
        else:
            script.main()
            output = capsys.readouterr().out
        assert read(folder) == before
        return output

    return run


def commit_of(output: str) -> str:
    return re.search(r'revision="([0-9a-f]{40})"', output)[1]


def run_stranger(hub, home: Path, code: str, offline: bool = False) -> list[str]:
    """Run code in a process without hf_mixer, with the Hub as its environment names it, and return what it printed."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_TOKEN": "hf_alice_write",
    }
    code = "import sys; sys.modules['hf_mixer'] = None\n" + code
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_stranger_loads_what_was_published_by_commit_tag_and_pull_request(
    tmp_path, publish, hub, folder, script, monkeypatch
):
    monkeypatch.setattr(script, "check_as_stranger", check_as_stranger)
    # The Hub stumbles at every step
    hub.fail(r"^GET /api/whoami", 503)
    hub.fail(r"^PUT .*" + blob(folder), "drop")
    hub.fail(r"^POST .*/commit/", 503)
    commit = commit_of(publish("alice/mixer", "--private", "--tag", "v1"))
    assert hub.files("alice/mixer", commit).keys() == FILES | {".gitattributes"}
    assert hub.files("alice/mixer", "v1")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(hub.repos["alice/mixer"].commits) == 2
    assert set(hub.uploads.values()) == {1}

    monkeypatch.setattr(script, "check_as_stranger", lambda folder, files: None)
    (folder / "all_results.json").write_text('{"eval_accuracy": 0.95}')
    publish("alice/mixer", "--create-pr")

    image = tmp_path / "red.png"
    Image.new("RGB", (20, 20), "red").save(image)
    code = f"""
import json
from transformers import pipeline
for revision in {commit!r}, "v1", "refs/pr/1":
    classifier = pipeline("image-classification", "alice/mixer", revision=revision, trust_remote_code=True)
    print(json.dumps(classifier({str(image)!r})))
"""
    online = run_stranger(hub, tmp_path / "stranger", code)
    assert len(online) == 3
    assert len(set(online)) == 1
    assert len(json.loads(online[0])) == 3
    requests = len(hub.requests)
    offline = run_stranger(hub, tmp_path / "stranger", code, offline=True)
    assert offline == online
    assert len(hub.requests) == requests


def test_folder_that_a_stranger_cannot_run_is_refused(folder):
    code = (folder / "layers_mixer.py").read_text()
    changed = code.replace("self.drop_path(hidden_states) + residual", "self.drop_path(hidden_states) - residual")
    assert changed != code
    (folder / "layers_mixer.py").write_text(changed)
    with pytest.raises(ValueError, match="logits differ"):
        check_as_stranger(folder, prepare_release(folder, "alice/mixer").files)


def test_second_publication_sends_only_what_changed(publish, hub, folder):
    first = commit_of(publish("mixer"))
    assert hub.files("alice/mixer").keys() == FILES | {".gitattributes"}
    assert hub.files("alice/mixer")["README.md"] != b"not for others"

    hub.requests.clear()
    output = publish("mixer")
    assert "nothing was sent" in output
    assert commit_of(output) == first
    assert not any("/preupload/" in request or "/commit/" in request for request in hub.requests)

    (folder / "all_results.json").write_text('{"eval_accuracy": 0.95}')
    output = publish("mixer")
    assert "Changed all_results.json\n" in output
    assert hub.files("alice/mixer")["all_results.json"] == b'{"eval_accuracy": 0.95}'
    assert hub.files("alice/mixer", first)["all_results.json"] == b'{"eval_accuracy": 0.9}'
    assert set(hub.uploads.values()) == {1}


def test_dry_run_names_what_would_go_up_and_sends_nothing(publish, hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    output = publish("alice/mixer", "--dry-run")
    listed = dict(re.findall(r"^ +(\S+ \S+)  (\S+\.\w+)\b", output, re.MULTILINE))
    assert set(listed.values()) == FILES
    assert f"{(folder / 'model.safetensors').stat().st_size / 1000:.1f} kB  model.safetensors" in output
    stays = output.split("Stays behind: ")[1].splitlines()[0].split(", ")
    assert set(stays) == STRAY - {"README.md", "checkpoint-3"} | {"checkpoint-3/"}
    assert hub.requests == []


def test_branch_tag_and_pull_request(publish, hub, folder):
    publish("alice/mixer", "--revision", "dev", "--tag", "v1")
    assert hub.files("alice/mixer", "main").keys() == {".gitattributes"}
    assert hub.files("alice/mixer", "v1") == hub.files("alice/mixer", "dev")
    assert hub.files("alice/mixer", "dev").keys() >= FILES
    publish("alice/mixer", "--revision", "dev", "--tag", "v1")

    (folder / "all_results.json").write_text("{}")
    commits = len(hub.repos["alice/mixer"].commits)
    uploads = dict(hub.uploads)
    message = publish("alice/mixer", "--revision", "dev", "--tag", "v1", refused=True)
    assert "has a tag v1 already" in message
    assert "--revision has to be a branch, but v1 is a tag" in publish("alice/mixer", "--revision", "v1", refused=True)
    assert "exists and is public" in publish("alice/mixer", "--private", refused=True)
    assert len(hub.repos["alice/mixer"].commits) == commits
    assert hub.uploads == uploads

    # Another pull request with the same content would only be noise
    first = publish("alice/mixer", "--create-pr")
    assert publish("alice/mixer", "--create-pr").splitlines()[-4:] == first.splitlines()[-4:]
    assert sum(ref.startswith("refs/pr/") for ref in hub.repos["alice/mixer"].refs) == 1
    assert hub.files("alice/mixer", "main").keys() == {".gitattributes"}


def test_pull_request_to_somebody_else(publish, hub):
    huggingface_hub.HfApi(token="hf_bob_write").create_repo("bob/mixer")
    output = publish("bob/mixer", "--create-pr")
    assert f"{hub.endpoint}/bob/mixer/discussions/1\n" in output
    assert hub.files("bob/mixer", "refs/pr/1").keys() == FILES | {".gitattributes"}
    assert hub.files("bob/mixer").keys() == {".gitattributes"}


@pytest.mark.parametrize("create_pr", [False, True])
def test_lost_answer_makes_no_second_commit(create_pr, publish, hub):
    hub.fail(r"^POST .*/commit/", "lost")
    output = publish("alice/mixer", *(["--create-pr"] if create_pr else []))
    assert len(hub.repos["alice/mixer"].commits) == 2
    assert hub.files("alice/mixer", commit_of(output)).keys() >= FILES
    assert ("discussions/1" in output) == create_pr


@pytest.mark.parametrize("how", [503, "drop"])
@pytest.mark.parametrize("request_pattern", [r"^PUT .*", r"^POST .*/commit/", r"^GET /storage/"])
def test_the_same_command_finishes_what_was_interrupted(request_pattern, how, publish, hub, folder):
    pattern = request_pattern + (blob(folder) if request_pattern.startswith("^PUT") else "")
    hub.fail(pattern, how, times=1000)
    message = publish("alice/mixer", "--tag", "v1", refused=True)
    assert "run the same command again" in message

    hub.failures.clear()
    output = publish("alice/mixer", "--tag", "v1")
    assert hub.files("alice/mixer", "v1").keys() == FILES | {".gitattributes"}
    assert commit_of(output) == hub.repos["alice/mixer"].refs["refs/heads/main"]
    assert len(hub.repos["alice/mixer"].commits) == 2
    assert hub.uploads == {blob(folder): 1, blob(folder, "confusion_matrix.png"): 1}


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, "alice/mixer", "no token for the Hub: log in"),
        ("hf_alice_read", "alice/mixer", "the token of alice only reads"),
        ("hf_alice_expired", "alice/mixer", "the token is not valid or has expired"),
        ("hf_alice_write", "bob/mixer", "the token does not allow this on bob/mixer"),
        ("hf_alice_write", "bob/other", "the token does not allow this on bob/other"),
        ("hf_alice_write", "alice/a b", "alice/a b"),
        ("hf_alice_write", "alice/a/b", "alice/a/b"),
    ],
)
def test_refusals_are_one_line(token, repo_id, message, publish, hub, monkeypatch):
    huggingface_hub.HfApi(token="hf_bob_write").create_repo("bob/mixer")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_STORED_TOKENS_PATH", "nowhere")
    hub.requests.clear()
    assert message in publish(repo_id, *(["--token", token] if token else []), refused=True)
    assert hub.repos.keys() == {"bob/mixer"}
    assert len(hub.repos["bob/mixer"].commits) == 1
    assert not hub.uploads


def test_unreachable_and_offline_are_one_line(publish, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "the connection to the Hub failed" in publish("alice/mixer", refused=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in publish("alice/mixer", refused=True)


def test_a_commit_of_somebody_else_in_the_meantime_is_kept(publish, hub, script, monkeypatch):
    publish("alice/mixer", "--revision", "dev")
    api = huggingface_hub.HfApi()
    send = huggingface_hub.HfApi.create_commit

    def overtaken(*arguments, **options):
        monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", send)
        operation = huggingface_hub.CommitOperationAdd("notes.txt", b"mine")
        api.create_commit("alice/mixer", [operation], commit_message="notes")
        return send(*arguments, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", overtaken)
    assert "has received another commit in the meantime" in publish("alice/mixer", refused=True)
    assert hub.files("alice/mixer").keys() == {".gitattributes", "notes.txt"}
    output = publish("alice/mixer")
    assert "Also in the repository, not from this folder: notes.txt" in output
    assert hub.files("alice/mixer").keys() == FILES | {".gitattributes", "notes.txt"}


def test_a_full_disk_and_a_wrong_file_are_named(publish, hub, monkeypatch):
    download = huggingface_hub.HfApi.hf_hub_download

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", full)
    assert "the disk is full" in publish("alice/mixer", refused=True)

    def corrupt(self, repo_id, name, **options):
        path = download(self, repo_id, name, **options)
        if name == "config.json":
            Path(path).write_text("{}")
        return path

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", corrupt)
    assert "config.json differs" in publish("alice/mixer", refused=True)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "holds no preprocessor_config.json"),
        (lambda folder: (folder / "resizing_mixer.py").unlink(), "lacks resizing_mixer.py"),
        (lambda folder: (folder / "config.json").write_text('{"architectures": ["MixerModel"]}'), "push_to_hub"),
        (
            lambda folder: (folder / "all_results.json").write_text('{\n"command": "--token hf_' + "a1" * 12 + '"}'),
            "all_results.json, line 2, holds a Hugging Face token",
        ),
        (
            lambda folder: (folder / "all_results.json").write_text("hf_alice_write"),
            "all_results.json, line 1, holds the token in use",
        ),
        (
            lambda folder: (folder / "all_results.json").write_text("train.py --hub_token=mysecretpass"),
            "holds the value of a token",
        ),
        (
            lambda folder: (folder / "all_results.json").write_text("WANDB_API_KEY=" + "0a" * 20),
            "holds an API key",
        ),
        (
            lambda folder: (folder / "all_results.json").write_text("https://me:mine@example.org"),
            "holds a password in an address",
        ),
        (
            lambda folder: (folder / "all_results.json").write_bytes(("hf_" + "a1" * 12).encode("utf-16")),
            "holds a Hugging Face token",
        ),
        (
            lambda folder: save_file(
                load_file(folder / "model.safetensors"), folder / "model.safetensors", {"by": "hf_" + "a1" * 12}
            ),
            "model.safetensors, line 1, holds a Hugging Face token",
        ),
    ],
)
def test_unfit_folders_are_refused_before_anything_is_sent(damage, message, publish, hub, folder):
    damage(folder)
    assert message in publish("alice/mixer", refused=True)
    assert not any(request.startswith(("POST", "PUT")) for request in hub.requests)


def test_card_that_the_hub_refuses_stops_all(publish, hub, monkeypatch):
    card = huggingface_hub.ModelCard("---\nlicense: [mit, 3]\n---\n# Mixer")
    monkeypatch.setattr("hf_mixer.publishing.card.create_card", lambda folder, **options: card)
    message = publish("alice/mixer", refused=True)
    assert message == 'error: the Hub refuses the metadata of the card: "license" must be a string. Nothing was sent.'
    assert not hub.repos


@pytest.mark.parametrize(
    "options",
    [
        ["--tag", "bad tag"],
        ["--tag", ""],
        ["--tag", "main"],
        ["--revision", "bad name"],
        ["--revision", "a..b"],
        ["--revision", "refs/pr/9"],
        ["--create-pr", "--tag", "v1"],
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_is_made(options, publish, hub):
    assert "Nothing was sent" in publish("alice/mixer", *options, refused=True)
    assert not hub.repos


def test_a_closed_pull_request_is_opened_anew(publish, hub, folder, monkeypatch):
    publish("alice/mixer")
    (folder / "all_results.json").write_text('{"eval_accuracy": 0.91}')
    publish("alice/mixer", "--create-pr")
    publish("alice/mixer", "--create-pr")
    assert "refs/pr/2" not in hub.repos["alice/mixer"].refs
    monkeypatch.setattr(
        huggingface_hub.HfApi, "get_discussion_details", lambda self, repo_id, number: SimpleNamespace(status="closed")
    )
    publish("alice/mixer", "--create-pr")
    assert "refs/pr/2" in hub.repos["alice/mixer"].refs


def test_a_short_outage_while_comparing_is_waited_for(publish, hub):
    hub.fail("GET /alice/mixer/resolve", 503)
    hub.fail("HEAD /alice/mixer/resolve", "drop")
    publish("alice/mixer", "--tag", "v1")
    assert "refs/tags/v1" in hub.repos["alice/mixer"].refs


def test_a_token_given_to_the_training_is_not_published(hub, tmp_path):
    from tests.helpers import make_trainer

    trainer = make_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="alice/run", hub_token="hf_alice_write")
    trainer.save_model()
    assert trainer.args.hub_token == "hf_alice_write"
    trainer.push_to_hub()
    pushed = hub.files("alice/run")
    assert "training_args.bin" in pushed
    assert not [name for name, content in pushed.items() if b"hf_alice_write" in content]


def test_push_to_hub_works_as_for_any_model(hub, folder, tmp_path, monkeypatch):
    api = huggingface_hub.HfApi(endpoint=hub.endpoint, token="hf_alice_write")
    monkeypatch.setattr("transformers.utils.hub._hf_api", api)
    model = MixerForImageClassification.from_pretrained(folder)
    processor = MixerImageProcessorPil.from_pretrained(folder)
    model.push_to_hub("alice/pushed", private=True)
    processor.push_to_hub("alice/pushed")
    arguments = TrainingArguments(tmp_path / "trained", push_to_hub=True, hub_model_id="alice/trained", report_to=[])
    trainer = Trainer(model, arguments, processing_class=processor)
    trainer.push_to_hub()

    assert hub.repos["alice/pushed"].private
    for repo_id in ("alice/pushed", "alice/trained"):
        pushed = hub.files(repo_id)
        assert pushed.keys() >= CODE | {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
        api.snapshot_download(repo_id, local_dir=tmp_path / repo_id)
        pulled = MixerForImageClassification.from_pretrained(tmp_path / repo_id)
        assert torch.equal(pulled.classifier.weight, model.classifier.weight)
    card = hub.files("alice/pushed")["README.md"].decode()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "pipeline_tag: image-classification" in card
    assert "## How to use it" in card
    assert "More Information Needed" not in card
    # A card that somebody has begun to fill in stays theirs
    begun = huggingface_hub.ModelCard.from_template(huggingface_hub.ModelCardData(), model_description="My photos.")
    api.upload_file(path_or_fileobj=str(begun).encode(), path_in_repo="README.md", repo_id="alice/pushed")
    model.classifier.bias.data += 1
    model.push_to_hub("alice/pushed")
    assert "My photos." in hub.files("alice/pushed")["README.md"].decode()
    assert TrainingSummary.from_trainer(trainer).tasks == "image-classification"
