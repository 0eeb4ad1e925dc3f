import copy
import io
import logging
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mixer import MixerForImageClassification, MixerImageProcessorPil
from hf_mixer.data.images import ImageConversion
from hf_mixer.evaluation.prediction import PixelReader, Predictor, map_ahead, share_threads
from tests.helpers import needs_compiler, save_classifier


LABELS = ["ant", "bee", "cat", "dog"]


def encode(image: Image.Image, format="PNG", **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def noise(*shape) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def load(folder, **overrides):
    model = MixerForImageClassification.from_pretrained(save_classifier(folder, LABELS, **overrides))
    return model, MixerImageProcessorPil.from_pretrained(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return load(tmp_path_factory.mktemp("model"))


TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    "source",
    [
        encode(noise(16, 16, 3)),
        encode(noise(16, 16, 3), "JPEG"),
        encode(noise(16, 16, 3), "JPEG", exif=TURNED),
        encode(noise(16, 16), "JPEG"),
        encode(noise(16, 16, 4)),
        encode(noise(20, 16, 3)),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"image_mean": [0.1, 0.5, 0.7], "image_std": [0.2, 0.3, 0.9]}, {"do_normalize": False}, {"num_channels": 1}],
)
def test_pixels_are_those_of_the_image_processor_to_the_last_bit(source, settings):
    processor = MixerImageProcessorPil(size=16, **settings)
    pixel_values, errors = PixelReader(processor)([source, source])
    expected = processor(Image.open(io.BytesIO(source["bytes"])), return_tensors="pt")["pixel_values"]
    assert errors == [None, None]
    assert torch.equal(pixel_values, torch.cat([expected, expected]))


def test_a_center_crop_is_not_left_out():
    processor = MixerImageProcessorPil(size=16, do_center_crop=True, crop_size=8)
    pixel_values, _ = PixelReader(processor)([encode(noise(16, 16, 3))])
    assert pixel_values.shape == (1, 3, 8, 8)


def test_an_image_that_cannot_be_read_takes_no_other_with_it(classifier):
    good = encode(noise(30, 20, 3))
    odd = encode(Image.fromarray(np.full((4, 4), -5, np.float32)), "TIFF")
    broken = {"bytes": b"no image", "path": "broken.png"}
    missing = {"bytes": None, "path": "memory://there/is/none.png"}
    predictor = Predictor(*classifier, conversion=ImageConversion(scale_16_bit=True))
    results = predictor([good, broken, odd, missing, good])
    for result in (results[0], results[4]):
        (alone,) = predictor([good])
        assert [entry["label"] for entry in result.scores] == [entry["label"] for entry in alone.scores]
        assert result.scores[0]["score"] == pytest.approx(alone.scores[0]["score"], abs=1e-5)
    assert "cannot read the image broken.png" in results[1].error
    assert "-5" in results[2].error
    assert "memory://there/is/none.png" in results[3].error
    assert [result.scores for result in results[1:4]] == [[], [], []]


def test_labels_are_present_from_their_threshold_on(classifier):
    model, processor = classifier
    pixel_values, _ = PixelReader(processor)([encode(noise(16, 16, 3))])
    with torch.no_grad():
        scores = model(pixel_values).logits[0].sigmoid().tolist()
    model.config.problem_type = "multi_label_classification"
    middle = sorted(scores)[2]
    try:
        prediction = Predictor(model, processor, label_threshold=middle)([encode(noise(16, 16, 3))])[0]
        assert prediction.labels == [label for label, score in zip(LABELS, scores) if score >= middle]
        assert len(prediction.labels) == 2

        model.config.label_thresholds = [0.999, 0.999, 0.001, 0.999]
        assert Predictor(model, processor, top_k=1)([encode(noise(16, 16, 3))])[0].labels == ["cat"]
    finally:
        model.config.problem_type = model.config.label_thresholds = None


