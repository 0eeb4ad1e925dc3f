"""Files of `torch.save` are read as timm reads them, and never run code."""

import argparse
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_mixer import load_checkpoint
from hf_mixer.checkpoints import convert_checkpoint
from tests.helpers import GOOGLE_SQUARE, TIMM_TINY, read_io


TENSORS = load_file(TIMM_TINY / "model.safetensors")
ZEROS = {key: torch.zeros_like(tensor) for key, tensor in TENSORS.items()}
# What timm's `CheckpointSaver` writes
TRAINING = {
    "epoch": 7,
    "arch": "mixer_b16_224",
    "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    "version": 2,
    "args": argparse.Namespace(model="mixer_b16_224", lr=0.1, crop_pct=None),
    "metric": 76.4,
}


def prefixed(prefix):
    return {f"{prefix}{key}": tensor for key, tensor in TENSORS.items()}


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("code_ran",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin", TENSORS),
        ("model_best.pth.tar", {**TRAINING, "state_dict": TENSORS}),
        ("last.pth.tar", {**TRAINING, "state_dict": ZEROS, "state_dict_ema": TENSORS}),
        ("miil.pth", {"model": prefixed("module."), "model_ema": None}),
        ("compiled.pt", {"state_dict": prefixed("_orig_mod.module.")}),
    ],
)
@torch.no_grad()
def test_checkpoints_of_timm_load_wherever_the_weights_lie(name, content, tmp_path):
    torch.save(content, tmp_path / name)
    model, _ = load_checkpoint(str(tmp_path / name))
    pixel_values, expected = read_io(TIMM_TINY)
    torch.testing.assert_close(model(pixel_values).logits, expected, rtol=0, atol=5e-6)


def test_a_folder_with_the_old_file_of_timm_converts_with_its_settings(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    settings = json.loads((TIMM_TINY / "config.json").read_text()) | {"label_names": list("abcdefg")}
    (theirs / "config.json").write_text(json.dumps(settings))
    torch.save(TENSORS, theirs / "pytorch_model.bin")
    convert_checkpoint(str(theirs), str(tmp_path / "ours"))
    assert load_checkpoint(str(tmp_path / "ours"))[0].config.id2label[6] == "g"
    assert load_checkpoint(str(theirs / "pytorch_model.bin"))[0].config.id2label[6] == "g"


def test_safetensors_come_first(tmp_path):
    torch.save(ZEROS, tmp_path / "pytorch_model.bin")
    save_file(TENSORS, tmp_path / "weights.safetensors")
    model, _ = load_checkpoint(str(tmp_path))
    assert torch.equal(model.classifier.weight, TENSORS["head.weight"])


def write_damaged(path):
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: torch.save({"state_dict": TENSORS, "hook": RunsCode()}, path),
            r"mkdir, and reading .* any code",
        ),
        (
            lambda path: torch.save(torch.nn.Linear(2, 2), path),
            "holds torch.nn.modules.linear.Linear, .* weights_only=False",
        ),
        (write_damaged, "not a complete file of torch.save: copy or download it again"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "not a complete file of torch.save"),
        (lambda path: path.write_bytes(b""), "not a complete file of torch.save"),
        (lambda path: torch.save([TENSORS], path), "holds no state dict: expected tensors by their names"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no state dict"),
        (lambda path: torch.save({**TENSORS, "norm.weight": TENSORS["norm.weight"].to_sparse()}, path), "is sparse"),
        (lambda path: torch.save({"fc.weight": torch.zeros(2)}, path), "not an MLP-Mixer of timm or Edifice"),
    ],
)
def test_other_files_are_refused_and_no_code_runs(write, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth.*{message}"):
        load_checkpoint("x.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_several_files_are_named(tmp_path):
    for name in ("last.pth.tar", "model_best.pth.tar"):
        torch.save(TENSORS, tmp_path / name)
    with pytest.raises(ValueError, match=r"found last.pth.tar, model_best.pth.tar: name one of them"):
        load_checkpoint(str(tmp_path))
    shutil.copy(GOOGLE_SQUARE / "linen.npz", tmp_path)
    assert load_checkpoint(str(tmp_path))[0].config.num_labels == 10
