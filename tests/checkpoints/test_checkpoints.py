"""Checkpoints of other implementations: read, converted with a proof, and written back bit by bit."""

import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_mixer import (
    MixerBackbone,
    MixerConfig,
    MixerForImageClassification,
    MixerForMaskedImageModeling,
    MixerModel,
    load_checkpoint,
)
from hf_mixer.checkpoints import conversion as conversion_module
from hf_mixer.checkpoints import convert_checkpoint, export_checkpoint
from hf_mixer.checkpoints.loading import IMAGENET_LABELS
from tests.helpers import FIXTURES, ROOT


GOOGLE_A = FIXTURES / "flax/a_sq16_p4_tok_gt"
GOOGLE_RECTANGLE = FIXTURES / "flax/e_rect8x16_p4"
GOOGLE_NO_HEAD = FIXTURES / "flax/c_nohead_none"
EDIFICE_DROPOUT = FIXTURES / "edifice/dropout_cls"
TIMM = FIXTURES / "timm/b16_tiny_cls"


def read_npz(path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def io_of(folder) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(folder / "io.safetensors")
    return tensors["input_nchw" if "input_nchw" in tensors else "input"], tensors["output"]


def assert_same_arrays(actual: dict, expected: dict):
    assert actual.keys() == expected.keys()
    for key, array in expected.items():
        assert (actual[key].dtype, actual[key].shape) == (array.dtype, array.shape), key
        assert actual[key].tobytes() == array.tobytes(), key


SOURCES = [
    (GOOGLE_A, "linen.npz", 2e-6, {}),
    (GOOGLE_A, "pre_linen.npz", 2e-6, {}),
    (GOOGLE_RECTANGLE, "linen.npz", 2e-6, {"source_image_size": (8, 16)}),
    (GOOGLE_RECTANGLE, "pre_linen.npz", 2e-6, {"source_image_size": (8, 16)}),
    (GOOGLE_NO_HEAD, "linen.npz", 2e-6, {}),
    (GOOGLE_NO_HEAD, "pre_linen.npz", 2e-6, {}),
    (FIXTURES / "edifice/cls_rgb", "params.safetensors", 5e-6, {}),
    (EDIFICE_DROPOUT, "params.safetensors", 5e-6, {}),
    (FIXTURES / "edifice/pooled_rgb", "params.safetensors", 5e-6, {}),
    (TIMM, "model.safetensors", 5e-6, {}),
    (TIMM, ".", 5e-6, {}),
    (FIXTURES / "timm/l16_tiny_features", ".", 5e-6, {}),
]


@pytest.mark.parametrize(("folder", "name", "tolerance", "arguments"), SOURCES)
@torch.no_grad()
def test_every_source_loads_in_one_line(folder, name, tolerance, arguments):
    model, processor = load_checkpoint(str(folder / name), **arguments)
    pixel_values, expected = io_of(folder)
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=tolerance)
    assert not model.training
    image = np.zeros((3, 100, 80), np.uint8)
    assert processor(image, return_tensors="pt").pixel_values.shape[1:] == pixel_values.shape[1:]


@pytest.mark.parametrize("prefix", ["params/", "opt/target/"])
def test_wrapped_google_files_load_and_leave_the_rest_out(prefix, tmp_path, caplog):
    arrays = read_npz(GOOGLE_A / "linen.npz")
    wrapped = {prefix + key: array for key, array in arrays.items()} | {"step": np.array(7)}
    np.savez(tmp_path / "wrapped.npz", **wrapped)
    model, _ = load_checkpoint(str(tmp_path / "wrapped.npz"))
    assert "left out 1 tensors that are no weights, such as 'step'" in caplog.text
    expected, _ = load_checkpoint(str(GOOGLE_A / "linen.npz"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values()))


