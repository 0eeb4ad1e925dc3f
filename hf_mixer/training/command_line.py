# SPDX-License-Identifier: Apache-2.0
"""The command line of `hf-mixer train`, its help, and recipes that set its defaults."""

import argparse
import difflib
import sys
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from transformers import HfArgumentParser

from ..checkpoints.loading import SHAPE_FIELDS
from ..data.labels import PROBLEM_TYPES
from .arguments import MixerTrainingArguments


DEFAULT_VARIANT = "S/16"
# The first one that is given names the data
DATA_SOURCE_FIELDS = ("dataset_name", "train_dir", "train_file", "validation_dir", "validation_file")
# What may change in a pretrained model too
REGULARIZATION_FIELDS = ("hidden_dropout_prob", "drop_path_rate", "classifier_dropout_prob")
# The recipes that are taken where none is named, and the name that keeps them out
DIGITS_RECIPE = "digits"
FROM_SCRATCH_RECIPE = "from-scratch-small"
FINE_TUNING_RECIPE = "finetune-224"
NO_RECIPE = "none"


@dataclass
class DataTrainingArguments:
    """
    What to train on. With no data set, folder or file at all: the handwritten digits that ship inside scikit-learn.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub, or a local folder of parquet files or class folders."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the data set."})
    train_dir: str | None = field(
        default=None,
        metadata={"help": "A folder with one folder of images per class, or with images and metadata.csv."},
    )
    validation_dir: str | None = field(default=None, metadata={"help": "The same, for validation."})
    train_file: str | None = field(
        default=None, metadata={"help": "A CSV file with the columns path (relative to the file) and label."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same, for validation."})
    eval_split: str | None = field(
        default=None, metadata={"help": "The split to evaluate on. Default: `validation`, or a share of `train`."}
    )
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share to split off the training data, where there is no validation data."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the images while training, not all before."})
    skip_unreadable_images: bool = field(
        default=False, metadata={"help": "Leave out images that cannot be read: each is named, a tenth at most."}
    )
    flatten_transparency: str | None = field(
        default=None, metadata={"help": "Put transparent images on this colour, such as white or #808080."}
    )
    scale_16_bit: bool = field(
        default=False, metadata={"help": "Scale images of 16 bits to 8. By default Pillow cuts them off at 255."}
    )
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
    label_column_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "The column of the labels, or several columns of 0 and 1, or of values to estimate. Default: "
            "`label`, or the only one with classes."
        },
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "What the labels are: single_label_classification, multi_label_classification or regression. "
            "Default: as the column says; columns of real numbers are for regression.",
            "choices": list(PROBLEM_TYPES),
            "metavar": "TYPE",
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "Name of a recipe, or path of a YAML file, with defaults for these arguments, or `none` for those "
            "of transformers. Default: finetune-224 with model_name_or_path, from-scratch-small without."
        },
    )
    # The arguments that the command line names, whatever their values
    given: frozenset[str] = field(default=frozenset(), init=False, repr=False)

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} has to be at least 1, got {value}")
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"--train_val_split has to be between 0 and 1, got {self.train_val_split}")
        if self.train_image_size is not None and self.train_image_size < 1:
            raise ValueError(f"--train_image_size has to be at least 1, got {self.train_image_size}")
        if self.dataset_config_name is not None and self.dataset_name is None:
            raise ValueError(f"--dataset_config_name {self.dataset_config_name} needs --dataset_name")

    @property
    def source(self) -> str | None:
        """The folder, list or data set by which the data is called; `None` for the digits."""
        return next((getattr(self, name) for name in DATA_SOURCE_FIELDS if getattr(self, name) is not None), None)


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
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the code that image_processor_name or teacher_model bring along. A Mixer needs none."},
    )
    teacher_model: str | None = field(
        default=None,
        metadata={
            "help": "A trained image classifier of any architecture, on the Hub or in a folder, whose answers the model "
            "learns beside the labels (knowledge distillation): for the same labels, by the same names."
        },
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Start with a new head where the pretrained one has other labels."}
    )


ARGUMENT_CLASSES = (ModelArguments, DataTrainingArguments, MixerTrainingArguments)
# The help by topic: names of arguments, or patterns of them. An argument is told of in the first group that has it.
ARGUMENT_GROUPS = {
    "used first": """
        train_dir validation_dir train_file dataset_name output_dir model_name_or_path variant image_size recipe
        num_train_epochs per_device_train_batch_size learning_rate label_column_name problem_type class_weights
        metric_for_best_model early_stopping_patience max_train_samples resume_from_checkpoint push_to_hub help
        """.split(),
    "data": (*(entry.name for entry in fields(DataTrainingArguments)), "cache_images", "dataloader_*"),
    "model": tuple(entry.name for entry in fields(ModelArguments)),
    "optimization": """
        max_steps gradient_accumulation_steps optim* muon adam_* lr_* warmup_* weight_decay layer_decay max_grad_norm
        ema_decay seed data_seed
        """.split(),
    "augmentation": """
        crop_padding random_* scale ratio horizontal_flip auto_augment randaugment_* color_jitter mixup_*
        cutmix_*
        """.split(),
    "loss and labels": """
        label_smoothing_factor distillation_alpha binary_cross_entropy regression_loss label_threshold balanced_sampling
        """.split(),
    "evaluation and saving": """
        do_* eval_* per_device_eval_batch_size save_* load_best_model_at_end greater_is_better
        """.split(),
    "logging": "log* disable_tqdm report_to run_name project trackio_*".split(),
    "Hub": "hub_*".split(),
    "hardware and processes": """
        bf16* fp16* tf32 use_cpu torch_compile* activation_checkpointing* gradient_checkpointing*
        auto_find_batch_size ddp_* fsdp* deepspeed accelerator_config parallelism_config full_determinism
        """.split(),
    "others of transformers.TrainingArguments": "*".split(),
}
# In place of what transformers says for scripts that do without
HELP = {
    "output_dir": "The folder for the model and all that comes with it.",
    "resume_from_checkpoint": "Go on with a run that was stopped: `true`, or one of its checkpoints.",
    "push_to_hub": "Put the model on the Hub, whenever it is saved.",
    "metric_for_best_model": "What the best model is chosen by: `loss`, or a metric such as accuracy, f1_macro, "
    "mean_average_precision or r2.",
    "do_train": "Train. Default: true, unless do_eval or do_predict is given.",
    "do_eval": "Measure the model on the validation images. Default: as do_train.",
    "do_predict": "Write predictions.csv for the images of the split `test`.",
}
METAVARS = {int: "N", float: "X", str: "TEXT"}
# Longer lists of choices are left to the message that refuses another one
MAX_CHOICES_SHOWN = 5


class TrainingArgumentParser(HfArgumentParser):
    """
    [`~transformers.HfArgumentParser`] that sorts its arguments by topic, and refuses in one line.

    Raises:
        `ValueError`: a value cannot be read. (`argparse` would print all arguments and end the program.)
    """

    def __init__(self, description: str | None = None):
        self.waiting: list[tuple] = []
        super().__init__(
            ARGUMENT_CLASSES,
            add_help=False,
            usage="%(prog)s [--argument value ...]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--help", "-h", action="store_true", help="Show this, with the defaults of the recipe.")
        self.described: list[argparse.Action] = []
        for title, patterns in ARGUMENT_GROUPS.items():
            group = self.add_argument_group(title)
            for pattern in patterns:
                found = [entry for entry in self.waiting if fnmatch(entry[0][0], f"--{pattern}")]
                self.described += [self.describe(group, *names, **options) for names, options in found]
                self.waiting = [entry for entry in self.waiting if entry not in found]

    def add_argument(self, *names, **kwargs):
        """Let an argument wait until all are known and can be sorted."""
        self.waiting.append((names, kwargs))

    def describe(self, group, *names, **kwargs) -> argparse.Action:
        """Add an argument to a group of the help."""
        name = names[0].removeprefix("--")
        kwargs["help"] = HELP.get(name, kwargs.get("help"))
        if name.startswith("no_"):
            # The other form of a switch that is on by default
            kwargs["help"] = argparse.SUPPRESS
        elif kwargs.get("const") is True:
            kwargs["metavar"] = "true|false"
        elif "action" not in kwargs and len(kwargs.get("choices") or ()) > MAX_CHOICES_SHOWN:
            kwargs["metavar"] = "NAME"
        elif "action" not in kwargs and not kwargs.get("choices"):
            kwargs.setdefault("metavar", METAVARS.get(kwargs.get("type", str), "TEXT"))
        # `--train-dir` is read as `--train_dir`, and need not be shown
        names = tuple(name for name in names if "-" not in name.removeprefix("--") or not name.startswith("--"))
        return group.add_argument(*names, **kwargs)

    def print_help(self, file=None):
        for action in self.described:
            if action.help is not argparse.SUPPRESS and action.default not in (None, False, "", argparse.SUPPRESS):
                action.help = f"{action.help} (default: %(default)s)"
        super().print_help(file)

    def error(self, message):
        raise ValueError(message)

    def refuse_unknown(self, extras: list[str]) -> None:
        """Refuse what is no argument, and name the nearest one."""
        if not extras:
            return
        unknown = extras[0].split("=")[0]
        if not unknown.startswith("-"):
            raise ValueError(f"{unknown!r} belongs to no argument: values follow an --argument")
        names = [name for action in self.described for name in action.option_strings]
        nearest = difflib.get_close_matches(unknown, names, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "--help lists them all"
        raise ValueError(f"there is no argument {unknown}: {hint}")


def parse_training_arguments(
    recipes: Path, description: str | None = None, arguments: list[str] | None = None
) -> tuple[ModelArguments, DataTrainingArguments, MixerTrainingArguments]:
    """
    Read the command line, by default that of the program, on top of a recipe: a YAML file with arguments and their values,
    in the folder `recipes`. Where the command line names none, the recipe is that of fine-tuning, of training from scratch
    or of the digits, whatever the model and the data are. `--help` begins with `description` and ends the program.

    Returns:
        `tuple`: the arguments on the model, the data and the training. Those on the data say in `recipe` which recipe is in
        use, and in `given` which arguments the command line names.

    Raises:
        `ValueError`: an argument does not exist or has no such value, or the recipe does not exist, cannot be read or sets
        arguments that do not exist.
    """
    arguments = [underscored(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    parser = TrainingArgumentParser(description)
    known, extras = parser.parse_known_args(arguments)
    parser.refuse_unknown(extras)
    given = find_given_arguments(arguments)
    if not known.do_train and not known.do_eval and not known.do_predict and "do_train" not in given:
        parser.set_defaults(do_train=True, do_eval=True)
        known.do_train = known.do_eval = True
    # transformers evaluates wherever there is a strategy
    is_evaluated = known.do_eval if "do_eval" in given else known.do_train
    parser.set_defaults(eval_strategy="epoch" if is_evaluated else "no")
    recipe = choose_recipe(known)
    if recipe is not None:
        parser.set_defaults(**recipe_defaults(recipe, recipes, known, given))
        settle_best_model(parser, arguments, given)
    if known.help:
        parser.print_help()
        sys.exit(0)
    model_args, data_args, training_args, _ = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    if "variant" in given and model_args.model_name_or_path is not None:
        raise ValueError(
            f"--variant {model_args.variant} is for a model from scratch, and {model_args.model_name_or_path} is "
            "pretrained: leave out --variant, or --model_name_or_path and its recipe"
        )
    data_args.recipe, data_args.given = recipe, given
    return model_args, data_args, training_args


def underscored(argument: str) -> str:
    """Return `--train_dir` for `--train-dir`."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def find_given_arguments(arguments: list[str]) -> frozenset[str]:
    """Return the names of the arguments that a command line sets."""
    parser = TrainingArgumentParser()
    for action in parser.described:
        action.default = argparse.SUPPRESS
    return frozenset(vars(parser.parse_known_args(arguments)[0]))


