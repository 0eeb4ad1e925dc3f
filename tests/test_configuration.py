import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hf_mixer import MixerConfig, MixerForImageClassification, MixerModel


# Parameters without the classifier, from Table 1 of the paper
@pytest.mark.parametrize(
    ("variant", "num_parameters", "num_patches"),
    [
        ("S/32", 18_591_624, 49),
        ("S/16", 18_015_264, 196),
        ("B/32", 59_524_428, 49),
        ("B/16", 59_111_472, 196),
        ("L/32", 205_914_264, 49),
        ("L/16", 207_171_168, 196),
        ("H/14", 431_069_952, 256),
    ],
)
def test_variants_have_the_parameters_of_the_paper(variant, num_parameters, num_patches):
    config = MixerConfig.from_variant(variant)
    with torch.device("meta"):
        assert MixerModel(config).num_parameters() == num_parameters
    assert config.num_patches == num_patches


# What `Edifice.Vision.MLPMixer.build/1` takes, `output_size/1` of it, and the parameters of what it builds
EDIFICE_DEFAULTS = dict(image_size=224, patch_size=16, in_channels=3, hidden_size=512, num_layers=8)
EDIFICE_DEFAULTS |= dict(token_mlp_dim=256, channel_mlp_dim=2048, dropout=0.0, num_classes=None)
EDIFICE_CIFAR10 = dict(image_size=32, patch_size=4, in_channels=3, hidden_size=256, num_layers=8)
EDIFICE_CIFAR10 |= dict(token_mlp_dim=128, channel_mlp_dim=1024, num_classes=10)


@pytest.mark.parametrize(
    ("options", "same", "output_size", "num_parameters"),
    [
        (EDIFICE_DEFAULTS, MixerConfig(num_labels=0), 512, 18_015_264),
        (EDIFICE_CIFAR10, MixerConfig.from_variant("cifar10"), 10, 4_360_970),
    ],
)
def test_edifice_examples_build_from_their_own_options(options, same, output_size, num_parameters):
    config = MixerConfig(**options)
    assert config.to_dict() == same.to_dict()
    assert {name: getattr(config, name) for name in options} == options
    assert config.output_size == output_size
    with torch.device("meta"):
        model = MixerForImageClassification(config)
        pixel_values = torch.empty(2, 3, config.image_size, config.image_size)
    assert model.num_parameters() == num_parameters
    assert model(pixel_values).logits.shape == (2, output_size)


def test_variant_overrides_and_aliases():
    config = MixerConfig.from_variant("B/16", num_layers=2, image_size=(32, 48), num_classes=None)
    assert (config.num_hidden_layers, config.hidden_size, config.grid, config.num_labels) == (2, 768, (2, 3), 0)
    assert MixerConfig.from_variant("cifar10", id2label={0: "cat", 1: "dog"}).num_labels == 2
    with pytest.raises(ValueError, match=r"Unknown variant 'B/8', expected one of S/32, .*H/14"):
        MixerConfig.from_variant("B/8")


def test_aliases_construct_read_and_round_trip(tmp_path):
    config = MixerConfig(num_layers=3, in_channels=1, dropout=0.25, num_classes=7)
    assert (config.num_hidden_layers, config.num_channels, config.hidden_dropout_prob) == (3, 1, 0.25)
    assert (config.num_layers, config.in_channels, config.dropout, config.num_classes) == (3, 1, 0.25, 7)
    assert config.num_labels == len(config.id2label) == 7
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3"]

    assert MixerConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    assert MixerConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["num_hidden_layers"] == 3
    assert "num_layers" not in saved


