# SPDX-License-Identifier: Apache-2.0
"""What several rooms of the package share. It imports nothing of them."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

import transformers


# An `ImportError` says which optional package is missing
INPUT_ERRORS = (ValueError, OSError, RuntimeError, ImportError, StrictDataclassError, SafetensorError)
# Arguments whose values are tokens of the Hub, also abbreviated as argparse takes them, and tokens by their form
TOKENS = re.compile(
    r"""((?:^|[\s'"])--(?:token|hub_t(?:o|ok|oke|oken)?)[=\s]+)(?:'[^']*'|"[^"]*"|[^\s'"]+)|\b(?:hf|api_org)_\w{20,}"""
)
# How the name of a repository on the Hub looks
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def hide_tokens(command: str) -> str:
    """Return a command line with `***` in the place of access tokens."""
    return TOKENS.sub(lambda match: f"{match[1] or ''}***", command)


def is_hub_id(name: str | None) -> bool:
    """Whether `name` looks like `owner/repository`, and not like a folder or a file."""
    return bool(name and HUB_ID.fullmatch(name) and not os.path.exists(name))


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """
    Read a file that holds a JSON object.

    Raises:
        `OSError`: the file cannot be read.
        `ValueError`: it holds something else; the message names the file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Write it again, or remove it.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} has to hold a JSON object, got {type(content).__name__}. Write it again, or remove it."
        )
    return content


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a checksum of tensors, of their names, types and shapes."""
    checksum = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        checksum.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def error_message(error: Exception) -> str:
    """Return the message of an error, also where it comes from a worker of a data loader."""
    text = str(error).strip()
    if text.startswith("Caught ") and "DataLoader worker process" in text:
        # torch hands on a worker's traceback as the message; its last line is the error itself
        text = text.splitlines()[-1].split(": ", 1)[-1]
    return text


@contextmanager
def one_line_errors(types: tuple[type[Exception], ...] = INPUT_ERRORS) -> Iterator[None]:
    """
    End the program with exit code 1 and one line on standard error at an exception of one of `types`, by default those
    that refuse the user's input.
    """
    try:
        yield
    except types as error:
        if isinstance(error, ImportError) and error.path is not None:
            raise  # a module is there, and a name in it is missing: no package that the user could install
        sys.exit(f"error: {' '.join(error_message(error).split())}")


def end_together(accelerator) -> None:
    """
    Let all processes of a script end at the same time. The caller has no `Trainer` and no wrapped model any more.

    What wraps a model for several processes refers to their group. Where that is gone, the group ends here, and its
    threads can end. Otherwise it ends when the last wrapper does, which holds the interpreter meanwhile: forever, if a
    thread of gloo has yet to release the tensors of a collective operation.
    """
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    accelerator.end_training()


def check_device(name: str | None = None) -> torch.device:
    """
    Return the device of that name, such as `"cpu"` or `"cuda:1"`; by default an accelerator if there is one, else the CPU.

    Raises:
        `ValueError`: there is no such device on this machine.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"--device {name} is no device of torch: expected for instance cpu, cuda or cuda:1"
        ) from error
    count = 1 if accelerator is None else torch.accelerator.device_count()
    is_there = device.type == "cpu" or (accelerator is not None and device.type == accelerator.type)
    if not is_there or (device.index or 0) >= count:
        here = "cpu" if accelerator is None else f"cpu and {count} of {accelerator.type}"
        raise ValueError(f"--device {name} is not there: this machine has {here}")
    return device


def describe_hardware(device: torch.device, num_processes: int = 1) -> str:
    """Return what a script runs on, such as `"1 x NVIDIA H200"` or `"Intel(R) Xeon(R) CPU, 2 cores"`."""
    if device.type == "cuda":
        return f"{num_processes} x {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{num_processes} x {device.type}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def library_versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {
        "hf_mixer": importlib.metadata.version("hf_mixer"),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def list_requirements() -> list[str]:
    """Return what the code of this package needs without extras, as pip reads it. What needs no certain version, others bring."""
    requirements = importlib.metadata.requires("hf_mixer") or []
    return [line for line in requirements if "extra ==" not in line and ">=" in line]


def find_home_page() -> str | None:
    """
    Return the address of the repository of this package: the one that its metadata name, else the one that it was installed
    from, as [pip notes it](https://packaging.python.org/en/latest/specifications/direct-url/).
    """
    distribution = importlib.metadata.distribution("hf_mixer")
    urls = dict(url.split(", ", 1) for url in distribution.metadata.get_all("Project-URL") or [])
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    # Not a folder of this machine, nor an address with a password in it
    is_public = "vcs_info" in origin and re.fullmatch(r"https://[^@\s]+", origin["url"])
    return urls.get("Repository") or (origin["url"] if is_public else None)


def format_bytes(size: float) -> str:
    """Return a number of bytes for people, such as `"1.2 MB"`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def find_output_dir(model: str, output_dir: Path | None) -> Path:
    """Return the folder for results, by default that of the model itself."""
    if output_dir is None and not Path(model).is_dir():
        raise ValueError(f"{model} is no local folder: say with --output_dir where to write the results")
    return output_dir or Path(model)


def check_destination(path: Path) -> None:
    """Refuse to write over a file or over a folder that is not empty, and where nothing can be written."""
    if path.is_file() or (path.exists() and any(path.iterdir())):
        raise ValueError(f"{path} already exists and is no empty folder: choose another destination, or remove it")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ValueError(f"{path} cannot be written: {parent} is no folder, or read-only. Choose another destination")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file or folder, which becomes `path` when all went well and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        unfinished = Path(temporary) / path.name
        yield unfinished
        if path.is_dir():
            path.rmdir()
        unfinished.replace(path)