def choose_recipe(known: argparse.Namespace) -> str | None:
    """Return the recipe that was asked for, or the one that fits."""
    if known.recipe is not None:
        return None if known.recipe == NO_RECIPE else known.recipe
    if not known.help and all(getattr(known, name) is None for name in DATA_SOURCE_FIELDS):
        # Also to evaluate: it says which of them are held back
        return DIGITS_RECIPE
    if not known.do_train:
        return None
    return FROM_SCRATCH_RECIPE if known.model_name_or_path is None else FINE_TUNING_RECIPE


def recipe_defaults(recipe: str, recipes: Path, known: argparse.Namespace, given: frozenset[str]) -> dict[str, Any]:
    """Return what a recipe sets, without what the command line chooses otherwise: the data, and the model."""
    defaults = read_recipe(recipe, recipes)
    unknown = defaults.keys() - {entry.name for group in ARGUMENT_CLASSES for entry in fields(group)}
    if unknown:
        raise ValueError(f"recipe {recipe!r} sets arguments that do not exist: {', '.join(sorted(unknown))}")
    dropped: set[str] = set()
    if not given.isdisjoint(DATA_SOURCE_FIELDS):
        dropped |= {*DATA_SOURCE_FIELDS, "dataset_config_name", "eval_split"}
    if "model_name_or_path" in given or not known.do_train or (known.recipe is None and "variant" in given):
        dropped |= {*SHAPE_FIELDS, "variant", "model_name_or_path"}
    return {name: value for name, value in defaults.items() if name not in dropped}


