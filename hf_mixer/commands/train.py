# SPDX-License-Identifier: Apache-2.0
"""
Train or fine-tune an MLP-Mixer on labelled images.

    hf-mixer train --output_dir outputs/digits        # the embedded digits
    hf-mixer train --train_dir photos --output_dir outputs/photos
    hf-mixer train --train_file photos.csv --problem_type regression \\
        --model_name_or_path timm/mixer_b16_224.goog_in21k \\
        --output_dir outputs/ages
    accelerate launch scripts/train.py --dataset_name uoft-cs/cifar10 \\
        --variant cifar10 --output_dir outputs/cifar10

The output folder holds the model, its image processor, its code, its labels
and the metrics, ready for `pipeline("image-classification", folder)`.

`--do_train false --do_eval true` measures a trained model, and writes nothing
but eval_results.json. `--do_predict true` predicts the split `test`.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


RECIPES = Path(__file__).parent / "recipes"


def parse_arguments(arguments: list[str] | None = None) -> tuple:
    """Return the command line, and its arguments on the model, the data and the training."""
    from ..training.command_line import parse_training_arguments
    from ..utils import one_line_errors

    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        return (arguments, *parse_training_arguments(RECIPES, __doc__, arguments))


def find_checkpoint(training_args) -> str | None:
    """Return the checkpoint to go on from, if any was asked for. Otherwise refuse to write over anything."""
    from ..output_folder import refuse_foreign_files
    from ..training.checkpointing import find_checkpoint_to_resume

    asked = training_args.resume_from_checkpoint
    words = {"true": True, "1": True, "yes": True, "false": None, "0": None, "no": None}
    checkpoint = find_checkpoint_to_resume(training_args.output_dir, words.get(str(asked).lower(), asked))
    if checkpoint is None:
        refuse_foreign_files(training_args.output_dir)
    return checkpoint


@contextmanager
def reserved_output_dir(training_args, command: str) -> Iterator[None]:
    """Have the output folder for oneself. A new folder vanishes where nothing was written into it."""
    from ..output_folder import lock_output_dir_together
    from ..utils import one_line_errors

    folder = Path(training_args.output_dir)
    with one_line_errors():
        try:
            lock = lock_output_dir_together(folder, command)
        except OSError as error:
            raise ValueError(f"cannot write to --output_dir {folder}: {error.strerror or error}") from error
    with lock:
        yield


@contextmanager
def run_errors(training_args) -> Iterator[None]:
    """End the program in one line where a run is interrupted, out of memory, or cannot go on with what the user gave it."""
    import torch

    from ..training.checkpointing import TrainingError, describe_last_checkpoint
    from ..utils import one_line_errors

    is_main = training_args.process_index == 0
    try:
        with one_line_errors((TrainingError, ValueError, OSError, ImportError)):
            yield
    except KeyboardInterrupt:
        if is_main and training_args.do_train:
            print(f"\ninterrupted. {describe_last_checkpoint(training_args.output_dir)}", file=sys.stderr)
        sys.exit(130)
    except (torch.OutOfMemoryError, MemoryError):
        batch_size = training_args.per_device_train_batch_size
        sys.exit(
            f"error: out of memory on {training_args.device} with batches of {batch_size} images: lower "
            "--per_device_train_batch_size (--gradient_accumulation_steps makes up for it), or --image_size, or give "
            "--activation_checkpointing true"
        )


@contextmanager
def push_errors(trainer) -> Iterator[None]:
    """Say how a trained model goes to the Hub where it could not be pushed."""
    from ..hub_errors import clear_errors

    way_on = f"run `hf-mixer publish {trainer.args.output_dir} {trainer.hub_model_id}`"
    with clear_errors(trainer.hub_model_id, way_on=way_on):
        yield


def keep_cards(trainer) -> None:
    """Have the card with what its owner wrote last, here or on the Hub, in the output folder before the first push."""
    from huggingface_hub import HfApi

    from ..publishing.saving import CARD_NAME, choose_readme, read_cards, write_cards
    from ..publishing.upload import fetch_cards

    args, folder = trainer.args, Path(trainer.args.output_dir)
    if args.push_to_hub:
        remote = fetch_cards(HfApi(token=args.hub_token), trainer.hub_model_id, args.hub_revision)
        readme = choose_readme(read_cards(folder), remote)
        write_cards({**remote, CARD_NAME: readme} if readme else {}, folder)


def write_card(output_dir, repo_id: str | None = None) -> None:
    """Write the model card into a trained folder, or say why the one that is there stays as it is."""
    from ..publishing.card import create_card
    from ..publishing.merging import CardConflict
    from ..publishing.saving import save_card

    try:
        path = save_card(create_card(output_dir, repo_id=repo_id), output_dir)
    except CardConflict as conflict:
        print(f"{conflict.diff}\nREADME.md in {output_dir} stays as it is: {conflict}", flush=True)
        return
    if path.name != "README.md":
        print(f"README.md was written by hand and stays as it is: the model card is {path}", flush=True)


def build_trainer(prepared, data_args, training_args):
    """Return the trainer of a prepared run, its data by split as it reads them, and what prints its progress."""
    from ..data.images import collate_images
    from ..training.curves import TrainingCurvesCallback
    from ..training.preparation import build_datasets, build_transforms, read_labels, set_stream_length
    from ..training.progress import ConsoleCallback
    from ..training.trainer import MixerTrainer

    streaming = data_args.streaming
    if streaming and training_args.do_train:
        set_stream_length(prepared.dataset, training_args, data_args.max_train_samples)
    transforms = build_transforms(prepared, data_args, training_args)
    splits = build_datasets(prepared.dataset, transforms, training_args, streaming)
    has_labels = training_args.do_train and not streaming
    trainer = MixerTrainer(
        model=prepared.model,
        args=training_args,
        train_dataset=splits.get("train"),
        eval_dataset=splits["validation"],
        train_labels=read_labels(prepared.dataset["train"]) if has_labels else None,
        teacher=prepared.teacher,
        teacher_processing_class=prepared.teacher_image_processor,
        data_collator=collate_images,
        processing_class=prepared.image_processor,
        callbacks=[TrainingCurvesCallback()] if training_args.do_train else [],
        write_card=write_card,
    )
    console = ConsoleCallback(prepared.problem_type)
    console.attach(trainer)
    return trainer, splits, console


def set_up_console(data_args, training_args) -> None:
    """Say what matters, once: no bars where nobody watches, and none of transformers' for every file."""
    import transformers

    from ..progress import quiet_libraries
    from ..training.progress import is_interactive

    logging.basicConfig(format="%(message)s", level=logging.INFO if training_args.should_log else logging.ERROR)
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    # Neither every request nor every shard is news
    for name in ("httpx", "httpx2", "huggingface_hub", "accelerate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    quiet_libraries(has_watcher=is_interactive(training_args) and data_args.dataset_name is not None)


def announce_source(data_args, training_args) -> None:
    """Print what the run is about, before anything is loaded."""
    from ..training.summary import wrap

    if not training_args.do_train:
        return
    source = data_args.source or (
        "the 1,797 handwritten digits that ship with scikit-learn: no data was named (--train_dir, --train_file, "
        "--dataset_name)"
    )
    recipe = f"Recipe: {data_args.recipe}" if data_args.recipe else "No recipe"
    print(wrap(f"Training on {source}. {recipe}."), flush=True)


def announce_run(prepared, trainer, description: dict, data_args, teacher_model: str | None) -> None:
    """Print what was found, and what the run will do with it."""
    from ..data.images import count_special_images
    from ..training import summary
    from ..training.preparation import read_labels

    dataset, training_args = prepared.dataset, trainer.args
    has_train_labels = training_args.do_train and not data_args.streaming
    entries = [("images", summary.describe_images(description))]
    labels = summary.PROBLEM_TITLES[prepared.problem_type].format(len(prepared.labels))
    if "class_counts" in description:
        labels += f". {summary.describe_classes(description['class_counts'])}"
    elif has_train_labels:
        labels += f". {summary.describe_values(read_labels(dataset['train']), prepared.labels)}"
    entries.append(("labels", labels))
    if has_train_labels:
        special = count_special_images(dataset["train"])
        conversion = description.get("image_conversion", {})
        entries += [("caution", line) for line in summary.describe_special_images(special, conversion)]
    entries.append(("model", summary.describe_model(trainer.model, prepared.base_model)))
    if prepared.teacher is not None:
        entries.append(("teacher", f"{teacher_model}; {summary.describe_parameters(prepared.teacher)}"))
    entries.append(("device", summary.describe_device(training_args)))
    if training_args.do_train:
        entries.append(("steps", summary.describe_steps(training_args, description["num_train_images"])))
    if prepared.changed:
        names = ", ".join(prepared.changed)
        entries.append(("recipe", f"without {names}, which these labels do not allow"))
    for name, text in entries:
        print(summary.format_entry(name, text), flush=True)


def train(trainer, checkpoint: str | None, description: dict, command_line: list[str], model_args, data_args) -> dict:
    """Train, save what came out, and return the metrics of the training."""
    from ..local_paths import name_source, shorten_path
    from ..training.record import describe_command, write_training_run

    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_metrics("train", result.metrics)
    if trainer.state.best_model_checkpoint is not None:
        # trainer_state.json is for others, too
        trainer.state.best_model_checkpoint = shorten_path(trainer.state.best_model_checkpoint)
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_training_run(
            trainer,
            result.metrics,
            description,
            command=describe_command(command_line),
            recipe=data_args.recipe,
            base_model=model_args.model_name_or_path and name_source(model_args.model_name_or_path),
            teacher_model=model_args.teacher_model and name_source(model_args.teacher_model),
        )
    # Last, as it may push
    with push_errors(trainer):
        trainer.save_model()
    return result.metrics


def predict(trainer, test_dataset, prepared) -> str:
    """Predict the split `test`, and return where its predictions are."""
    from ..evaluation.prediction import Predictor
    from ..training.predictions import PREDICTIONS_NAME, write_predictions

    path = Path(trainer.args.output_dir) / PREDICTIONS_NAME
    output = trainer.predict(test_dataset, metric_key_prefix="predict")
    if prepared.has_test_labels:
        trainer.save_metrics("predict", output.metrics, combined=trainer.args.do_train)
    if trainer.is_world_process_zero():
        predictor = Predictor(trainer.model, prepared.image_processor, top_k=len(prepared.labels))
        write_predictions(path, output.predictions, prepared.dataset["test"]["image"], predictor)
    return str(path)


def evaluate(trainer, prepared, data_args) -> None:
    """Measure the model on the validation images, and print and save the figures."""
    from ..training.summary import describe_results

    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics, combined=trainer.args.do_train)
    num_images = None if data_args.streaming else len(prepared.dataset["validation"])
    if trainer.is_world_process_zero():
        count = "the" if num_images is None else f"{num_images:,}"
        print(f"On {count} validation images:")
        print(*(f"  {line}" for line in describe_results(prepared.problem_type, metrics)), sep="\n", flush=True)


