# SPDX-License-Identifier: Apache-2.0
"""
Reading checkpoints of other implementations.

A file or folder becomes a `Source`: its layout and the tensors under that layout's own keys, complete, of the right
shapes and finite. Nothing is ever unpickled.
"""

import json
import logging
import math
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from ..configuration_mixer import MixerConfig
from .layouts import EDIFICE, GOOGLE, STEM, TIMM, Layout


logger = logging.getLogger(__name__)

# Where the weights lie in the files that Google's training code writes
GOOGLE_PREFIXES = ("", "params/", "opt/target/")
PRE_LINEN_MODULES = {
    "embedding": "stem",
    "Mixer/encoder_norm": "pre_head_layer_norm",
    "head": "head",
}
# Random keys of an Edifice training state
EDIFICE_RANDOM_KEY = re.compile(r"mixer_\d+_(token|channel)_drop[12]\.key")


@dataclass
class Source:
    """
    A checkpoint of another implementation.

    Args:
        path (`str`):
            Where it was read from.
        layout (`Layout`):
            How its keys and tensors are laid out.
        tensors (`dict[str, torch.Tensor]`):
            The weights under the layout's own keys.
        settings (`dict`):
            The `config.json` of a timm checkpoint, otherwise empty.
        dropped (`list[str]`):
            Keys of the file that are no weights.
    """

    path: str
    layout: Layout
    tensors: dict[str, torch.Tensor]
    settings: dict = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def key(self, ours: str) -> str:
        """Return the layout's name of our parameter `ours`."""
        return self._keys[ours]

    @cached_property
    def _keys(self) -> dict[str, str]:
        return dict(self.layout.keys(self.num_layers, has_head=True))

    @cached_property
    def num_layers(self) -> int:
        """Number of layers that the tensors' names count."""
        pattern = re.escape(self.layout.modules["layers.{}.token_mixing.fc1"]).replace(r"\{\}", r"(\d+)")
        return len({match[1] for key in self.tensors if (match := re.match(pattern, key))})

    @property
    def has_head(self) -> bool:
        """Whether there is a classifier."""
        return self.key("classifier.weight") in self.tensors


def find_checkpoint(source: str, revision: str | None = None, **hub_kwargs) -> Path:
    """
    Return the file or folder that `source` names: a path, or else a repository on the Hub, which is downloaded.

    Raises:
        `ValueError`: a path that does not exist.
    """
    path = Path(source)
    if path.exists():
        return path
    if path.suffix in (".npz", ".safetensors") or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"{source} is neither a file or folder nor the name of a repository on the Hub")
    patterns = ["*.json", "*.safetensors", "*.npz", "*.py"]
    return Path(snapshot_download(source, revision=revision, allow_patterns=patterns, **hub_kwargs))


def read_settings(path: Path) -> dict:
    """Return the `config.json` of a folder, or of the folder that a `model.safetensors` lies in."""
    folder = path if path.is_dir() else path.parent
    config = folder / "config.json"
    if not config.is_file() or (path.is_file() and path.name != "model.safetensors"):
        return {}
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{config} holds no settings, but {type(settings).__name__}")
    return settings


