# SPDX-License-Identifier: Apache-2.0
"""
Reading checkpoints of other implementations.

A file or folder becomes a `Source`: its layout and the tensors under that layout's own keys, complete, of the right
shapes and finite. No file can run code: torch's own are read by `torch.load(weights_only=True)`, nothing else is unpickled.
"""

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

from ..configuration_mixer import MixerConfig, to_pair
from ..hub_errors import clear_errors
from ..modeling_mixer import MixerForImageClassification
from ..utils import is_hub_id, read_json
from .layouts import EDIFICE, GOOGLE, STEM, TIMM, Layout
from .torch_files import TORCH_SUFFIXES, read_torch_file


logger = logging.getLogger(__name__)

# The files of weights that go with the `config.json` in their folder
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
# In the order of preference
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)
# Where the weights lie in the files that Google's training code writes
GOOGLE_PREFIXES = ("", "params/", "opt/target/")
PRE_LINEN_MODULES = {"embedding": "stem", "Mixer/encoder_norm": "pre_head_layer_norm", "head": "head"}
PRE_LINEN_NORM = re.compile(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/(scale|bias)")
PRE_LINEN_MLP = re.compile(r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(kernel|bias)([12])")
# Random keys of an Edifice training state
EDIFICE_RANDOM_KEY = re.compile(r"mixer_\d+_(token|channel)_drop[12]\.key")


@dataclass
class Source:
    """A checkpoint of another implementation."""

    path: str
    layout: Layout
    # The weights under the layout's own keys
    tensors: dict[str, torch.Tensor]
    # The `config.json` beside them, where there is one
    settings: dict = field(default_factory=dict)

    def key(self, ours: str) -> str:
        """Return the layout's name of our parameter `ours`."""
        return self._keys[ours]

    @cached_property
    def _keys(self) -> dict[str, str]:
        return dict(self.layout.keys(self.num_layers, has_head=True))

    @cached_property
    def num_layers(self) -> int:
        """Number of layers that the tensors' names count."""
        pattern = re.escape(self.layout.modules["mixer.layers.{}.token_mixing.fc1"]).replace(r"\{\}", r"(\d+)")
        return len({match[1] for key in self.tensors if (match := re.match(pattern, key))})

    @property
    def has_head(self) -> bool:
        """Whether there is a classifier."""
        return self.key("classifier.weight") in self.tensors

    @property
    def num_labels(self) -> int:
        """Number of labels, 0 without a classifier."""
        return self.linear_sizes("classifier")[0] if self.has_head else 0

    @property
    def hidden_size(self) -> int:
        """Width of a token."""
        return self.tensors[self.key("mixer.norm.weight")].numel()

    @property
    def pretrained_cfg(self) -> dict:
        """What the settings of a timm checkpoint say about images and labels."""
        return self.settings.get("pretrained_cfg") or {}

    def linear_sizes(self, ours: str) -> tuple[int, int]:
        """Return the number of outputs and of inputs of our linear layer `ours`."""
        key = self.key(f"{ours}.weight")
        shape = tuple(self.tensors[key].shape)
        if len(shape) != 2:
            raise ValueError(f"{self.path}: {key!r} has {len(shape)} axes, expected 2")
        return (shape[1], shape[0]) if self.layout.transposed else (shape[0], shape[1])


def find_checkpoint(source: str, revision: str | None = None, **hub_kwargs) -> Path:
    """
    Return the file or folder that `source` names: a path, or else a repository on the Hub, which is downloaded.

    Raises:
        `ValueError`: there is none, it cannot be downloaded, or a path comes with a `revision`.
    """
    path = Path(source)
    if path.exists():
        if revision not in (None, "main"):
            raise ValueError(
                f"{source} is a local path, and a revision is for repositories on the Hub: got {revision!r}"
            )
        return path
    if path.suffix in SUFFIXES or not is_hub_id(source):
        raise ValueError(f"{source} does not exist here, and is no name of a repository on the Hub (owner/name)")
    folder = download(source, ["*.json", "*.safetensors", "*.npz", "*.py"], revision, **hub_kwargs)
    if not list_weights(folder):
        # Files that torch has pickled, only where there are no others
        folder = download(source, ["*.json", *(f"*{suffix}" for suffix in TORCH_SUFFIXES)], revision, **hub_kwargs)
    return folder


def download(repo_id: str, patterns: list[str], revision: str | None = None, **hub_kwargs) -> Path:
    """Download files of a repository on the Hub, and return the folder that they are in."""
    try:
        with clear_errors(repo_id, is_upload=False):
            return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns, **hub_kwargs))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{repo_id} is no path here, and cannot be fetched from the Hub: {error}") from error