def announce_outcome(trainer, train_metrics: dict, prepared, data_args) -> None:
    """Print where everything is, and the commands that come next."""
    from ..training import summary

    output_dir = trainer.args.output_dir
    for name, text in summary.describe_outcome(output_dir, train_metrics):
        print(summary.format_entry(name, text))
    commands = summary.next_commands(output_dir, prepared.dataset, data_args)
    print("Next:", *(f"  {command}" for command in commands), sep="\n", flush=True)


def run(parsed: tuple) -> None:
    import transformers

    from ..hub_errors import clear_errors
    from ..memory import keep_freed_memory
    from ..threads import limit_threads
    from ..training.preparation import check_results, describe_dataset, prepare_run
    from ..training.record import describe_command
    from ..utils import end_together, one_line_errors

    command_line, model_args, data_args, training_args = parsed
    is_main = training_args.process_index == 0
    with one_line_errors():
        set_up_console(data_args, training_args)
    with run_errors(training_args), reserved_output_dir(training_args, describe_command(command_line)):
        # Everything before the first step, in which the user's input can still be refused
        with one_line_errors():
            checkpoint = find_checkpoint(training_args) if training_args.do_train else None
            if is_main:
                announce_source(data_args, training_args)
            transformers.set_seed(training_args.seed)
            prepared = prepare_run(model_args, data_args, training_args)
            description = describe_dataset(prepared, data_args)
            is_training = training_args.do_train
            batch_size = training_args.train_batch_size if is_training else training_args.eval_batch_size
            limit_threads(prepared.model.config, batch_size)
            if training_args.device.type == "cpu":
                keep_freed_memory()
            if training_args.do_eval and not training_args.do_train:
                check_results(training_args.output_dir, description)
            with clear_errors(training_args.hub_model_id):  # which the trainer creates
                trainer, splits, console = build_trainer(prepared, data_args, training_args)
                if is_main and training_args.do_train:
                    keep_cards(trainer)
            if is_main:
                announce_run(prepared, trainer, description, data_args, model_args.teacher_model)
        try:
            train_metrics = None
            if training_args.do_train:
                train_metrics = train(trainer, checkpoint, description, command_line, model_args, data_args)
            if training_args.do_eval:
                evaluate(trainer, prepared, data_args)
            if training_args.do_predict:
                path = predict(trainer, splits["test"], prepared)
        finally:
            console.close()
        if training_args.push_to_hub and training_args.do_train:
            with push_errors(trainer):
                if is_main:
                    keep_cards(trainer)
                trainer.push_to_hub()
        elif training_args.do_train:
            trainer.create_model_card()
        if is_main and training_args.do_predict:
            print(f"The predictions for {len(prepared.dataset['test']):,} images are in {path}", flush=True)
        if is_main and train_metrics is not None:
            announce_outcome(trainer, train_metrics, prepared, data_args)
        accelerator = trainer.accelerator
        del trainer, console  # they hold the group of processes that ends now
        end_together(accelerator)


def main(arguments: list[str] | None = None) -> None:
    run(parse_arguments(arguments))
