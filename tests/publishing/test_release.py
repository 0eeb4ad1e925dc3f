"""What of a trained folder goes up, and what must not."""

import json
import os
import re
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_mixer.evaluation.examples import save_image
from hf_mixer.publishing import create_card, save_card
from hf_mixer.publishing.private import refuse_private
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
    assert "nobody may use the model: give --license" in output
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
        ("processor_config.json", "{}", "or replaces what does: remove it"),
        ("resizing_mixer.py", None, "lacks resizing_mixer.py"),
        ("all_results.json", f'{{\n"command": "{TOKEN}"}}', "all_results.json, line 2, holds a Hugging Face token"),
        ("README.md", f"# Mine\n{TOKEN}", "README.md, line 2, holds a Hugging Face token"),
        ("all_results.json", "hf_alice_write", "all_results.json, line 1, holds the token in use"),
        ("all_results.json", "train.py --hub_token=mysecretpass", "holds the value of a token"),
        ("all_results.json", "WANDB_API_KEY=" + "0a" * 20, "holds an API key, a password or a token"),
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


def make_folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    "name", ["LICENSE", "config.json", "README.md", "mistakes.png", "modeling_mixer.py", "model.safetensors"]
)
@pytest.mark.parametrize(
    ("put", "message"),
    [
        (
            lambda path: path.symlink_to("/etc/passwd"),
            "is a link to /etc/passwd, and only files of the folder itself go up",
        ),
        (os.mkfifo, "is a named pipe, and only files go up"),
        (make_folder, "is a folder, and only files go up"),
    ],
)
def test_what_is_no_file_of_the_folder_is_neither_opened_nor_sent(name, put, message, publish, hub, folder):
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    assert f"{name} {message}" in publish("alice/mixer", "--with", "handler", refused=True)
    assert hub.requests == []


def test_a_folder_in_the_cache_of_the_hub_is_refused_with_the_way_out(publish, folder):
    blob = folder.parent / "blob"
    (folder / "config.json").rename(blob)
    (folder / "config.json").symlink_to("../blob")
    assert "hf download REPO_ID --local-dir FOLDER" in publish("alice/mixer", "--dry-run", refused=True)


@pytest.mark.parametrize(
    "shard", ["/etc/model.safetensors", "../model.safetensors", "a/model.safetensors", "passwd", 3]
)
def test_weights_outside_of_the_folder_are_refused(shard, publish, hub, folder):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    message = publish("alice/mixer", refused=True)
    assert f"names weights in {str(shard)!r}: expected .safetensors files beside it" in message
    assert hub.requests == []


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "a/b--evil.C"}}, "takes code from another repository"),
        (
            "preprocessor_config.json",
            {"auto_map": {"AutoImageProcessor": {"pil": "a/b--evil.C"}}},
            "another repository",
        ),
        ("config.json", {"auto_map": {"AutoConfig": "../evil.C"}}, "elsewhere than beside it (auto_map: ../evil.C)"),
        (
            "preprocessor_config.json",
            {"auto_map": {"AutoImageProcessor": ["a/b.C", None]}},
            "elsewhere than beside it",
        ),
        ("config.json", {"auto_map": {"AutoConfig": "evil.C"}}, "evil.py is not the code of this version of hf_mixer"),
        ("config.json", {"custom_pipelines": {}}, "has custom_pipelines, which can load what does not go up"),
        ("config.json", {"configuration_files": ["config.9.json"]}, "has configuration_files"),
        ("config.json", {"transformers_weights": "sub/x.safetensors"}, "has transformers_weights"),
    ],
)
def test_code_from_elsewhere_is_refused_before_anything_runs(file, fields, message, publish, hub, folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))
    assert message in publish("alice/mixer", "--dry-run", refused=True)
    assert not (folder / "ran").exists()
    assert hub.requests == []


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"id2label": {"0": "a", "1": "b", "5": "c"}}, "has to name the labels from 0 on by texts"),
        ("config.json", {"id2label": {"0": "a", "1": 3}}, "has to name the labels from 0 on by texts"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers=1,000,000,000, and up to 1,000"),
        (
            "config.json",
            {"hidden_size": 50_000, "channel_mlp_dim": 90_000, "num_hidden_layers": 900},
            r"a model of 8,1\d\d,\d{3},\d{3},\d{3} parameters, and the weights beside it have \d",
        ),
        ("preprocessor_config.json", {"size": {"height": 8, "width": 10**6}}, "size=1,000,000, and up to 16,384"),
    ],
)
def test_settings_that_ask_for_too_much_are_refused_before_anything_is_made(file, fields, message, folder, release):
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))
    with pytest.raises(ValueError, match=message):
        prepare_release(folder, release, "alice/mixer")
    assert not list(release.iterdir())


def save_with_place(path):
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    Image.new("RGB", (30, 30)).save(path, exif=exif)


def save_with_comment(path):
    Image.new("RGB", (30, 30)).save(path, comment="by alice")


def save_script(path):
    Image.new("RGB", (30, 30)).save(path, "EPS")


def save_huge_picture(path):
    # A header with 20,000 x 10,000 pixels
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4))


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        (
            "example.jpg",
            save_with_place,
            r"has more in it than its pixels \(APP1, exif\).*`hf-mixer evaluate` saves another",
        ),
        ("example.png", save_with_place, "has more in it than its pixels"),
        ("example.jpg", save_with_comment, "has more in it than its pixels"),
        ("example.jpg", save_script, "is not a picture of type JPEG"),
        ("mistakes.png", save_script, "is not a picture of type PNG"),
        ("example.png", save_huge_picture, "has more than 50,000,000 pixels"),
    ],
)
def test_pictures_that_are_none_or_say_more_than_they_show_are_refused(name, save, message, folder, release):
    save(folder / name)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        prepare_release(folder, release, "alice/mixer")


