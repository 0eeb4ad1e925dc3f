"""`hf-mixer train`, as users run it."""

import json
from types import SimpleNamespace

import pytest

from hf_mixer.commands.train import main, set_stream_length
from hf_mixer.training import MixerTrainingArguments
from tests.helpers import FIXTURES, losses_of, make_folder, run_on_two_processes


TINY = "--variant cifar10 --image_size 16 --patch_size 8 --hidden_size 32 --num_hidden_layers 1 --max_steps 40".split()


def train(*arguments):
    main([str(argument) for argument in arguments])


def train_and_fail(message, *arguments):
    # A point matches all but the end of a line
    with pytest.raises(SystemExit, match=rf"\Aerror: .*{message}.*\Z"):
        train(*arguments)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), images_per_class=20)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs") / "photos"
    arguments = ["--learning_rate", 3e-3, "--logging_steps", 4, "--per_device_train_batch_size", 8]
    train("--train_dir", photos, "--output_dir", folder, *TINY, *arguments)
    return folder


def test_training_learns_and_saves_everything(trained):
    losses = losses_of(json.loads((trained / "trainer_state.json").read_text())["log_history"])
    assert losses[-1] < 0.5 * losses[0]
    assert json.loads((trained / "all_results.json").read_text())["eval_accuracy"] == 1.0
    config = json.loads((trained / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog"}
    assert config["architectures"] == ["MixerForImageClassification"]
    assert {"model.safetensors", "preprocessor_config.json", "modeling_mixer.py", "README.md"} <= {
        path.name for path in trained.iterdir()
    }
    assert json.loads((trained / "preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}


def test_fine_tuning_needs_leave_for_a_new_head(trained, tmp_path):
    photos = make_folder(tmp_path / "more", classes=("ant", "bee", "cow"))
    arguments = ["--train_dir", photos, "--output_dir", tmp_path / "out", "--max_steps", 1]
    arguments += ["--model_name_or_path", trained]
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
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, tmp_path):
    train_and_fail(message, "--output_dir", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_model_is_not_written_over(trained):
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    train_and_fail("already holds a model", "--output_dir", trained, *TINY)
    assert {path: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before


def test_evaluation_alone_measures_and_saves_no_model(trained, photos, tmp_path):
    model = ["--model_name_or_path", trained, "--do_train", "false", "--do_eval", "true"]
    train("--train_dir", photos, "--output_dir", tmp_path, *model)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == []
    assert json.loads((tmp_path / "eval_results.json").read_text())["eval_accuracy"] == 1.0


def test_two_processes_under_accelerate(tmp_path):
    run_on_two_processes("scripts/train.py", "--output_dir", tmp_path / "out", "--num_train_epochs", "3")
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_accuracy"] > 0.9
    # 1,455 digits in batches of 64 on each of two processes
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 3 * 12


@pytest.mark.parametrize(
    ("num_examples", "arguments", "expected"),
    [
        (1000, dict(num_train_epochs=3, save_strategy="epoch"), (47, "steps", 16)),
        (1000, dict(max_steps=5, save_strategy="epoch"), (5, "steps", 16)),
        (None, dict(max_steps=5, save_strategy="steps", save_steps=2), (5, "steps", 2)),
        (None, dict(max_steps=5, save_strategy="epoch"), "give --save_strategy steps --save_steps N"),
        (None, dict(save_strategy="no"), "give --max_steps"),
    ],
)
def test_epochs_of_a_stream_are_steps(num_examples, arguments, expected, tmp_path):
    splits = {"train": SimpleNamespace(num_examples=num_examples)} if num_examples else None
    dataset = {"train": SimpleNamespace(info=SimpleNamespace(splits=splits))}
    args = MixerTrainingArguments(
        str(tmp_path), per_device_train_batch_size=16, gradient_accumulation_steps=4, report_to="none", **arguments
    )
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            set_stream_length(dataset, args, None)
    else:
        set_stream_length(dataset, args, None)
        assert (args.max_steps, args.save_strategy, args.save_steps) == expected
