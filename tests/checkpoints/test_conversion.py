"""Checkpoints become folders of ours, with a proof, and are written back bit by bit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_mixer import MixerConfig, MixerImageProcessorPil, load_checkpoint
from hf_mixer.checkpoints import conversion, convert_checkpoint, export_checkpoint
from tests.helpers import FIXTURES, GOOGLE_RECTANGLE, GOOGLE_SQUARE, TIMM_TINY, read_io, read_npz


EDIFICE = FIXTURES / "edifice/dropout_cls"
NO_HEAD = FIXTURES / "flax/c_nohead_none"


def read_arrays(path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        return read_npz(path)
    file = path / "model.safetensors" if path.is_dir() else path
    return {key: tensor.numpy() for key, tensor in load_file(file).items()}


def assert_same_arrays(actual: dict, expected: dict):
    assert actual.keys() == expected.keys()
    for key, array in expected.items():
        assert (actual[key].dtype, actual[key].shape) == (array.dtype, array.shape), key
        assert actual[key].tobytes() == array.tobytes(), key


@pytest.mark.parametrize(
    ("source", "original", "layout", "image_size"),
    [
        (GOOGLE_SQUARE / "linen.npz", GOOGLE_SQUARE / "linen.npz", "google", None),
        (GOOGLE_SQUARE / "pre_linen.npz", GOOGLE_SQUARE / "linen.npz", "google", None),
        (GOOGLE_RECTANGLE / "linen.npz", GOOGLE_RECTANGLE / "linen.npz", "google", (8, 16)),
        (NO_HEAD / "linen.npz", NO_HEAD / "linen.npz", "google", None),
        (EDIFICE / "params.safetensors", EDIFICE / "params.safetensors", "edifice", None),
        (EDIFICE / "params_train_state.safetensors", EDIFICE / "params.safetensors", "edifice", None),
        (TIMM_TINY, TIMM_TINY, "timm", None),
    ],
)
def test_round_trips_are_bit_exact(source, original, layout, image_size, tmp_path):
    difference = convert_checkpoint(str(source), str(tmp_path / "ours"), image_size=image_size)
    assert difference < 1e-12
    back = tmp_path / f"back{original.suffix}"
    export_checkpoint(str(tmp_path / "ours"), str(back), layout)
    assert_same_arrays(read_arrays(back), read_arrays(original))
    assert sorted(path.name for path in tmp_path.iterdir()) == [back.name, "ours"]


def test_bfloat16_without_a_type(tmp_path):
    arrays = {
        key: torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")
        for key, array in read_npz(GOOGLE_SQUARE / "linen.npz").items()
    }
    np.savez(tmp_path / "bf16.npz", **arrays)
    assert load_checkpoint(str(tmp_path / "bf16.npz"))[0].dtype == torch.bfloat16
    assert load_checkpoint(str(tmp_path / "bf16.npz"), dtype=torch.float32)[0].dtype == torch.float32
    convert_checkpoint(str(tmp_path / "bf16.npz"), str(tmp_path / "ours"))
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "back.npz"), "google")
    assert_same_arrays(read_npz(tmp_path / "back.npz"), arrays)


def test_exported_timm_folder_loads_again(tmp_path):
    convert_checkpoint(str(TIMM_TINY), str(tmp_path / "ours"), labels=list("abcdefg"))
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "theirs"), "timm")
    model, processor = load_checkpoint(str(tmp_path / "theirs"))
    assert list(model.config.id2label.values()) == list("abcdefg")
    assert processor.size["shortest_edge"] == 36
    pixel_values, expected = read_io(TIMM_TINY)
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=5e-6)


def test_timm_is_told_only_what_differs_from_its_variant():
    processor = MixerImageProcessorPil()
    settings = conversion.timm_settings(MixerConfig.from_variant("S/16", num_labels=3), processor)
    assert (settings["architecture"], settings["model_args"], settings["num_classes"]) == ("mixer_s16_224", {}, 3)
    config = MixerConfig.from_variant("L/16", image_size=448, token_mlp_dim=2048, num_labels=0)
    settings = conversion.timm_settings(config, processor)
    assert settings["architecture"] == "mixer_l16_224"
    assert settings["model_args"] == {"img_size": 448, "mlp_ratio": [2.0, 4.0]}


def test_straight_resizes_survive_the_way_through_timm(tmp_path):
    convert_checkpoint(str(GOOGLE_SQUARE / "linen.npz"), str(tmp_path / "ours"))
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "theirs"), "timm")
    image = np.random.default_rng(0).integers(0, 255, (3, 40, 90), dtype=np.uint8)
    expected, actual = (
        load_checkpoint(str(tmp_path / name))[1](image, return_tensors="pt").pixel_values
        for name in ("ours", "theirs")
    )
    torch.testing.assert_close(actual, expected)


def test_converted_folder_names_labels_source_and_licence(tmp_path):
    convert_checkpoint(
        str(GOOGLE_SQUARE / "linen.npz"), str(tmp_path / "tiny"), labels=[f"class {i}" for i in range(10)]
    )
    model, _ = load_checkpoint(str(tmp_path / "tiny"))
    assert model.config.id2label[3] == "class 3"
    assert "mixer.layers.0.token_mixing.fc1.weight" in load_file(tmp_path / "tiny" / "model.safetensors")
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Converted from `linen.npz`, Google's MLP-Mixer" in card
    assert 'pipeline("image-classification", "tiny", trust_remote_code=True)' in card
    assert (tmp_path / "tiny" / "modeling_mixer.py").exists()


def test_a_wrong_conversion_stops_before_saving(tmp_path, monkeypatch):
    build_from_source = conversion.build_from_source

    def swap_the_mlps(*args, **kwargs):
        model = build_from_source(*args, **kwargs)
        layers = model.mixer.layers
        layers[0], layers[1] = layers[1], layers[0]
        return model

    monkeypatch.setattr(conversion, "build_from_source", swap_the_mlps)
    with pytest.raises(ValueError, match="differs from .* by .*, more than 1e-05"):
        convert_checkpoint(str(GOOGLE_SQUARE / "linen.npz"), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_damaged_folders_of_ours_are_refused(tmp_path):
    convert_checkpoint(str(TIMM_TINY), str(tmp_path / "ours"))
    file = tmp_path / "ours" / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if ".layers.1." not in k}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"misses 12 tensors, such as 'mixer\.layers\.1\."):
        convert_checkpoint(str(tmp_path / "ours"), str(tmp_path / "out" / "deep"))
    tensors["mixer.norm.bias"][0] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"'mixer\.norm\.bias' holds values that are not finite"):
        export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "out.npz"), "google")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_destinations_are_not_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        convert_checkpoint(str(TIMM_TINY), str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"google is a \.npz file"):
        export_checkpoint(str(TIMM_TINY), str(tmp_path / "x.safetensors"), "google")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
