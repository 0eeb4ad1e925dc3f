# SPDX-License-Identifier: Apache-2.0
"""The command line of `hf-mixer train`, and recipes that set its defaults."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from transformers import HfArgumentParser

from ..checkpoints.loading import SHAPE_FIELDS
from .arguments import MixerTrainingArguments


DEFAULT_VARIANT = "S/16"
DATA_SOURCE_FIELDS = ("dataset_name", "dataset_config_name", "train_dir", "validation_dir")
# What may change in a pretrained model too
REGULARIZATION_FIELDS = ("hidden_dropout_prob", "drop_path_rate", "classifier_dropout_prob")


@dataclass
class DataTrainingArguments:
    """
    What to train on. With no data set and no folder at all: the handwritten digits that ship inside scikit-learn.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub, or a local folder of parquet files or class folders."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the data set."})
    train_dir: str | None = field(default=None, metadata={"help": "A folder with one folder of images per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, for validation."})
    eval_split: str | None = field(
        default=None, metadata={"help": "The split to evaluate on. Default: `validation`, or a share of `train`."}
    )
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share to split off the training data, where there is no validation data."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the images while training, not all before."})
    train_image_size: int | None = field(
        default=None,
        metadata={
            "help": "Bring training images to squares of this many pixels (shorter side, center crop) before they are "
            "augmented. Default with random_resized_crop: 8/7 of the image size, else the image size."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many images only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many images only."})
    image_column_name: str | None = field(
        default=None, metadata={"help": "The column of the images. Default: `image`, or the only one with images."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "The column of the labels. Default: `label`, or the only one with classes."}
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "Name of a recipe, or path of a YAML file, with defaults for these arguments."},
    )


@dataclass
class ModelArguments:
    """
    Which model to train: a pretrained one, or a variant from scratch with any field of its configuration changed.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A pretrained Mixer on the Hub, a folder or a file, also timm's or Google's."}
    )
    variant: str = field(
        default=DEFAULT_VARIANT,
        metadata={"help": "From scratch: S/32, S/16, B/32, B/16, L/32, L/16, H/14 or cifar10."},
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Image size, or height and width; pretrained: resized."}
    )
    patch_size: list[int] | None = field(default=None, metadata={"help": "Patch size, or height and width."})
    num_channels: int | None = field(default=None, metadata={"help": "3 for RGB, 1 for grey images."})
    hidden_size: int | None = field(default=None, metadata={"help": "Width of a token."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of layers."})
    token_mlp_dim: int | None = field(default=None, metadata={"help": "Width of the token-mixing MLPs."})
    channel_mlp_dim: int | None = field(default=None, metadata={"help": "Width of the channel-mixing MLPs."})
    hidden_act: str | None = field(default=None, metadata={"help": "Activation of the MLPs."})
    hidden_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout in the MLPs."})
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of the last layer."})
    classifier_dropout_prob: float | None = field(default=None, metadata={"help": "Dropout before the classifier."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where to keep what comes from the Hub."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the pretrained model."})
    image_processor_name: str | None = field(
        default=None, metadata={"help": "Image processor, if not the one of model_name_or_path."}
    )
    token: str | None = field(
        default=None, metadata={"help": "Token for the Hub. Default: the one you logged in with."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Start with a new head where the pretrained one has other labels."}
    )


def parse_training_arguments(
    recipes: Path, description: str | None = None, arguments: list[str] | None = None
) -> tuple[ModelArguments, DataTrainingArguments, MixerTrainingArguments]:
    """
    Read the command line, by default that of the program, on top of the recipe that it names: a YAML file with arguments
    and their values, in the folder `recipes`. `--help` begins with `description`.

    Raises:
        `ValueError`: the recipe does not exist, cannot be read or sets arguments that do not exist.
    """
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, MixerTrainingArguments), description=description)
    parser.set_defaults(eval_strategy="epoch")
    known, _ = parser.parse_known_args(arguments)
    if not known.do_train and not known.do_eval:
        parser.set_defaults(do_train=True, do_eval=True)
    has_data = any(getattr(known, name) is not None for name in DATA_SOURCE_FIELDS)
    recipe = known.recipe if known.recipe is not None or has_data else "digits"
    if recipe is not None:
        defaults = read_recipe(recipe, recipes)
        unknown = defaults.keys() - vars(known).keys()
        if unknown:
            raise ValueError(f"recipe {recipe!r} sets arguments that do not exist: {', '.join(sorted(unknown))}")
        if has_data:
            # Other data than the recipe's
            defaults = {
                name: value for name, value in defaults.items() if name not in (*DATA_SOURCE_FIELDS, "eval_split")
            }
        if known.recipe is None and (known.model_name_or_path, known.variant) != (None, DEFAULT_VARIANT):
            # The model was chosen, and only the data and its training come from the digits
            defaults = {name: value for name, value in defaults.items() if name not in SHAPE_FIELDS}
        parser.set_defaults(**defaults)
    return parser.parse_args_into_dataclasses(arguments)


def read_recipe(recipe: str, recipes: Path) -> dict[str, Any]:
    """Return the arguments that a recipe sets, given by its name in the folder `recipes` or as a file."""
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else recipes / f"{recipe}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in recipes.glob("*.yaml")))
        raise ValueError(f"no recipe {recipe!r}: expected a YAML file or one of {names}")
    try:
        defaults = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(defaults, dict):
        raise ValueError(f"{path} has to hold arguments and their values")
    # YAML reads an unquoted `no` as false
    return {name: "no" if name.endswith("_strategy") and value is False else value for name, value in defaults.items()}
