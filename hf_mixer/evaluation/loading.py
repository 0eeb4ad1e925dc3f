# SPDX-License-Identifier: Apache-2.0
"""Loading a model to predict with or to evaluate, in PyTorch or exported."""

from pathlib import Path
from typing import Any

from ..checkpoints import load_checkpoint
from ..checkpoints.sources import find_checkpoint
from ..deployment import load_exported
from ..deployment.runtime import find_export, names_export
from ..low_precision import QUANTIZED


def find_model(source: str, hub: dict[str, Any], subfolder: str = "") -> Path:
    """Return the file or folder of a model, which is downloaded where it is on the Hub; for the arguments see `load_model`."""
    if names_export(source, subfolder, **hub):
        return find_export(source, subfolder, **hub)
    return find_checkpoint(source, **hub)


def load_model(
    source: str,
    hub: dict[str, Any],
    dtype: str | None = None,
    subfolder: str = "",
    trust_remote_code: bool = False,
    batch_size: int = 1,
    num_callers: int = 1,
    torch_options: dict[str, Any] | None = None,
    **checkpoint_kwargs,
):
    """
    Load a model in PyTorch, on the CPU, or an export.

    Args:
        source (`str`):
            Anything that [`load_checkpoint`] or [`~deployment.load_exported`] takes.
        hub (`dict`):
            `revision`, `cache_dir` and `token`.
        dtype (`str`, *optional*):
            The type of the weights, or of the exported program. A model in PyTorch that is to be quantized is in float32.
        subfolder (`str`, *optional*), trust_remote_code (`bool`, *optional*), batch_size (`int`, *optional*),
        num_callers (`int`, *optional*):
            For exports, see [`~deployment.load_exported`].
        torch_options (`dict`, *optional*):
            Options of a command that are for models in PyTorch, and their values.
        checkpoint_kwargs:
            Further arguments of [`load_checkpoint`].

    Returns:
        `tuple`: the model and its image processor.

    Raises:
        `ValueError`: neither can be loaded, or one of `torch_options` is set for an export.
        `ImportError`: the runtime of an export is not installed.
    """
    if not names_export(source, subfolder, **hub):
        return load_checkpoint(source, dtype="float32" if dtype in QUANTIZED else dtype, **checkpoint_kwargs, **hub)
    given = [f"--{name}" for name, value in (torch_options or {}).items() if value]
    if given:
        raise ValueError(
            f"{source} is an export, and {', '.join(given)} is for models in PyTorch: leave it out, or give such a model"
        )
    return load_exported(
        source,
        dtype,
        batch_size=batch_size,
        num_callers=num_callers,
        subfolder=subfolder,
        trust_remote_code=trust_remote_code,
        **hub,
    )
