# SPDX-License-Identifier: Apache-2.0
"""
The output folder of a run: in use by one run at a time, and never written over.

A lock file in the folder has a record and a byte for every process of the run. The operating system releases the byte when
its process ends, however it ends, so that a run can be resumed as soon as it was killed.
"""

import json
import logging
import os
import socket
import sys
import textwrap
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .file_locks import try_lock, unlock
from .utils import hide_tokens


logger = logging.getLogger(__name__)

# The underscore keeps it out of what `Trainer` pushes to the Hub
LOCK_NAME = "_lock"
MAX_PROCESSES = 2**16
# Bytes for the record of a process, and characters of its command that are kept in it
RECORD_SIZE, COMMAND_LENGTH = 2048, 200
# How a lock file begins: with a record, with the place for one, or it is empty
RECORD_START = b'{"pid"'
OWN_STARTS = (RECORD_START, bytes(len(RECORD_START)), b"")
# The locked bytes lie behind all records: Windows lets nobody read what is locked
LOCKS_START = MAX_PROCESSES * RECORD_SIZE

# What a training run writes into its output folder, the card apart
RUN_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    "*_mixer.py",
    "training_args.bin",
    "checkpoint-*",
    "trainer_state.json",
    "training_run.json",
    "*_results.json",
    "training_curves.png",
    "predictions.csv",
)


def refuse_foreign_files(folder: str | os.PathLike) -> None:
    """
    Refuse a folder that holds anything a new run would write over. It need not exist.

    Raises:
        `ValueError`: it does; the message names the files.
    """
    found = sorted({path.name for pattern in RUN_FILES for path in Path(folder).glob(pattern)})
    if not found:
        return
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    ways_out = "choose another --output_dir, or remove them"
    if any(name.startswith("checkpoint-") for name in found):
        ways_out = "choose another --output_dir, remove them, or go on with --resume_from_checkpoint true"
    raise ValueError(
        f"output_dir {folder} already holds files that the run would write ({', '.join(found[:5])}{more}): {ways_out}"
    )


def lock_output_dir_together(folder: str | os.PathLike, command: str) -> "OutputFolderLock":
    """
    Lock an output folder in all processes of a distributed run, which wait here for each other. It works in a run of one
    process as well.

    Raises:
        `ValueError`: in rank 0, which does not get the folder; see [`OutputFolderLock`]. All others end with exit code 1.
    """
    state = PartialState()
    process = (state.process_index, state.num_processes)
    is_locked = [False]
    try:
        if state.is_main_process:
            lock = OutputFolderLock(folder, command, *process)
            is_locked = [True]
    finally:
        broadcast_object_list(is_locked)
    if state.is_main_process:
        return lock
    if not is_locked[0]:
        # A launcher ends all processes when the first one ends, and rank 0 is to say why
        time.sleep(1)
        sys.exit(1)
    return OutputFolderLock(folder, command, *process)