def read_settings(path: Path) -> dict:
    """Return the `config.json` of a folder, or of the folder that a file of one of `WEIGHTS_NAMES` lies in."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    if not config.is_file() or (path.is_file() and path.name not in WEIGHTS_NAMES):
        return {}
    return read_json(config)


def read_source(path: Path, allow_nan: bool = False) -> Source:
    """
    Read a checkpoint of Google, timm or Edifice: a `.npz` or `.safetensors` file, one of torch's, or a folder with one.
    `allow_nan` accepts weights that are not finite.

    Raises:
        `ValueError`: the file is damaged, is no Mixer, or a tensor is missing, unknown, of a wrong shape or not finite.
    """
    settings = read_settings(path)
    architecture = settings.get("architecture")
    if architecture is not None and not str(architecture).startswith("mixer_"):
        raise ValueError(f"{path} holds {architecture!r}, which is another network than the MLP-Mixer (mixer_*)")
    if settings and architecture is None:
        raise ValueError(f"{path} holds a model of type {settings.get('model_type')!r}, not an MLP-Mixer")

    file = find_weights(path) if path.is_dir() else path
    if file.suffix == ".npz":
        layout = GOOGLE
        tensors, dropped = read_google(file)
    elif file.suffix in SUFFIXES:
        tensors = read_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)
        dropped = [key for key in tensors if EDIFICE_RANDOM_KEY.fullmatch(key)]
        tensors = {key: tensor for key, tensor in tensors.items() if key not in dropped}
        if stem_key(TIMM) in tensors:
            layout = TIMM
        elif stem_key(EDIFICE) in tensors:
            layout = EDIFICE
        elif f"{STEM}.weight" in tensors:
            raise ValueError(
                f"{file} holds the weights of a model of this package: copy its config.json into the folder"
            )
        else:
            raise ValueError(
                f"{file} is not an MLP-Mixer of timm or Edifice: no tensor {stem_key(TIMM)!r} or {stem_key(EDIFICE)!r}"
            )
    else:
        raise ValueError(f"{file} is no checkpoint: expected a file that ends in {', '.join(SUFFIXES)}")
    if dropped:
        logger.warning(f"{path}: left out {len(dropped)} tensors that are no weights, such as {dropped[0]!r}")
    source = Source(str(path), layout, tensors, settings)
    check_tensors(source, allow_nan)
    return source


def list_weights(folder: Path) -> list[Path]:
    """Return the files in a folder that can hold weights."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)


def find_weights(folder: Path) -> Path:
    """Return the only file with weights in a folder, or one of `WEIGHTS_NAMES`; those that torch pickled come last."""
    files = list_weights(folder)
    preferred = [path for path in files if path.suffix not in TORCH_SUFFIXES] or files
    for name in WEIGHTS_NAMES:
        if folder / name in preferred:
            return folder / name
    if len(preferred) != 1:
        found = f"found {', '.join(path.name for path in preferred)}: name one of them" if preferred else "found none"
        raise ValueError(f"expected one file with weights ({', '.join(SUFFIXES)}) in {folder}, {found}")
    return preferred[0]


def stem_key(layout: Layout) -> str:
    return layout.modules[STEM] + layout.separator + layout.linear_names[0]


def open_safetensors(file: Path):
    """Open a file whose size is the one that its header says."""
    try:
        return safe_open(file, "pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}): copy or download it again") from error


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    with open_safetensors(file) as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys()}


