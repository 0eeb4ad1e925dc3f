# SPDX-License-Identifier: Apache-2.0
"""Reading the files that `torch.save` writes, without running any code in them."""

import argparse
import pickle
import re
from pathlib import Path

import torch


# `.tar` is for timm's `.pth.tar`
TORCH_SUFFIXES = (".bin", ".pth", ".pt", ".tar")
# Where timm and others keep the weights in a checkpoint. As in timm, averaged weights come first.
STATE_DICT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
# What DistributedDataParallel and torch.compile put before the names of parameters, in any order
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")


def read_torch_file(file: Path) -> dict[str, torch.Tensor]:
    """
    Read the weights in a file of torch's: a state dict, or a checkpoint that holds one, as timm's `train.py` writes it.

    Raises:
        `ValueError`: the file is damaged, holds no state dict, or could run code.
    """
    content = load_without_code(file)
    if isinstance(content, dict):
        key = next((key for key in STATE_DICT_KEYS if content.get(key) is not None), None)
        content = content if key is None else content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(
            f"{file} holds no state dict: expected tensors by their names, alone or under one of "
            f"{', '.join(STATE_DICT_KEYS)}"
        )
    return {WRAPPERS.sub("", str(key)): tensor for key, tensor in content.items()}


def load_without_code(file: Path):
    """Return what `torch.load(weights_only=True)` returns."""
    try:
        # timm saves its command line along, which is nothing but values
        with file.open("rb") as stream, torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is not None:
            raise ValueError(
                f"{file} holds {refused[1]}, and reading that could run any code. If you trust the file, read it with "
                "torch.load(file, weights_only=False) and save its state dict with safetensors.torch.save_file"
            ) from error
        raise ValueError(f"{file} is not a complete file of torch.save: copy or download it again") from error