class OutputFolderLock:
    """
    A lock on an output folder, which is created if it is missing. The lock ends with `release`, with a `with` block, or
    with the process; workers of a data loader do not hold it.

    Every process of a run takes it, rank 0 before all others, and that one alone decides whether the run may have the folder.
    Nothing else in the process may open the lock file: on POSIX systems, closing it would end the lock.

    Args:
        folder (`str` or `os.PathLike`):
            The output folder.
        command (`str`):
            What messages call the run, such as `"hf-mixer train --output_dir outputs/digits"`.
        rank (`int`, *optional*, defaults to 0), world_size (`int`, *optional*, defaults to 1):
            The number of this process among those of the run, and how many there are.

    Raises:
        `ValueError`: another run has the folder, or processes of a run whose launcher is gone; the message names them. Or
            `folder` is no folder, cannot be written to, or holds somebody else's file of the name of the lock.
    """

    def __init__(self, folder: str | os.PathLike, command: str, rank: int = 0, world_size: int = 1):
        self.folder, self.rank = Path(folder), rank
        self.path = self.folder / LOCK_NAME
        if os.path.lexists(folder) and not self.folder.is_dir():
            raise ValueError(f"output_dir {folder} is no folder: choose another --output_dir")
        self.created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.descriptor: int | None = self.open(describe_process(command, world_size))
        except OSError as error:
            self.remove_created()
            raise ValueError(f"cannot write to output_dir {folder}: {error.strerror} ({error.filename})") from error

    def __enter__(self) -> "OutputFolderLock":
        return self

    def __exit__(self, *exception) -> None:
        self.release()

    def open(self, record: dict[str, Any]) -> int:
        """Return a descriptor of the lock file, in which this process has locked its byte and left its record."""
        while True:
            # No link: it could lead to any file
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            try:
                if os.read(descriptor, len(RECORD_START)) not in OWN_STARTS:
                    raise ValueError(
                        f"{self.path} is no lock file of a run: rename it, or choose another --output_dir"
                    )
                is_locked = self.acquire(descriptor)
                if is_same_file(descriptor, self.path):
                    if is_locked:
                        write_record(descriptor, self.rank, record)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            # The last process of another run removed the file before it was locked
            os.close(descriptor)

    def acquire(self, descriptor: int) -> bool:
        """
        Lock the byte of this process, and return whether it could. As rank 0, refuse the folder where another process has
        locked any byte.
        """
        try:
            is_free = try_lock(descriptor, LOCKS_START + self.rank)
            if self.rank == 0 and is_free:
                is_free = try_lock(descriptor, LOCKS_START + 1, MAX_PROCESSES - 1)
                if is_free:
                    unlock(descriptor, LOCKS_START + 1, MAX_PROCESSES - 1)
                else:
                    unlock(descriptor, LOCKS_START)
        except OSError as error:
            logger.warning(f"{self.folder} cannot be locked ({error.strerror}): see that no other run writes to it.")
            return False
        if self.rank == 0 and not is_free:
            raise ValueError(f"output_dir {self.folder} is {describe_owners(descriptor)}")
        return is_free

    def release(self) -> None:
        """Give the folder back. The last process of a run removes the lock file, and a folder that it made in vain."""
        if self.descriptor is None:
            return
        descriptor, self.descriptor = self.descriptor, None
        try:
            unlock(descriptor, LOCKS_START + self.rank)
            is_last = try_lock(descriptor, LOCKS_START, MAX_PROCESSES) and is_same_file(descriptor, self.path)
        except OSError:
            is_last = self.rank == 0  # no locks on this file system
        if os.name == "nt":  # Windows removes no file that is open
            os.close(descriptor)
        if is_last:
            self.path.unlink(missing_ok=True)
        if os.name != "nt":
            os.close(descriptor)
        self.remove_created()

    def remove_created(self) -> None:
        """Remove the folders that were made for the lock and are empty."""
        for path in self.created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def is_same_file(descriptor: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def describe_process(command: str, world_size: int) -> dict[str, Any]:
    """Return what others need to know of this process."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().isoformat(" ", "seconds"),
        "command": textwrap.shorten(hide_tokens(command), COMMAND_LENGTH, placeholder=" ..."),
        "launcher": os.getppid() if world_size > 1 else None,
    }


def write_record(descriptor: int, rank: int, record: dict[str, Any]) -> None:
    """Write the record of a process down, as that of rank 0 in place of all that are there."""
    if rank == 0:
        os.ftruncate(descriptor, 0)
    os.lseek(descriptor, rank * RECORD_SIZE, os.SEEK_SET)
    os.write(descriptor, json.dumps(record).encode().ljust(RECORD_SIZE))


def read_owners(descriptor: int) -> list[dict[str, Any]]:
    """Return the records of the processes that have their byte locked."""
    owners = []
    for rank in range(os.fstat(descriptor).st_size // RECORD_SIZE):
        if try_lock(descriptor, LOCKS_START + rank):
            unlock(descriptor, LOCKS_START + rank)
            continue
        os.lseek(descriptor, rank * RECORD_SIZE, os.SEEK_SET)
        record = os.read(descriptor, RECORD_SIZE).strip(b"\0 ")
        if record:
            owners.append(json.loads(record))
    return owners


def describe_owners(descriptor: int) -> str:
    """Say by whom the folder is in use, and what to do."""
    owners = read_owners(descriptor)
    if not owners:
        return "in use by another process, which has just started or ended: try again, or choose another --output_dir"
    first = owners[0]
    run = f"({first['command']}, since {first['since']})"
    if all(has_lost_its_launcher(owner) for owner in owners):
        processes, them = ("a process", "it") if len(owners) == 1 else (f"{len(owners)} processes", "them")
        pids = " ".join(str(owner["pid"]) for owner in owners)
        return (
            f"still in use by {processes} of a run whose launcher is gone {run}: end {them} with `kill {pids}`, or choose "
            "another --output_dir"
        )
    elsewhere = f" on {first['host']}" if first["host"] != socket.gethostname() else ""
    return f"in use by process {first['pid']}{elsewhere} {run}: wait for it, or choose another --output_dir"


def has_lost_its_launcher(owner: dict[str, Any]) -> bool:
    """Whether a process runs on this machine, and has another parent than the launcher that started it."""
    if owner["launcher"] is None or owner["host"] != socket.gethostname():
        return False
    try:
        return psutil.Process(owner["pid"]).ppid() != owner["launcher"]
    except psutil.NoSuchProcess:  # it has just ended
        return False
