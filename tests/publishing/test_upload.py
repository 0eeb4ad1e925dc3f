"""Publishing on a Hub: one commit with what differs, and what happens when it goes wrong."""

import hashlib
import re
from types import SimpleNamespace

import huggingface_hub
import pytest

from hf_mixer import load_checkpoint
from hf_mixer.commands.train import main as train
from hf_mixer.publishing.merging import sign_card
from tests.helpers import make_folder, make_trainer


JSON, PAGE = {"Content-Type": "application/json"}, {"Content-Type": "text/html; charset=utf-8"}


@pytest.fixture
def on_hub(names):
    return names | {".gitattributes"}


def commit_of(output: str) -> str:
    return re.search(r'revision="([0-9a-f]{40})"', output)[1]


def test_second_publication_sends_only_what_changed(publish, hub, on_hub, folder):
    first = commit_of(publish("mixer"))
    assert hub.files("alice/mixer").keys() == on_hub

    hub.requests.clear()
    output = publish("mixer")
    assert "nothing was sent" in output
    assert commit_of(output) == first
    assert not any("/preupload/" in request or "/commit/" in request for request in hub.requests)

    (folder / "all_results.json").write_text('{"eval_accuracy": 0.95}')
    assert "Changed all_results.json\n" in publish("mixer")
    assert hub.files("alice/mixer")["all_results.json"] == b'{"eval_accuracy": 0.95}'
    assert hub.files("alice/mixer", first)["all_results.json"] == b'{"eval_accuracy": 0.9}'
    assert set(hub.uploads.values()) == {1}


def edit_card(hub, old: str, new: str) -> None:
    """Edit README.md on the Hub."""
    card = hub.files("alice/mixer")["README.md"].decode()
    assert old in card
    api = huggingface_hub.HfApi(token="hf_alice_write")
    api.upload_file(path_or_fileobj=card.replace(old, new).encode(), path_in_repo="README.md", repo_id="alice/mixer")


def test_what_was_written_into_the_card_on_the_hub_stays(publish, hub, folder):
    publish("alice/mixer")
    (folder / "training_run.json").write_text('{"hardware": "an abacus"}')
    assert "Changed README.md, training_run.json\n" in publish("alice/mixer")
    edit_card(hub, "## About this model\n", "## About this model\n\nFor counting planes.\n")
    edit_card(hub, "tags:\n", "license: mit\ntags:\n")
    assert "nothing was sent" in publish("alice/mixer")
    for options, branch in (((), "main"), (("--create-pr",), "refs/pr/1")):
        (folder / "training_run.json").write_text(f'{{"hardware": "an abacus for {branch}"}}')
        publish("alice/mixer", *options)
        card = hub.files("alice/mixer", branch)["README.md"].decode()
        for words in ("For counting planes.", "license: mit\n", f"an abacus for {branch}"):
            assert words in card


def test_an_edit_that_contradicts_is_shown_and_nothing_is_sent(publish, hub, folder, capsys):
    publish("alice/mixer")
    edit_card(hub, "| layers | 1 |", "| layers | one |")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    before = hub.files("alice/mixer")
    message = publish("alice/mixer", refused=True)
    assert "section 'architecture'" in message
    assert "-| layers | one |" in capsys.readouterr().out
    assert hub.files("alice/mixer") == before
    publish("alice/mixer", "--overwrite-card")
    assert b"| layers | 1 |" in hub.files("alice/mixer")["README.md"]


