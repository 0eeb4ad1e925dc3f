import pytest
import yaml

from hf_mixer.commands.train import RECIPES, build_model
from hf_mixer.training.command_line import parse_training_arguments, read_recipe


NUM_PARAMETERS = {"cifar10-nano": 605_834, "cifar10-small": 4_360_970, "digits": 143_314}


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
