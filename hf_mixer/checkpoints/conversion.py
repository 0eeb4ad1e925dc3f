# SPDX-License-Identifier: Apache-2.0
"""Converting checkpoints: into our folders, with a proof, and out of them."""

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file

from transformers.image_utils import PILImageResampling

from ..configuration_mixer import VARIANTS, MixerConfig, to_pair
from ..modeling_mixer import MixerForImageClassification
from ..utils import check_destination, is_hub_id, written_whole
from .layouts import EDIFICE, GOOGLE, LAYOUTS, TIMM, Layout
from .loading import build_from_source, build_image_processor, is_own_folder, load_checkpoint, set_labels
from .reference import deterministic_image, reference_forward
from .sources import Source, find_checkpoint, read_source


logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
TIMM_VARIANTS = ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16")


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
    # Written as a negation, which refuses NaN too
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
    check_destination(Path(destination))
    source, difference = str(source), None
    path = find_checkpoint(source, revision)
    if is_own_folder(path):
        if image_size is not None or num_channels is not None:
            raise ValueError(f"{source} is a folder of this package, which says its own image size and channels")
        model, processor = load_checkpoint(str(path), allow_nan=allow_nan)
        origin, license_name = "a model of this package", None
    else:
        checkpoint = read_source(path, allow_nan)
        model = build_from_source(checkpoint, source_image_size=image_size, num_channels=num_channels)
        processor = build_image_processor(checkpoint, model.config)
        origin = checkpoint.layout.origin
        license_name = checkpoint.pretrained_cfg.get("license") or checkpoint.layout.license
        if not allow_nan:
            difference = verify_conversion(checkpoint, model)
    if labels is not None:
        if len(labels) != model.config.num_labels:
            raise ValueError(f"{len(labels)} label names for a model of {model.config.num_labels} labels")
        set_labels(model.config, labels)
    with written_whole(Path(destination)) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_card(folder, source, origin, license_name, model.config)
    return difference


def write_card(folder: Path, source: str, origin: str, license_name: str | None, config: MixerConfig) -> None:
    """Write a model card that names the source and its licence."""
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification" if config.num_labels else "image-feature-extraction",
        license=license_name,
        tags=["mlp-mixer", "vision"],
        base_model=source if is_hub_id(source) else None,
    )
    name = Path(source).name
    license_text = f"License of the weights: {license_name}." if license_name else "The source states no license."
    text = f"""---
{data.to_yaml()}
---

# {name}

An MLP-Mixer with {config.num_hidden_layers} layers of width {config.hidden_size}, for images of
{"x".join(map(str, to_pair(config.image_size)))} pixels in patches of {"x".join(map(str, to_pair(config.patch_size)))}.

Converted from `{name}`, {origin}, with `hf-mixer convert`. {license_text}

```python
from transformers import pipeline

classifier = pipeline("{data.pipeline_tag}", "{folder.name}", trust_remote_code=True)
```
"""
    ModelCard(text).save(folder / "README.md")


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
    if to not in LAYOUTS:
        raise ValueError(f"Unknown layout {to!r}, expected one of {', '.join(LAYOUTS)}")
    layout, path = LAYOUTS[to], Path(destination)
    if layout.suffix and path.suffix != layout.suffix:
        raise ValueError(f"the destination of {to} is a {layout.suffix} file, got {path}")
    check_destination(path)
    model, processor = load_checkpoint(source, **kwargs)
    config = model.config
    check_expressible(config, layout)

    state = model.state_dict()
    tensors = {
        theirs: layout.export_tensor(ours, state[ours]).contiguous()
        for ours, theirs in layout.keys(config.num_hidden_layers, config.num_labels > 0)
    }
    with written_whole(path) as unfinished:
        if layout is GOOGLE:
            arrays: dict[str, Any] = {key: to_numpy(tensor) for key, tensor in tensors.items()}
            np.savez(unfinished, **arrays)
        elif layout is EDIFICE:
            save_file(tensors, unfinished)
        else:
            unfinished.mkdir()
            save_file(tensors, unfinished / "model.safetensors", metadata={"format": "pt"})
            (unfinished / "config.json").write_text(json.dumps(timm_settings(config, processor), indent=2) + "\n")


def check_expressible(config: MixerConfig, layout: Layout) -> None:
    """Refuse a model that the other implementation cannot have, and warn of one that it computes differently."""
    if config.hidden_act not in (GOOGLE.hidden_act, TIMM.hidden_act):
        raise ValueError(f"{layout.name} has no models with hidden_act={config.hidden_act!r}")
    if (config.hidden_act, config.layer_norm_eps) != (layout.hidden_act, layout.layer_norm_eps):
        logger.warning(
            f"{layout.name} computes with hidden_act={layout.hidden_act} and layer_norm_eps={layout.layer_norm_eps}, this "
            f"model with {config.hidden_act} and {config.layer_norm_eps}: the outputs will differ a little"
        )
    (patch_height, patch_width), (rows, columns) = to_pair(config.patch_size), config.grid
    if layout is EDIFICE and (patch_height != patch_width or rows != columns):
        raise ValueError(
            f"Edifice has square images and patches only, not {config.image_size} and {config.patch_size}"
        )


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return an array, in which bfloat16 is 2 bytes without a type, as Google stores it."""
    return tensor.view(torch.int16).numpy().view("V2") if tensor.dtype == torch.bfloat16 else tensor.numpy()


def timm_settings(config: MixerConfig, processor) -> dict:
    """Return the `config.json` of a timm repository for our configuration and image processor."""
    height, width = to_pair(config.image_size)
    sizes = (config.patch_size, config.hidden_size)
    known = (name for name in TIMM_VARIANTS if sizes == (VARIANTS[name]["patch_size"], VARIANTS[name]["hidden_size"]))
    variant = next(known, "B/16")
    model_args, variant_args = timm_model_args(config), timm_model_args(MixerConfig.from_variant(variant))
    crop_pct = 1.0
    if processor.do_center_crop and "shortest_edge" in processor.size:
        crop_pct = height / processor.size["shortest_edge"]
        # timm divides by it and rounds down, which must not lose a pixel
        if math.floor(height / crop_pct) < processor.size["shortest_edge"]:
            crop_pct = math.nextafter(crop_pct, 0)
    return {
        "architecture": f"mixer_{variant.replace('/', '').lower()}_224",
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": "avg",
        # timm refuses arguments that repeat the variant's own
        "model_args": {name: value for name, value in model_args.items() if value != variant_args[name]},
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


def timm_model_args(config: MixerConfig) -> dict:
    """Return the arguments of timm's `MlpMixer`."""
    height, width = to_pair(config.image_size)
    return {
        "img_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "num_blocks": config.num_hidden_layers,
        "mlp_ratio": [timm_ratio(dim, config.hidden_size) for dim in (config.token_mlp_dim, config.channel_mlp_dim)],
    }


def timm_ratio(mlp_dim: int, hidden_size: int) -> float:
    """Return the ratio that timm multiplies by `hidden_size`, and rounds down, to get `mlp_dim`."""
    ratio = mlp_dim / hidden_size
    return ratio if int(ratio * hidden_size) == mlp_dim else math.nextafter(ratio, math.inf)