def read_google(file: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """
    Read a `.npz` of Google's, of either layout, with any prefix and type.

    Returns:
        `tuple`: the tensors under the keys of the linen layout without a prefix, and the keys of what are no weights.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            stems = ("stem/kernel", "embedding/kernel")
            prefixes = [prefix for prefix in GOOGLE_PREFIXES if any(prefix + stem in names for stem in stems)]
            if not prefixes:
                raise ValueError(f"{file} is not an MLP-Mixer of Google: no array 'stem/kernel' or 'embedding/kernel'")
            prefix = prefixes[0]
            dropped = [name for name in names if not name.startswith(prefix)]
            arrays = {
                name.removeprefix(prefix): read_array(archive, file, name) for name in names if name not in dropped
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{file} is not a complete .npz file ({error}): copy or download it again") from error
    if "embedding/kernel" in arrays:
        arrays = from_pre_linen(arrays)
    tensors = {}
    for name, array in arrays.items():
        # NumPy stores bfloat16 as 2 bytes without a type
        bfloat16 = array.dtype == np.dtype("V2")
        tensor = torch.from_numpy(array.view(np.int16) if bfloat16 else array)
        tensors[name] = tensor.view(torch.bfloat16) if bfloat16 else tensor
    return tensors, dropped


def read_array(archive: zipfile.ZipFile, file: Path, name: str) -> np.ndarray:
    """Read one array of a `.npz`, whose size on disk has to be the one that its header says."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(stream)
        except ValueError as error:
            raise ValueError(f"{file}: {name!r} is not an array: {error}") from error
        if dtype.hasobject:
            raise ValueError(f"{file}: {name!r} holds pickled objects, which are never loaded")
        if dtype.newbyteorder("<").str not in ("<f2", "<f4", "<f8", "|V2"):
            raise ValueError(f"{file}: {name!r} holds {dtype}, expected floating-point weights")
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - stream.tell() or size > 64 * file.stat().st_size + 2**24:
            raise ValueError(f"{file}: {name!r} should hold {size} bytes for its shape {shape}, the archive disagrees")
        stream.seek(0)
        array = np.lib.format.read_array(stream, allow_pickle=False)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def from_pre_linen(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    Rename the keys of Google's older layout. Its LayerNorms are numbered in the order of use, not from 0 in every block,
    and its mixing weights may have more axes, of length one.
    """
    norms: dict[str, set[int]] = {}
    for key in arrays:
        if match := PRE_LINEN_NORM.fullmatch(key):
            norms.setdefault(match[1], set()).add(int(match[2]))
    renamed = {}
    for key, array in arrays.items():
        module, _, name = key.rpartition("/")
        if module in PRE_LINEN_MODULES:
            key = f"{PRE_LINEN_MODULES[module]}/{name}"
        elif match := PRE_LINEN_NORM.fullmatch(key):
            block, number, name = match.groups()
            key = f"MixerBlock_{block}/LayerNorm_{sorted(norms[block]).index(int(number))}/{name}"
        elif match := PRE_LINEN_MLP.fullmatch(key):
            block, axis, name, number = match.groups()
            key = f"MixerBlock_{block}/{axis}_mixing/Dense_{int(number) - 1}/{name}"
            biases = [f"{module}/bias1", f"{module}/bias2"]
            if name == "bias":
                array = array.reshape(-1)
            elif all(bias in arrays for bias in biases):
                # A size may be one itself: the biases tell it from the axes to drop
                mlp_dim, features = (arrays[bias].size for bias in biases)
                shape = (features, mlp_dim) if number == "1" else (mlp_dim, features)
                array = array.reshape(shape) if array.size == math.prod(shape) else array
        renamed[key] = array
    return renamed


def check_tensors(source: Source, allow_nan: bool) -> None:
    """Refuse a source with a tensor missing, unknown, empty, of another type or not finite."""
    if source.num_layers == 0:
        raise ValueError(f"{source.path} holds no layers of an MLP-Mixer")
    expected = {theirs for _, theirs in source.layout.keys(source.num_layers, source.has_head)}
    for problem, keys in (
        ("misses", expected - source.tensors.keys()),
        ("has an unknown", source.tensors.keys() - expected),
    ):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{source.path} {problem} tensor {min(keys)!r}{more}")
    for theirs, tensor in source.tensors.items():
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(f"{source.path}: {theirs!r} holds {tensor.dtype}, expected floating-point weights")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise ValueError(f"{source.path}: {theirs!r} is sparse or without values, expected a dense tensor")
        if tensor.numel() == 0:
            raise ValueError(f"{source.path}: {theirs!r} of the shape {tuple(tensor.shape)} holds no values")
    if not allow_nan:
        check_finite(source.path, source.tensors)


def check_finite(path: str, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse weights that are not finite."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name!r} holds values that are not finite; pass allow_nan to accept them")


def infer_config(source: Source, image_size=None, num_channels: int | None = None) -> MixerConfig:
    """
    Read the configuration off the tensors, with the image size of a grid that is not square, and with the number of
    channels of an Edifice checkpoint that has neither 3 nor 1.

    Raises:
        `ValueError`: the tensors leave a size open, contradict one that was given, or contradict each other.
    """
    first, second = "mixer.layers.0.token_mixing.fc1", "mixer.layers.0.token_mixing.fc2"
    inputs, outputs = source.linear_sizes(first)[1], source.linear_sizes(second)[0]
    if inputs != outputs:
        raise ValueError(
            f"{source.path}: {source.key(f'{first}.weight')!r} is for {inputs} patches, {source.key(f'{second}.weight')!r} "
            f"for {outputs}: expected the same number"
        )
    num_channels, patch_size = infer_patches(source, num_channels)
    image_size = infer_image_size(source, patch_size, image_size)
    config = MixerConfig(
        image_size=image_size[0] if image_size[0] == image_size[1] else image_size,
        patch_size=patch_size[0] if patch_size[0] == patch_size[1] else patch_size,
        num_channels=num_channels,
        hidden_size=source.hidden_size,
        num_hidden_layers=source.num_layers,
        token_mlp_dim=source.linear_sizes("mixer.layers.0.token_mixing.fc1")[0],
        channel_mlp_dim=source.linear_sizes("mixer.layers.0.channel_mixing.fc1")[0],
        hidden_act=source.layout.hidden_act,
        layer_norm_eps=source.layout.layer_norm_eps,
        num_labels=source.num_labels,
    )
    with torch.device("meta"):
        state = MixerForImageClassification(config).state_dict()
    for ours, theirs in source.layout.keys(source.num_layers, source.has_head):
        shape, expected = source.tensors[theirs].shape, source.layout.export_tensor(ours, state[ours]).shape
        if shape != expected:
            raise ValueError(f"{source.path}: {theirs!r} has the shape {tuple(shape)}, expected {tuple(expected)}")
    return config


def infer_patches(source: Source, num_channels: int | None = None) -> tuple[int, tuple[int, int]]:
    """Return the number of channels, and the height and width of a patch."""
    key = stem_key(source.layout)
    stem = source.tensors[key]
    is_matrix = source.layout.stem == "(IHW)O"
    num_axes = 2 if is_matrix else 4
    if stem.ndim != num_axes:
        raise ValueError(f"{source.path}: {key!r} has {stem.ndim} axes, expected {num_axes}")
    if not is_matrix:
        axes = dict(zip(source.layout.stem, stem.shape))
        return axes["I"], (axes["H"], axes["W"])
    if num_channels is not None and num_channels <= 0:
        raise ValueError(f"num_channels has to be positive, got {num_channels}")
    candidates = [3, 1] if num_channels is None else [num_channels]
    for channels in candidates:
        side = math.isqrt(len(stem) // channels)
        if channels * side * side == len(stem):
            return channels, (side, side)
    raise ValueError(
        f"{source.path}: {len(stem)} values per patch are no square patch of {' or '.join(map(str, candidates))} channels: "
        "give num_channels"
    )


def infer_image_size(source: Source, patch_size: tuple[int, int], image_size=None) -> tuple[int, int]:
    """Return the height and width of the images: the given one, that of the settings, or a square."""
    _, num_tokens = source.linear_sizes("mixer.layers.0.token_mixing.fc1")
    side = math.isqrt(num_tokens)
    if image_size is not None:
        candidates = [image_size]
    else:
        candidates = [
            (source.settings.get("model_args") or {}).get("img_size"),
            (source.pretrained_cfg.get("input_size") or [])[1:],
            (side * patch_size[0], side * patch_size[1]),
        ]
    for size in candidates:
        if is_tiled(size, patch_size, num_tokens):
            return to_pair(size)
    given = f"; an image of {image_size} has another number" if image_size is not None else ""
    raise ValueError(
        f"{source.path}: {num_tokens} patches of {patch_size[0]}x{patch_size[1]} pixels are no square image{given}: give the "
        "image size of the source (--image_size HEIGHT WIDTH)"
    )


def is_tiled(size, patch_size: tuple[int, int], num_tokens: int) -> bool:
    """Whether `size`, which may be anything that settings hold, is that of an image of `num_tokens` patches."""
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(length, int) for length in pair):
        return False
    rows, columns = pair[0] // patch_size[0], pair[1] // patch_size[1]
    return rows * columns == num_tokens and (rows * patch_size[0], columns * patch_size[1]) == tuple(pair)
