"""One run at a time in an output folder, and none over what another has written."""

import multiprocessing
import os
import re
import signal
import socket
from contextlib import contextmanager

import psutil
import pytest

from hf_mixer.output_folder import LOCK_NAME, OutputFolderLock, lock_output_dir_together, refuse_foreign_files


FORK = multiprocessing.get_context("fork")
COMMAND = "hf-mixer train --output_dir photos --token hf_abcdefghijklmnopqrstuvwxyz"


def own(folder, rank, world_size, has_worker, connection) -> None:
    """Keep a folder locked until told to release it, with a worker that knows of nothing, as a data loader has."""
    lock = OutputFolderLock(folder, COMMAND, rank, world_size)
    worker = os.fork() if has_worker else None
    if worker == 0:
        signal.pause()
    connection.send((os.getpid(), worker))
    connection.recv()
    lock.release()


def launch(*arguments) -> None:
    process = FORK.Process(target=own, args=arguments)
    process.start()
    process.join()


@contextmanager
def owner_of(folder, rank=0, world_size=1, has_worker=False, target=own):
    """Another process that has locked a folder; yields it, and the numbers of the owner and of its worker."""
    connection, theirs = FORK.Pipe()
    process = FORK.Process(target=target, args=(folder, rank, world_size, has_worker, theirs))
    process.start()
    try:
        yield process, *connection.recv()
    finally:
        connection.send("release")
        process.join()


def test_a_second_run_in_a_folder_is_told_who_has_it(tmp_path):
    with owner_of(tmp_path) as (_, pid, _):
        message = (
            rf"^output_dir {tmp_path} is in use by process {pid} \(hf-mixer train --output_dir photos --token \*\*\*, since "
            r"[\d: -]{19}\): wait for it, or choose another --output_dir$"
        )
        with pytest.raises(ValueError, match=message):
            OutputFolderLock(tmp_path, "hf-mixer train")
        assert (tmp_path / LOCK_NAME).exists()
    OutputFolderLock(tmp_path, "hf-mixer train").release()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_its_folder_free_though_its_workers_live_on(tmp_path):
    with owner_of(tmp_path, has_worker=True) as (process, _, worker):
        process.kill()
        process.join()
        assert psutil.pid_exists(worker)
        with OutputFolderLock(tmp_path, "hf-mixer train"):
            os.kill(worker, signal.SIGKILL)


def test_processes_of_a_run_whose_launcher_was_killed_are_named(tmp_path):
    with owner_of(tmp_path, rank=1, world_size=2, target=launch) as (launcher, pid, _):
        with pytest.raises(ValueError, match=f"is in use by process {pid} "):
            OutputFolderLock(tmp_path, "hf-mixer train", world_size=2)
        launcher.kill()
        launcher.join()
        with pytest.raises(ValueError, match=rf"whose launcher is gone \(.*\): end it with `kill {pid}`, or"):
            OutputFolderLock(tmp_path, "hf-mixer train", world_size=2)
        orphan = psutil.Process(pid)
        orphan.terminate()
        orphan.wait()
        OutputFolderLock(tmp_path, "hf-mixer train", world_size=2).release()


def test_the_processes_of_one_run_share_its_folder_and_the_last_one_clears_up(tmp_path):
    folder = tmp_path / "outputs" / "photos"
    lock = OutputFolderLock(folder, "hf-mixer train", rank=0, world_size=2)
    with owner_of(folder, rank=1, world_size=2):
        lock.release()
        assert (folder / LOCK_NAME).exists()
    assert list(folder.iterdir()) == []


def test_a_machine_that_shares_the_file_system_is_named(tmp_path, monkeypatch):
    with owner_of(tmp_path) as (_, pid, _):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(ValueError, match=f"in use by process {pid} on {re.escape(os.uname().nodename)} "):
            OutputFolderLock(tmp_path, "hf-mixer train")


def test_a_folder_made_in_vain_is_removed_and_a_file_is_refused(tmp_path):
    OutputFolderLock(tmp_path / "outputs" / "photos", "hf-mixer train").release()
    assert list(tmp_path.iterdir()) == []

    with OutputFolderLock(tmp_path / "outputs" / "photos", "hf-mixer train"):
        (tmp_path / "outputs" / "photos" / "config.json").touch()
    assert [path.name for path in (tmp_path / "outputs" / "photos").iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match=r"config.json is no folder: choose another --output_dir$"):
        OutputFolderLock(tmp_path / "outputs" / "photos" / "config.json", "hf-mixer train")


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_of_somebody_else_is_no_lock(is_link, tmp_path):
    folder, file = tmp_path / "photos", tmp_path / "photos" / LOCK_NAME
    folder.mkdir()
    if is_link:
        file.symlink_to(tmp_path / "mine.txt")
        file = tmp_path / "mine.txt"
    file.write_text("front door: 1234\n")
    with pytest.raises(ValueError, match=rf"photos.*{LOCK_NAME}"):
        OutputFolderLock(folder, "hf-mixer train")
    assert file.read_text() == "front door: 1234\n"


def test_where_nothing_can_be_written_is_named(tmp_path):
    (tmp_path / "photos" / LOCK_NAME).mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"^cannot write to output_dir \S+photos: Is a directory \(.*{LOCK_NAME}\)$"):
        OutputFolderLock(tmp_path / "photos", "hf-mixer train")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="link is no folder"):
        OutputFolderLock(tmp_path / "link", "hf-mixer train")


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def unsupported(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    with OutputFolderLock(tmp_path, "hf-mixer train"):
        assert "cannot be locked (Function not implemented): see that no other run writes to it" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["training_run.json", "notes.txt"],
            r"would write \(training_run.json\): choose another --output_dir, or remove",
        ),
        (["eval_results.json", "my_mixer.py"], r"\(eval_results.json, my_mixer.py\)"),
        (["checkpoint-3"], r"\(checkpoint-3\): .*, or go on with --resume_from_checkpoint true$"),
    ],
)
def test_a_new_run_never_writes_over_what_is_there(names, message, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        refuse_foreign_files(tmp_path)


def test_files_that_no_run_writes_may_stay(tmp_path):
    for name in ("README.md", "notes.txt", "labels.csv"):
        (tmp_path / name).touch()
    refuse_foreign_files(tmp_path)
    refuse_foreign_files(tmp_path / "missing")


def test_a_run_of_one_process_needs_no_launcher(tmp_path):
    with owner_of(tmp_path) as (_, pid, _):
        with pytest.raises(ValueError, match=f"is in use by process {pid} "):
            lock_output_dir_together(tmp_path, "hf-mixer train")
    with lock_output_dir_together(tmp_path, "hf-mixer train"):
        assert (tmp_path / LOCK_NAME).exists()
