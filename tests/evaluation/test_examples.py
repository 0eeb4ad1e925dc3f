import numpy as np
import pytest
from datasets import Dataset
from PIL import ExifTags, Image

from hf_mixer.data.images import ImageConversion
from hf_mixer.data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from hf_mixer.evaluation.examples import rank_images, save_example
from hf_mixer.evaluation.prediction import Prediction


LABELS = ["cat", "dog"]
SINGLE = {"problem_type": SINGLE_LABEL, "per_class": [{"label": name} for name in LABELS]}


def rank(results, **scores):
    scores = {name: np.array(values, dtype=np.float32) for name, values in scores.items()}
    return {kind: images.tolist() for kind, images in rank_images(results, scores).items()}


def test_images_are_ranked_by_the_confidence_of_the_answer():
    scores = {"labels": [0, 1, 1, 0, 1], "predictions": [0, 1, 0, 1, 1], "confidences": [0.6, 0.9, 0.7, 0.8, 0.6]}
    assert rank(SINGLE, **scores) == {"right": [1, 0, 4], "wrong": [3, 2]}


def test_an_answer_of_several_labels_is_right_if_all_are():
    results = {"problem_type": MULTI_LABEL, "per_class": [{"threshold": 0.5}, {"threshold": 0.9}]}
    # 88 % is not enough for the second label, and only just
    logits = [[3, -3], [3, 2], [3, 4], [1, -3]]
    labels = [[1, 0], [1, 0], [1, 0], [1, 0]]
    assert rank(results, logits=logits, labels=labels) == {"right": [0, 3, 1], "wrong": [2]}


def test_estimates_are_ranked_by_their_errors():
    results = {"problem_type": REGRESSION, "per_class": [{"label": "price"}]}
    assert rank(results, logits=[[1], [2], [3]], labels=[[1.5], [2], [4]]) == {"estimates": [1, 0, 2]}


@pytest.fixture
def photos(tmp_path):
    """Five photographs with metadata, which lie on their side, the upper half red."""
    sources = []
    for index in range(5):
        pixels = np.zeros((600, 300, 3), np.uint8)
        pixels[:300, :, 0] = 200
        exif = Image.Exif()
        exif[ExifTags.Base.Artist] = "somebody"
        exif[ExifTags.Base.Orientation] = 6  # to be turned to the right
        exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
        image = Image.fromarray(np.rot90(pixels))
        image.save(tmp_path / f"{index}.jpg", exif=exif, comment=b"secret", icc_profile=b"profile")
        sources.append({"bytes": None, "path": str(tmp_path / f"{index}.jpg")})
    return Dataset.from_list([{"image": source} for source in sources])


SCORES = {
    "labels": np.array([1, 1, 1, 1, 0]),
    "predictions": np.array([1, 1, 1, 1, 1]),
    "confidences": np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
}


def test_an_example_is_a_right_image_of_median_confidence_without_metadata(photos, tmp_path):
    (tmp_path / "results").mkdir()
    answers = iter(["cat", "dog"])  # the first one that is tried is not right any more as a file

    def predict(sources):
        (source,) = sources
        tried.append(source["path"])
        return [Prediction([{"label": next(answers), "score": 0.6}])]

    tried = []
    example = save_example(tmp_path / "results", SINGLE, SCORES, photos, predict, ImageConversion())
    assert example == {"file": "example.jpg", "label": "dog"}
    assert tried == [str(tmp_path / "results" / "example.jpg")] * 2
    with Image.open(tried[0]) as image:
        assert (image.format, image.size) == ("JPEG", (256, 512))
        assert image.getpixel((128, 100))[0] > 150 > 50 > image.getpixel((128, 400))[0]
        assert not image.getexif()
        assert {"comment", "icc_profile", "exif"}.isdisjoint(image.info)
    contents = (tmp_path / "results" / "example.jpg").read_bytes()
    assert not any(word in contents for word in (b"somebody", b"secret", b"profile"))


def test_without_a_right_image_there_is_no_example(photos, tmp_path):
    (tmp_path / "results").mkdir()

    def predict(sources):
        return [Prediction([{"label": "cat", "score": 0.6}])]

    assert save_example(tmp_path / "results", SINGLE, SCORES, photos, predict, ImageConversion()) is None
    assert not any((tmp_path / "results").iterdir())
