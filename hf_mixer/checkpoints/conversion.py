# SPDX-License-Identifier: Apache-2.0
"""Converting checkpoints: into our folders, with a proof, and out of them."""

import copy
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file

from transformers.image_utils import PILImageResampling

from ..configuration_mixer import VARIANTS, MixerConfig, to_pair
from ..modeling_mixer import MixerForImageClassification
from .layouts import GOOGLE, LAYOUTS, TIMM, Layout
from .loading import build_image_processor, build_model, load_checkpoint
from .reference import deterministic_image, reference_forward
from .sources import Source, find_checkpoint, read_settings, read_source


logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
TIMM_VARIANTS = ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16")
LICENSES = {"google": "apache-2.0", "timm": "apache-2.0"}
ORIGINS = {
    "google": "Google's MLP-Mixer (https://github.com/google-research/vision_transformer)",
    "timm": "timm (https://github.com/huggingface/pytorch-image-models)",
    "edifice": "Edifice (https://hex.pm/packages/edifice)",
}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """
    Yield a folder to write into, which becomes `folder` when all went well and vanishes otherwise.

    Raises:
        `ValueError`: `folder` exists and is not empty.
    """
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists: choose another destination or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        written = Path(temporary) / folder.name
        written.mkdir()
        yield written
        if folder.exists():
            folder.rmdir()
        shutil.move(written, folder)


def verify_conversion(source: Source, model: MixerForImageClassification) -> float:
    """
    Run one image through the source's own tensors in plain NumPy and through `model`, both in float64.

    Returns:
        `float`: the largest difference between the outputs.

    Raises:
        `ValueError`: it is above 1e-5.
    """
    image = deterministic_image(model.config)
    expected = reference_forward(source, image, to_pair(model.config.patch_size))
    double = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        actual = double(torch.from_numpy(image)[None]).logits[0].numpy()
    difference = float(np.abs(actual - expected).max())
    # The negation also catches a difference that is no number
    if not difference <= TOLERANCE:
        raise ValueError(f"the converted model differs from {source.path} by {difference:.1e}, more than {TOLERANCE}")
    return difference


def convert_checkpoint(
    source: str,
    destination: str,
    image_size: int | tuple[int, int] | None = None,
    num_channels: int | None = None,
    labels: list[str] | None = None,
    revision: str | None = None,
    allow_nan: bool = False,
) -> float | None:
    """
    Write a checkpoint of Google, timm or Edifice as a folder that `from_pretrained` and `pipeline` run.

    Args:
        source (`str`):
            A file, a folder or a repository on the Hub; also one of our own.
        destination (`str`):
            The folder to write. It must not exist, or be empty.
        image_size (`int` or `tuple[int, int]`, *optional*):
            Image size of a source whose patches form no square.
        num_channels (`int`, *optional*):
            Number of channels of an Edifice checkpoint that has neither 3 nor 1.
        labels (`list[str]`, *optional*):
            Names of the labels, where the source has none.
        revision (`str`, *optional*):
            Branch, tag or commit of a repository on the Hub.
        allow_nan (`bool`, *optional*, defaults to `False`):
            Whether to accept weights that are not finite. Then there is nothing to compare.

    Returns:
        `float` or `None`: the largest difference to the source's own forward pass (see `verify_conversion`); `None` for a
        source of ours.

    Raises:
        `ValueError`: the source is damaged or no Mixer, or the converted model differs. Nothing is written then.
    """
    source, difference = str(source), None
    path = find_checkpoint(source, revision)
    if read_settings(path).get("model_type") == MixerConfig.model_type:
        if image_size is not None or num_channels is not None:
            raise ValueError(f"{source} is a folder of this package, which says its own image size and channels")
        model, processor = load_checkpoint(str(path), allow_nan=allow_nan)
        layout, settings = None, {}
    else:
        checkpoint = read_source(path, allow_nan)
        model = build_model(checkpoint, source_image_size=image_size, num_channels=num_channels)
        processor = build_image_processor(checkpoint, model.config)
        layout, settings = checkpoint.layout, checkpoint.settings
        if not allow_nan:
            difference = verify_conversion(checkpoint, model)
    if labels is not None:
        if len(labels) != model.config.num_labels:
            raise ValueError(f"{len(labels)} label names for a model of {model.config.num_labels} labels")
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}
    with new_folder(Path(destination)) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_card(folder, source, layout, settings, model.config)
    return difference


def write_card(folder: Path, source: str, layout: Layout | None, settings: dict, config: MixerConfig) -> None:
    """Write a model card that names the source and its licence."""
    origin = "a model of this package" if layout is None else ORIGINS[layout.name]
    license_name = (settings.get("pretrained_cfg") or {}).get("license") or (
        LICENSES.get(layout.name) if layout else None
    )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification" if config.num_labels else "image-feature-extraction",
        license=license_name,
        tags=["mlp-mixer", "vision"],
        base_model=source if source.count("/") == 1 and not Path(source).exists() else None,
    )
    name = Path(source).name
    text = f"""---
{data.to_yaml()}
---

# {name}

An MLP-Mixer with {config.num_hidden_layers} layers of width {config.hidden_size}, for images of
{"x".join(map(str, to_pair(config.image_size)))} pixels in patches of {"x".join(map(str, to_pair(config.patch_size)))}.

Converted from `{name}`, {origin}. {f"License of the weights: {license_name}." if license_name else "The source states no license."}

```python
from transformers import pipeline

classifier = pipeline("{data.pipeline_tag}", "FOLDER_OR_REPOSITORY", trust_remote_code=True)
```
"""
    ModelCard(text.replace("FOLDER_OR_REPOSITORY", folder.name)).save(folder / "README.md")


