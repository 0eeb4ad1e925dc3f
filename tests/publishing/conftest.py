"""A trained folder, a Hub to publish it on, and the command that does it, for the tests of this room."""

import pytest
from huggingface_hub import HfApi
from PIL import Image

from hf_mixer.commands.publish import main
from tests.helpers import REMOTE_CODE, save_classifier
from tests.hub_server import LoopbackHub


LABELS = ["plane", "sea | lake", "`quoted`"]


@pytest.fixture
def folder(tmp_path):
    """A folder as training leaves it behind, with what must not leave the machine."""
    folder = tmp_path / "digits-mixer"
    save_classifier(folder, LABELS)
    (folder / "all_results.json").write_text('{"eval_accuracy": 0.9}')
    Image.new("RGB", (30, 30), "red").save(folder / "confusion_matrix.png")
    for name in (".env", "optimizer.pt", "training_args.bin", "notes.py"):
        (folder / name).write_text("not for others")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_text("not for others")
    return folder


@pytest.fixture
def names():
    """What of that folder goes up."""
    results = {"all_results.json", "confusion_matrix.png", "README.md"}
    return REMOTE_CODE | {"config.json", "model.safetensors", "preprocessor_config.json"} | results


@pytest.fixture
def release(tmp_path):
    """An empty directory."""
    (tmp_path / "release").mkdir()
    return tmp_path / "release"


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process speaks to, as alice, who may write. Nobody waits before another try."""
    with LoopbackHub() as hub:
        # huggingface_hub reads the environment once, when it is imported
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        address = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", HfApi(endpoint=hub.endpoint))
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", "hf_alice_write")
        yield hub


@pytest.fixture
def publish(hub, folder, monkeypatch, capsys):
    """Run `hf-mixer publish` here, without the process that loads the files, and return what it printed, or its one line."""
    monkeypatch.setattr("hf_mixer.publishing.remote_code.check_remote_code", lambda source, folder, task: None)

    def read():
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def run(repo_id, *options, refused=False):
        before = read()
        if refused:
            with pytest.raises(SystemExit) as exit:
                main([str(folder), repo_id, *options])
            output = exit.value.code
            assert output.startswith("error: ")
            assert "\n" not in output
        else:
            main([str(folder), repo_id, *options])
            output = capsys.readouterr().out
        assert read() == before
        return output

    return run
