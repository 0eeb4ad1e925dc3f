import numpy as np
import pytest
import torch
from datasets import ClassLabel, Value
from PIL import Image

from hf_mixer import MixerImageProcessorPil
from hf_mixer.data.datasets import load_digits_dataset, load_image_dataset, prepare_image_dataset
from hf_mixer.data.images import ImageTransform, collate_images, find_images, open_image
from tests.helpers import make_dataset, make_folder


def test_digits_are_the_ones_of_scikit_learn():
    dataset = load_digits_dataset()
    assert (len(dataset["train"]), len(dataset["test"])) == (1617, 180)
    assert dataset["train"].features["label"].names == [str(digit) for digit in range(10)]
    image = dataset["train"][0]["image"]
    assert (image.size, image.mode) == ((8, 8), "L")
    assert np.asarray(image).max() > 200
    train = {image.tobytes() for image in dataset["train"]["image"]}
    assert sum(image.tobytes() in train for image in dataset["test"]["image"]) < 5


@pytest.mark.parametrize("layout", ["train_dir", "dataset_name", "splits"])
def test_class_folders_of_mixed_images(layout, tmp_path):
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "val", images_per_class=2)
    arguments = {
        "train_dir": {"train_dir": str(tmp_path / "train"), "validation_dir": str(tmp_path / "val")},
        "dataset_name": {"dataset_name": str(tmp_path / "train")},
        "splits": {"dataset_name": str(tmp_path)},
    }[layout]
    dataset, names = prepare_image_dataset(load_image_dataset(**arguments), train_val_split=0.25)
    assert names == ["cat", "dog"]
    expected = (9, 3) if layout == "dataset_name" else (12, 4)
    assert (len(dataset["train"]), len(dataset["validation"])) == expected

    transform = ImageTransform(MixerImageProcessorPil(size=8))
    batch = collate_images(dataset["train"].with_transform(transform).__getitems__([0, 1, 2]))
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert batch["labels"].tolist() == dataset["train"]["label"][:3]


def test_parquet_folders(tmp_path):
    data = make_dataset([0, 1, 0, 1], ClassLabel(names=["cat", "dog"]))["train"]
    for split in ("train", "test"):
        data.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    assert set(load_image_dataset(str(tmp_path))) == {"train", "test"}
    (tmp_path / "only").mkdir()
    data.to_parquet(tmp_path / "only" / "part.parquet")
    assert len(load_image_dataset(train_dir=str(tmp_path / "only"))["train"]) == 4


def test_unreadable_images_are_named(tmp_path):
    folder = make_folder(tmp_path / "data")
    broken = folder / "cat" / "broken.jpg"
    broken.write_bytes((folder / "cat" / "0.jpg").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read the image .*cat/broken\.jpg"):
        load_image_dataset(train_dir=str(folder))


def test_empty_class_folders_are_named(tmp_path):
    folder = make_folder(tmp_path / "data")
    (folder / "mouse").mkdir()
    (folder / "mouse" / "notes.txt").write_text("no images here")
    with pytest.raises(ValueError, match=r"class folder .*mouse holds no images"):
        load_image_dataset(train_dir=str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_dir": "missing"}, "missing does not exist"),
        ({"validation_dir": "missing"}, "validation_dir needs train_dir"),
        ({"dataset_name": "a", "train_dir": "b"}, "either dataset_name or train_dir"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_image_dataset(**arguments)


def test_a_folder_without_class_folders_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="one folder of images per class"):
        load_image_dataset(train_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "feature", "names", "encoded"),
    [
        (["b", "a", "b", "a"], Value("string"), ["a", "b"], [1, 0, 1, 0]),
        ([10, 2, 10, 2], Value("int64"), ["2", "10"], [1, 0, 1, 0]),
        ([1, 0, 1, 0], ClassLabel(names=["x", "y"]), ["x", "y"], [1, 0, 1, 0]),
    ],
)
def test_label_names_come_from_the_data(labels, feature, names, encoded):
    dataset = make_dataset(labels, feature, splits=("train", "validation"), columns=("img", "class"))
    prepared, found = prepare_image_dataset(dataset, label_column_name="class")
    assert found == names
    assert prepared["train"]["label"][:] == encoded


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 0, 0], ClassLabel(names=["x", "y"]), "at least two classes, got 1"),
        (["a", "b", None], Value("string"), "'train' have no label"),
    ],
)
def test_bad_labels_are_refused(labels, feature, message):
    with pytest.raises(ValueError, match=message):
        prepare_image_dataset(make_dataset(labels, feature, splits=("train", "validation")))


def test_missing_columns_are_named():
    dataset = make_dataset([0, 1], Value("int64"), columns=("picture", "class"))
    with pytest.raises(ValueError, match=r"no column 'label'.*label_column_name one of picture, class"):
        prepare_image_dataset(dataset)
    with pytest.raises(ValueError, match=r"no column 'img'.*image_column_name one of picture, class"):
        prepare_image_dataset(dataset, image_column_name="img")


def test_validation_labels_that_training_lacks_are_named():
    dataset = make_dataset(["a", "b"], Value("string"))
    dataset["validation"] = make_dataset(["a", "c"], Value("string"))["train"]
    with pytest.raises(ValueError, match=r"labels that the training data does not have: \['c'\]"):
        prepare_image_dataset(dataset)


def test_the_split_keeps_the_proportions_of_the_classes():
    dataset = make_dataset([0] * 80 + [1] * 20, ClassLabel(names=["x", "y"]))
    prepared, _ = prepare_image_dataset(dataset, train_val_split=0.1, seed=3)
    assert np.bincount(prepared["validation"]["label"]).tolist() == [8, 2]
    again, _ = prepare_image_dataset(dataset, train_val_split=0.1, seed=3)
    assert again["validation"]["image"][:] == prepared["validation"]["image"][:]
    with pytest.raises(ValueError, match=r"train_val_split=0 is not in \(0, 1\)"):
        prepare_image_dataset(dataset, train_val_split=0)


def test_find_images_sees_only_images(tmp_path):
    folder = make_folder(tmp_path)
    (folder / "cat" / ".hidden.png").write_bytes(b"")
    (folder / "cat" / "notes.txt").write_text("")
    assert len(find_images(folder)) == 12


def test_open_image_names_what_it_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="cannot read the image nothing.png"):
        open_image("nothing.png")
    with pytest.raises(ValueError, match="cannot read the image row 7"):
        open_image(b"no image", "row 7")


def test_transparent_training_images_are_seen_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    transform = ImageTransform(MixerImageProcessorPil(size=4))
    batch = transform({"image": [{"path": str(tmp_path / "clear.png"), "bytes": None}], "label": [0]})
    assert torch.equal(batch["pixel_values"], torch.ones(1, 3, 4, 4))
