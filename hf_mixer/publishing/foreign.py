# SPDX-License-Identifier: Apache-2.0
"""What a folder from somebody else may hold, and publishing neither opens, runs nor sends: links, devices, foreign code."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from ..evaluation.results import EXAMPLES
from ..utils import read_json


PACKAGE = Path(__file__).parents[1]
WEIGHTS_SUFFIX = ".safetensors"
# The largest file beside weights, in bytes. All of them are read at once.
MAX_BYTES = 100_000_000
# The largest picture, as all pixels of an example are read
MAX_PIXELS = 50_000_000
FORMATS = {".png": "PNG", ".jpg": "JPEG"}
# What PIL finds in a picture of pixels alone. All else may say where, when and by whom it was taken.
HARMLESS = set(
    "jfif jfif_version jfif_unit jfif_density progressive progression adobe adobe_transform APP0 APP14".split()
    + "dpi gamma srgb chromaticity transparency interlace".split()
)
# By them transformers reads or runs what does not go up, from this machine or another repository
FORBIDDEN_FIELDS = re.compile(
    "configuration_files|custom_pipelines|transformers_weights|_?(attn|experts)_implementation"
)
FORBIDDEN_FILES = ("adapter_config.json", PROCESSOR_NAME)
# The largest numbers in settings that can be published: of pixels, and of what is made before the weights are looked at
LIMITS = {
    **dict.fromkeys(("image_size", "patch_size", "encoder_stride", "size", "crop_size"), 16_384),
    **dict.fromkeys(("hidden_size", "token_mlp_dim", "channel_mlp_dim", "num_labels", "num_classes"), 100_000),
    **dict.fromkeys(("num_channels", "in_channels", "num_hidden_layers", "num_layers"), 1_000),
}
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def refuse_unusual_files(folder: Path, names: Iterable[str]) -> None:
    """
    Look at files in a folder, which may be missing, without opening other ones than pictures.

    Raises:
        `ValueError`: one is a link, or lies in a folder that is; or is no regular file, or too large; or a picture is not of
            the type that its name says; or an example has more in it than its pixels.
    """
    for name in names:
        path = folder
        for part in PurePosixPath(name).parts:
            path /= part
            if path.is_symlink():
                raise ValueError(
                    f"{path} is a link to {os.readlink(path)}, and only files of the folder itself go up: put a copy in its "
                    "place (for a folder in the cache of the Hub: hf download REPO_ID --local-dir FOLDER)"
                )
        if not path.exists():
            continue
        status = path.stat()
        kind = next((kind for is_kind, kind in KINDS.items() if is_kind(status.st_mode)), None)
        if kind is not None:
            raise ValueError(f"{path} is {kind}, and only files go up: remove or rename it")
        if status.st_size > MAX_BYTES and path.suffix in (".json", ".md", *FORMATS, ".py", ".txt", ""):
            raise ValueError(f"{path} has {status.st_size:,} bytes, and up to {MAX_BYTES:,} can go up: remove it")
        if path.suffix in FORMATS:
            check_picture(path)


def check_picture(path: Path) -> None:
    """
    Raises:
        `ValueError`: the picture is not of the type that its name says, or too large; or it is an example, and has more in it
            than its pixels.
    """
    kind = FORMATS[path.suffix]
    try:
        # Other types can start other programs
        with Image.open(path, formats=(kind,)) as image:
            num_pixels, found = image.width * image.height, set()
            if path.name in EXAMPLES and num_pixels <= MAX_PIXELS:
                image.load()  # as a PNG may have texts behind its pixels
                found = {*image.info, *(name for name, _ in getattr(image, "applist", ()))} - HARMLESS
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a picture of type {kind}: remove it, or save it again as one") from error
    except Image.DecompressionBombError:
        num_pixels = MAX_PIXELS + 1
    if num_pixels > MAX_PIXELS:
        raise ValueError(
            f"{path} has more than {MAX_PIXELS:,} pixels, too many to go up: remove it, or make it smaller"
        )
    if found:
        raise ValueError(
            f"{path} has more in it than its pixels ({', '.join(sorted(found))}), which may say where and by whom it was "
            "taken: remove it, and `hf-mixer evaluate` saves another one, or save its pixels alone"
        )


def check_settings(folder: Path) -> None:
    """
    Look at the settings of a model and of its image processor, before anything is made by them.

    Raises:
        `ValueError`: they refer to what does not go up, ask for more than a computer has, or name labels by other than texts, or
            not from 0 on.
    """
    for path in (folder / CONFIG_NAME, folder / IMAGE_PROCESSOR_NAME):
        fields = read_json(path)
        labels = fields.get("id2label") or {}
        is_text = isinstance(labels, dict) and all(isinstance(label, str) for label in labels.values())
        if not is_text or labels.keys() != {str(number) for number in range(len(labels))}:
            raise ValueError(
                f"{path} has to name the labels from 0 on by texts (id2label), as in {{'0': 'ant', '1': 'bee'}}"
            )
        for field, value in fields.items():
            if FORBIDDEN_FIELDS.fullmatch(field):
                raise ValueError(f"{path} has {field}, which can load what does not go up: remove it from there")
            values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            for number in values if field in LIMITS else ():
                if isinstance(number, int | float) and number > LIMITS[field]:
                    raise ValueError(f"{path} has {field}={number:,}, and up to {LIMITS[field]:,} can be published")


def find_modules(folder: Path) -> list[str]:
    """
    Return the names of the modules in which the settings of a model and of its image processor name their classes.

    Raises:
        `ValueError`: they name none, or some in another repository or folder, or refer to other files.
    """
    modules = []
    for path in (folder / CONFIG_NAME, folder / IMAGE_PROCESSOR_NAME):
        references = list(list_references(read_json(path).get("auto_map")))
        if not references:
            raise ValueError(
                f"{folder} names no code, so nobody could load it without hf_mixer: save the model and its image processor "
                "again with `save_pretrained` of this package"
            )
        for reference in references:
            if not re.fullmatch(r"\w+\.\w+", reference):
                where = "another repository" if "--" in reference else "elsewhere than beside it"
                raise ValueError(
                    f"{path} takes code from {where} (auto_map: {reference}): expected module.Class. Save it again with "
                    "`save_pretrained` of this package"
                )
            modules.append(reference.split(".")[0])
    return modules


def list_references(auto_map: Any) -> Iterator[str]:
    """Yield the classes that an `auto_map` names, which are nested for image processors."""
    if isinstance(auto_map, dict | list):
        for value in auto_map.values() if isinstance(auto_map, dict) else auto_map:
            yield from list_references(value)
    elif auto_map is not None:
        yield str(auto_map)


def refuse_foreign_code(path: Path, own: bytes | None, way_out: str) -> None:
    """
    Raises:
        `ValueError`: a file holds something else than `own`, apart from line ends; `None` is for what this package has not.
    """
    content = path.read_bytes()
    if own is None or content.replace(b"\r\n", b"\n") != own.replace(b"\r\n", b"\n"):
        raise ValueError(
            f"{path} is not the code of this version of hf_mixer: {way_out}, or give --trust-code to send it, and to run it "
            "here with all that you may do"
        )