@pytest.mark.parametrize("name", ["example.jpg", "example.png"])
def test_an_example_as_evaluation_saves_it_goes_up(name, folder, release):
    size = 600 if name.endswith("jpg") else 30
    assert save_image(Image.new("RGB", (size, size), "red"), folder).name == name
    prepare_release(folder, release, "alice/mixer")
    assert (release / name).exists()


def test_changed_code_goes_up_only_where_it_is_trusted(publish, hub, folder):
    code = folder / "layers_mixer.py"
    own = code.read_bytes()
    code.write_bytes(own.replace(b"\n", b"\r\n"))
    publish("alice/mixer", "--dry-run")
    code.write_bytes(own + b"# mine\n")
    message = publish("alice/mixer", "--dry-run", refused=True)
    assert re.search("layers_mixer.py is not the code of this version.* `save_pretrained` .*--trust-code", message)
    publish("alice/mixer", "--trust-code")
    assert hub.files("alice/mixer")["layers_mixer.py"] == own + b"# mine\n"
    code.write_bytes(own + b"from ..other import x\n")
    assert "imports ..other, which is not beside it" in publish("alice/mixer", "--trust-code", refused=True)


KEY = "0a1b" * 10


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        (f"aws_secret_access_key = {KEY}", True),
        (f"AWS_SECRET_ACCESS_KEY={KEY}", True),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", True),
        (f"WANDB_API_KEY: {KEY}", True),
        (f'"WANDB_API_KEY": "{KEY}"', True),
        (f'{{\\"wandb_api_key\\": \\"{KEY}\\"}}', True),
        (f"export wandb_api_key='{KEY}'", True),
        ("password: hunter22hunter", True),
        ('db_password = "correct-horse"', True),
        ("password = correcthorse", True),
        ("client-secret: 8f14e45fceea", True),
        (f"token: {KEY}", True),
        ("auth_token = abcd1234efgh", True),
        (f"Authorization: Bearer {KEY}", True),
        ("OPENAI_KEY=abcdefgh12345678", True),
        ("{user: alice, password: hunter22hunter}", True),
        ("glpat-" + KEY, True),
        ("xoxb-123456789012-" + KEY, True),
        ("AIza" + KEY, True),
        ("pypi-AgEIcHlwaS5vcmc" + KEY, True),
        (f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.{KEY}", True),
        ("token=YOUR_TOKEN", False),
        ("HF_TOKEN=***", False),
        ("HF_TOKEN=your_token_1234", False),
        ("export HF_TOKEN=<token-of-1234>", False),
        ('-H "Authorization: Bearer $HF_TOKEN"', False),
        ('"pad_token": "[PAD]", "eos_token": "<|endoftext|>", "mask_token": "mask_token_1"', False),
        ('"hub_token": null, "secret": false, "password": ""', False),
        ('token = os.environ["HF_TOKEN"]', False),
        ("pipeline(..., token=get_token(), hub_token=args.hub_token2)", False),
        ('"id2label": {"0": "password", "1": "secret"}, "label2id": {"password": 0, "secret": 1}', False),
        ('"token_mlp_dim": 256, "mask_token_id": 12345678', False),
        ("Each token: a patch of 16x16-pixels. The secret: mixing them.", False),
        ("The secret: patience1999", False),
        ("pypi-attestations and task-12345678901234567890", False),
        ("password: ask whoever runs the server", False),
        ("def login(token: str | None = None, password: Optional[str] = None):", False),
    ],
)
def test_secrets_are_told_from_ordinary_text(text, is_secret, tmp_path):
    for content in (text, f"first\n  {text},\nlast", f"{text}\r\n"):
        (tmp_path / "NOTICE").write_text(content)
        if is_secret:
            with pytest.raises(ValueError, match="NOTICE, line ., holds"):
                refuse_private(tmp_path, tmp_path)
        else:
            refuse_private(tmp_path, tmp_path)


def test_no_path_user_or_host_goes_up(folder, release, monkeypatch):
    home = Path.home()
    run = {"command": f"hf-mixer train --train_dir {home}/photos", "base_model": f"{home}/base", "seed": 1}
    (folder / "training_run.json").write_text(json.dumps(run))
    (folder / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": f"{folder}/checkpoint-3"}))
    before = (folder / "training_run.json").read_bytes()
    prepare_release(folder, release, "alice/mixer")
    cleaned = {"command": "hf-mixer train --train_dir photos", "base_model": "./base", "seed": 1}
    assert json.loads((release / "training_run.json").read_text()) == cleaned
    assert json.loads((release / "trainer_state.json").read_text()) == {"best_model_checkpoint": "checkpoint-3"}
    assert (folder / "training_run.json").read_bytes() == before
    assert "--train_dir photos" in (release / "README.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"log": f"{Path.home()}/x"}), "holds the path of your home folder"),
        ("FOLDER/x", "holds the path of the folder"),
        ("on alice-laptop.local", "holds the name of this machine"),
    ],
)
def test_what_only_this_machine_knows_is_refused_but_in_the_words_of_a_person(
    content, message, folder, release, monkeypatch
):
    monkeypatch.setattr("socket.gethostname", lambda: "alice-laptop")
    content = content.replace("FOLDER", str(folder))
    (folder / "README.md").write_text(content)
    (release / "first").mkdir()
    prepare_release(folder, release / "first", "alice/mixer")
    (folder / "all_results.json").write_text(content)
    (release / "second").mkdir()
    with pytest.raises(
        ValueError, match=f"all_results.json, line 1, {message}. Nothing was sent. Remove it from there."
    ):
        prepare_release(folder, release / "second", "alice/mixer")
