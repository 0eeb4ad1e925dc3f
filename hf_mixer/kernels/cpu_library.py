# SPDX-License-Identifier: Apache-2.0
"""The code in C++ beside this file, compiled for this processor when it is needed first."""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..temporary_folders import temporary_folder


SOURCE = Path(__file__).with_name("cpu_layer.cpp")
COMPILERS = ("g++", "clang++")
OPTIONS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC")


def find_compiler() -> list[str]:
    """
    Return the command of the C++ compiler: what CXX says, otherwise g++ or clang++.

    Raises:
        `ImportError`: there is none.
    """
    command = shlex.split(os.environ.get("CXX", ""))
    names = command[:1] or COMPILERS
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise ImportError(
            f"The kernels for processors need a C++ compiler, and there is no {' or '.join(names)}: install g++ 11 or newer, "
            "or set CXX to one"
        )
    return [found, *command[1:]]


def build_library(options: Sequence[str] = ()) -> ctypes.CDLL:
    """
    Compile the kernels for this processor, and load them. It takes some seconds, and leaves no files behind.

    Args:
        options (sequence of `str`, *optional*):
            Further options of the compiler.

    Raises:
        `ImportError`: there is no compiler, it cannot compile them, or the system does not let them run.
        `OSError`: there is no space for temporary files.
    """
    compiler = find_compiler()
    with temporary_folder("mixer-kernels-") as folder:
        path = folder / "cpu_layer.so"
        command = [*compiler, *OPTIONS, *options, str(SOURCE), "-o", str(path)]
        in_english = {**os.environ, "LC_ALL": "C"}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=in_english)
        if result.returncode != 0:
            marks = ("error", "cannot find")
            lines = [line for line in result.stderr.splitlines() if any(mark in line for mark in marks)]
            lines.append("it does not say why")
            raise ImportError(
                f"{compiler[0]} cannot compile the kernels for processors: {lines[0]}. They need g++ 11 or newer with OpenMP; "
                "CXX names another compiler"
            )
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise ImportError(
                f"The kernels for processors cannot be loaded ({error}): TMPDIR names another folder for temporary files, from "
                "which programs may run"
            ) from error
    if library.hf_mixer_matrix_units() < 0:
        raise ImportError("The kernels for processors need a system that lets programs use AMX: Linux 5.16 or newer")
    return library


@functools.cache
def cpu_library() -> ctypes.CDLL:
    """Return the kernels of this process."""
    return build_library()
