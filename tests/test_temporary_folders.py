"""Temporary folders, and what is left of those of killed processes."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_mixer import temporary_folders
from hf_mixer.temporary_folders import temporary_folder
from tests.helpers import ROOT


PROGRAM = """
import sys, time, types
# Without what importing the package brings, which takes seconds
sys.modules["hf_mixer"] = types.ModuleType("hf_mixer")
sys.modules["hf_mixer"].__path__ = ["hf_mixer"]
from hf_mixer.temporary_folders import temporary_folder
with temporary_folder("mixer-test-") as folder:
    (folder / "weights").write_text("a copy")
    (folder / "link").symlink_to(sys.argv[1])
    print(folder, flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Where temporary files go."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_stays(root, tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "photo.jpg")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        folder = Path(process.stdout.readline().strip())
        with temporary_folder("mixer-test-") as own:
            assert (folder / "weights").read_text() == "a copy"
            with temporary_folder("mixer-test-"):
                assert own.is_dir()
        process.kill()
    assert folder.is_dir()
    with temporary_folder("mixer-test-") as own:
        assert [path.name for path in root.iterdir()] == [own.parent.name]
    assert not list(root.iterdir())
    assert (tmp_path / "photo.jpg").read_text() == "mine"


def test_links_and_the_folders_of_others_stay(root, tmp_path, monkeypatch):
    abandoned, descriptor = temporary_folders.make_locked_folder("mixer-test-")
    os.close(descriptor)
    shutil.move(abandoned, tmp_path / "elsewhere")
    (root / "mixer-test-link").symlink_to(tmp_path / "elsewhere")
    (root / "mixer-test-without-lock").mkdir()
    (root / "mixer-test-file").write_text("")
    with temporary_folder("mixer-test-"):
        pass
    assert len(list(root.iterdir())) == 3
    assert (tmp_path / "elsewhere" / "lock").exists()

    others, descriptor = temporary_folders.make_locked_folder("mixer-test-")
    os.close(descriptor)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    temporary_folders.remove_abandoned("mixer-test-")
    assert others.is_dir()


def test_without_locks_there_is_a_folder_and_none_is_taken_for_abandoned(root, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with temporary_folder("mixer-test-") as first, temporary_folder("mixer-test-"):
        assert first.is_dir()
    assert not list(root.iterdir())