def test_output_that_is_not_finite_is_refused(tmp_path):
    model, processor = load(tmp_path)
    predictor = Predictor(model, processor)
    sources = [{**encode(noise(16, 16, 3)), "path": f"{index}.png"} for index in range(3)]
    sources[0]["bytes"] = b"broken"

    def spoil(module, inputs, output):
        output.logits[1] = float("nan")

    model.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=r"for the image 2.png is not finite"):
        predictor(sources)


def test_one_warning_tells_of_a_conversion_that_only_the_training_had(caplog):
    trained_with = ImageConversion(flatten_transparency="white", scale_16_bit=True)
    processor = MixerImageProcessorPil(size=16)
    sources = [encode(noise(16, 16, 3)), encode(noise(16, 16, 4)), encode(noise(16, 16, 4))]
    with caplog.at_level(logging.WARNING):
        PixelReader(processor, trained_with, trained_with)(sources)
        assert not caplog.messages
        PixelReader(processor, trained_with=trained_with)(sources)
    assert len(caplog.messages) == 1
    assert "--flatten_transparency white" in caplog.messages[0]
    assert "--scale_16_bit" not in caplog.messages[0]


def test_batches_come_in_order_and_torch_keeps_its_threads(classifier):
    threads = torch.get_num_threads()
    predictor = Predictor(*classifier)
    sources = [encode(noise(16 + index, 16, 3)) for index in range(9)]
    batches = [sources[start : start + 2] for start in range(0, 9, 2)]
    results = list(predictor.predict_batches(batches, lambda batch: batch))
    assert [batch for batch, _ in results] == batches
    for batch, predictions in results:
        best = [prediction.scores[0]["score"] for prediction in predictor(batch)]
        assert [prediction.scores[0]["score"] for prediction in predictions] == pytest.approx(best, abs=1e-5)
    assert torch.get_num_threads() == threads


@needs_compiler
def test_a_compiled_model_predicts_the_same(classifier):
    model, image_processor = classifier
    sources = [encode(noise(16 + index, 16, 3)) for index in range(3)]
    batches = [sources[:2], sources[2:]]
    expected = [Predictor(model, image_processor)(batch) for batch in batches]
    compiled = Predictor(copy.deepcopy(model), image_processor, compile_batch_size=2)
    for predictions, (_, actual) in zip(expected, compiled.predict_batches(batches, lambda batch: batch)):
        for wanted, prediction in zip(predictions, actual):
            scores = [entry["score"] for entry in prediction.scores]
            assert scores == pytest.approx([entry["score"] for entry in wanted.scores], abs=1e-5)
    with pytest.raises(ValueError, match="compiled for inference"):
        compiled.model(torch.zeros(1, 3, 16, 16), labels=torch.tensor([0]))


@pytest.mark.parametrize(
    ("cores", "num_batches", "shares"),
    [
        (1, 8, (1, 1)),
        (2, 8, (2, 1)),
        (2, 1, (1, 2)),
        (4, 8, (4, 1)),
        (8, 3, (2, 3)),
        (12, 8, (6, 2)),
        (64, 8, (8, 8)),
        (64, 1, (1, 64)),
    ],
)
def test_batches_share_the_cores_and_leave_few_idle(cores, num_batches, shares):
    assert share_threads(cores, num_batches) == shares


def test_predictions_take_no_more_threads_than_torch_has(classifier, monkeypatch):
    predictor = Predictor(*classifier)
    computing, num_threads, lock = set(), [], threading.Lock()
    forward = predictor.model.forward

    def watch(*args, **kwargs):
        with lock:
            computing.add(threading.get_ident())
            num_threads.append(torch.get_num_threads())
        return forward(*args, **kwargs)

    monkeypatch.setattr(predictor.model, "forward", watch)
    batches = [[encode(noise(16, 16, 3))]] * 6
    list(predictor.predict_batches(batches, lambda batch: batch))
    assert len(computing) * max(num_threads) <= torch.get_num_threads()


def test_few_items_are_read_ahead():
    read = []

    def items():
        for index in range(100):
            read.append(index)
            yield index

    results = map_ahead(lambda item: item * 2, items(), num_threads=2)
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 2), (2, 4)]
    assert len(read) < 10
