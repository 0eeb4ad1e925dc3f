# Copyright 2026 The hf_mixer authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""MLP-Mixer model configuration"""

from typing import Any

from huggingface_hub.dataclasses import as_validated_field, strict

from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import auto_docstring


# Table 1 of the paper (https://huggingface.co/papers/2105.01601), and the CIFAR-10 example of Edifice.Vision.MLPMixer.
VARIANTS: dict[str, dict[str, int]] = {
    name: dict(zip(("num_hidden_layers", "hidden_size", "patch_size", "channel_mlp_dim", "token_mlp_dim"), sizes))
    for name, sizes in {
        "S/32": (8, 512, 32, 2048, 256),
        "S/16": (8, 512, 16, 2048, 256),
        "B/32": (12, 768, 32, 3072, 384),
        "B/16": (12, 768, 16, 3072, 384),
        "L/32": (24, 1024, 32, 4096, 512),
        "L/16": (24, 1024, 16, 4096, 512),
        "H/14": (32, 1280, 14, 5120, 640),
        "cifar10": (8, 256, 4, 1024, 128),
    }.items()
}
VARIANTS["cifar10"].update(image_size=32, num_labels=10)

# Every saved folder names every class that can load it, whichever class saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_mixer.MixerConfig",
    "AutoModel": "modeling_mixer.MixerModel",
    "AutoModelForImageClassification": "modeling_mixer.MixerForImageClassification",
    "AutoModelForMaskedImageModeling": "modeling_mixer.MixerForMaskedImageModeling",
    "AutoBackbone": "modeling_mixer.MixerBackbone",
}