def read_source(path: Path, allow_nan: bool = False) -> Source:
    """
    Read a checkpoint of Google, timm or Edifice.

    Args:
        path (`Path`):
            A `.npz` or `.safetensors` file, or a folder with one.
        allow_nan (`bool`, *optional*, defaults to `False`):
            Whether to accept weights that are not finite.

    Raises:
        `ValueError`: the file is damaged, is no Mixer, or a tensor is missing, unknown, of a wrong shape or not finite.
    """
    settings = read_settings(path)
    architecture = settings.get("architecture")
    if architecture is not None and not str(architecture).startswith("mixer_"):
        raise ValueError(f"{path} holds {architecture!r}, which is another network than the MLP-Mixer (mixer_*)")
    if settings and architecture is None:
        raise ValueError(f"{path} holds a model of type {settings.get('model_type')!r}, not an MLP-Mixer")

    file = path
    if path.is_dir():
        names = ["model.safetensors"] if (path / "model.safetensors").is_file() else ["*.safetensors", "*.npz"]
        files = [file for name in names for file in path.glob(name)]
        if len(files) != 1:
            raise ValueError(f"expected one .safetensors or .npz file in {path}, found {len(files)}")
        file = files[0]
    if file.suffix == ".npz":
        source = Source(str(path), GOOGLE, *read_google(file))
    elif file.suffix == ".safetensors":
        tensors = read_safetensors(file)
        dropped = [key for key in tensors if EDIFICE_RANDOM_KEY.fullmatch(key)]
        weights = {key: tensor for key, tensor in tensors.items() if key not in dropped}
        layout = next((layout for layout in (TIMM, EDIFICE) if stem_key(layout) in weights), None)
        if layout is None:
            raise ValueError(
                f"{file} is not an MLP-Mixer of timm or Edifice: no tensor {stem_key(TIMM)!r} or {stem_key(EDIFICE)!r}"
            )
        source = Source(str(path), layout, weights, settings, dropped)
    else:
        raise ValueError(f"{file} is no checkpoint: expected a .npz or .safetensors file")
    if source.dropped:
        logger.warning(
            f"{path}: left out {len(source.dropped)} tensors that are no weights, such as {source.dropped[0]!r}"
        )
    check_tensors(source, allow_nan)
    return source


def stem_key(layout: Layout) -> str:
    return layout.modules[STEM] + layout.separator + layout.linear_names[0]


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(file, "pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file: {error}") from error


