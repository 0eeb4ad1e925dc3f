import numpy as np
import pytest
from datasets import ClassLabel, IterableDataset, IterableDatasetDict, Value
from PIL import Image

from hf_mixer import MixerImageProcessorPil
from hf_mixer.data.datasets import (
    check_labels,
    load_digits_dataset,
    load_evaluation_dataset,
    load_image_dataset,
    prepare_image_dataset,
    select_image_columns,
)
from hf_mixer.data.images import ImageTransform, collate_images
from tests.helpers import make_dataset, make_folder, make_images, make_transform


CAT_OR_DOG = ClassLabel(names=["cat", "dog"])


def make_stream(**splits):
    return IterableDatasetDict({"train": make_images(40).to_iterable_dataset(num_shards=4), **splits})


def read_numbers(stream) -> list[int]:
    """Return the numbers of the images, which their first pixels hold."""
    transform = make_transform()
    return [int(transform({"image": [row["image"]], "label": [0]})["pixel_values"][0, 0, 0, 0]) for row in stream]


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
    data = make_dataset([0, 1, 0, 1], CAT_OR_DOG)["train"]
    for split in ("train", "test"):
        data.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    assert set(load_image_dataset(str(tmp_path))) == {"train", "test"}
    (tmp_path / "only").mkdir()
    data.to_parquet(tmp_path / "only" / "part.parquet")
    assert len(load_image_dataset(train_dir=str(tmp_path / "only"))["train"]) == 4


def test_what_cannot_be_read_in_a_folder_is_named(tmp_path):
    folder = make_folder(tmp_path / "data")
    (folder / "cat" / "broken.jpg").write_bytes((folder / "cat" / "0.jpg").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read the image .*cat/broken\.jpg"):
        load_image_dataset(train_dir=str(folder))
    (folder / "mouse").mkdir()
    (folder / "mouse" / "notes.txt").write_text("no images here")
    with pytest.raises(ValueError, match=r"class folder .*mouse holds no images"):
        load_image_dataset(train_dir=str(folder))
    Image.new("RGB", (4, 4)).save(folder / "mouse" / "photo.png")
    with pytest.raises(ValueError, match="one folder of images per class"):
        load_image_dataset(train_dir=str(folder / "mouse"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_dir": "missing"}, "missing does not exist"),
        ({"validation_dir": "missing"}, "--validation_dir and --validation_file need --train_dir"),
        ({"dataset_name": "a", "train_dir": "b"}, "either --dataset_name or --train_dir"),
        ({"streaming": True}, "--streaming needs --dataset_name, --train_dir"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_image_dataset(**arguments)


def test_the_split_to_evaluate_on(tmp_path):
    data = make_dataset([0, 1], CAT_OR_DOG)["train"]
    for split in ("train", "validation"):
        data.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    assert load_evaluation_dataset(str(tmp_path))[1] == "validation"
    assert load_evaluation_dataset(str(tmp_path), split="train")[1] == "train"
    with pytest.raises(ValueError, match="no split 'test' to evaluate on: .* those in the data, train, validation"):
        load_evaluation_dataset(str(tmp_path), split="test")
    data.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert load_evaluation_dataset(str(tmp_path))[1] == "test"


def test_folders_to_evaluate_on(tmp_path):
    make_folder(tmp_path / "testing", images_per_class=2)
    make_folder(tmp_path / "train" / "unread")
    dataset, split = load_evaluation_dataset(str(tmp_path))
    assert (len(dataset), split) == (4, "test")
    assert len(load_evaluation_dataset(eval_dir=str(tmp_path / "testing"))[0]) == 4
    with pytest.raises(ValueError, match="give it as --eval_dir"):
        load_evaluation_dataset(str(tmp_path / "testing"))
    with pytest.raises(ValueError, match="neither --dataset_name nor --split"):
        load_evaluation_dataset(str(tmp_path), eval_dir=str(tmp_path / "testing"))


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
    assert prepared["train"].features["label"] == ClassLabel(names=names)


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 0, 0], ClassLabel(names=["x", "y"]), "at least two classes, got 1"),
        (["a", "b", None], Value("string"), "images of the split 'train' have no label"),
        ([0, 1, -1], CAT_OR_DOG, "images of the split 'train' have no label"),
        ([0.5, float("nan"), 0.5], Value("float32"), r"'train' have no label \(row 1\)"),
    ],
)
def test_bad_labels_are_refused(labels, feature, message):
    dataset = make_dataset(labels, feature, splits=("train", "validation"))
    with pytest.raises(ValueError, match=message):
        prepare_image_dataset(dataset)
    if "two classes" not in message:
        with pytest.raises(ValueError, match="have no label"):
            check_labels(select_image_columns(dataset["train"]), "train")


