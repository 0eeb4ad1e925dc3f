"""
New processes, alone and in pairs. They are forks of one that has imported the libraries but not hf_mixer, since these
imports take longest in a new interpreter.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

from torch.multiprocessing import start_processes


ROOT = Path(__file__).parent.parent
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["accelerate", "datasets", "sklearn.metrics", "transformers.pipelines", "transformers.trainer"]
)


def in_new_process(function, *arguments):
    """Return what a function of a module returns in a new process, or raise what it raises."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as process:
        return process.submit(function, *arguments).result()


def run_in_new_process(program: str, *arguments, folder: Path) -> tuple[str, str]:
    """Run a program in a folder and return what it writes to its output and to its log."""
    with tempfile.TemporaryDirectory() as outputs:
        paths = [Path(outputs) / name for name in ("output", "log")]
        try:
            in_new_process(_run_program, program, [str(argument) for argument in arguments], folder, paths)
        finally:
            output, log = (path.read_text() for path in paths)
            print(output, log, sep="\n")  # shown where the test fails
        return output, log


def run_without_package(program: str, *arguments, folder: Path) -> tuple[str, str]:
    """Do the same where hf_mixer cannot be imported."""
    return run_in_new_process("import sys\nsys.modules['hf_mixer'] = None\n" + program, *arguments, folder=folder)


def _run_program(program: str, arguments: list[str], folder: Path, paths: list[Path]) -> None:
    sys.argv = ["-c", *arguments]
    os.chdir(folder)
    sys.path.insert(0, "")
    for descriptor, path in enumerate(paths, 1):
        with path.open("w") as file:
            os.dup2(file.fileno(), descriptor)
    try:
        exec(program, {"__name__": "__main__"})
    finally:
        sys.stdout.flush()


def launch_on_two_processes(*command) -> None:
    """Run a script with arguments as users of several devices do."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "scripts/accelerate/cpu.yaml"]
    result = subprocess.run([*launch, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def run_on_two_processes(function, *arguments) -> str:
    """
    Call a function of a module in two new processes, which find each other as those of `accelerate launch` do, and return
    what they print.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        work = (Path(folder), port, function, arguments)
        start_processes(_run_as_one_of_two, work, nprocs=2, start_method="forkserver")
        return "".join(path.read_text() for path in Path(folder).iterdir())


def _run_as_one_of_two(rank: int, folder: Path, port: int, function, arguments) -> None:
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    # The default of the system, with which data loaders start their workers in a launched process
    multiprocessing.set_start_method(None, force=True)
    os.environ |= addresses | {name: str(value) for name, value in ranks.items()}
    with (folder / str(rank)).open("w") as printed, redirect_stdout(printed):
        function(*arguments)