def test_no_classes_means_no_head(tmp_path):
    MixerConfig(num_classes=None).save_pretrained(tmp_path)
    config = MixerConfig.from_pretrained(tmp_path)
    assert (config.num_labels, config.num_classes) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 225}, r"image_size=225 has to be divisible by patch_size=16"),
        ({"image_size": (32, 36), "patch_size": (16, 8)}, r"image_size=\(32, 36\) .* patch_size=\(16, 8\)"),
        ({"image_size": 0}, r"'image_size'.*expected a positive integer.*got 0"),
        ({"image_size": "224"}, r"'image_size'.*got str"),
        ({"image_size": [224, 224, 3]}, r"'image_size'.*pair \(height, width\).*\[224, 224, 3\]"),
        ({"patch_size": -16}, r"'patch_size'.*positive.*-16"),
        ({"hidden_size": 0}, r"'hidden_size'.*positive integer, got 0"),
        ({"num_layers": 0}, r"'num_hidden_layers'.*positive integer, got 0"),
        ({"num_layers": "3"}, r"'num_hidden_layers'.*expected int, got str"),
        ({"in_channels": 1.0}, r"'num_channels'.*expected int, got float"),
        ({"token_mlp_dim": -1}, r"'token_mlp_dim'.*positive integer, got -1"),
        ({"channel_mlp_dim": None}, r"'channel_mlp_dim'.*expected int, got NoneType"),
        ({"dropout": 1.0}, r"'hidden_dropout_prob'.*probability in \[0, 1\), got 1.0"),
        ({"drop_path_rate": -0.1}, r"'drop_path_rate'.*probability in \[0, 1\), got -0.1"),
        ({"classifier_dropout_prob": float("nan")}, r"'classifier_dropout_prob'.*probability in \[0, 1\), got nan"),
        ({"layer_norm_eps": 0.0}, r"'layer_norm_eps'.*positive number, got 0.0"),
        ({"hidden_act": "gelu_tanh"}, r"'hidden_act'.*expected one of .*gelu_pytorch_tanh.*got 'gelu_tanh'"),
        ({"encoder_stride": 0}, r"'encoder_stride'.*positive.*got 0"),
        ({"out_indices": [9]}, r"`out_indices` has to lie between 0 .* and 8 .*got \[9\]"),
        ({"out_indices": [-10]}, r"`out_indices` has to lie between 0 .* and 8 .*got \[-10\]"),
        ({"out_indices": 3}, r"`out_indices` has to be a list of integers, got 3"),
        ({"out_features": ["stage9"]}, r"out_features must be a subset of stage_names.*stage9"),
        ({"num_classes": -1}, r"`num_classes`.*got -1"),
        ({"num_labels": "ten"}, r"`num_labels`.*got 'ten'"),
        (
            {"num_layers": 3, "num_hidden_layers": 4},
            r"`num_layers` is another name of `num_hidden_layers`, got 3 and 4",
        ),
        ({"num_classes": 3, "num_labels": 4}, r"`num_classes` is another name of `num_labels`, got 3 and 4"),
    ],
)
def test_bad_values_are_refused_by_name(arguments, message):
    with pytest.raises((ValueError, StrictDataclassError), match=f"(?s){message}"):
        MixerConfig(**arguments)


@pytest.mark.parametrize(("name", "value"), [("num_layers", 0), ("dropout", 2.0), ("hidden_size", "wide")])
def test_assignment_is_validated_too(name, value):
    config = MixerConfig()
    with pytest.raises(StrictDataclassError, match="num_hidden_layers|hidden_dropout_prob|hidden_size"):
        setattr(config, name, value)


def test_stages_follow_the_depth():
    config = MixerConfig(num_hidden_layers=8)
    config.num_layers = 4
    assert (config.stage_names[-1], config.out_features, config.out_indices) == ("stage4", ["stage4"], [4])
    config.out_indices = [1, 3]
    config.num_hidden_layers = 6
    assert config.out_features == ["stage1", "stage3"]
    with pytest.raises(ValueError, match="stage3"):
        config.num_hidden_layers = 2


def test_wrong_type_in_config_json(tmp_path):
    MixerConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 512', '"hidden_size": "512"'))
    with pytest.raises(StrictDataclassError, match=r"(?s)'hidden_size'.*expected int, got str"):
        MixerConfig.from_pretrained(tmp_path)


def test_thresholds_of_labels_are_saved_and_fit_the_labels(tmp_path):
    MixerConfig(
        num_labels=3, problem_type="multi_label_classification", label_thresholds=[0.1, 0.5, 1]
    ).save_pretrained(tmp_path)
    assert MixerConfig.from_pretrained(tmp_path).label_thresholds == [0.1, 0.5, 1]
    # A model that gets other labels starts without any
    assert MixerConfig.from_pretrained(tmp_path, num_labels=5).label_thresholds is None
    for thresholds, message in (
        ([0.1], "one probability for each of 3 labels, got 1"),
        ([0.1, 0.2, 2.0], "in .0, 1."),
    ):
        with pytest.raises(StrictDataclassError, match=message):
            MixerConfig(num_labels=3, label_thresholds=thresholds)
