"""Files of other implementations are read, whatever their age and type, or refused by name."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_mixer import load_checkpoint
from hf_mixer.checkpoints import convert_checkpoint
from hf_mixer.checkpoints.sources import find_checkpoint, from_pre_linen
from tests.helpers import GOOGLE_RECTANGLE, GOOGLE_SQUARE, TIMM_TINY, read_io, read_npz
from tests.hub_server import NULL_COMMIT, File, HubError, LoopbackHub, Repo


@pytest.mark.parametrize("prefix", ["params/", "opt/target/"])
def test_wrapped_google_files_load_and_leave_the_rest_out(prefix, tmp_path, caplog):
    arrays = {prefix + key: array for key, array in read_npz(GOOGLE_SQUARE / "linen.npz").items()}
    np.savez(tmp_path / "wrapped.npz", step=np.array(7), **arrays)
    model, _ = load_checkpoint(str(tmp_path / "wrapped.npz"))
    assert "left out 1 tensors that are no weights, such as 'step'" in caplog.text
    expected, _ = load_checkpoint(str(GOOGLE_SQUARE / "linen.npz"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values()))


@pytest.mark.parametrize("numbers", [("0", "1"), ("7", "10"), ("1", "2")])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_pre_linen_numbers_norms_by_order_and_may_have_singleton_axes(numbers, axis, tmp_path):
    arrays = {}
    for key, array in read_npz(GOOGLE_SQUARE / "pre_linen.npz").items():
        module, _, name = key.rpartition("/")
        if "LayerNorm_" in module:
            module, _, number = module.rpartition("_")
            module = f"{module}_{numbers[int(number)]}"
        if name in ("kernel1", "kernel2"):
            array = np.expand_dims(array.squeeze(), axis)
        arrays[f"{module}/{name}"] = array
    np.savez(tmp_path / "old.npz", **arrays)
    model, _ = load_checkpoint(str(tmp_path / "old.npz"))
    pixel_values, expected = read_io(GOOGLE_SQUARE)
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=2e-6)


def test_pre_linen_sizes_of_one_are_no_axes_to_drop():
    shapes = {"kernel1": (1, 4, 1), "bias1": (4,), "kernel2": (1, 4, 1), "bias2": (1, 1)}
    module = "Mixer/encoderblock_0/token_mixing_phase_0"
    renamed = from_pre_linen({f"{module}/{name}": np.zeros(shape) for name, shape in shapes.items()})
    assert {key.split("token_mixing/")[1]: array.shape for key, array in renamed.items()} == {
        "Dense_0/kernel": (1, 4),
        "Dense_0/bias": (4,),
        "Dense_1/kernel": (4, 1),
        "Dense_1/bias": (1,),
    }


def test_two_numbers_of_patches_are_named(tmp_path):
    tensors = load_file(TIMM_TINY / "model.safetensors")
    key = "blocks.0.mlp_tokens.fc1.weight"
    save_file({**tensors, key: tensors[key][:, 1:].contiguous()}, tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match=f"'{key}' is for [0-9]+ patches, .*fc2.weight' for"):
        load_checkpoint(str(tmp_path / "damaged.safetensors"))


def test_mixed_types_keep_their_precision(tmp_path):
    tensors = load_file(TIMM_TINY / "model.safetensors")
    mixed = {key: tensor.half() if tensor.ndim > 1 else tensor for key, tensor in tensors.items()}
    save_file(mixed, tmp_path / "mixed.safetensors")
    model, _ = load_checkpoint(str(tmp_path / "mixed.safetensors"))
    assert model.dtype == torch.float32
    assert torch.equal(model.mixer.norm.bias, tensors["norm.bias"])


def changed_google(change):
    """A function that writes a changed copy of a Google file."""

    def write(path):
        arrays = read_npz(GOOGLE_SQUARE / "linen.npz")
        change(arrays)
        np.savez(path, **arrays)

    return write


def pickle_objects(arrays):
    arrays["head/bias"] = np.array([{"code": "runs"}] * 10, dtype=object)


def make_infinite(arrays):
    arrays["stem/kernel"][0, 0, 0, 0] = np.inf


def header(shape) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("stem/kernel.npy", header((24, 10**6)) + bytes(96 * 10**6))


def lying_header(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stem/kernel.npy", header((10**12,)))


def vit(path):
    save_file({"cls_token": torch.zeros(1, 1, 8), "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}, path)


def truncated(original, length):
    return lambda path: path.write_bytes(original.read_bytes()[:length])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.npz", truncated(GOOGLE_SQUARE / "linen.npz", 20000), "not a complete .npz file"),
        ("x.npz", changed_google(pickle_objects), "'head/bias' holds pickled objects"),
        ("x.npz", zip_bomb, "'stem/kernel' should hold 96000000 bytes"),
        ("x.npz", lying_header, "'stem/kernel' should hold 4000000000000 bytes"),
        (
            "x.npz",
            changed_google(lambda arrays: arrays.pop("MixerBlock_1/LayerNorm_0/bias")),
            "misses tensor 'MixerBlock_1/LayerNorm_0/bias'",
        ),
        ("x.npz", changed_google(lambda arrays: arrays.update(extra=np.zeros(3))), "has an unknown tensor 'extra'"),
        (
            "x.npz",
            changed_google(lambda arrays: arrays.update({"head/bias": np.zeros(11, "f4")})),
            r"'head/bias' has the shape \(11,\), expected \(10,\)",
        ),
        ("x.npz", changed_google(make_infinite), "'stem/kernel' holds values that are not finite"),
        ("x.npz", changed_google(lambda arrays: arrays.pop("stem/kernel")), "not an MLP-Mixer of Google"),
        ("x.safetensors", truncated(TIMM_TINY / "model.safetensors", 5000), "not a complete safetensors file"),
        ("x.safetensors", vit, "not an MLP-Mixer of timm or Edifice"),
        (
            "x.h5",
            lambda path: path.write_bytes(b"HDF"),
            r"expected a file that ends in .safetensors, .npz, .bin, .pth",
        ),
    ],
)
def test_malformed_sources_are_refused_and_nothing_is_written(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(str(tmp_path / name), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_values_that_are_not_finite_are_accepted_on_request(tmp_path):
    changed_google(make_infinite)(tmp_path / "infinite.npz")
    model, _ = load_checkpoint(str(tmp_path / "infinite.npz"), allow_nan=True)
    assert model.mixer.embeddings.patch_embeddings.projection.weight.isinf().sum() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([1], "has to hold a JSON object, got list"),
        ({"architecture": "resmlp_12_224"}, "'resmlp_12_224', which is another network"),
        ({"model_type": "vit"}, "model of type 'vit', not an MLP-Mixer"),
        ({"architecture": "mixer_b16_224", "pretrained_cfg": {"crop_pct": 20}}, "crop_pct is 20"),
        (
            {"architecture": "mixer_b16_224", "pretrained_cfg": {"interpolation": "random"}},
            "interpolation is 'random'",
        ),
    ],
)
def test_settings_of_other_networks_and_odd_ones_are_refused(settings, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    shutil.copy(TIMM_TINY / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(str(tmp_path))


def test_what_tensors_do_not_tell_is_asked_for():
    with pytest.raises(ValueError, match="8 patches of 4x4 pixels are no square image.*--image_size"):
        load_checkpoint(str(GOOGLE_RECTANGLE / "linen.npz"))
    with pytest.raises(ValueError, match=r"an image of \(8, 8\) has another number"):
        load_checkpoint(str(GOOGLE_RECTANGLE / "linen.npz"), source_image_size=(8, 8))


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


def add_repo(hub, repo_id, *names):
    files = {"model.safetensors": TIMM_TINY / "model.safetensors", "config.json": TIMM_TINY / "config.json"}
    contents = {name: files[name].read_bytes() if name in files else b"" for name in names}
    repo = hub.repos[repo_id] = Repo(private=False)
    repo.commit("refs/heads/main", NULL_COMMIT, {name: File(data, False) for name, data in contents.items()}, "first")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], {"config.json", "model.safetensors"}),
        (["config.json", "pytorch_model.bin", "README.md"], {"config.json", "pytorch_model.bin"}),
    ],
)
def test_files_of_torch_are_fetched_where_there_are_no_others(names, expected, hub, tmp_path):
    add_repo(hub, "alice/mixer", *names)
    folder = find_checkpoint("alice/mixer", endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
    assert {path.name for path in folder.iterdir()} == expected


def test_what_the_hub_refuses_is_named_with_the_way_out(hub, tmp_path, monkeypatch):
    add_repo(hub, "alice/mixer", "config.json")

    def refuse(message, source, revision=None):
        with pytest.raises(ValueError, match=message):
            find_checkpoint(source, revision, endpoint=hub.endpoint, cache_dir=tmp_path, token="hf_alice_read")

    refuse(
        "^alice/photos is no path here, .*: alice/photos is no repository on the Hub that you may read: .*hf auth login",
        "alice/photos",
    )
    refuse("alice/mixer has no such branch, tag or commit on the Hub .*: v2.$", "alice/mixer", "v2")
    hub.fail("/api/models/alice/mixer", 503, times=100)
    refuse("^alice/mixer is no path here, and cannot be fetched from the Hub: the Hub answered 503", "alice/mixer")

    def ask(*arguments, **options):
        raise HubError(403, "Access to model alice/mixer is restricted", "GatedRepo")

    monkeypatch.setattr(hub, "find", ask)
    hub.failures.clear()
    refuse(
        "alice/mixer is gated on the Hub: ask for access on its page, and log in with `hf auth login`$", "alice/mixer"
    )
