import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mixer import MixerConfig, MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.commands.predict import main
from tests.helpers import make_folder, save_classifier


LABELS = ["ant", "bee", "cat", "dog"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"), LABELS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"))


def predict(*arguments) -> int | str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_json_holds_the_scores_of_the_best_labels(problem_type, model_folder, photos, tmp_path, capsys):
    model = MixerForImageClassification.from_pretrained(model_folder, problem_type=problem_type)
    model.save_pretrained(tmp_path)
    processor = MixerImageProcessorPil.from_pretrained(model_folder)
    processor.save_pretrained(tmp_path)
    assert predict(tmp_path, photos, "--json", "--top_k", 2, "--batch_size", 5) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == sorted(str(path) for path in photos.rglob("*.*"))
    for line in lines:
        with torch.no_grad():
            logits = model(**processor(Image.open(line["image"]), return_tensors="pt")).logits[0]
        scores = logits.softmax(dim=0) if problem_type is None else logits.sigmoid()
        best = logits.argsort(descending=True)[:2]
        assert [entry["label"] for entry in line["predictions"]] == [LABELS[index] for index in best]
        found = [entry["score"] for entry in line["predictions"]]
        assert found == pytest.approx(scores[best].tolist(), abs=1e-5)


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_classified(model_folder, photos, tmp_path, capsys):
    broken, odd = tmp_path / "broken.png", tmp_path / "odd.tiff"
    broken.write_bytes(b"not an image")
    Image.fromarray(np.full((4, 4), -5, np.float32)).save(odd)
    good = photos / "cat" / "0.jpg"
    assert predict(model_folder, broken, good, odd) == 1
    output, errors = capsys.readouterr()
    assert f"cannot read the image {broken}" in errors
    assert f"error: {odd}: Expected a floating-point image" in errors
    assert output.startswith(str(good))
    assert output.count("%") == 3
    assert output.count("\n") == 1


def test_what_cannot_be_used_ends_in_one_line(model_folder, photos, tmp_path):
    assert predict(model_folder, tmp_path) == f"error: the folder {tmp_path} holds no images"
    assert "at least 1" in predict(model_folder, photos, "--top_k", 0)
    config = MixerConfig(image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_labels=0)
    MixerForImageClassification(config).save_pretrained(tmp_path / "headless")
    MixerImageProcessorPil(size=16).save_pretrained(tmp_path / "headless")
    assert predict(tmp_path / "headless", photos) == f"error: {tmp_path / 'headless'} has no classifier"