def export_checkpoint(source: str, destination: str, to: str, **kwargs) -> None:
    """
    Write a model in the layout of another implementation.

    Args:
        source (`str`):
            Anything that `load_checkpoint` takes.
        destination (`str`):
            A `.npz` file (Google), a `.safetensors` file (Edifice) or a folder (timm), which must not exist.
        to (`str`):
            `"google"`, `"timm"` or `"edifice"`.
        kwargs:
            More arguments for `load_checkpoint`, such as `revision`, `id2label` and `source_image_size`.

    Raises:
        `ValueError`: the destination exists or has the wrong suffix, or the layout cannot express the model.
    """
    layout, path = LAYOUTS[to], Path(destination)
    suffix = {"google": ".npz", "edifice": ".safetensors", "timm": ""}[to]
    if path.suffix != suffix and suffix:
        raise ValueError(f"the destination of {to} is a {suffix} file, got {path}")
    if path.is_file() or (suffix and path.exists()):
        raise ValueError(f"{path} already exists: choose another destination or remove it")
    model, processor = load_checkpoint(source, **kwargs)
    config = model.config
    if config.hidden_act not in (GOOGLE.hidden_act, TIMM.hidden_act):
        raise ValueError(f"{to} has no models with hidden_act={config.hidden_act!r}")
    if (config.hidden_act, config.layer_norm_eps) != (layout.hidden_act, layout.layer_norm_eps):
        logger.warning(
            f"{to} computes with hidden_act={layout.hidden_act} and layer_norm_eps={layout.layer_norm_eps}, this model "
            f"with {config.hidden_act} and {config.layer_norm_eps}: the outputs will differ a little"
        )
    patch_height, patch_width = to_pair(config.patch_size)
    if to == "edifice" and (patch_height != patch_width or config.grid[0] != config.grid[1]):
        raise ValueError(
            f"Edifice has square images and patches only, not {config.image_size} and {config.patch_size}"
        )

    state = model.state_dict()
    tensors = {
        theirs: layout.export_tensor(
            ours, state[("" if ours.startswith("classifier") else "mixer.") + ours]
        ).contiguous()
        for ours, theirs in layout.keys(config.num_hidden_layers, config.num_labels > 0)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout is TIMM:
        with new_folder(path) as folder:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(timm_settings(config, processor), indent=2) + "\n")
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if layout is GOOGLE:
            arrays: dict[str, Any] = {key: to_numpy(tensor) for key, tensor in tensors.items()}
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)
        else:
            save_file(tensors, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return an array, in which bfloat16 is 2 bytes without a type, as Google stores it."""
    return tensor.view(torch.int16).numpy().view("V2") if tensor.dtype == torch.bfloat16 else tensor.numpy()


def timm_settings(config: MixerConfig, processor) -> dict:
    """Return the `config.json` of a timm repository for our configuration and image processor."""
    height, width = to_pair(config.image_size)
    # The variants that timm has; `model_args` says where the model differs
    sizes = {name: (VARIANTS[name]["patch_size"], VARIANTS[name]["hidden_size"]) for name in TIMM_VARIANTS}
    name = next((name for name, size in sizes.items() if size == (config.patch_size, config.hidden_size)), "B/16")
    variant = MixerConfig.from_variant(name)

    def mlp_ratio(mlp_dim: int) -> float:
        ratio = mlp_dim / config.hidden_size
        # timm multiplies and rounds down
        return ratio if int(ratio * config.hidden_size) == mlp_dim else math.nextafter(ratio, math.inf)

    crop_pct = 1.0
    if processor.do_center_crop and "shortest_edge" in processor.size:
        crop_pct = height / processor.size["shortest_edge"]
        # timm divides and rounds down; do not lose a pixel to rounding
        if math.floor(height / crop_pct) < processor.size["shortest_edge"]:
            crop_pct = math.nextafter(crop_pct, 0)
    args = {
        "img_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "num_blocks": config.num_hidden_layers,
        "mlp_ratio": [mlp_ratio(config.token_mlp_dim), mlp_ratio(config.channel_mlp_dim)],
    }
    defaults = {
        "img_size": 224,
        "patch_size": variant.patch_size,
        "in_chans": 3,
        "embed_dim": variant.hidden_size,
        "num_blocks": variant.num_hidden_layers,
        "mlp_ratio": [0.5, 4.0],
    }
    return {
        "architecture": f"mixer_{name.replace('/', '').lower()}_224",
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": "avg",
        "model_args": {key: value for key, value in args.items() if value != defaults[key]},
        "label_names": list(config.id2label.values()),
        "pretrained_cfg": {
            "input_size": [config.num_channels, height, width],
            "fixed_input_size": True,
            "interpolation": PILImageResampling(processor.resample).name.lower(),
            "crop_pct": crop_pct,
            "crop_mode": "center" if processor.do_center_crop else "squash",
            "mean": list(processor.image_mean),
            "std": list(processor.image_std),
            "num_classes": config.num_labels,
            "first_conv": "stem.proj",
            "classifier": "head",
        },
    }