def read_google(file: Path) -> tuple[dict[str, torch.Tensor], dict, list[str]]:
    """Read a `.npz` of Google's, whatever its prefix, its type and its age, under the keys of the bare linen layout."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            stems = ("stem/kernel", "embedding/kernel")
            prefix = next((prefix for prefix in GOOGLE_PREFIXES for stem in stems if prefix + stem in names), None)
            if prefix is None:
                raise ValueError(f"{file} is not an MLP-Mixer of Google: no array 'stem/kernel' or 'embedding/kernel'")
            dropped = [name for name in names if not name.startswith(prefix)]
            arrays = {
                name.removeprefix(prefix): read_array(archive, file, name) for name in names if name not in dropped
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{file} is not a complete .npz file: {error}") from error
    if "embedding/kernel" in arrays:
        arrays = from_pre_linen(arrays)
    tensors = {}
    for name, array in arrays.items():
        # NumPy stores bfloat16 as 2 bytes without a type
        bfloat16 = array.dtype == np.dtype("V2")
        tensor = torch.from_numpy(array.view(np.int16) if bfloat16 else array)
        tensors[name] = tensor.view(torch.bfloat16) if bfloat16 else tensor
    return tensors, {}, dropped


def read_array(archive: zipfile.ZipFile, file: Path, name: str) -> np.ndarray:
    """Read one array of a `.npz`, whose size on disk has to be the one that its header says."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, fortran_order, dtype = read_header(stream)
        except ValueError as error:
            raise ValueError(f"{file}: {name!r} is not an array: {error}") from error
        if dtype.hasobject:
            raise ValueError(f"{file}: {name!r} holds pickled objects, which are never loaded")
        if dtype.newbyteorder("<").str not in ("<f2", "<f4", "<f8", "|V2"):
            raise ValueError(f"{file}: {name!r} holds {dtype}, expected floating-point weights")
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - stream.tell() or size > 64 * file.stat().st_size + 2**24:
            raise ValueError(f"{file}: {name!r} should hold {size} bytes for its shape {shape}, the archive disagrees")
        data = stream.read()
    array = np.frombuffer(bytearray(data), dtype)
    array = array if dtype.isnative else array.astype(dtype.newbyteorder("="))
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def from_pre_linen(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    Rename the keys of Google's older layout. Its LayerNorms are numbered in the order of use, not from 0 in every block,
    and its mixing kernels may have axes of length one.
    """
    norms: dict[str, list[int]] = {}
    for key in arrays:
        if match := re.match(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/scale", key):
            norms.setdefault(match[1], []).append(int(match[2]))
    renamed = {}
    for key, array in arrays.items():
        module, _, name = key.rpartition("/")
        if module in PRE_LINEN_MODULES:
            renamed[f"{PRE_LINEN_MODULES[module]}/{name}"] = array
        elif match := re.fullmatch(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)", module):
            if int(match[2]) not in norms.get(match[1], ()):
                raise ValueError(f"{key!r} has no scale beside it")
            number = sorted(norms[match[1]]).index(int(match[2]))
            renamed[f"MixerBlock_{match[1]}/LayerNorm_{number}/{name}"] = array
        elif (match := re.fullmatch(r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0", module)) and (
            leaf := re.fullmatch(r"(kernel|bias)([12])", name)
        ):
            if not {f"{module}/bias1", f"{module}/bias2"} <= arrays.keys():
                raise ValueError(f"{module!r} has no bias1 or bias2")
            fan_out, fan_in = (
                arrays[f"{module}/bias{number}"].size for number in ((1, 2) if leaf[2] == "1" else (2, 1))
            )
            shape = (fan_in, fan_out) if leaf[1] == "kernel" else (fan_out,)
            if array.size != math.prod(shape):
                raise ValueError(f"{key!r} has the shape {array.shape}, expected {shape} and axes of length one")
            target = f"MixerBlock_{match[1]}/{match[2]}_mixing/Dense_{int(leaf[2]) - 1}/{leaf[1]}"
            renamed[target] = array.reshape(shape)
        else:
            renamed[key] = array
    return renamed


def check_tensors(source: Source, allow_nan: bool) -> None:
    """Refuse a source with a tensor missing, unknown, of a wrong shape or not finite."""
    if source.num_layers == 0:
        raise ValueError(f"{source.path} holds no layers of an MLP-Mixer")
    expected = {theirs: ours for ours, theirs in source.layout.keys(source.num_layers, source.has_head)}
    for problem, keys in (
        ("misses", expected.keys() - source.tensors.keys()),
        ("has an unknown", source.tensors.keys() - expected.keys()),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{source.path} {problem} tensor {min(keys)!r}{more}")

    def size(ours, axis):
        """Length of an axis of a linear layer: 0 for its outputs, 1 for its inputs."""
        shape = source.tensors[source.key(f"{ours}.weight")].shape
        if len(shape) != 2:
            raise ValueError(f"{source.path}: {source.key(f'{ours}.weight')!r} has {len(shape)} axes, expected 2")
        return shape[1 - axis if source.layout.transposed else axis]

    hidden_size = source.tensors[source.key("norm.weight")].numel()
    tokens, token_mlp_dim = size("layers.0.token_mixing.fc1", 1), size("layers.0.token_mixing.fc1", 0)
    channel_mlp_dim = size("layers.0.channel_mixing.fc1", 0)
    linears = {
        "token_mixing.fc1": (token_mlp_dim, tokens),
        "token_mixing.fc2": (tokens, token_mlp_dim),
        "channel_mixing.fc1": (channel_mlp_dim, hidden_size),
        "channel_mixing.fc2": (hidden_size, channel_mlp_dim),
        "classifier": (size("classifier", 0) if source.has_head else 0, hidden_size),
    }
    for theirs, ours in expected.items():
        tensor = source.tensors[theirs]
        module, _, name = ours.rpartition(".")
        if ours == f"{STEM}.weight":
            axes = source.layout.stem.replace("(IHW)", "I")
            if tensor.ndim != len(axes):
                raise ValueError(f"{source.path}: {theirs!r} has {tensor.ndim} axes, expected {len(axes)}")
            # Whatever patch and channels it has, that many outputs
            shape = tuple(tensor.shape)
            shape = tuple(hidden_size if axis == "O" else length for axis, length in zip(axes, shape))
        elif name == "weight":
            shape = next((shape for suffix, shape in linears.items() if module.endswith(suffix)), (hidden_size,))
            shape = tuple(reversed(shape)) if source.layout.transposed else shape
        else:
            shape = (next((shape[0] for suffix, shape in linears.items() if module.endswith(suffix)), hidden_size),)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{source.path}: {theirs!r} has the shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(f"{source.path}: {theirs!r} holds {tensor.dtype}, expected floating-point weights")
        if not allow_nan and not tensor.isfinite().all():
            raise ValueError(
                f"{source.path}: {theirs!r} holds values that are not finite; pass allow_nan to accept them"
            )


def infer_config(source: Source, image_size=None, num_channels: int | None = None) -> MixerConfig:
    """
    Read the configuration off the tensors.

    Args:
        image_size (`int` or pair, *optional*):
            The image size of the source, for grids that are not square.
        num_channels (`int`, *optional*):
            The number of channels of an Edifice checkpoint that has neither 3 nor 1.

    Raises:
        `ValueError`: the tensors leave a size open, or contradict one that was given.
    """
    layout, stem = source.layout, source.tensors[stem_key(source.layout)]
    tokens, token_mlp_dim = source.tensors[source.key("layers.0.token_mixing.fc1.weight")].shape
    if not layout.transposed:
        tokens, token_mlp_dim = token_mlp_dim, tokens
    if layout.stem == "(IHW)O":
        if num_channels is not None and num_channels <= 0:
            raise ValueError(f"num_channels has to be positive, got {num_channels}")
        candidates = [num_channels] if num_channels is not None else [3, 1]
        sizes = {channels: math.isqrt(len(stem) // channels) for channels in candidates}
        channels = next((channels for channels, size in sizes.items() if channels * size * size == len(stem)), None)
        if channels is None:
            raise ValueError(
                f"{source.path}: {len(stem)} values per patch are no square patch of {' or '.join(map(str, candidates))} "
                "channels: give num_channels"
            )
        patch_size = (sizes[channels], sizes[channels])
    else:
        axes = dict(zip(layout.stem, stem.shape))
        channels, patch_size = axes["I"], (axes["H"], axes["W"])

    side = math.isqrt(tokens)
    hints = (
        [image_size]
        if image_size is not None
        else [
            (source.settings.get("model_args") or {}).get("img_size"),
            ((source.settings.get("pretrained_cfg") or {}).get("input_size") or [])[1:],
            (side * patch_size[0], side * patch_size[1]),
        ]
    )
    for hint in hints:
        pair = hint if isinstance(hint, list | tuple) else (hint, hint)
        size = (pair[0], pair[1]) if len(pair) == 2 and all(isinstance(length, int) for length in pair) else (0, 0)
        if all(length % patch == 0 for length, patch in zip(size, patch_size)) and (
            math.prod(length // patch for length, patch in zip(size, patch_size)) == tokens
        ):
            break
    else:
        given = f"; an image of {image_size} has another number" if image_size is not None else ""
        raise ValueError(
            f"{source.path}: {tokens} patches of {patch_size[0]}x{patch_size[1]} pixels are no square image{given}: give "
            "the image size of the source (--image-size HEIGHT WIDTH)"
        )

    channel_mlp_dim = source.tensors[source.key("layers.0.channel_mixing.fc1.bias")].numel()
    num_labels = source.tensors[source.key("classifier.bias")].numel() if source.has_head else 0
    return MixerConfig(
        image_size=size[0] if size[0] == size[1] else size,
        patch_size=patch_size[0] if patch_size[0] == patch_size[1] else patch_size,
        num_channels=channels,
        hidden_size=source.tensors[source.key("norm.weight")].numel(),
        num_hidden_layers=source.num_layers,
        token_mlp_dim=token_mlp_dim,
        channel_mlp_dim=channel_mlp_dim,
        hidden_act=layout.hidden_act,
        layer_norm_eps=layout.layer_norm_eps,
        num_labels=num_labels,
    )