def settle_best_model(parser: TrainingArgumentParser, arguments: list[str], given: frozenset[str]) -> None:
    """
    End with the last model, not the best one, where the command line says to evaluate never, or to save at other times. Save
    the best one where the command line asks for it, and only the recipe says to save nothing, and save by steps where it gives
    their number.
    """
    values, _ = parser.parse_known_args(arguments)
    evaluation, saving = (getattr(name, "value", name) for name in (values.eval_strategy, values.save_strategy))
    wants_checkpoints = {"load_best_model_at_end", "early_stopping_patience", "save_steps"} & given
    if wants_checkpoints and saving == "no" and "save_strategy" not in given:
        # The default. With the best model, the arguments save whenever they evaluate
        parser.set_defaults(save_strategy="steps")
    if {"load_best_model_at_end", "early_stopping_patience"} & given:
        return
    saves_otherwise = "save_steps" in given and evaluation != "steps"
    if evaluation == "no" or saves_otherwise or ("save_strategy" in given and saving not in (evaluation, "best")):
        parser.set_defaults(load_best_model_at_end=False)


def read_recipe(recipe: str, recipes: Path) -> dict[str, Any]:
    """Return the arguments that a recipe sets, given by its name in the folder `recipes` or as a file."""
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else recipes / f"{recipe}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in recipes.glob("*.yaml")))
        raise ValueError(f"no recipe {recipe!r}: expected a YAML file, `{NO_RECIPE}`, or one of {names}")
    try:
        defaults = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(defaults, dict):
        raise ValueError(f"{path} has to hold arguments and their values")
    # YAML reads an unquoted `no` as false
    return {name: "no" if name.endswith("_strategy") and value is False else value for name, value in defaults.items()}
