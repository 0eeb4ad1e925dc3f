# SPDX-License-Identifier: Apache-2.0
"""Locks on open files, which the operating system releases when the process ends, however it ends."""

import errno
import os


try:
    import fcntl
except ImportError:
    # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt


def try_lock(descriptor: int, start: int | None = None, count: int = 1) -> bool:
    """
    Lock `count` bytes from `start` on, and return whether no other process has one of them. By default lock the file, as long
    as the descriptor is open, and return whether nobody else has it, in this process neither.

    Raises:
        `OSError`: the file system has no locks.
    """
    try:
        if fcntl is None:
            os.lseek(descriptor, start or 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, count)
        elif start is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, start)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def unlock(descriptor: int, start: int, count: int = 1) -> None:
    """Unlock bytes that `try_lock` has locked."""
    if fcntl is None:
        os.lseek(descriptor, start, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, count)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, count, start)
