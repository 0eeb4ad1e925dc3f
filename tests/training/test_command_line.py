import pytest
import yaml

from hf_mixer.commands.train import RECIPES
from hf_mixer.training.command_line import parse_training_arguments, read_recipe
from hf_mixer.training.models import build_model


NUM_PARAMETERS = {"cifar10-nano": 677_322, "cifar10-small": 4_360_970, "digits": 143_314}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_say_what_they_give(path, tmp_path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--recipe {path.stem} " in line for line in header)
    assert any("accuracy" in line for line in header)
    arguments = ["--recipe", path.stem, "--output_dir", str(tmp_path)]
    model_args, _, _ = parse_training_arguments(RECIPES, arguments=arguments)
    if path.stem in NUM_PARAMETERS:
        model, _ = build_model(model_args, list("0123456789"))
        assert model.num_parameters() == NUM_PARAMETERS[path.stem]


def test_recipes_may_be_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("eval_strategy: no\nlearning_rate: 1e-3\n")
    assert read_recipe(str(path), tmp_path) == {"eval_strategy": "no", "learning_rate": "1e-3"}
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="has to hold arguments and their values"):
        read_recipe(str(path), tmp_path)


def test_the_command_line_overrides_the_recipe(tmp_path):
    arguments = "--recipe cifar10-small --learning_rate 0.5 --train_dir photos --output_dir".split()
    _, data, training = parse_training_arguments(RECIPES, arguments=[*arguments, str(tmp_path)])
    recipe = yaml.safe_load((RECIPES / "cifar10-small.yaml").read_text())
    assert (training.learning_rate, training.num_train_epochs) == (0.5, recipe["num_train_epochs"])
    # Other data than the recipe's
    assert (data.dataset_name, data.train_dir, data.eval_split) == (None, "photos", None)


@pytest.mark.parametrize(
    ("arguments", "recipe", "learning_rate"),
    [
        ("", "digits", 3e-3),
        ("--train_dir photos", "from-scratch-small", 1e-3),
        ("--train_file photos.csv --variant B/16", "from-scratch-small", 1e-3),
        ("--train-dir photos --model_name_or_path outputs/old", "finetune-224", 3e-4),
        ("--train_dir photos --recipe none", None, 5e-5),
        ("--train_dir photos --learning_rate 0.5", "from-scratch-small", 0.5),
        ("--train_dir photos --do_train false --do_eval true", None, 5e-5),
    ],
)
def test_a_recipe_fits_the_model_and_the_data(arguments, recipe, learning_rate, tmp_path):
    arguments = [*arguments.split(), "--output_dir", str(tmp_path)]
    model_args, data_args, training_args = parse_training_arguments(RECIPES, arguments=arguments)
    assert (data_args.recipe, training_args.learning_rate) == (recipe, learning_rate)
    if "--model_name_or_path" in arguments:
        assert (model_args.model_name_or_path, model_args.ignore_mismatched_sizes) == ("outputs/old", True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", (True, "epoch", "epoch")),
        ("--eval_strategy steps --eval_steps 5", (True, "steps", "steps")),
        ("--eval_strategy no", (False, "no", "steps")),
        ("--save_strategy no", (False, "epoch", "no")),
        ("--save_strategy steps --save_steps 7", (False, "epoch", "steps")),
    ],
)
def test_the_best_model_is_kept_where_it_can_be_known(arguments, expected, tmp_path):
    arguments = ["--train_dir", "photos", "--output_dir", str(tmp_path), *arguments.split()]
    _, _, args = parse_training_arguments(RECIPES, arguments=arguments)
    assert (args.load_best_model_at_end, args.eval_strategy.value, args.save_strategy.value) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", (True, True, False)),
        ("--do_predict", (False, False, True)),
        ("--do_eval", (False, True, False)),
        ("--do_train --do_predict", (True, True, True)),
        ("--do_train --do_eval false", (True, False, False)),
    ],
)
def test_a_run_does_what_it_is_told(arguments, expected, tmp_path):
    arguments = ["--train_dir", "photos", "--output_dir", str(tmp_path), *arguments.split()]
    _, _, args = parse_training_arguments(RECIPES, arguments=arguments)
    assert (args.do_train, args.do_eval, args.do_predict) == expected


def test_help_begins_with_what_is_used_first(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        parse_training_arguments(RECIPES, "Train.", ["--train_dir", "photos", "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    titles = ["used first:", "data:", "model:", "optimization:", "augmentation:", "loss and labels:"]
    positions = [text.index(f"\n{title}\n") for title in titles]
    assert positions == sorted(positions)
    first = text[positions[0] : positions[1]]
    assert first.count("\n  --") == 21  # twenty, and --help
    assert first.split()[2] == "--train_dir"
    assert "--learning_rate X The initial learning rate for the optimizer. (default: 1e-3)" in " ".join(first.split())
    # Each argument once, in one spelling
    assert text.count("\n  --cutmix_alpha ") == 1
    assert "--cutmix-alpha" not in text
