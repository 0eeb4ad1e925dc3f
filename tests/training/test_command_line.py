import pytest
import torch
import yaml

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.commands.train import RECIPES
from hf_mixer.training.command_line import parse_training_arguments, read_recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_say_what_they_give(path):
    text = path.read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any(f"--recipe {path.stem} " in line for line in header)
    assert any("accuracy" in line for line in header)
    config = yaml.safe_load(text)
    if "variant" in config or "hidden_size" in config:
        names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "token_mlp_dim", "channel_mlp_dim")
        fields = {name: config[name] for name in names if name in config}
        fields = {name: value[0] if isinstance(value, list) else value for name, value in fields.items()}
        with torch.device("meta"):
            model = MixerForImageClassification(MixerConfig.from_variant(config.get("variant", "S/16"), **fields))
        if path.stem == "cifar10-nano":
            assert model.num_parameters() <= 700_000
        if path.stem == "cifar10-small":
            assert model.num_parameters() == 4_360_970


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
