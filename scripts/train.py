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
"""
Train or fine-tune an MLP-Mixer on labelled images.

    python scripts/train.py --output_dir outputs/digits                              # the embedded digits
    python scripts/train.py --train_dir photos --variant S/16 --output_dir outputs/photos
    accelerate launch scripts/train.py --dataset_name uoft-cs/cifar10 --variant cifar10 --output_dir outputs/cifar10

The output folder holds the model, its image processor, its code, its labels and the metrics, ready for
`pipeline("image-classification", folder)`.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import transformers
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import is_torchvision_available

from hf_mixer import (
    MixerConfig,
    MixerForImageClassification,
    MixerImageProcessor,
    MixerImageProcessorPil,
    load_checkpoint,
)
from hf_mixer.data import ImageTransform, collate_images, load_image_dataset, prepare_image_dataset
from hf_mixer.scripting import one_line_errors


logger = logging.getLogger(__name__)

DEFAULT_VARIANT = "S/16"
RECIPES = Path(__file__).parent / "recipes"
# Fields of the configuration that decide the shape of the weights, and those that a pretrained model can change.
SHAPE_FIELDS = (
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "token_mlp_dim",
    "channel_mlp_dim",
    "hidden_act",
)
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
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share to split off the training data, where there is no validation data."}
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
        metadata={"help": "Name in scripts/recipes, or path, of a YAML file with defaults for these arguments."},
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


def parse_arguments() -> tuple[ModelArguments, DataTrainingArguments, TrainingArguments]:
    """Read the command line, on top of the recipe that it names."""
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments), description=__doc__)
    parser.set_defaults(remove_unused_columns=False, eval_strategy="epoch")
    # Without an accelerator, transformers joins several processes only if it is told to stay on the CPU.
    has_accelerator = torch.accelerator.is_available()
    parser.set_defaults(use_cpu=not has_accelerator, dataloader_pin_memory=has_accelerator)
    known, _ = parser.parse_known_args()
    if not known.do_train and not known.do_eval:
        parser.set_defaults(do_train=True, do_eval=True)
    recipe = known.recipe
    if recipe is None and known.dataset_name is None and known.train_dir is None and known.validation_dir is None:
        recipe = "digits"
    if recipe is not None:
        path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
        if not path.is_file():
            raise ValueError(f"no recipe {recipe!r}: expected a YAML file or one of {list_recipes()}")
        try:
            defaults = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(defaults, dict):
            raise ValueError(f"{path} has to hold arguments and their values")
        unknown = defaults.keys() - vars(known).keys()
        if unknown:
            raise ValueError(f"{path} sets arguments that do not exist: {', '.join(sorted(unknown))}")
        if known.recipe is None and (known.model_name_or_path, known.variant) != (None, DEFAULT_VARIANT):
            # The model was chosen, and only the data and its training come from the digits
            defaults = {name: value for name, value in defaults.items() if name not in SHAPE_FIELDS}
        parser.set_defaults(**defaults)
    return parser.parse_args_into_dataclasses()


def list_recipes() -> str:
    return ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def check_output_dir(training_args: TrainingArguments) -> str | None:
    """Refuse to write over a model, and return the checkpoint to go on from, if any was asked for."""
    output_dir, resume = Path(training_args.output_dir), training_args.resume_from_checkpoint
    if resume is not None and str(resume).lower() in ("true", "1", "yes"):
        resume = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
        if resume is None:
            raise ValueError(f"output_dir {output_dir} holds no checkpoint to resume from")
    if resume is None and output_dir.exists():
        found = [
            path.name
            for pattern in ("config.json", "*.safetensors", "checkpoint-*")
            for path in output_dir.glob(pattern)
        ]
        if found:
            raise ValueError(
                f"output_dir {output_dir} already holds a model ({', '.join(sorted(found)[:3])}): choose another, "
                "remove it, or go on with --resume_from_checkpoint true"
            )
    return resume


def build_model(model_args: ModelArguments, labels: list[str]):
    """Return the model and its image processor."""
    id2label = dict(enumerate(labels))
    label2id = {label: index for index, label in id2label.items()}
    overrides: dict[str, Any] = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name in SHAPE_FIELDS + REGULARIZATION_FIELDS
        if (value := getattr(model_args, name)) is not None
    }
    hub_kwargs: dict[str, Any] = {"cache_dir": model_args.cache_dir, "token": model_args.token}

    if model_args.model_name_or_path is None:
        config = MixerConfig.from_variant(model_args.variant, id2label=id2label, label2id=label2id, **overrides)
        model = MixerForImageClassification(config)
    else:
        fixed = [name for name in SHAPE_FIELDS if name in overrides and name != "image_size"]
        if fixed:
            raise ValueError(f"{', '.join(fixed)} cannot be set for a pretrained model, only from scratch")
        model, image_processor = load_checkpoint(
            model_args.model_name_or_path,
            id2label=id2label,
            revision=model_args.model_revision,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            **hub_kwargs,
            **overrides,
        )
        if model_args.image_processor_name is None:
            return model, image_processor

    if model_args.image_processor_name is not None:
        return model, AutoImageProcessor.from_pretrained(model_args.image_processor_name, **hub_kwargs)
    processor_class = MixerImageProcessor if is_torchvision_available() else MixerImageProcessorPil
    height, width = model.mixer.embeddings.patch_embeddings.image_size
    return model, processor_class(size={"height": height, "width": width}, num_channels=model.config.num_channels)


def compute_accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(axis=1) == prediction.label_ids))}


def prepare():
    """Everything before the first step, in which the user's input can still be refused."""
    model_args, data_args, training_args = parse_arguments()

    logging.basicConfig(format="%(message)s", level=logging.INFO if training_args.should_log else logging.WARNING)
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())

    checkpoint = check_output_dir(training_args) if training_args.do_train else None
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="loading the data"):
        dataset = load_image_dataset(
            data_args.dataset_name,
            data_args.dataset_config_name,
            data_args.train_dir,
            data_args.validation_dir,
            cache_dir=model_args.cache_dir,
            token=model_args.token,
        )
        dataset, labels = prepare_image_dataset(
            dataset,
            data_args.image_column_name,
            data_args.label_column_name,
            data_args.train_val_split,
            training_args.seed,
        )
    for split, limit in (("train", data_args.max_train_samples), ("validation", data_args.max_eval_samples)):
        if limit is not None:
            shuffled = dataset[split].shuffle(seed=training_args.seed)
            dataset[split] = shuffled.select(range(min(limit, len(shuffled))))

    model, image_processor = build_model(model_args, labels)
    transform = ImageTransform(image_processor)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=dataset["train"].with_transform(transform),
        eval_dataset=dataset["validation"].with_transform(transform),
        data_collator=collate_images,
        compute_metrics=compute_accuracy,
        processing_class=image_processor,
    )
    card = {
        "finetuned_from": model_args.model_name_or_path,
        "tasks": "image-classification",
        "dataset": data_args.dataset_name or data_args.train_dir or "scikit-learn digits",
        "tags": ["image-classification", "vision", "mlp-mixer"],
    }
    return trainer, checkpoint, card


def main():
    with one_line_errors():
        trainer, checkpoint, card = prepare()

    training_args = trainer.args
    if training_args.do_train:
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    if training_args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


if __name__ == "__main__":
    main()