@pytest.mark.parametrize("numbers", [("0", "1"), ("7", "10"), ("1", "2")])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_pre_linen_numbers_norms_by_order_and_may_have_singleton_axes(numbers, axis, tmp_path):
    arrays = {}
    for key, array in read_npz(GOOGLE_A / "pre_linen.npz").items():
        for old, new in zip(("0", "1"), numbers):
            if f"LayerNorm_{old}/" in key:
                key = key.replace(f"LayerNorm_{old}/", f"LayerNorm_{new}/")
                break
        if "kernel1" in key or "kernel2" in key:
            array = np.expand_dims(array.squeeze(), axis)
        arrays[key] = array
    np.savez(tmp_path / "old.npz", **arrays)
    model, _ = load_checkpoint(str(tmp_path / "old.npz"))
    pixel_values, expected = io_of(GOOGLE_A)
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=2e-6)


def test_bfloat16_without_a_type(tmp_path):
    arrays = {
        key: torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view("V2")
        for key, array in read_npz(GOOGLE_A / "linen.npz").items()
    }
    np.savez(tmp_path / "bf16.npz", **arrays)
    model, _ = load_checkpoint(str(tmp_path / "bf16.npz"))
    assert model.dtype == torch.bfloat16
    convert_checkpoint(str(tmp_path / "bf16.npz"), str(tmp_path / "ours"))
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "back.npz"), "google")
    assert_same_arrays(read_npz(tmp_path / "back.npz"), arrays)
    assert load_checkpoint(str(tmp_path / "bf16.npz"), dtype=torch.float32)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("source", "back", "layout", "image_size"),
    [
        (GOOGLE_A / "linen.npz", "back.npz", "google", None),
        (GOOGLE_A / "pre_linen.npz", "back.npz", "google", None),
        (GOOGLE_RECTANGLE / "linen.npz", "back.npz", "google", (8, 16)),
        (GOOGLE_NO_HEAD / "linen.npz", "back.npz", "google", None),
        (EDIFICE_DROPOUT / "params.safetensors", "back.safetensors", "edifice", None),
        (EDIFICE_DROPOUT / "params_train_state.safetensors", "back.safetensors", "edifice", None),
        (TIMM, "back", "timm", None),
    ],
)
def test_round_trips_are_bit_exact(source, back, layout, image_size, tmp_path):
    difference = convert_checkpoint(str(source), str(tmp_path / "ours"), image_size=image_size)
    assert difference < 1e-12
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / back), layout)
    if layout == "google":
        assert_same_arrays(read_npz(tmp_path / back), read_npz(source.parent / "linen.npz"))
        return
    file = tmp_path / back / "model.safetensors" if layout == "timm" else tmp_path / back
    original = TIMM / "model.safetensors" if layout == "timm" else EDIFICE_DROPOUT / "params.safetensors"
    tensors, expected = load_file(file), load_file(original)
    assert_same_arrays({k: v.numpy() for k, v in tensors.items()}, {k: v.numpy() for k, v in expected.items()})


def test_exported_timm_folder_loads_again(tmp_path):
    convert_checkpoint(str(TIMM), str(tmp_path / "ours"), labels=list("abcdefg"))
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "theirs"), "timm")
    model, processor = load_checkpoint(str(tmp_path / "theirs"))
    assert list(model.config.id2label.values()) == list("abcdefg")
    assert processor.size["shortest_edge"] == 36
    pixel_values, expected = io_of(TIMM)
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=5e-6)


