"""Any source loads in one line, with its image processor, into any class, with other labels and another resolution."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_mixer import (
    MixerBackbone,
    MixerConfig,
    MixerForImageClassification,
    MixerForMaskedImageModeling,
    MixerImageProcessorPil,
    MixerModel,
    load_checkpoint,
)
from hf_mixer.checkpoints import export_checkpoint
from tests.helpers import FIXTURES, GOOGLE_RECTANGLE, GOOGLE_SQUARE, TIMM_TINY, read_io, save_classifier


SOURCES = [
    (GOOGLE_SQUARE, "linen.npz", 2e-6, {}),
    (GOOGLE_SQUARE, "pre_linen.npz", 2e-6, {}),
    (GOOGLE_RECTANGLE, "linen.npz", 2e-6, {"source_image_size": (8, 16)}),
    (GOOGLE_RECTANGLE, "pre_linen.npz", 2e-6, {"source_image_size": (8, 16)}),
    (FIXTURES / "flax/c_nohead_none", "linen.npz", 2e-6, {}),
    (FIXTURES / "flax/c_nohead_none", "pre_linen.npz", 2e-6, {}),
    (FIXTURES / "edifice/cls_rgb", "params.safetensors", 5e-6, {}),
    (FIXTURES / "edifice/dropout_cls", "params.safetensors", 5e-6, {}),
    (FIXTURES / "edifice/pooled_rgb", "params.safetensors", 5e-6, {}),
    (TIMM_TINY, "model.safetensors", 5e-6, {}),
    (TIMM_TINY, ".", 5e-6, {}),
    (FIXTURES / "timm/l16_tiny_features", ".", 5e-6, {}),
]


@pytest.mark.parametrize(("folder", "name", "tolerance", "arguments"), SOURCES)
@torch.no_grad()
def test_every_source_loads_in_one_line(folder, name, tolerance, arguments):
    model, processor = load_checkpoint(str(folder / name), **arguments)
    pixel_values, expected = read_io(folder)
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=tolerance)
    assert not model.training
    image = np.zeros((3, 100, 80), np.uint8)
    assert processor(image, return_tensors="pt").pixel_values.shape[1:] == pixel_values.shape[1:]


@pytest.mark.parametrize("model_class", [MixerModel, MixerBackbone, MixerForMaskedImageModeling])
def test_every_class_takes_the_weights(model_class):
    model, _ = load_checkpoint(str(TIMM_TINY), model_class=model_class)
    assert type(model) is model_class
    outputs = model.base_model(read_io(TIMM_TINY)[0])
    tokens = (
        outputs.feature_maps[0].flatten(2).transpose(1, 2)
        if model_class is MixerBackbone
        else outputs.last_hidden_state
    )
    torch.testing.assert_close(tokens, load_file(TIMM_TINY / "io.safetensors")["tokens"], rtol=0, atol=5e-6)


def test_labels_and_overrides():
    model, _ = load_checkpoint(str(TIMM_TINY), id2label={0: "cat", 1: "dog"}, drop_path_rate=0.2, dtype=torch.bfloat16)
    assert model.config.num_labels == model.classifier.out_features == 2
    assert model.config.label2id == {"cat": 0, "dog": 1}
    assert model.mixer.layers[-1].drop_path.drop_prob == 0.2
    assert model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="has 7 labels, not 3: pass `ignore_mismatched_sizes=True`"):
        load_checkpoint(str(TIMM_TINY), num_labels=3, ignore_mismatched_sizes=False)
    assert load_checkpoint(str(TIMM_TINY), num_labels=0)[0](read_io(TIMM_TINY)[0]).logits.shape == (3, 24)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_hidden_layers": 5}, "`num_hidden_layers` cannot be set"),
        ({"in_channels": 1}, "`in_channels` cannot be set"),
        ({"drop_pathrate": 0.1}, "`drop_pathrate` cannot be set"),
        ({"id2label": {1: "a", 5: "b"}}, "from 0 to 1"),
        ({"id2label": {0: "a"}, "num_labels": 9}, "all `num_labels` of them"),
    ],
)
def test_overrides_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(str(TIMM_TINY), **overrides)


def test_another_resolution_in_one_go():
    pixel_values = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    model, processor = load_checkpoint(str(TIMM_TINY), image_size=(64, 32))
    small, _ = load_checkpoint(str(TIMM_TINY))
    expected = (small(pixel_values[:, :, :32]).logits + small(pixel_values[:, :, 32:]).logits) / 2
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=1e-6)
    assert processor(np.zeros((3, 90, 120), np.uint8), return_tensors="pt").pixel_values.shape == (1, 3, 64, 32)


@pytest.mark.parametrize(
    ("source", "image_size", "size", "crop_size"),
    [
        (TIMM_TINY, 64, {"shortest_edge": 72}, {"height": 64, "width": 64}),
        (TIMM_TINY, (64, 32), {"height": 72, "width": 36}, {"height": 64, "width": 32}),
        (GOOGLE_SQUARE / "linen.npz", (32, 16), {"height": 32, "width": 16}, None),
    ],
)
def test_image_processor_follows_the_resolution(source, image_size, size, crop_size, tmp_path):
    _, processor = load_checkpoint(str(source), image_size=image_size)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (saved["size"], saved.get("crop_size")) == (size, crop_size)


def test_imagenet_names_for_a_thousand_classes(tmp_path):
    config = MixerConfig.from_variant("cifar10", num_labels=1000, num_hidden_layers=1)
    MixerForImageClassification(config).save_pretrained(tmp_path / "ours")
    MixerImageProcessorPil(size=32).save_pretrained(tmp_path / "ours")
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "google.npz"), "google")
    names = load_checkpoint(str(tmp_path / "google.npz"))[0].config.id2label
    assert (len(names), names[0], names[207], names[999]) == (
        1000,
        "tench, Tinca tinca",
        "golden retriever",
        "toilet tissue, toilet paper, bathroom tissue",
    )


def test_timm_preprocessing_is_followed(tmp_path):
    settings = json.loads((TIMM_TINY / "config.json").read_text())
    settings["pretrained_cfg"] |= {"interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "crop_pct": 0.8}
    settings["label_names"] = list("abcdefg")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    shutil.copy(TIMM_TINY / "model.safetensors", tmp_path)
    model, processor = load_checkpoint(str(tmp_path))
    assert dict(processor.size) == {"shortest_edge": 40}
    assert dict(processor.crop_size) == {"height": 32, "width": 32}
    assert (processor.resample, list(processor.image_mean), list(processor.image_std)) == (2, [0, 0, 0], [1, 1, 1])
    assert model.config.id2label[6] == "g"


def test_from_pretrained_of_a_timm_folder_names_the_loader():
    with pytest.raises(ValueError, match=r"timm \(mixer_b16_224\).*hf_mixer\.load_checkpoint.*hf-mixer convert"):
        MixerForImageClassification.from_pretrained(TIMM_TINY)


def test_a_folder_without_classifier_needs_a_word(tmp_path):
    model, processor = load_checkpoint(str(TIMM_TINY), model_class=MixerModel)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no classifier: pass `num_labels`"):
        load_checkpoint(str(tmp_path))
    assert load_checkpoint(str(tmp_path), num_labels=3)[0].classifier.out_features == 3
    assert load_checkpoint(str(tmp_path), num_labels=0)[0](read_io(TIMM_TINY)[0]).logits.shape == (3, 24)


def change_json(**values):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", cut_off, "is not a complete safetensors file .*copy or download it again"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "is not a complete safetensors file"),
        ("config.json", cut_off, "is not valid JSON"),
        ("config.json", change_json(patch_size=7), r"describes no MLP-Mixer: [\s\S]* divisible by patch_size=7"),
        ("config.json", change_json(id2label=["cat", "dog"]), "describes no MLP-Mixer"),
        (
            "config.json",
            change_json(id2label={"0": "cat"}),
            r"'classifier.bias' has the shape \(2,\), and \(1,\) according",
        ),
        ("config.json", lambda path: path.unlink(), "copy its config.json"),
        ("preprocessor_config.json", cut_off, "is not valid JSON"),
        ("preprocessor_config.json", change_json(size="large"), "describes no image processor: .*large"),
        ("preprocessor_config.json", change_json(image_processor_type="Other"), "describes no image processor"),
        ("model.safetensors.index.json", lambda path: path.write_text("{"), "is not valid JSON"),
        ("model.safetensors.index.json", lambda path: path.write_text("{}"), "does not say which file holds which"),
        ("preprocessor_config.json", lambda path: path.unlink(), "the settings of its image processor"),
    ],
)
def test_a_damaged_file_of_a_model_is_named(name, damage, message, tmp_path):
    save_classifier(tmp_path, ["cat", "dog"])
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(str(tmp_path))
    assert name in str(error.value)


def test_the_old_file_of_a_model_runs_no_code(tmp_path):
    save_classifier(tmp_path, ["cat", "dog"])
    (tmp_path / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match="pytorch_model.bin holds torch.nn.modules.linear.Linear, and reading that could"
    ):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("arguments", [{}, {"num_labels": 3}])
def test_weights_that_contradict_the_configuration_are_never_replaced(arguments, tmp_path):
    save_classifier(tmp_path, ["cat", "dog"])
    change_json(channel_mlp_dim=16)(tmp_path / "config.json")
    with pytest.raises(
        ValueError, match=r"channel_mixing.fc1.bias' has the shape \(32,\), and \(16,\) according to config.json"
    ):
        load_checkpoint(str(tmp_path), **arguments)


def test_another_number_of_labels_is_refused_where_it_is_not_asked_for(tmp_path):
    save_classifier(tmp_path, ["cat", "dog"])
    with pytest.raises(ValueError, match="has 2 labels, not 3: pass `ignore_mismatched_sizes=True`"):
        load_checkpoint(str(tmp_path), num_labels=3, ignore_mismatched_sizes=False)
    assert load_checkpoint(str(tmp_path), num_labels=3)[0].config.num_labels == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("outputs/photos/best", "does not exist here, and is no name of a repository on the Hub"),
        ("somebody/mixer.pth", "does not exist here, and is no name of a repository on the Hub"),
        ("somebody/mixer", r"is no path here, and cannot be fetched from the Hub: HF_HUB_OFFLINE is set"),
    ],
)
def test_a_model_that_is_not_there_is_named(source, message):
    with pytest.raises(ValueError, match=f"^{source} {message}"):
        load_checkpoint(source)


def test_a_revision_is_for_the_hub():
    with pytest.raises(ValueError, match="a revision is for repositories on the Hub: got 'v1.0'"):
        load_checkpoint(str(TIMM_TINY), revision="v1.0")
    load_checkpoint(str(TIMM_TINY), revision="main")
