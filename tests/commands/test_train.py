"""`hf-mixer train`, as users run it."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_mixer.commands.train import main
from hf_mixer.evaluation.results import fingerprint_files
from tests.helpers import FIXTURES, losses_of, make_folder
from tests.new_processes import launch_on_two_processes


TINY = "--variant cifar10 --image_size 16 --patch_size 8 --hidden_size 32 --num_hidden_layers 1 --cache_images memory --max_steps 40".split()


def train(*arguments):
    main([str(argument) for argument in arguments])


def train_and_fail(message, *arguments):
    # A point matches all but the end of a line
    with pytest.raises(SystemExit, match=rf"\Aerror: .*{message}.*\Z"):
        train(*arguments)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Curves, which take a third of most runs, are drawn only by `trained`."""
    monkeypatch.setattr("hf_mixer.training.curves.save_training_curves", lambda *arguments: None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), images_per_class=20)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / "photos"
    arguments = ["--recipe", "none", "--learning_rate", 3e-3, "--logging_steps", 4, "--per_device_train_batch_size", 8]
    train("--train_dir", photos, "--output_dir", folder, *TINY, *arguments)
    return folder


def test_training_learns_and_saves_everything(trained):
    losses = losses_of(json.loads((trained / "trainer_state.json").read_text())["log_history"])
    assert losses[-1] < 0.5 * losses[0]
    assert json.loads((trained / "all_results.json").read_text())["eval_accuracy"] == 1.0
    config = json.loads((trained / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog"}
    assert config["architectures"] == ["MixerForImageClassification"]
    saved = {"model.safetensors", "preprocessor_config.json", "modeling_mixer.py", "README.md", "training_curves.png"}
    assert saved <= {path.name for path in trained.iterdir()}
    assert json.loads((trained / "preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}


def test_fine_tuning_needs_leave_for_a_new_head(trained, tmp_path):
    photos = make_folder(tmp_path / "more", classes=("ant", "bee", "cow"))
    arguments = ["--train_dir", photos, "--output_dir", tmp_path / "out", "--max_steps", 1]
    arguments += ["--model_name_or_path", trained, "--recipe", "none"]
    train_and_fail("ignore_mismatched_sizes", *arguments)
    assert not (tmp_path / "out").exists()

    train(*arguments, "--ignore_mismatched_sizes")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["ant", "bee", "cow"]
    assert config["hidden_size"] == 32


def test_fine_tuning_takes_foreign_checkpoints_at_another_resolution(photos, tmp_path):
    model = ["--model_name_or_path", FIXTURES / "timm/b16_tiny_cls", "--ignore_mismatched_sizes", "--image_size", 64]
    train("--train_dir", photos, "--output_dir", tmp_path, *model, "--max_steps", 1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["image_size"], config["token_mlp_dim"], config["hidden_size"]) == (64, 48, 24)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (processor["size"], processor["crop_size"]) == ({"shortest_edge": 72}, {"height": 64, "width": 64})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_dir", "nowhere"], "the folder nowhere does not exist"),
        (["--variant", "B/8"], "Unknown variant 'B/8'"),
        (["--recipe", "nothing"], "no recipe 'nothing'"),
        (["--image_size", "20"], "image_size=20 has to be divisible by patch_size=8"),
        (["--dataset_config_name", "plain"], "--dataset_config_name plain needs --dataset_name"),
        (["--max_train_samples", "0"], "--max_train_samples has to be at least 1, got 0"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size has to be a positive integer, got 0"),
        (["--learning_rate", "-1"], "--learning_rate"),
        (["--num_train_epochs", "-1"], "--num_train_epochs has to be a positive number, got -1"),
        (["--num_train_epochs", "many"], "argument --num_train_epochs: invalid float value: 'many'"),
        (["--optim", "magic"], "--optim"),
        (["--early_stopping_patience", "2", "--metric_for_best_model", "beauty"], "beauty"),
        (["--lerning_rate", "1"], "there is no argument --lerning_rate: did you mean --learning_rate"),
        (["photos"], "'photos' belongs to no argument"),
        (
            ["--train_dir", "x", "--variant", "S/16", "--model_name_or_path", "y"],
            "--variant S/16 is for a model from scratch",
        ),
        (["--do_train", "false", "--do_eval", "true"], "there is no trained model in --output_dir"),
        (["--distillation_alpha", "0.5"], "name it with --teacher_model"),
        (["--teacher_model", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, tmp_path):
    train_and_fail(message, "--output_dir", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_model_learns_from_a_teacher(trained, photos, tmp_path, capsys):
    arguments = [
        "--train_dir",
        photos,
        "--recipe",
        "none",
        *TINY,
        "--hidden_size",
        16,
        "--muon",
        "true",
        "--max_steps",
        2,
    ]
    train("--output_dir", tmp_path / "out", "--teacher_model", trained, *arguments)
    output = capsys.readouterr().out
    assert "teacher" in output
    assert "muon and adamw" in output
    record = json.loads((tmp_path / "out" / "training_run.json").read_text())
    assert Path(record["teacher_model"]).name == trained.name
    assert record["dataset"]["fingerprint"] == fingerprint_files(photos)
    assert record["hyperparameters"]["distillation_alpha"] == 0.5
    assert f"`{trained.name}`" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_with_a_model_is_not_written_over(trained):
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    train_and_fail("already holds files that the run would write", "--output_dir", trained, *TINY)
    assert {path: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before


def test_evaluation_alone_writes_nothing_but_its_results(trained, photos, tmp_path):
    shutil.copytree(trained, tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}
    evaluation = ["--do_train", "false", "--do_eval", "true"]
    train("--train_dir", photos, "--output_dir", tmp_path / "model", *evaluation)
    results = tmp_path / "model" / "eval_results.json"
    assert json.loads(results.read_text())["eval_accuracy"] == 1.0
    after = {path: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}
    assert {path for path in after if before.get(path) != after[path]} <= {results}

    # On other data, with a part of the classes and in another folder
    dogs = make_folder(tmp_path / "more", classes=("dog", "cat"), images_per_class=3)
    train("--validation_dir", dogs, "--model_name_or_path", trained, "--output_dir", tmp_path / "out", *evaluation)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["eval_results.json"]
    # The shades of the two classes are exchanged
    assert json.loads((tmp_path / "out" / "eval_results.json").read_text())["eval_accuracy"] == 0.0


def test_evaluation_never_replaces_results_on_other_data(trained, photos, tmp_path):
    other = make_folder(tmp_path / "other")
    before = (trained / "eval_results.json").read_bytes()
    evaluation = ["--do_train", "false", "--do_eval", "true"]
    train_and_fail("results on other data", "--train_dir", other, "--output_dir", trained, *evaluation)
    otherwise = ["--train_dir", photos, "--scale_16_bit"]
    train_and_fail("image_conversion None, here", *otherwise, "--output_dir", trained, *evaluation)
    train_and_fail("no data to evaluate on", "--output_dir", trained, *evaluation)
    train_and_fail(
        "--streaming is for training", "--train_dir", other, "--streaming", "--output_dir", trained, *evaluation
    )
    assert (trained / "eval_results.json").read_bytes() == before


def test_labels_of_the_data_are_matched_by_name(trained, tmp_path):
    birds = make_folder(tmp_path / "birds", classes=("cat", "bird"))
    evaluation = ["--model_name_or_path", trained, "--do_train", "false", "--do_eval", "true"]
    train_and_fail("'bird'", "--validation_dir", birds, "--output_dir", tmp_path / "out", *evaluation)
    assert not (tmp_path / "out").exists()


def test_the_split_test_is_predicted(tmp_path):
    for split in ("train", "test"):
        make_folder(tmp_path / "data" / split, images_per_class=10)
    arguments = ["--dataset_name", tmp_path / "data", "--do_train", "--do_predict", "--recipe", "none", *TINY]
    train("--output_dir", tmp_path / "out", *arguments, "--learning_rate", 3e-3)
    with open(tmp_path / "out" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    right = [Path(row["path"]).parent.name == row["label"] for row in rows]
    results = json.loads((tmp_path / "out" / "predict_results.json").read_text())
    assert results["predict_accuracy"] == sum(right) / len(right)
    assert all(0.5 <= float(row["score"]) <= 1 for row in rows)


def test_a_list_of_images_with_several_labels_is_learned(photos, tmp_path):
    lines = ["path,is_cat,is_pet"]
    lines += [f"{path},{int(path.parent.name == 'cat')},{index % 2}" for index, path in enumerate(photos.rglob("*.*"))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    arguments = ["--train_file", tmp_path / "list.csv", "--label_column_name", "is_cat", "is_pet", *TINY[:-1], 2]
    train("--output_dir", tmp_path / "out", "--problem_type", "multi_label_classification", *arguments)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == ["is_cat", "is_pet"]
    assert "eval_mean_average_precision" in json.loads((tmp_path / "out" / "eval_results.json").read_text())
    record = json.loads((tmp_path / "out" / "training_run.json").read_text())
    assert record["recipe"] == "from-scratch-small"
    assert record["dataset"]["problem_type"] == "multi_label_classification"


def test_numbers_are_estimated(photos, tmp_path):
    lines = ["path,price", *(f"{path},{1000.5 + 100 * (path.parent.name == 'cat')}" for path in photos.rglob("*.*"))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    arguments = ["--train_file", tmp_path / "list.csv", "--label_column_name", "price", *TINY[:-1], 4]
    train("--output_dir", tmp_path / "out", *arguments)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "price"})
    # The recipe smooths labels, which numbers do not have
    record = json.loads((tmp_path / "out" / "training_run.json").read_text())
    assert "label_smoothing_factor" not in record["hyperparameters"]
    assert "eval_r2" in json.loads((tmp_path / "out" / "eval_results.json").read_text())


def test_a_run_says_what_it_found_what_it_does_and_what_comes_next(photos, tmp_path, capsys):
    train("--train_dir", photos, "--output_dir", tmp_path / "my out", *TINY[:-1], 6, "--logging_steps", 3)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert " ".join(out.split()).startswith(f"Training on {photos}. Recipe: from-scratch-small. images 34 to train on")
    assert "cat (17), dog (17)" in out
    assert "34 to train on, 6 to evaluate on" in out
    assert "step 3 of 6  loss" in out
    assert any(line.startswith("epoch 1: validation loss") and "accuracy" in line for line in lines)
    assert "{" not in out
    count = json.loads((tmp_path / "my out" / "training_run.json").read_text())["num_parameters"]
    assert f"depth 1; {count:,} parameters" in " ".join(out.split())
    assert f"  hf-mixer evaluate '{tmp_path / 'my out'}' --eval_dir test_photos" in lines
    assert f"  hf-mixer publish '{tmp_path / 'my out'}' 'my out' --dry-run" in lines


def test_a_run_without_data_says_that_it_trains_on_the_digits(tmp_path, capsys):
    train("--output_dir", tmp_path / "out", "--max_steps", 1)
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("Training on the 1,797 handwritten digits that ship with scikit-learn: no data was named")
    assert "Recipe: digits." in out
    assert "hf-mixer evaluate" in out


def test_a_folder_that_another_run_uses_is_refused(photos, tmp_path, monkeypatch):
    def refuse(folder, command):
        assert command.startswith("hf-mixer train --train_dir")
        raise ValueError(f"output_dir {folder} is in use")

    monkeypatch.setattr("hf_mixer.output_folder.lock_output_dir_together", refuse)
    train_and_fail("is in use", "--train_dir", photos, "--output_dir", tmp_path / "out", *TINY)
    assert not (tmp_path / "out").exists()


def test_images_to_predict_are_a_split_of_their_own(photos, tmp_path):
    arguments = ["--train_dir", photos, "--output_dir", tmp_path / "out", *TINY, "--do_train", "--do_predict"]
    train_and_fail("--do_predict predicts a split `test`", *arguments)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_says_how_to_go_on(photos, tmp_path, monkeypatch, capsys):
    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_mixer.training.progress.ConsoleCallback.on_step_end", interrupt)
    with pytest.raises(SystemExit) as exit:
        train("--train_dir", photos, "--output_dir", tmp_path / "out", *TINY)
    assert exit.value.code == 130
    assert "interrupted. There is no checkpoint to go on from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_out_of_memory_names_the_ways_out(photos, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("hf_mixer.training.progress.ConsoleCallback.on_step_end", fail)
    train_and_fail("lower --per_device_train_batch_size", "--train_dir", photos, "--output_dir", tmp_path, *TINY)


def test_a_readme_by_hand_stays(photos, tmp_path, capsys):
    (tmp_path / "README.md").write_text("Mine.")
    train("--train_dir", photos, "--output_dir", tmp_path, *TINY[:-1], 1)
    assert (tmp_path / "README.md").read_text() == "Mine."
    assert "MODEL_CARD.md" in capsys.readouterr().out
    assert (tmp_path / "MODEL_CARD.md").exists()


def test_two_processes_under_accelerate(tmp_path):
    launch_on_two_processes("scripts/train.py", "--output_dir", tmp_path / "out", "--num_train_epochs", "3")
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.9
    # 1,455 digits in batches of 64 on each of two processes
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 3 * 12
