import importlib.metadata
import json

import pytest
import torch

from hf_mixer.utils import check_destination, check_device, find_home_page, one_line_errors, read_json


def test_what_the_user_can_mend_ends_in_one_line():
    with pytest.raises(SystemExit, match="^error: expected 3, got 4$"), one_line_errors():
        raise ValueError("expected 3,\n  got 4")
    with pytest.raises(SystemExit, match="^error: No module named 'not_installed'$"), one_line_errors():
        import not_installed  # noqa: F401


def test_mistakes_of_the_program_keep_their_traceback():
    with pytest.raises(ImportError, match="cannot import name"), one_line_errors():
        from hf_mixer.utils import no_such_name  # noqa: F401
    with pytest.raises(TypeError), one_line_errors():
        len(3)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid JSON: .*Write it again"), ("[1]", "has to hold a JSON object, got list")],
)
def test_damaged_json_is_named(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"config.json {message}"):
        read_json(path)


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert check_device() == check_device("cpu") == torch.device("cpu")
    for name, message in (
        ("cuda", "^--device cuda is not there: this machine has cpu$"),
        ("cpu:1", "cpu:1 is not there"),
        ("gpu", "^--device gpu is no device of torch: expected for instance cpu, cuda"),
    ):
        with pytest.raises(ValueError, match=message):
            check_device(name)

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert check_device() == torch.device("cuda")
    assert check_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="cuda:2 is not there: this machine has cpu and 2 of cuda$"):
        check_device("cuda:2")


def test_a_destination_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is no folder, or read-only. Choose another destination"):
        check_destination(tmp_path / "file/folder/new")
    check_destination(tmp_path / "folder/new")
    monkeypatch.setattr("os.access", lambda *args: False)
    with pytest.raises(ValueError, match="new cannot be written"):
        check_destination(tmp_path / "new")


@pytest.mark.parametrize(
    ("origin", "home"),
    [
        ({"url": "https://example.org/hf_mixer.git", "vcs_info": {"vcs": "git"}}, "https://example.org/hf_mixer.git"),
        ({"url": "file:///home/me/hf_mixer", "dir_info": {"editable": True}}, None),
        ({"url": "file:///home/me/hf_mixer", "vcs_info": {"vcs": "git"}}, None),
        ({"url": "https://me:token@example.org/hf_mixer", "vcs_info": {"vcs": "git"}}, None),
        (None, None),
    ],
)
def test_the_home_page_is_where_the_package_was_installed_from(origin, home, tmp_path, monkeypatch):
    folder = tmp_path / "hf_mixer-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: hf_mixer\nVersion: 1\nProject-URL: Paper, https://example.org/paper\n")
    if origin is not None:
        (folder / "direct_url.json").write_text(json.dumps(origin))
    distribution = importlib.metadata.PathDistribution(folder)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: distribution)
    assert find_home_page() == home
