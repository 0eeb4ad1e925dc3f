# SPDX-License-Identifier: Apache-2.0
"""`Trainer` for Mixers."""

import itertools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import compare_versions
from torch.utils.data import DataLoader

from transformers import TrainerState

from ..data.images import ImageDataError
from ..data.labels import MULTI_LABEL, REGRESSION, problem_type_of
from ..data.loaders import StreamedImages
from ..evaluation.metrics import best_thresholds
from ..flops import estimate_flops
from ..kernels import cpu
from ..utils import error_message
from .arguments import BEST_F1, MixerTrainingArguments
from .augmentation import BatchAugmentation, normalize_pixels
from .balance import BalancedSampler, balanced_image_weights, combine_seeds, count_classes, describe_imbalance
from .checkpointing import (
    FiniteLossCallback,
    SafeCheckpointTrainer,
    TrainingError,
    describe_last_checkpoint,
    find_checkpoint_to_resume,
)
from .distillation import Distillation, PixelConversion
from .early_stopping import ResumableEarlyStopping
from .ema import EmaCallback
from .muon import Muon, check_optimizer_state
from .objective import build_loss, check_arguments, check_metric, measure
from .optimization import parameter_groups
from .regression import LabelScale


logger = logging.getLogger(__name__)


class MixerTrainer(SafeCheckpointTrainer):
    """
    [`~transformers.Trainer`] with [`MixerTrainingArguments`]: batches are augmented on the device in `compute_loss`,
    evaluation and saved models use the average of the weights, learning rates fall off towards the input, and
    checkpoints are complete or do not count.

    Accelerate shares the batches out among several processes: together they see the images that one process with their
    total batch size sees, but for the last batch of a pass, which it fills up with images from the start of that pass. A
    stream has to share itself out, as [`~hf_mixer.data.loaders.StreamedImages`] does.

    The data sets give `pixel_values` as uint8 of shape `(num_channels, height, width)`, and `labels`: an integer or, for
    models of several labels and of regression, floats of shape `(num_labels,)`. Pixels that are not uint8 are taken as they
    are: prepared, and not to be augmented.

    The randomness of the augmentation is a function of seed, step and process alone, and that of balanced sampling of seed
    and epoch, so that a run that is resumed goes on with the same images.

    Without `compute_metrics`, evaluations compute the metrics of [`~hf_mixer.evaluation.metrics.METRICS`] that belong to the
    problem type of the model, and `metric_for_best_model` has to be one of them.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model to train.
        args ([`MixerTrainingArguments`]):
            The arguments of the run.
        processing_class:
            The image processor of the model, which says how to normalize. It is saved along with the model.
        write_card (`Callable`, *optional*):
            Takes the output folder and `repo_id` and writes the model card. By default the card is that of
            [`~transformers.Trainer`].
        train_labels (`np.ndarray` of shape `(num_images,)` or `(num_images, num_labels)`, *optional*):
            The labels of all training images, in the form that the data set gives them. `class_weights` and
            `balanced_sampling` need them, and regression takes the scale of its loss from them: without them, the labels
            are taken to have a mean of 0 and a standard deviation of 1.
        teacher ([`~transformers.PreTrainedModel`], *optional*):
            A trained image classifier whose answers the model learns beside the labels: see
            [`~hf_mixer.training.distillation.Distillation`].
        teacher_processing_class (*optional*):
            The image processor of the teacher. By default it sees the same pixels as the model.
        kwargs:
            More arguments for [`~transformers.Trainer`].

    Raises:
        `ValueError`: an argument is out of range or does not fit the labels; the message names it.
        [`~hf_mixer.training.checkpointing.TrainingError`]: the loss is not finite, or a checkpoint cannot be written.

    Example:

    ```python
    >>> args = MixerTrainingArguments("outputs/photos", crop_padding=4, horizontal_flip=0.5, mixup_alpha=0.8, ema_decay=0.999)
    >>> trainer = MixerTrainer(model, args, train_dataset=dataset, data_collator=collate_images, processing_class=processor)
    >>> trainer.train()
    ```"""

    def __init__(
        self,
        model,
        args: MixerTrainingArguments,
        processing_class,
        write_card=None,
        train_labels: np.ndarray | None = None,
        teacher=None,
        teacher_processing_class=None,
        **kwargs,
    ):
        config = model.config
        self.problem_type = problem_type_of(config)
        check_arguments(args, self.problem_type, train_labels is not None)
        if "compute_metrics" not in kwargs:
            check_metric(args.metric_for_best_model, self.problem_type, config.num_labels)
            # A method would keep the trainer, and the workers of its data loaders, alive
            kwargs["compute_metrics"] = partial(measure, config)
        self.train_labels = train_labels
        self.class_names = [config.id2label[index] for index in range(config.num_labels)]
        self.label_scale: LabelScale | None = None
        if self.problem_type == REGRESSION and train_labels is not None:
            self.label_scale = LabelScale.of(train_labels, self.class_names)
        loss = build_loss(args, self.problem_type, config.num_labels, train_labels, self.label_scale)
        kwargs.setdefault("compute_loss_func", loss)
        with warnings.catch_warnings():
            # It is for the loss of `Trainer`; ours smooths them
            warnings.filterwarnings("ignore", "Label smoothing is not compatible with multi-label classification")
            super().__init__(model=model, args=args, processing_class=processing_class, **kwargs)
        self.check_setup()
        if args.torch_compile and args.bf16 and args.device.type == "cpu":
            for each in filter(None, (model, teacher)):
                cpu.use_where_possible(each)
        self.distillation = None
        if teacher is not None:
            conversion = None
            if teacher_processing_class is not None:
                conversion = PixelConversion(processing_class, teacher_processing_class, config)
            self.distillation = Distillation(teacher.to(args.device), model, args.distillation_alpha, conversion)
            if args.torch_compile:
                # Whatever the mode: CUDA graphs of two models would write over each other's outputs
                teacher.compile(backend=args.torch_compile_backend)
        normalizes, rescales = processing_class.do_normalize, processing_class.do_rescale
        self.normalization: dict[str, Any] = {
            "mean": processing_class.image_mean if normalizes else 0.0,
            "std": processing_class.image_std if normalizes else 1.0,
            "rescale_factor": processing_class.rescale_factor if rescales else 1.0,
        }
        self.generator = torch.Generator()
        self.augmentation = BatchAugmentation(
            config.image_size,
            **self.normalization,
            num_labels=config.num_labels,
            problem_type=self.problem_type,
            generator=self.generator,
            **args.augmentation_settings(),
        )
        self.finite_loss = FiniteLossCallback()
        self.add_callback(self.finite_loss)
        self.early_stopping = None
        if args.early_stopping_patience is not None:
            self.early_stopping = ResumableEarlyStopping(args.early_stopping_patience)
            self.add_callback(self.early_stopping)
        self.ema = None
        if args.ema_decay is not None:
            # After early stopping, which says whether steps follow
            self.ema = EmaCallback(args.ema_decay)
            self.add_callback(self.ema)
        self.write_card = write_card
        self.batch_in_step = (-1, 0)

    def check_setup(self) -> None:
        """Refuse an optimizer whose library is missing, thresholds without images, and labels that cannot be learned."""
        args = self.args
        try:
            self.get_optimizer_cls_and_kwargs(args, self.model)
        except (ImportError, ValueError) as error:
            raise ValueError(f"--optim {args.optim.value} cannot be used: {error_message(error)}") from error
        if args.label_threshold == BEST_F1 and self.eval_dataset is None:
            raise ValueError(f"--label_threshold {BEST_F1} needs validation images, and there are none")
        if self.is_fsdp_enabled and args.ema_decay is not None:
            raise ValueError(
                "--ema_decay does not go with FSDP, which shards the weights: train with DDP, or without it"
            )
        if args.muon and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "--muon does not go with FSDP and DeepSpeed, which divide the matrices: train with DDP, or without it"
            )
        if self.is_fsdp_enabled and self.label_scale is not None:
            raise ValueError("regression does not go with FSDP, which shards the classifier: train with DDP")
        if self.label_scale is not None:
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.mixed_precision, torch.float32)
            self.label_scale.check_precision(dtype)

    def train(self, resume_from_checkpoint=None, **kwargs):
        if self.ema is not None:
            self.ema.checkpoint = find_checkpoint_to_resume(self.args.output_dir, resume_from_checkpoint)
        self.warn_of_labels()
        if self.label_scale is not None:
            self.label_scale.start(self.model.classifier)
        self.model.config.label_thresholds = self.label_thresholds()
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except ImageDataError as error:
            checkpoint = describe_last_checkpoint(self.args.output_dir)
            raise TrainingError(f"{error_message(error)}. {checkpoint}") from error
        if compare_versions("transformers", "<", "5.19"):
            # `Trainer` counts all that was planned, also where this call began or ended elsewhere (read in 5.17 and 5.18;
            # to be removed when 5.19 is required)
            first = 0 if self.resumed_state is None else self.resumed_state.global_step
            for name in ("train_samples_per_second", "train_steps_per_second"):
                output.metrics[name] *= (output.global_step - first) / max(self.state.max_steps, 1)
        if self.args.label_threshold == BEST_F1:
            prediction = self.predict(self.eval_dataset)
            self.model.config.label_thresholds = best_thresholds(prediction.predictions, prediction.label_ids)
        return output

    def is_finished(self, state: TrainerState, max_steps: int) -> bool:
        has_stopped = self.early_stopping is not None and self.early_stopping.has_stopped(state)
        return has_stopped or super().is_finished(state, max_steps)

    def warn_of_labels(self) -> None:
        """Say that the classes differ in size, unless an argument makes up for it, or that numbers have no known scale."""
        args = self.args
        if not args.should_log:
            return
        if self.problem_type == REGRESSION:
            if self.train_labels is None:
                logger.warning(
                    "A stream does not tell the range of its values: they are learned as if their mean were 0 and their "
                    "standard deviation 1. Scale them to that, or train without --streaming"
                )
        elif self.train_labels is not None and not args.balanced_sampling and args.class_weights == "none":
            message = describe_imbalance(count_classes(self.train_labels, self.class_names))
            if message is not None:
                logger.warning(message)

    def label_thresholds(self) -> list[float] | None:
        """Return the probabilities from which labels count as present while the model trains, `None` for 0.5."""
        threshold = self.args.fixed_label_threshold
        if self.problem_type != MULTI_LABEL or threshold in (None, 0.5):
            return None
        return [threshold] * self.model.config.num_labels

    def get_train_dataloader(self):
        args = self.args
        if isinstance(self.train_dataset, StreamedImages):
            # It shares itself out among the processes, and Accelerate would do it again
            return DataLoader(
                self.train_dataset,
                batch_size=args.train_batch_size,
                collate_fn=self.data_collator,
                num_workers=args.dataloader_num_workers,
                pin_memory=args.dataloader_pin_memory,
                persistent_workers=args.dataloader_persistent_workers,
                prefetch_factor=args.dataloader_prefetch_factor,
                generator=torch.Generator(),
            )
        loader = super().get_train_dataloader()
        if len(loader) == 0:
            raise ValueError(
                f"{len(self.train_dataset)} images are fewer than one batch of {args.train_batch_size} on each of "
                f"{args.world_size} processes: lower per_device_train_batch_size, or go without dataloader_drop_last"
            )
        if args.balanced_sampling:
            weights = balanced_image_weights(self.train_labels, self.model.config.num_labels)
            loader.set_sampler(BalancedSampler(weights, args.seed if args.data_seed is None else args.data_seed))
        # The seed of the workers is drawn from here, and not from the global generator: a run that is resumed starts them
        # at another time
        loader.base_dataloader.generator = torch.Generator()
        return loader

    @contextmanager
    def all_images(self) -> Iterator[None]:
        """Have data loaders give all images. `dataloader_drop_last` is for the training alone."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_eval_dataloader(self, eval_dataset=None):
        with self.all_images():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self.all_images():
            return super().get_test_dataloader(test_dataset)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches = list(itertools.islice(epoch_iterator, num_batches))
        # `Trainer` counts all numbers among the labels but -100. What counts is the number of images.
        images = [{"labels": batch["labels"].new_zeros(len(batch["labels"]))} for batch in batches]
        _, num_images = super().get_batch_samples(iter(images), num_batches, device)
        return batches, num_images

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        # The workers of evaluation draw their seed from the global generator, also when they are started after a resume
        with torch.random.fork_rng(devices=[]), self.average_weights():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        name = f"{metric_key_prefix}_loss"
        if name in output.metrics and output.predictions is not None and output.label_ids is not None:
            # `Trainer` averages over batches, which Accelerate has filled up with other images
            logits, labels = torch.from_numpy(output.predictions), torch.from_numpy(output.label_ids)
            output.metrics[name] = self.compute_loss_func({"logits": logits}, labels).item()
        return output

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            args = self.args
            groups = parameter_groups(model, args.learning_rate, args.weight_decay, args.layer_decay, args.muon)
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(args, model)
            self.optimizer = (Muon if args.muon else optimizer_class)(groups, **kwargs)
            self.optimizer.register_load_state_dict_pre_hook(check_optimizer_state)
            if self.label_scale is not None:
                self.label_scale.standardize(model.classifier, self.optimizer)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if inputs["pixel_values"].dtype == torch.uint8:
            if model.training:
                self.generator.manual_seed(combine_seeds(self.args.seed, *self.next_batch()))
                inputs = self.augmentation(inputs)
            else:
                inputs = {**inputs, "pixel_values": normalize_pixels(inputs["pixel_values"], **self.normalization)}
        if self.distillation is not None and model.training:
            with self.accelerator.autocast():
                inputs = {**inputs, "labels": self.distillation.soften(inputs["pixel_values"], inputs["labels"])}
        if not model.training:
            # In evaluation, each batch counts for itself
            num_items_in_batch = None
        elif num_items_in_batch is not None:
            # The loss expects the number of labels, and was given that of images
            num_items_in_batch = num_items_in_batch * inputs["labels"][0].numel()
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            self.finite_loss.watch(result[0] if return_outputs else result)
        return result

    def floating_point_ops(self, inputs):
        # `Trainer` counts tokens of text, and walks through all modules in every step to do so
        return len(inputs["pixel_values"]) * estimate_flops(self.model.config, training=True)

    def next_batch(self) -> tuple[int, int, int]:
        """Return the process, the step and the number of the batch within the step, for one batch after the other."""
        step, batch = self.batch_in_step
        batch = batch + 1 if step == self.state.global_step else 0
        self.batch_in_step = (self.state.global_step, batch)
        return self.args.process_index, self.state.global_step, batch

    def average_weights(self):
        """Have the average of the weights in the model, where there is one."""
        return self.ema.swapped_in() if self.ema is not None else nullcontext()

    def save_model(self, output_dir=None, _internal_call=False):
        with self.average_weights():
            super().save_model(output_dir, _internal_call)

    def write_model(self, folder):
        super().write_model(folder)
        # Now, because `Trainer` pushes a checkpoint to the Hub before it calls `on_save`
        if self.ema is not None and self.args.should_save and folder == self.checkpoints.unfinished:
            self.ema.save_trained_weights(folder, self.state.global_step)

    def create_model_card(self, **kwargs):
        if not self.is_world_process_zero():
            return
        if self.write_card is not None:
            self.write_card(self.args.output_dir, repo_id=self.hub_model_id)
            return
        # `Trainer` finds the task in a table of built-in models, and calls a model without a name "fine-tuned"
        config, name = self.model.config, self.model.config._name_or_path
        config._name_or_path = name or self.args.output_dir
        try:
            super().create_model_card(**{"tasks": "image-classification", **kwargs})
        finally:
            config._name_or_path = name
