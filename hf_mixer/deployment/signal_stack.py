# SPDX-License-Identifier: Apache-2.0
"""The stack on which a thread handles signals, kept from a fault of OpenVINO."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """
    Give the thread back the signal stack that it has now.

    Every `Core` of OpenVINO 2026.4 that loads its CPU plugin gives the thread a signal stack, and frees it at its own end. Where
    a second one has been loaded meanwhile, the thread is left with a stack that is freed, and the next signal, such as the end of
    a worker that reads images, ends the process. A `Core` whose stack is not in use leaves it alone. Without this, a program
    that drops two compiled models in the order in which it made them, and gets a signal then, crashes; once it does not, this can
    go.
    """
    if sys.platform != "linux":
        yield
        return
    library, stack = ctypes.CDLL(None), SignalStack()
    library.sigaltstack(None, ctypes.byref(stack))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(stack), None)
