# SPDX-License-Identifier: Apache-2.0
"""Temporary folders that do not outlive their process for long, however it ends."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .file_locks import try_lock


# Beside the folder that is handed out. The operating system releases the lock when the process ends.
LOCK_NAME, CONTENT_NAME = "lock", "content"


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """
    Yield an empty temporary folder, and remove it in the end. What killed processes of this user have left of folders with
    the same prefix is removed first.

    Args:
        prefix (`str`):
            How the name begins of the folder in the folder for temporary files (TMPDIR), such as `"mixer-release-"`.

    Raises:
        `OSError`: there is no space for temporary files.
    """
    remove_abandoned(prefix)
    outer, descriptor = make_locked_folder(prefix)
    try:
        (outer / CONTENT_NAME).mkdir()
        yield outer / CONTENT_NAME
    finally:
        # Before the removal: Windows removes no file that is open
        os.close(descriptor)
        shutil.rmtree(outer, ignore_errors=True)


def make_locked_folder(prefix: str) -> tuple[Path, int]:
    """Return a new folder, and the descriptor of its lock file, which this process has locked if it can."""
    while True:
        outer = Path(tempfile.mkdtemp(prefix=prefix))
        lock = outer / LOCK_NAME
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            is_locked = try_lock(descriptor)
        except OSError:  # this file system has no locks, and nothing in it is taken for abandoned
            return outer, descriptor
        if is_locked and lock.exists():
            return outer, descriptor
        # Another process that has just started takes the folder for an abandoned one
        os.close(descriptor)


def remove_abandoned(prefix: str) -> None:
    """Remove the temporary folders with this prefix that are of this user, and of a process that has ended."""
    for outer in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            if outer.is_symlink() or (hasattr(os, "getuid") and outer.lstat().st_uid != os.getuid()):
                continue
            descriptor = os.open(outer / LOCK_NAME, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:  # it has no lock, or is gone meanwhile
            continue
        is_abandoned = False
        with suppress(OSError):  # as above
            is_abandoned = try_lock(descriptor)
        if os.name == "nt":  # Windows removes no file that is open
            os.close(descriptor)
        if is_abandoned:
            shutil.rmtree(outer, ignore_errors=True)
        if os.name != "nt":
            os.close(descriptor)