def test_a_card_that_changes_while_it_is_renewed_is_not_lost(publish, hub, folder, monkeypatch):
    publish("alice/mixer")
    (folder / "all_results.json").write_text("{}")
    create_repo = huggingface_hub.HfApi.create_repo

    def overtaken(self, repo_id, **options):
        edit_card(hub, "## About this model\n", "## About this model\n\nJust now.\n")
        return create_repo(self, repo_id, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", overtaken)
    assert "has received another commit in the meantime" in publish("alice/mixer", refused=True)
    monkeypatch.undo()


@pytest.fixture
def train_and_push(hub, tmp_path, monkeypatch):
    """Run a tiny `hf-mixer train` that pushes into alice/photos, and return its output folder."""
    monkeypatch.setattr("hf_mixer.training.curves.save_training_curves", lambda *arguments: None)
    photos, output = make_folder(tmp_path / "photos"), tmp_path / "out"
    tiny = "--variant cifar10 --image_size 16 --patch_size 8 --hidden_size 32 --num_hidden_layers 1 --max_steps 2"
    # A worker is a fork, which can wait forever for a lock that the thread which pushes holds meanwhile
    tiny += " --recipe none --save_steps 1 --dataloader_num_workers 0"
    hub_arguments = "--push_to_hub --hub_model_id alice/photos --hub_token hf_alice_write"

    def run():
        train(["--train_dir", str(photos), "--output_dir", str(output), *tiny.split(), *hub_arguments.split()])
        return output

    return run


def test_training_that_pushes_keeps_a_readme_that_somebody_wrote_on_the_hub(hub, train_and_push):
    api = huggingface_hub.HfApi(token="hf_alice_write")
    api.create_repo("alice/photos")
    api.upload_file(path_or_fileobj=b"# Mine", path_in_repo="README.md", repo_id="alice/photos")
    train_and_push()
    for commit in list(hub.repos["alice/photos"].commits)[1:]:
        assert hub.files("alice/photos", commit)["README.md"] == b"# Mine"
    assert b"It sorts images" in hub.files("alice/photos")["MODEL_CARD.md"]


def test_a_trained_model_that_cannot_be_pushed_is_saved_and_the_command_that_sends_it_named(
    hub, train_and_push, tmp_path
):
    hub.fail("POST /api/models/alice/photos/commit", (200, b"{}", JSON), times=100)
    with pytest.raises(SystemExit) as exit:
        train_and_push()
    assert exit.value.code.startswith("error: the Hub answered something that is no answer of a Hub: KeyError")
    assert f"run `hf-mixer publish {tmp_path / 'out'} alice/photos` to finish." in exit.value.code
    assert {"model.safetensors", "training_run.json"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_readme_of_your_own_follows_your_edits(publish, hub, folder):
    for text in ("# Mine\n", "# Mine, and better\n"):
        (folder / "README.md").write_text(text)
        assert "Nothing in README.md was generated, so it stays as it is" in publish("alice/mixer")
        assert hub.files("alice/mixer")["README.md"].decode() == text
    edit_card(hub, "# Mine", "# Mine, on the Hub")
    publish("alice/mixer")
    assert hub.files("alice/mixer")["README.md"] == b"# Mine, on the Hub, and better\n"


def test_the_licence_is_given_or_that_of_the_base_model_or_none(publish, hub, folder):
    def licence(*options):
        publish("alice/mixer", *options)
        return huggingface_hub.ModelCard(hub.files("alice/mixer")["README.md"].decode()).data.license

    api = huggingface_hub.HfApi(token="hf_alice_write")
    api.create_repo("alice/base")
    (folder / "training_run.json").write_text('{"base_model": "alice/base"}')
    assert licence() is None
    api.upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n", path_in_repo="README.md", repo_id="alice/base")
    assert licence() == "mit"
    assert licence("--license", "apache-2.0") == "apache-2.0"
    assert licence() == "apache-2.0"
    edit_card(hub, "license: apache-2.0", "license: bsd")
    assert licence() == "bsd"


def test_a_resized_model_says_what_it_descends_from_and_keeps_saying_so(publish, hub, folder):
    for part in load_checkpoint(folder, image_size=32):
        part.save_pretrained(folder)
    api = huggingface_hub.HfApi(token="hf_alice_write")
    api.create_repo("alice/base")
    api.upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n", path_in_repo="README.md", repo_id="alice/base")
    for options in (["--base_model", "alice/base"], []):
        publish("alice/mixer", *options)
        data = huggingface_hub.ModelCard(hub.files("alice/mixer")["README.md"].decode()).data
        assert (data.base_model, data.base_model_relation, data.license) == ("alice/base", "finetune", "mit")
        assert b"was made from [alice/base]" in hub.files("alice/mixer")["README.md"]
    assert "expected OWNER/NAME" in publish("alice/mixer", "--base_model", "./base", refused=True)


def test_a_card_that_is_no_utf_8_is_refused(publish, folder):
    (folder / "README.md").write_bytes("# F\u00fcr Katzen".encode("latin-1"))
    assert "save it as UTF-8. Nothing was sent." in publish("alice/mixer", refused=True)


def test_a_model_goes_into_a_collection(publish, hub):
    address = "https://huggingface.co/collections/alice/all-mixers-1/"
    for name in ("All / mixers", "All / mixers", "alice/all-mixers-1", address):
        output = publish("mixer", "--collection", name)
        assert f"In the collection {hub.endpoint}/collections/alice/all-mixers-1" in output
    assert hub.collections == {"alice/all-mixers-1": ["alice/mixer"]}
    message = publish("other", "--collection", "alice/none-1", refused=True)
    assert message == "error: the collection alice/none-1: the Hub answered 404 (There is no such collection)"
    assert "alice/other" not in hub.repos


def test_branch_tag_and_pull_request(publish, hub, on_hub, folder):
    publish("alice/mixer", "--revision", "dev", "--tag", "v1")
    assert hub.files("alice/mixer", "main").keys() == {".gitattributes"}
    assert hub.files("alice/mixer", "v1") == hub.files("alice/mixer", "dev")
    assert hub.files("alice/mixer", "dev").keys() == on_hub

    (folder / "all_results.json").write_text("{}")
    commits, uploads = len(hub.repos["alice/mixer"].commits), dict(hub.uploads)
    for options, message in (
        (["--revision", "dev", "--tag", "v1"], "has a tag v1 already"),
        (["--revision", "v1"], "--revision has to be a branch, but v1 is a tag"),
        (["--private"], "exists and is public"),
    ):
        assert message in publish("alice/mixer", *options, refused=True)
    assert len(hub.repos["alice/mixer"].commits) == commits
    assert hub.uploads == uploads

    # Another pull request with the same content would be of no use
    first = publish("alice/mixer", "--create-pr")
    assert publish("alice/mixer", "--create-pr").splitlines()[-4:] == first.splitlines()[-4:]
    assert [ref for ref in hub.repos["alice/mixer"].refs if ref.startswith("refs/pr/")] == ["refs/pr/1"]
    assert hub.files("alice/mixer", "main").keys() == {".gitattributes"}


def test_a_closed_pull_request_is_opened_anew(publish, hub, monkeypatch):
    publish("alice/mixer", "--create-pr")
    monkeypatch.setattr(
        huggingface_hub.HfApi, "get_discussion_details", lambda self, repo_id, number: SimpleNamespace(status="closed")
    )
    publish("alice/mixer", "--create-pr")
    assert "refs/pr/2" in hub.repos["alice/mixer"].refs


def test_pull_request_to_somebody_else(publish, hub, on_hub):
    huggingface_hub.HfApi(token="hf_bob_write").create_repo("bob/mixer")
    assert f"{hub.endpoint}/bob/mixer/discussions/1\n" in publish("bob/mixer", "--create-pr")
    assert hub.files("bob/mixer", "refs/pr/1").keys() == on_hub
    assert hub.files("bob/mixer").keys() == {".gitattributes"}


@pytest.mark.parametrize(
    ("how", "target"),
    [(503, ("--revision", "dev", "--tag", "v1")), ("lost", ("--create-pr",))],
)
def test_whatever_fails_the_same_command_finishes_with_one_commit(how, target, publish, hub, on_hub):
    publish("alice/whole", *target)
    requests = [re.sub("[0-9a-f]{40,}", "HASH", request.split("?")[0]) for request in hub.requests]
    requests = [request for request in dict.fromkeys(requests) if "agent-harnesses" not in request]
    assert len(requests) >= 10
    messages = []
    for number, request in enumerate(requests):
        repo_id = f"alice/broken-{number}"
        pattern = re.escape(request.replace("alice/whole", repo_id)).replace("HASH", "[0-9a-f]{40,}")
        hub.fail(pattern, how)
        try:
            publish(repo_id, *target)
        except SystemExit as exit:
            messages.append(exit.code)
            publish(repo_id, *target)
        assert hub.failures.pop()[2] == 0
        repo = hub.repos[repo_id]
        assert len(repo.commits) == 2
        assert hub.files(repo_id, "refs/pr/1" if target == ("--create-pr",) else "v1").keys() == on_hub
    # The others are tried again by huggingface_hub, more of them in its newer versions
    assert messages
    for message in messages:
        assert re.match("error: (the Hub answered 503|the connection to the Hub failed)", message)
        assert re.search(
            "Nothing was sent: run the same command again.$|kept: run the same command again to finish.$", message
        )


def test_what_arrived_before_a_long_outage_is_not_sent_again(publish, hub, folder):
    blob = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    hub.fail(f"^PUT .*{blob}", "drop", times=1000)
    assert "run the same command again" in publish("alice/mixer", refused=True)
    arrived = dict(hub.uploads)
    assert len(arrived) == 1
    hub.failures.clear()
    publish("alice/mixer")
    assert hub.uploads == {**arrived, blob: 1}
    assert len(hub.repos["alice/mixer"].commits) == 2


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
    assert message in publish(repo_id, *(["--token", token] if token else []), refused=True)
    assert hub.repos.keys() == {"bob/mixer"}
    assert len(hub.repos["bob/mixer"].commits) == 1
    assert not hub.uploads


def test_unreachable_and_offline_are_one_line(publish, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "the connection to the Hub failed" in publish("alice/mixer", refused=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in publish("alice/mixer", refused=True)


@pytest.mark.parametrize(
    ("request_", "answer", "kept"),
    [
        ("GET /api/whoami-v2", b'{"type": "user"}', False),
        ("GET /api/whoami-v2", b"[]", False),
        ("GET /api/models/alice/mixer/refs", b"{}", False),
        ("GET /api/models/alice/mixer/revision", b'{"id": "alice/mixer", "sha": null}', False),
        ("GET /api/models/alice/mixer/tree", b'[{"type": "file", "path": "a"}]', False),
        ("POST /alice/mixer.git/info/lfs", b'"text"', True),
        ("POST /api/models/alice/mixer/commit", b"null", True),
        ("POST /api/models/alice/mixer/commit", b'{"commitUrl": "http', True),
    ],
)
def test_what_is_no_answer_of_a_hub_is_one_line(request_, answer, kept, publish, hub):
    hub.fail(request_, (200, answer, JSON), times=100)
    message = publish("alice/mixer", refused=True)
    assert message.startswith("error: the Hub answered something that is no answer of a Hub: ")
    assert ("What has arrived is kept: run the same command again to finish." in message) == kept
    assert ("Nothing was sent: run the same command again." in message) != kept


@pytest.mark.parametrize("request_", ["GET /api/whoami-v2", "POST /api/models/alice/mixer/branch", "PUT /storage"])
@pytest.mark.parametrize("how", ["page", "status", "redirect"])
def test_a_login_page_of_the_network_is_named_at_once(request_, how, publish, hub):
    elsewhere = {"Location": hub.storage.replace("/storage", "/login")}
    answers = {"page": (200, b"<html>", PAGE), "status": (511, b"<html>", PAGE), "redirect": (302, b"", elsewhere)}
    hub.fail("/login", (200, b"<html>", PAGE), times=100)
    hub.fail(request_, answers[how], times=100)
    message = publish("alice/mixer", "--revision", "dev", refused=True)
    assert re.match(r"error: a login page of the network \((127.0.0.1|localhost)\) answered in place of", message)
    assert sum(bool(re.match(request_, request)) for request in hub.requests) == 1


@pytest.mark.parametrize("endpoint", ["banana", "ftp://huggingface.co"])
def test_an_endpoint_that_is_no_address_is_named_at_once(endpoint, publish, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("time.sleep", None)
    assert f"HF_ENDPOINT is '{endpoint}', which is no address of a Hub" in publish("alice/mixer", refused=True)


def test_a_redirect_without_end_and_a_wrong_protocol_are_one_line(publish, hub, monkeypatch):
    hub.fail("GET /", (302, b"", {"Location": "/again"}), times=100)
    assert "(Exceeded maximum allowed redirects; HF_ENDPOINT is" in publish("alice/mixer", refused=True)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint.replace("http", "https"))
    assert "the connection to the Hub failed ([SSL" in publish("alice/mixer", refused=True)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            "client error (401 Unauthorized)",
            "the token is not valid or has expired (the Hub answered 401 (Unauthorized))",
        ),
        ("client error (403 Forbidden)", "the token does not allow this on alice/mixer"),
        ("server error (503 Service Unavailable)", "the Hub answered 503 (Service Unavailable). "),
    ],
)
def test_what_xet_answers_is_said_like_what_the_hub_does(status, message, publish, monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError(
            f"Network error: Request error: HTTP status {status}, domain: https://cas-server.xethub.hf.co"
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", refuse)
    assert message in publish("alice/mixer", refused=True)


def test_an_error_of_our_own_is_not_hidden(publish, monkeypatch):
    monkeypatch.setattr("hf_mixer.publishing.upload.compare", lambda *arguments: {}["a name"])
    with pytest.raises(KeyError, match="a name"):
        publish("alice/mixer")


def test_a_commit_of_somebody_else_in_the_meantime_is_kept(publish, hub, on_hub, monkeypatch):
    send = huggingface_hub.HfApi.create_commit

    def overtaken(self, repo_id, *arguments, **options):
        monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", send)
        self.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=repo_id)
        return send(self, repo_id, *arguments, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", overtaken)
    assert "has received another commit in the meantime" in publish("alice/mixer", refused=True)
    assert hub.files("alice/mixer").keys() == {".gitattributes", "notes.txt"}
    assert "Also in the repository, not from this folder: notes.txt" in publish("alice/mixer")
    assert hub.files("alice/mixer").keys() == on_hub | {"notes.txt"}


@pytest.mark.parametrize("damage", ["wrong", "missing"])
def test_a_wrong_and_a_missing_file_are_named(damage, publish, hub, monkeypatch):
    tree = hub.tree

    def damaged(repo, revision):
        entries = tree(repo, revision)
        if damage == "missing":
            return [entry for entry in entries if entry["path"] != "config.json"]
        return [{**entry, "oid": "0" * 40} if entry["path"] == "config.json" else entry for entry in entries]

    monkeypatch.setattr(hub, "tree", damaged)
    assert "differs from what was sent: config.json" in publish("alice/mixer", refused=True)


def test_a_full_disk_is_named(publish, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub.HfApi, "preupload_lfs_files", full)
    assert "the disk is full" in publish("alice/mixer", refused=True)


def test_a_card_that_the_hub_refuses_stops_all(publish, hub, monkeypatch):
    card = huggingface_hub.ModelCard(sign_card("---\nlicense: [mit, 3]\n---\n# Mixer"))
    monkeypatch.setattr("hf_mixer.publishing.release.create_card", lambda *arguments: card)
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


def test_a_label_that_no_page_can_show_stops_all(publish, hub, folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace("plane", "pl\\u0000ane"))
    message = publish("alice/mixer", refused=True)
    assert message.startswith(r"error: label 0, 'pl\x00ane', holds the character U+0000")
    assert not hub.requests


def test_a_token_given_to_the_training_is_not_published(hub, tmp_path):
    trainer = make_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="alice/run", hub_token="hf_alice_write")
    trainer.save_model()
    assert trainer.args.hub_token == "hf_alice_write"
    trainer.push_to_hub()
    pushed = hub.files("alice/run")
    assert "training_args.bin" in pushed
    assert not [name for name, content in pushed.items() if b"hf_alice_write" in content]


def test_an_interruption_from_the_keyboard_says_how_to_go_on(publish, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.whoami", interrupt)
    with pytest.raises(SystemExit, match="the same command goes on"):
        publish("alice/mixer")
