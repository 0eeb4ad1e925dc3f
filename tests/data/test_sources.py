"""Labelled images in local files: class folders, metadata and CSV lists, as they are found on disks."""

import json
import logging

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_mixer.data.datasets import load_evaluation_dataset, load_image_dataset, prepare_image_dataset
from tests.helpers import make_dataset, make_folder


def save_images(folder, *names):
    """Save images, the first pixels of which are their places in the list."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    return folder


def rows_of(dataset) -> list[tuple[str, object]]:
    """Return the file names and labels of a prepared split."""
    return [(row["image"]["path"].rsplit("/", 1)[-1], row["label"]) for row in dataset]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_class_is_the_folder_under_the_root_at_any_depth(streaming, tmp_path):
    names = ("cat/1.png", "cat/deep/folder/2.png", "cat/.hidden/3.png", "cat/._4.png", "dog/deep/folder/5.png")
    for split in ("train", "val"):
        save_images(tmp_path / split, *names, ".cache/6.png")
    loaded = load_image_dataset(str(tmp_path), streaming=streaming)
    dataset, labels = prepare_image_dataset(loaded)
    assert labels == ["cat", "dog"]
    for split in ("train", "validation"):
        assert sorted(rows_of(dataset[split])) == [("1.png", 0), ("2.png", 0), ("5.png", 1)]


def test_broken_images_at_any_depth_are_named(tmp_path):
    save_images(tmp_path, "cat/1.png", "dog/deep/2.png", "dog/deep/er/3.png")
    (tmp_path / "dog/deep/er/3.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"cannot read the image \S+dog/deep/er/3\.png: it is empty, broken or"
    ) as error:
        load_image_dataset(train_dir=str(tmp_path))
    assert str(error.value).count("3.png") == 1


def test_images_beside_the_class_folders_are_told_of(tmp_path, caplog):
    save_images(tmp_path, "stray.png", "cat/1.png", "Cat/2.png")
    (tmp_path / "cat/notes.heic").write_text("")
    with caplog.at_level(logging.INFO):
        _, labels = prepare_image_dataset(load_image_dataset(train_dir=str(tmp_path)), train_val_split=0.5)
    assert labels == ["Cat", "cat"]
    messages = " ".join(caplog.messages)
    assert "Left out 1 images that lie beside the class folders" in messages
    assert "'stray.png'" in messages
    assert "differ only by case: 'Cat', 'cat'" in messages
    assert "not images: 1 .heic" in messages


def test_classes_only_in_validation_are_named(tmp_path):
    save_images(tmp_path, "train/a/1.png", "train/b/2.png", "val/A/1.png", "val/b/2.png")
    with pytest.raises(ValueError, match="the training data does not have: 'A' in the split 'validation'"):
        prepare_image_dataset(load_image_dataset(str(tmp_path)))
    with pytest.raises(ValueError, match="the training data does not have: 'A' in the split 'validation'"):
        prepare_image_dataset(load_image_dataset(str(tmp_path), streaming=True))


def test_a_folder_named_test_is_a_split_of_its_own(tmp_path, caplog):
    save_images(tmp_path, "train/a/1.png", "train/b/2.png", "train/b/3.png", "test/b/4.png", "test/c/5.png")
    loaded = load_image_dataset(str(tmp_path))
    dataset, labels = prepare_image_dataset(loaded, train_val_split=0.5)
    assert labels == ["a", "b"]
    assert rows_of(dataset["test"]) == [("4.png", 1), ("5.png", None)]
    assert "does not have: 'c' in the split 'test'" in caplog.text
    with pytest.raises(ValueError, match="'c' in the split 'validation'"):
        prepare_image_dataset(loaded, eval_split="test")


def test_a_test_folder_may_lack_labels_and_be_broken_where_it_is_not_used(tmp_path):
    save_images(tmp_path, "train/a/1.png", "train/b/2.png", "train/b/3.png", "test/4.png")
    (tmp_path / "test/broken.png").write_bytes(b"")
    dataset, _ = prepare_image_dataset(load_image_dataset(str(tmp_path)), train_val_split=0.5)
    assert rows_of(dataset["test"]) == [("4.png", None), ("broken.png", None)]
    with pytest.raises(ValueError, match="cannot read the image .*broken.png"):
        load_image_dataset(str(tmp_path), check_test=True)
    with pytest.raises(ValueError, match="no image has a label"):
        prepare_image_dataset(load_image_dataset(str(tmp_path)), eval_split="test")


def test_a_test_folder_without_a_train_folder_is_refused(tmp_path):
    save_images(tmp_path, "test/1.png", "cat/2.png")
    with pytest.raises(ValueError, match="has a folder test, but none named train.*--train_dir"):
        load_image_dataset(str(tmp_path))
    assert prepare_image_dataset(load_image_dataset(train_dir=str(tmp_path)), train_val_split=0.5)[1] == [
        "cat",
        "test",
    ]


def test_links_are_followed_but_not_in_circles(tmp_path):
    save_images(tmp_path / "photos", "a/1.png", "a/deep/2.png")
    save_images(tmp_path / "elsewhere", "3.png", "4.png")
    (tmp_path / "photos/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/a/deep/up").symlink_to(tmp_path / "photos/a")
    data = load_image_dataset(train_dir=str(tmp_path / "photos"))["train"].cast_column(
        "image", ImageFeature(decode=False)
    )
    assert rows_of(data) == [("1.png", 0), ("2.png", 0), ("3.png", 1), ("4.png", 1)]


def test_what_is_no_folder_is_refused(tmp_path):
    save_images(tmp_path, "1.png")
    with pytest.raises(ValueError, match="is a file: give a list in CSV as --train_file"):
        load_image_dataset(str(tmp_path / "1.png"))
    with pytest.raises(ValueError, match="is a file, not a folder: give lists in CSV as --train_file"):
        load_image_dataset(train_dir=str(tmp_path / "1.png"))
    with pytest.raises(ValueError, match="the folder ./nothing does not exist"):
        load_evaluation_dataset("./nothing")


def write_metadata(folder, kind: str, rows: list[dict]) -> None:
    if kind == "csv":
        cells = [
            [json.dumps(value) if isinstance(value, list) else str(value) for value in row.values()] for row in rows
        ]
        lines = [",".join(rows[0]), *(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells)]
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    elif kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        Dataset.from_list(rows).to_parquet(folder / "metadata.parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("values", "names", "prepared"),
    [
        (["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]),
        ([3, 1, 3], ["1", "3"], [1, 0, 1]),
        ([["b", "a", "b"], [], ["c"]], ["a", "b", "c"], [[True, True, False], [False] * 3, [False, False, True]]),
        ([0.5, -1.0, 2.5], ["label"], [[0.5], [-1.0], [2.5]]),
    ],
)
def test_metadata_holds_labels_of_every_kind(kind, values, names, prepared, tmp_path):
    for split in ("train", "validation"):
        save_images(tmp_path / split, "x.png", "deep/y.png", "z.png")
        files = ["z.png", "deep/y.png", "x.png"]
        rows = [{"file_name": file, "label": value} for file, value in zip(files, values)]
        write_metadata(tmp_path / split, kind, rows)
    dataset, found = prepare_image_dataset(load_image_dataset(str(tmp_path)))
    assert found == names
    for split in ("train", "validation"):
        assert rows_of(dataset[split]) == list(zip(["z.png", "y.png", "x.png"], prepared))


def test_class_names_of_metadata_in_parquet_are_kept(tmp_path):
    save_images(tmp_path, "1.png", "2.png")
    features = Features({"file_name": Value("string"), "label": ClassLabel(names=["x", "y", "z"])})
    Dataset.from_dict({"file_name": ["1.png", "2.png"], "label": [2, 0]}, features=features).to_parquet(
        tmp_path / "metadata.parquet"
    )
    dataset, split = load_evaluation_dataset(eval_dir=str(tmp_path))
    assert (split, dataset.features["label"].names, dataset["label"][:]) == ("test", ["x", "y", "z"], [2, 0])


def test_metadata_and_images_that_do_not_belong_together_are_named(tmp_path, caplog):
    save_images(tmp_path, "1.png", "2.png", "3.png")
    write_metadata(tmp_path, "csv", [{"file_name": "1.png", "label": "a"}, {"file_name": "2.png", "label": "b"}])
    load_image_dataset(train_dir=str(tmp_path))
    assert "Left out 1 images that the metadata does not name" in caplog.text
    assert "3.png" in caplog.text
    write_metadata(tmp_path, "csv", [{"file_name": "1.png", "label": "a"}, {"file_name": "gone.png", "label": "b"}])
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"gone\.png.*line 3 of .*metadata\.csv"):
            load_image_dataset(train_dir=str(tmp_path), streaming=streaming)
    write_metadata(tmp_path, "jsonl", [{"file_name": "1.png", "label": "a"}])
    with pytest.raises(ValueError, match="metadata of different types"):
        load_image_dataset(train_dir=str(tmp_path))


def test_lists_of_paths_and_labels(tmp_path):
    folder = save_images(tmp_path / "photos", "one, two.png", "ü.png", "3.png")
    train = tmp_path / "train.csv"
    lines = ["path,label", '"photos/one, two.png",dog', f"{folder / 'ü.png'}, cat"]
    train.write_text("\r\n".join(lines), encoding="utf-8-sig")
    validation = folder / "val.csv"
    validation.write_text("path,label\n3.png,dog\n")
    loaded = load_image_dataset(train_file=str(train), validation_file=str(validation))
    dataset, names = prepare_image_dataset(loaded)
    assert names == ["cat", "dog"]
    assert rows_of(dataset["train"]) == [("one, two.png", 1), ("ü.png", 0)]
    assert rows_of(dataset["validation"]) == [("3.png", 1)]
    data, split = load_evaluation_dataset(eval_file=str(validation))
    assert (data[0]["path"].getpixel((0, 0)), data["label"][:], split) == ((2, 0, 0), ["dog"], "test")


def test_lists_with_columns_of_other_names(tmp_path):
    save_images(tmp_path, "1.png", "2.png")
    file = tmp_path / "list.csv"
    file.write_text("id,photo,cat,dog\n1,1.png,1,0\n2,2.png,1,1\n")
    loaded = load_image_dataset(train_file=str(file), validation_file=str(file), image_column_name="photo")
    dataset, names = prepare_image_dataset(loaded, image_column_name="photo", label_column_name=["cat", "dog"])
    assert names == ["cat", "dog"]
    assert dataset["train"]["label"][:] == [[True, False], [True, True]]
    dataset, names = prepare_image_dataset(loaded, label_column_name=["dog", "id"], problem_type="regression")
    assert (names, dataset["train"]["label"][:]) == (["dog", "id"], [[0.0, 1.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("1.png,cat\n2.png,dog\n", "no column 'path' or 'file_name' or 'image'.* it names '1.png', 'cat'"),
        ("path;label\n1.png;cat\n", "it names 'path;label'"),
        ("path,label,label\n1.png,a,b\n", "several columns of the same name"),
        ("path,label\n1.png,a,b\n", "line 2 of .* does not have the 2 cells"),
        ('path,label\n1.png,["cat","dog"]\n', r"as CSV after line 1: .*two for each in it: \"\[\"\"cat"),
        ('path,label\n1.png,cat\n1.png,"dog\n1.png,cat\n', "as CSV after line 2: unexpected end of data"),
        ("path,label\n1.png\n", "line 2 of .* does not have the 2 cells"),
        ("path,label\n,cat\n", "no path of an image in line 2"),
        (
            'path,label\n1.png,cat\n"gone\n.png",dog\n',
            r"cannot read the image \S+gone\n\.png: No such file.* \(line 4 of",
        ),
        ('path,label\n1.png,"[""a""]"\n1.png,[\'b\']\n', "line 3 of .* is not valid JSON"),
        ("path,label\n1.png,cat\n1.png,\n1.png,dog\n", r"'train' have no label \(row 1, .*1\.png\)"),
        ("path,label\n1.png,0.5\n1.png,nan\n1.png,inf\n", r"have no label \(row 1, .*; row 2, .*1\.png\)"),
    ],
)
def test_lists_that_cannot_be_read_are_refused_with_the_line(text, message, tmp_path):
    save_images(tmp_path, "1.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        prepare_image_dataset(load_image_dataset(train_file=str(tmp_path / "list.csv")), train_val_split=0.5)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2"], [1, -2]),
        (["1", "2.5e-3", ".5"], [1.0, 0.0025, 0.5]),
        (["007", "008"], ["007", "008"]),
        (["1", "x"], ["1", "x"]),
        (["true", "False"], [True, False]),
        (["nan", "inn"], ["nan", "inn"]),
        (["NA", "null"], ["NA", "null"]),
    ],
)
def test_cells_of_a_list_have_the_type_of_their_column(cells, values, tmp_path):
    save_images(tmp_path, "1.png")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"1.png,{cell}\n" for cell in cells))
    loaded = load_image_dataset(train_file=str(tmp_path / "list.csv"))
    assert loaded["train"]["label"][:] == values
    assert [type(value) for value in loaded["train"]["label"]] == [type(value) for value in values]


def test_unreadable_images_are_left_out_where_that_is_asked_for(tmp_path, caplog):
    make_folder(tmp_path, images_per_class=10)
    (tmp_path / "cat/3.png").write_bytes(b"broken")
    (tmp_path / "dog/0.jpg").write_bytes((tmp_path / "dog/0.jpg").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"3\.png.*--skip_unreadable_images"):
        load_image_dataset(train_dir=str(tmp_path))
    loaded = load_image_dataset(train_dir=str(tmp_path), skip_unreadable_images=True)
    assert loaded.num_skipped_images == 2
    expected = [f"Left out: cannot read the image {tmp_path / name}" for name in ("cat/3.png", "dog/0.jpg")]
    assert [message.rsplit(": ", 1)[0] for message in caplog.messages] == expected
    dataset, _ = prepare_image_dataset(loaded, train_val_split=0.5)
    kept = {row["image"]["path"] for split in dataset.values() for row in split}
    assert len(kept) == 18
    assert not kept & {str(tmp_path / "cat/3.png"), str(tmp_path / "dog/0.jpg")}


def test_too_many_unreadable_images_are_refused(tmp_path):
    make_folder(tmp_path, images_per_class=10)
    for name in ("2.png", "3.png", "7.png"):
        (tmp_path / "cat" / name).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"3 of the 20 images of the split 'train' cannot be read, more than 10%"):
        load_image_dataset(train_dir=str(tmp_path), skip_unreadable_images=True)
    with pytest.raises(ValueError, match="cannot be used with --streaming"):
        load_image_dataset(train_dir=str(tmp_path), skip_unreadable_images=True, streaming=True)


def test_unreadable_images_in_parquet_are_left_out(tmp_path):
    data = make_dataset([0, 1] * 10, ClassLabel(names=["x", "y"]), columns=("photo", "label"))["train"]
    rows = data.data.table.to_pylist()
    rows[13]["photo"] = {"bytes": b"broken", "path": None}
    Dataset.from_list(rows, features=data.features).to_parquet(tmp_path / "train.parquet")
    loaded = load_image_dataset(str(tmp_path), skip_unreadable_images=True, cache_dir=str(tmp_path / "cache"))
    assert loaded.num_skipped_images == 1
    assert [image.getpixel((0, 0))[0] for image in loaded["train"]["photo"]] == [*range(13), *range(14, 20)]


def test_streamed_folders_know_their_length_and_mix_their_classes(tmp_path):
    make_folder(tmp_path / "train", images_per_class=20)
    make_folder(tmp_path / "val", images_per_class=4)
    loaded = load_image_dataset(str(tmp_path), streaming=True)
    assert loaded["train"].info.splits["train"].num_examples == 40
    stream, _ = prepare_image_dataset(loaded, max_eval_samples=4)
    assert stream["train"].num_shards == 32
    assert stream["train"].info.splits["train"].num_examples == 40
    assert {label for _, label in rows_of(stream["validation"])} == {0, 1}
    assert len(rows_of(stream["validation"])) == 4


def test_streamed_lists_of_numbers(tmp_path):
    save_images(tmp_path, "1.png", "2.png")
    (tmp_path / "list.csv").write_text("path,label,cat,dog\n1.png,0.5,1,0\n2.png,2,1,1\n")
    arguments = {name: str(tmp_path / "list.csv") for name in ("train_file", "validation_file")}
    loaded = load_image_dataset(**arguments, streaming=True)
    stream, names = prepare_image_dataset(loaded)
    assert names == ["label"]
    assert sorted(rows_of(stream["train"])) == [("1.png", [0.5]), ("2.png", [2.0])]
    stream, names = prepare_image_dataset(loaded, label_column_name=["cat", "dog"])
    assert names == ["cat", "dog"]
    assert stream["train"].features["label"] == List(Value("bool"))
    assert sorted(rows_of(stream["validation"])) == [("1.png", [True, False]), ("2.png", [True, True])]
