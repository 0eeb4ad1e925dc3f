"""What of a trained folder goes up, and what must not."""

import json
import re

import pytest
from safetensors.torch import load_file, save_file

from hf_mixer.publishing import create_card, save_card
from hf_mixer.publishing.release import prepare_release
from hf_mixer.utils import hide_tokens


TOKEN = "hf_" + "a1" * 12


def test_only_what_is_on_the_list_goes_up(folder, release, names):
    left_out = prepare_release(folder, release, "alice/mixer")
    assert {path.name for path in release.iterdir()} == names
    assert left_out == [".env", "checkpoint-3/", "notes.py", "optimizer.pt", "training_args.bin"]
    for name in names - {"README.md"}:
        assert (release / name).read_bytes() == (folder / name).read_bytes()
    assert "alice/mixer" in (release / "README.md").read_text()


def test_a_readme_of_your_own_goes_up_as_it_is_with_the_card_beside_it(folder, release, names):
    (folder / "README.md").write_text("# Mine\n")
    assert "README.md" not in prepare_release(folder, release, "alice/mixer")
    assert {path.name for path in release.iterdir()} == names | {"MODEL_CARD.md"}
    assert (release / "README.md").read_text() == "# Mine\n"
    assert "alice/mixer" in (release / "MODEL_CARD.md").read_text()


def test_a_generated_card_in_the_folder_is_made_anew_for_the_repository(folder, release, names):
    save_card(create_card(folder), folder)
    local = (folder / "README.md").read_text()
    prepare_release(folder, release, "alice/mixer")
    assert {path.name for path in release.iterdir()} == names
    assert "alice/mixer" in (release / "README.md").read_text()
    assert (folder / "README.md").read_text() == local


def test_weights_in_several_files_go_up(folder, release):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict(zip(["a", "b"], names))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    prepare_release(folder, release, "alice/mixer")
    assert {path.name for path in release.glob("*.safetensors*")} == {*names, "model.safetensors.index.json"}


def test_a_dry_run_names_what_would_go_up_and_sends_nothing(publish, hub, folder, names, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    output = publish("alice/mixer", "--dry-run")
    assert set(re.findall(r"^ +\S+ k?B  (\S+\.\w+)", output, re.MULTILINE)) == names
    assert f"{(folder / 'model.safetensors').stat().st_size / 1000:.1f} kB  model.safetensors\n" in output
    assert "README.md  (made from the folder)\n" in output
    assert "names no licence" in output
    assert 'Write it under "About this model"' in output
    assert "Stays behind: .env, checkpoint-3/, notes.py, optimizer.pt, training_args.bin\n" in output
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "holds no weights"),
        ("config.json", None, "holds no config.json"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", '{"architectures": ["ViTModel"]}', "holds no Mixer"),
        ("preprocessor_config.json", None, "holds no preprocessor_config.json"),
        ("preprocessor_config.json", "{}", "names no code"),
        ("resizing_mixer.py", None, "lacks resizing_mixer.py"),
        ("all_results.json", f'{{\n"command": "{TOKEN}"}}', "all_results.json, line 2, holds a Hugging Face token"),
        ("README.md", f"# Mine\n{TOKEN}", "README.md, line 2, holds a Hugging Face token"),
        ("all_results.json", "hf_alice_write", "all_results.json, line 1, holds the token in use"),
        ("all_results.json", "train.py --hub_token=mysecretpass", "holds the value of a token"),
        ("all_results.json", "WANDB_API_KEY=" + "0a" * 20, "holds an API key"),
        ("all_results.json", "https://me:mine@example.org", "holds a password in an address"),
        ("all_results.json", TOKEN.encode("utf-16"), "holds a Hugging Face token"),
    ],
)
def test_unfit_folders_are_refused_before_anything_is_sent(name, content, message, publish, hub, folder):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in publish("alice/mixer", refused=True)
    assert not any(request.startswith(("POST", "PUT")) for request in hub.requests)


def test_a_token_in_the_header_of_the_weights_is_found(folder, release):
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"by": TOKEN})
    with pytest.raises(ValueError, match="model.safetensors, line 1, holds a Hugging Face token"):
        prepare_release(folder, release, "alice/mixer")


def test_hidden_tokens_are_no_secrets(folder, release):
    command = hide_tokens("python train.py --hub_token=mysecretpass --token 'mysecretpass' --seed 1")
    assert "mysecretpass" not in command
    (folder / "all_results.json").write_text(json.dumps({"command": command}))
    prepare_release(folder, release, "alice/mixer")