def test_converted_folder_serves_a_stranger(tmp_path):
    convert_checkpoint(str(GOOGLE_A / "linen.npz"), str(tmp_path / "tiny"), labels=[f"class {i}" for i in range(10)])
    code = f"""
import sys; sys.modules["hf_mixer"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained({str(tmp_path / "tiny")!r}, trust_remote_code=True)
io = load_file({str(GOOGLE_A / "io.safetensors")!r})
print((model(io["input_nchw"]).logits - io["output"]).abs().max().item(), model.config.id2label[3])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    difference, _, label = result.stdout.strip().partition(" ")
    assert float(difference) < 2e-6
    assert label == "class 3"
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "linen.npz" in card


@pytest.mark.parametrize("model_class", [MixerModel, MixerBackbone, MixerForMaskedImageModeling])
def test_every_class_takes_the_weights(model_class):
    model, _ = load_checkpoint(str(TIMM), model_class=model_class)
    assert type(model) is model_class
    tokens = load_file(TIMM / "io.safetensors")["tokens"]
    base = model.base_model(io_of(TIMM)[0])
    actual = (
        base.feature_maps[0].flatten(2).transpose(1, 2) if model_class is MixerBackbone else base.last_hidden_state
    )
    torch.testing.assert_close(actual, tokens, rtol=0, atol=5e-6)


def test_labels_and_overrides():
    model, _ = load_checkpoint(str(TIMM), id2label={0: "cat", 1: "dog"}, drop_path_rate=0.2, dtype=torch.bfloat16)
    assert model.config.num_labels == model.classifier.out_features == 2
    assert model.config.label2id == {"cat": 0, "dog": 1}
    assert model.mixer.layers[-1].drop_path.drop_prob == 0.2
    assert model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="has 7 labels, not 3: pass `ignore_mismatched_sizes=True`"):
        load_checkpoint(str(TIMM), num_labels=3, ignore_mismatched_sizes=False)
    assert load_checkpoint(str(TIMM), num_labels=0)[0](io_of(TIMM)[0]).logits.shape == (3, 24)


def test_another_resolution_in_one_go():
    pixel_values = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    model, processor = load_checkpoint(str(TIMM), image_size=(64, 32))
    small, _ = load_checkpoint(str(TIMM))
    expected = (small(pixel_values[:, :, :32]).logits + small(pixel_values[:, :, 32:]).logits) / 2
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=1e-6)
    assert processor(np.zeros((3, 90, 120), np.uint8), return_tensors="pt").pixel_values.shape == (1, 3, 64, 32)


def test_imagenet_names_for_a_thousand_classes(tmp_path):
    model = MixerForImageClassification(MixerConfig.from_variant("cifar10", num_labels=1000, num_hidden_layers=1))
    model.save_pretrained(tmp_path / "ours")
    from hf_mixer import MixerImageProcessorPil

    MixerImageProcessorPil(size=32).save_pretrained(tmp_path / "ours")
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "google.npz"), "google")
    names = load_checkpoint(str(tmp_path / "google.npz"))[0].config.id2label
    assert (names[0], names[207], names[999]) == (
        "tench, Tinca tinca",
        "golden retriever",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert len(IMAGENET_LABELS.read_text().splitlines()) == 1000


def test_timm_preprocessing_is_followed(tmp_path):
    settings = json.loads((TIMM / "config.json").read_text())
    settings["pretrained_cfg"] |= {"interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "crop_pct": 0.8}
    settings["label_names"] = list("abcdefg")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes((TIMM / "model.safetensors").read_bytes())
    model, processor = load_checkpoint(str(tmp_path))
    assert dict(processor.size) == {"shortest_edge": 40}
    assert dict(processor.crop_size) == {"height": 32, "width": 32}
    assert (processor.resample, list(processor.image_mean), list(processor.image_std)) == (2, [0, 0, 0], [1, 1, 1])
    assert model.config.id2label[6] == "g"


def test_from_pretrained_of_a_timm_folder_names_the_loader():
    with pytest.raises(ValueError, match=r"timm \(mixer_b16_224\).*hf_mixer\.load_checkpoint"):
        MixerForImageClassification.from_pretrained(TIMM)


def test_our_own_folder_keeps_its_layout(tmp_path):
    model, processor = load_checkpoint(str(TIMM))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert "mixer.layers.0.token_mixing.fc1.weight" in load_file(tmp_path / "model.safetensors")
    again, _ = load_checkpoint(str(tmp_path))
    again.save_pretrained(tmp_path / "again")
    assert (
        load_file(tmp_path / "again" / "model.safetensors").keys() == load_file(tmp_path / "model.safetensors").keys()
    )


def broken_npz(change):
    """A function that writes a changed copy of a Google file."""

    def write(path):
        arrays = read_npz(GOOGLE_A / "linen.npz")
        change(arrays)
        np.savez(path, **arrays)

    return write


def truncated(path):
    path.write_bytes((GOOGLE_A / "linen.npz").read_bytes()[:20000])


def pickled(path):
    arrays = read_npz(GOOGLE_A / "linen.npz")
    arrays["head/bias"] = np.array([{"code": "runs"}] * 10, dtype=object)
    np.savez(path, **arrays)


def zip_bomb(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (24, 10**7)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in read_npz(GOOGLE_A / "linen.npz").items():
            if key != "head/kernel":
                with archive.open(f"{key}.npy", "w") as file:
                    np.save(file, array)
        with archive.open("head/kernel.npy", "w") as file:
            file.write(header.getvalue())
            for _ in range(960):
                file.write(bytes(10**6))


def lying_header(path):
    zip_header = io.BytesIO()
    np.lib.format.write_array_header_1_0(zip_header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stem/kernel.npy", zip_header.getvalue())


def vit(path):
    save_file({"cls_token": torch.zeros(1, 1, 8), "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.npz", truncated, "not a complete .npz file"),
        ("x.npz", pickled, "'head/bias' holds pickled objects"),
        ("x.npz", zip_bomb, "'head/kernel' should hold 960000000 bytes"),
        ("x.npz", lying_header, "'stem/kernel' should hold 4000000000000 bytes"),
        (
            "x.npz",
            broken_npz(lambda a: a.pop("MixerBlock_1/LayerNorm_0/bias")),
            "misses tensor 'MixerBlock_1/LayerNorm_0/bias'",
        ),
        ("x.npz", broken_npz(lambda a: a.update(extra=np.zeros(3))), "has an unknown tensor 'extra'"),
        (
            "x.npz",
            broken_npz(lambda a: a.update({"head/bias": np.zeros(11, "f4")})),
            r"'head/bias' has the shape \(11,\), expected \(10,\)",
        ),
        (
            "x.npz",
            broken_npz(lambda a: a["stem/kernel"].__setitem__((0, 0, 0, 0), np.nan)),
            "'stem/kernel' holds values that are not finite",
        ),
        ("x.npz", broken_npz(lambda a: a.pop("stem/kernel")), "not an MLP-Mixer of Google"),
        (
            "x.safetensors",
            lambda p: p.write_bytes((TIMM / "model.safetensors").read_bytes()[:5000]),
            "not a complete safetensors file",
        ),
        ("x.safetensors", vit, "not an MLP-Mixer of timm or Edifice"),
        ("x.bin", lambda p: p.write_bytes(b"pickle"), "expected a .npz or .safetensors file"),
    ],
)
def test_malformed_sources_are_refused_and_nothing_is_written(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(str(tmp_path / name), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_architectures_are_refused_by_name(tmp_path):
    settings = {"architecture": "resmlp_12_224", "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    save_file({"stem.proj.weight": torch.zeros(8, 3, 4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'resmlp_12_224', which is another network"):
        load_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="model of type 'vit', not an MLP-Mixer"):
        load_checkpoint(str(tmp_path))


def test_what_tensors_do_not_tell_is_asked_for():
    with pytest.raises(ValueError, match="8 patches of 4x4 pixels are no square image.*--image-size"):
        load_checkpoint(str(GOOGLE_RECTANGLE / "linen.npz"))
    with pytest.raises(ValueError, match=r"an image of \(8, 8\) has another number"):
        load_checkpoint(str(GOOGLE_RECTANGLE / "linen.npz"), source_image_size=(8, 8))


def test_not_a_number_is_accepted_only_on_request(tmp_path):
    broken_npz(lambda arrays: arrays["head/bias"].__setitem__(0, np.nan))(tmp_path / "nan.npz")
    model, _ = load_checkpoint(str(tmp_path / "nan.npz"), allow_nan=True)
    assert model.classifier.bias.isnan().sum() == 1


def test_a_wrong_conversion_stops_before_saving(tmp_path, monkeypatch):
    def swap_the_mlps(*args, **kwargs):
        model = build_model(*args, **kwargs)
        layers = model.mixer.layers
        layers[0], layers[1] = layers[1], layers[0]
        return model

    build_model = conversion_module.build_model
    monkeypatch.setattr(conversion_module, "build_model", swap_the_mlps)
    with pytest.raises(ValueError, match="differs from .* by .*, more than 1e-05"):
        convert_checkpoint(str(GOOGLE_A / "linen.npz"), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_damaged_folders_of_ours_are_refused(tmp_path):
    convert_checkpoint(str(TIMM), str(tmp_path / "ours"))
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


def test_a_folder_without_classifier_needs_a_word(tmp_path):
    model, processor = load_checkpoint(str(TIMM), model_class=MixerModel)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no classifier: pass `num_labels`"):
        load_checkpoint(str(tmp_path))
    assert load_checkpoint(str(tmp_path), num_labels=3)[0].classifier.out_features == 3
    assert load_checkpoint(str(tmp_path), num_labels=0)[0](io_of(TIMM)[0]).logits.shape == (3, 24)


def test_mixed_types_keep_their_precision(tmp_path):
    tensors = load_file(TIMM / "model.safetensors")
    mixed = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in tensors.items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    model, _ = load_checkpoint(str(tmp_path / "mixed.safetensors"))
    assert model.dtype == torch.float32
    assert torch.equal(model.mixer.norm.bias, tensors["norm.bias"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_hidden_layers": 5}, "`num_hidden_layers` cannot be set"),
        ({"drop_pathrate": 0.1}, "`drop_pathrate` cannot be set"),
        ({"id2label": {1: "a", 5: "b"}}, "from 0 to 1"),
        ({"id2label": {0: "a"}, "num_labels": 9}, "all `num_labels` of them"),
    ],
)
def test_overrides_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(str(TIMM), **overrides)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([1], "holds no settings, but list"),
        ({"architecture": "mixer_b16_224", "pretrained_cfg": {"crop_pct": 20}}, "crop_pct is 20"),
        (
            {"architecture": "mixer_b16_224", "pretrained_cfg": {"interpolation": "random"}},
            "interpolation is 'random'",
        ),
    ],
)
def test_odd_settings_are_refused(settings, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes((TIMM / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=message):
        load_checkpoint(str(tmp_path))


def test_straight_resizes_survive_the_way_through_timm(tmp_path):
    convert_checkpoint(str(GOOGLE_A / "linen.npz"), str(tmp_path / "ours"))
    export_checkpoint(str(tmp_path / "ours"), str(tmp_path / "theirs"), "timm")
    processor = load_checkpoint(str(tmp_path / "theirs"))[1]
    original = load_checkpoint(str(tmp_path / "ours"))[1]
    image = np.random.default_rng(0).integers(0, 255, (3, 40, 90), dtype=np.uint8)
    expected = original(image, return_tensors="pt").pixel_values
    torch.testing.assert_close(processor(image, return_tensors="pt").pixel_values, expected)


def test_destinations_are_not_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        convert_checkpoint(str(TIMM), str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"google is a \.npz file"):
        export_checkpoint(str(TIMM), str(tmp_path / "x.safetensors"), "google")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_script_prints_the_difference_and_fails_in_one_line(tmp_path, error_of):
    command = [sys.executable, ROOT / "scripts/convert.py", GOOGLE_RECTANGLE / "linen.npz", tmp_path / "out"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [*map(str, command), "--image-size", "8", "16"], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "largest difference to the source's own forward pass: " in result.stdout
    assert "--image-size HEIGHT WIDTH" in error_of("convert.py", GOOGLE_RECTANGLE / "linen.npz", tmp_path / "other")
    assert not (tmp_path / "other").exists()
