import pytest

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.training import parameter_groups


def test_parameter_groups_shrink_the_learning_rate_and_spare_norms_and_biases():
    model = MixerForImageClassification(
        MixerConfig(image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=3, num_labels=3)
    )
    groups = parameter_groups(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        if "embeddings" in name:
            learning_rate = 0.5**4
        elif "layers" in name:
            learning_rate = 0.5 ** (3 - int(name.split(".")[2]))
        else:
            learning_rate = 1.0
        group = found[id(parameter)]
        assert group["lr"] == learning_rate, name
        assert group["weight_decay"] == (0.0 if name.endswith("bias") or "norm" in name else 0.1), name

    assert groups[0]["lr"] == 1.0

    model.mixer.requires_grad_(False)
    groups = parameter_groups(model, learning_rate=1.0)
    assert sum(len(group["params"]) for group in groups) == 2
    with pytest.raises(ValueError, match=r"layer_decay has to be in \(0, 1\], got 1.5"):
        parameter_groups(model, 1.0, layer_decay=1.5)