def test_a_test_split_may_lack_labels():
    dataset = make_dataset(["a", "b"], Value("string"), splits=("train", "validation"))
    dataset["test"] = make_dataset([None, None], Value("string"))["train"]
    prepared, _ = prepare_image_dataset(dataset)
    assert prepared["test"]["label"][:] == [None, None]
    with pytest.raises(ValueError, match="the split 'validation' have no label"):
        prepare_image_dataset(dataset, eval_split="test")


def test_missing_columns_are_named():
    dataset = make_dataset([0, 1], Value("int64"), columns=("picture", "class"))
    with pytest.raises(ValueError, match=r"no column 'label'.*--label_column_name one of picture, class"):
        prepare_image_dataset(dataset)
    with pytest.raises(ValueError, match=r"no column 'img'.*--image_column_name one of picture, class"):
        prepare_image_dataset(dataset, image_column_name="img", label_column_name="class")


def test_validation_labels_that_training_lacks_are_named():
    dataset = make_dataset(["a", "b"], Value("string"))
    dataset["validation"] = make_dataset(["a", "c"], Value("string"))["train"]
    with pytest.raises(ValueError, match=r"the training data does not have: 'c' in the split 'validation'"):
        prepare_image_dataset(dataset)


def test_the_split_keeps_the_proportions_of_the_classes():
    dataset = make_dataset([0] * 80 + [1] * 20, ClassLabel(names=["x", "y"]))
    prepared, _ = prepare_image_dataset(dataset, train_val_split=0.1, seed=3)
    assert np.bincount(prepared["validation"]["label"]).tolist() == [8, 2]
    again, _ = prepare_image_dataset(dataset, train_val_split=0.1, seed=3)
    assert again["validation"]["image"][:] == prepared["validation"]["image"][:]
    with pytest.raises(ValueError, match="--train_val_split 0 is not between 0 and 1"):
        prepare_image_dataset(dataset, train_val_split=0)


def test_samples_are_drawn_at_random():
    dataset = make_dataset([0, 1] * 20, CAT_OR_DOG, splits=("train", "validation"))
    prepared, _ = prepare_image_dataset(dataset, max_train_samples=10, max_eval_samples=100)
    again, _ = prepare_image_dataset(dataset, max_train_samples=10)
    assert (len(prepared["train"]), len(prepared["validation"])) == (10, 40)
    assert prepared["train"]["image"][:] == again["train"]["image"][:] != prepared["validation"]["image"][:10]


def test_a_stream_is_limited_before_it_is_shuffled():
    dataset = make_stream(test=make_images(8, seed=1).to_iterable_dataset())
    stream, labels = prepare_image_dataset(dataset, eval_split="test", max_train_samples=10, max_eval_samples=3)
    assert labels == ["a", "b", "c"]
    assert sorted(stream) == ["train", "validation"]
    assert read_numbers(stream["validation"]) == [0, 1, 2]
    passes = []
    for epoch in range(2):
        stream["train"].set_epoch(epoch)
        passes.append(read_numbers(stream["train"]))
    assert passes[0] != passes[1]
    assert set(passes[0]) == set(passes[1])
    assert len(set(passes[0])) == 10


def test_streams_need_a_split_and_classes():
    with pytest.raises(ValueError, match="no split 'validation' to evaluate on: .* which has none besides train"):
        prepare_image_dataset(make_stream())
    data = make_dataset(["a", "b"], Value("string"))["train"].to_iterable_dataset()
    with pytest.raises(ValueError, match="have to be classes with names"):
        prepare_image_dataset(IterableDatasetDict({"train": data, "validation": data}))
    data = IterableDataset.from_generator(lambda: [{"image": b"", "label": 0}])
    with pytest.raises(ValueError, match="does not tell what its columns hold"):
        prepare_image_dataset(IterableDatasetDict({"train": data, "validation": data}))
