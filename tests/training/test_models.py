"""The models that a run starts from."""

import torch

from hf_mixer import load_checkpoint
from hf_mixer.training.command_line import ModelArguments
from hf_mixer.training.models import build_model
from tests.helpers import save_classifier


def test_narrow_weights_are_trained_in_float32(tmp_path):
    folder = save_classifier(tmp_path / "narrow", ["cat", "dog"])
    load_checkpoint(folder, dtype="bfloat16")[0].save_pretrained(folder)
    model, _ = build_model(ModelArguments(model_name_or_path=str(folder)), ["cat", "dog"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