def to_pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """Return `size` as `(height, width)`; an integer stands for both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@as_validated_field
def positive_int(value: Any):
    if value <= 0:
        raise ValueError(f"expected a positive integer, got {value}")


@as_validated_field
def positive_size(value: Any):
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError(f"expected an integer or a pair (height, width), got {value}")
    if value is not None and min(to_pair(value)) <= 0:
        raise ValueError(f"expected a positive integer or a pair of them, got {value}")


@as_validated_field
def positive_float(value: Any):
    if not 0 < value < float("inf"):
        raise ValueError(f"expected a positive number, got {value}")


@as_validated_field
def non_negative_float(value: Any):
    if not 0 <= value < float("inf"):
        raise ValueError(f"expected a number of at least 0, got {value}")


@as_validated_field
def probability(value: Any):
    if not 0 <= value < 1:
        raise ValueError(f"expected a probability in [0, 1), got {value}")


@as_validated_field
def probabilities(value: Any):
    if value is not None and not all(0 <= probability <= 1 for probability in value):
        raise ValueError(f"expected probabilities in [0, 1], got {value}")


@as_validated_field
def activation(value: Any):
    if value not in ACT2FN:
        raise ValueError(f"expected one of {', '.join(sorted(ACT2FN))}, got {value!r}")


@auto_docstring(
    custom_intro="""
    Configuration of an MLP-Mixer, as proposed in [MLP-Mixer: An all-MLP Architecture for
    Vision](https://huggingface.co/papers/2105.01601). The defaults are those of `Edifice.Vision.MLPMixer`:

    | Edifice | here |
    |---|---|
    | `image_size`, `patch_size`, `hidden_size`, `token_mlp_dim`, `channel_mlp_dim` | the same |
    | `num_layers` | `num_hidden_layers`, alias `num_layers` |
    | `in_channels` | `num_channels`, alias `in_channels` |
    | `dropout` | `hidden_dropout_prob`, alias `dropout` |
    | `num_classes`, by default none | `num_labels`, by default 2, alias `num_classes`; `None` or 0: no classifier |
    | `MLPMixer.build(options)` | `MixerForImageClassification(MixerConfig(**options))` |
    | `MLPMixer.output_size(options)` | `MixerConfig(**options).output_size` |

    A wrong type or a value out of range raises `StrictDataclassFieldValidationError`, which names the field; a patch size
    that does not divide the image size raises `StrictDataclassClassValidationError`; labels, stages or aliases that
    contradict the rest raise a `ValueError`.
    """
)
@strict
class MixerConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    image_size (`int` or pair of `int`, *optional*, defaults to 224):
        Height and width of the images, in pixels. The token-mixing weights fit this size only.
    patch_size (`int` or pair of `int`, *optional*, defaults to 16):
        Height and width of a patch, in pixels. Has to divide `image_size`.
    num_channels (`int`, *optional*, defaults to 3):
        Number of image channels.
    hidden_size (`int`, *optional*, defaults to 512):
        Width of a token, `C` in the paper.
    num_hidden_layers (`int`, *optional*, defaults to 8):
        Number of Mixer layers, each one of a token-mixing and a channel-mixing MLP.
    token_mlp_dim (`int`, *optional*, defaults to 256):
        Hidden width of the token-mixing MLPs, `D_S` in the paper.
    channel_mlp_dim (`int`, *optional*, defaults to 2048):
        Hidden width of the channel-mixing MLPs, `D_C` in the paper.
    hidden_act (`str`, *optional*, defaults to `"gelu"`):
        Activation of both MLPs, any name in `transformers.activations.ACT2FN`. Google's weights need
        `"gelu_pytorch_tanh"`.
    hidden_dropout_prob (`float`, *optional*, defaults to 0.0):
        Dropout after the activation and after the second linear layer of both MLPs.
    drop_path_rate (`float`, *optional*, defaults to 0.0):
        Stochastic depth of the last layer; it rises linearly from 0 in the first. Each MLP draws its own mask per
        sample, and what is kept is divided by the keep probability.
    classifier_dropout_prob (`float`, *optional*, defaults to 0.0):
        Dropout before the classifier.
    layer_norm_eps (`float`, *optional*, defaults to 1e-6):
        Epsilon of the LayerNorms. Edifice uses 1e-5.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the classifier's initial weights. All other weights start lecun-normal, biases at zero.
    encoder_stride (`int` or pair of `int`, *optional*):
        Pixels per token in the decoder for masked image modeling. Defaults to `patch_size`.
    label_thresholds (`list[float]`, *optional*):
        For `problem_type="multi_label_classification"`, the probability from which each label counts as present.
        Defaults to 0.5 for all of them.
    apply_layernorm (`bool`, *optional*, defaults to `True`):
        Whether the feature maps of the backbone go through the final LayerNorm.
    out_features (`list[str]`, *optional*):
        Feature maps that the backbone returns: `"stem"`, `"stage1"`, ..., one stage per layer. Defaults to the last.
    out_indices (`list[int]`, *optional*):
        The same by index; 0 is the stem.

    Example:

    ```python
    >>> from hf_mixer import MixerConfig, MixerForImageClassification

    >>> config = MixerConfig.from_variant("B/16", num_labels=10)
    >>> model = MixerForImageClassification(config)
    >>> config.grid, config.num_patches
    ((14, 14), 196)
    ```"""

    model_type = "mlp_mixer"
    attribute_map = {
        "num_layers": "num_hidden_layers",
        "in_channels": "num_channels",
        "dropout": "hidden_dropout_prob",
    }
    base_model_tp_plan = {
        "layers.*.token_mixing.fc1": "colwise",
        "layers.*.token_mixing.fc2": "rowwise",
        "layers.*.channel_mixing.fc1": "colwise",
        "layers.*.channel_mixing.fc2": "rowwise",
    }
    _auto_class = "AutoConfig"

    image_size: int | list[int] | tuple[int, int] = positive_size(default=224)
    patch_size: int | list[int] | tuple[int, int] = positive_size(default=16)
    num_channels: int = positive_int(default=3)
    hidden_size: int = positive_int(default=512)
    num_hidden_layers: int = positive_int(default=8)
    token_mlp_dim: int = positive_int(default=256)
    channel_mlp_dim: int = positive_int(default=2048)
    hidden_act: str = activation(default="gelu")
    hidden_dropout_prob: float | int = probability(default=0.0)
    drop_path_rate: float | int = probability(default=0.0)
    classifier_dropout_prob: float | int = probability(default=0.0)
    layer_norm_eps: float = positive_float(default=1e-6)
    initializer_range: float | int = non_negative_float(default=0.02)
    encoder_stride: int | list[int] | tuple[int, int] | None = positive_size(default=None)
    label_thresholds: list[float | int] | None = probabilities(default=None)
    apply_layernorm: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if "pretrained_cfg" in kwargs:
            raise ValueError(
                f"This is a checkpoint of timm ({kwargs.get('architecture')}): load it with `hf_mixer.load_checkpoint(...)` "
                "or convert it with `hf-mixer convert`."
            )
        # Aliases come first: the names of the stages depend on their values, and `@strict` checks no alias.
        for alias in self.attribute_map.keys() & kwargs.keys():
            field, value = self.attribute_map[alias], kwargs.pop(alias)
            if getattr(self, field) not in (value, self.__dataclass_fields__[field].default):
                raise ValueError(f"`{alias}` is another name of `{field}`, got {value} and {getattr(self, field)}")
            setattr(self, field, value)
        if "num_classes" in kwargs:
            num_classes = kwargs.pop("num_classes") or 0
            if kwargs.setdefault("num_labels", num_classes) != num_classes:
                raise ValueError(
                    f"`num_classes` is another name of `num_labels`, got {num_classes} and {kwargs['num_labels']}"
                )
        num_labels = kwargs.get("num_labels")
        if num_labels is not None and (
            isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 0
        ):
            raise ValueError(f"`num_labels` (or `num_classes`) has to be 0 or a positive integer, got {num_labels!r}")
        if num_labels is not None and len(self.id2label or range(num_labels)) != num_labels:
            # As when a saved model gets other labels than those that the thresholds were chosen for
            self.label_thresholds = None

        kwargs.pop("stage_names", None)
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        num_stages = len(self.stage_names)
        if out_indices is not None and not isinstance(out_indices, list | tuple):
            raise ValueError(f"`out_indices` has to be a list of integers, got {out_indices!r}")
        if out_indices is not None and any(not -num_stages <= index < num_stages for index in out_indices):
            raise ValueError(
                f"`out_indices` has to lie between 0 (the stem) and {num_stages - 1} (the last of {num_stages - 1} "
                f"layers), got {list(out_indices)}"
            )
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)

        kwargs["auto_map"] = dict(AUTO_MAP)
        super().__post_init__(**kwargs)

    def __setattr__(self, key, value):
        # `@strict` finds the validators of a field by its own name only.
        if key in self.attribute_map:
            setattr(self, self.attribute_map[key], value)
            return
        chosen = self.__dict__.get("_out_features") if key == "num_hidden_layers" else None
        if chosen == self.stage_names[-1:]:
            chosen = []
        super().__setattr__(key, value)
        if chosen is not None:
            # The default, the last stage, follows the depth. A chosen stage that no longer exists raises an error.
            self.set_output_features_output_indices(out_features=chosen or None, out_indices=None)

    @classmethod
    def from_variant(cls, variant: str, **overrides) -> "MixerConfig":
        """
        Build the configuration of a published variant.

        Args:
            variant (`str`):
                `"S/32"`, `"S/16"`, `"B/32"`, `"B/16"`, `"L/32"`, `"L/16"`, `"H/14"` (size and patch size, Table 1 of
                the paper), or `"cifar10"` (the CIFAR-10 example of Edifice).
            overrides:
                Any argument of `MixerConfig`, aliases included.

        Raises:
            `ValueError`: `variant` is not in the table.
        """
        if variant not in VARIANTS:
            raise ValueError(f"Unknown variant {variant!r}, expected one of {', '.join(VARIANTS)}")
        fields = dict(VARIANTS[variant])
        if overrides.keys() & {"num_classes", "num_labels", "id2label"}:
            fields.pop("num_labels", None)
        fields.update({cls.attribute_map.get(name, name): value for name, value in overrides.items()})
        return cls(**fields)

    @property
    def num_classes(self) -> int | None:
        """`int` or `None`: The number of labels, `None` when there is no classifier, as in Edifice."""
        return self.num_labels or None

    @num_classes.setter
    def num_classes(self, num_classes: int | None):
        self.num_labels = num_classes or 0

    @property
    def output_size(self) -> int:
        """`int`: Width of the logits of [`MixerForImageClassification`]: `num_labels`, or `hidden_size` without any."""
        return self.num_labels or self.hidden_size

    @property
    def stage_names(self) -> list[str]:
        """`list[str]`: The names of the backbone's feature maps."""
        return ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]

    @property
    def grid(self) -> tuple[int, int]:
        """`tuple[int, int]`: Number of patches along the height and along the width."""
        (height, width), (patch_height, patch_width) = to_pair(self.image_size), to_pair(self.patch_size)
        if height % patch_height or width % patch_width:
            raise ValueError(f"image_size={self.image_size} has to be divisible by patch_size={self.patch_size}")
        return height // patch_height, width // patch_width

    @property
    def num_patches(self) -> int:
        """`int`: Number of tokens, `S` in the paper."""
        return self.grid[0] * self.grid[1]

    def validate_architecture(self):
        """Part of `@strict`-powered validation: the patches have to tile the image."""
        super().validate_architecture()
        _ = self.grid

    def validate_label_thresholds(self):
        """Part of `@strict`-powered validation: there has to be one threshold for each label."""
        if self.label_thresholds is not None and len(self.label_thresholds) != self.num_labels:
            raise ValueError(
                f"label_thresholds needs one probability for each of {self.num_labels} labels, got "
                f"{len(self.label_thresholds)}"
            )


__all__ = ["MixerConfig"]
