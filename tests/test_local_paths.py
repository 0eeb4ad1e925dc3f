"""What is left of local paths where others read them."""

import pytest

from hf_mixer.local_paths import name_source, shorten_command, shorten_path, without_paths


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/alice/photos", "photos"),
        ("/data/photos/train/", "photos/train"),
        ("photos/val.csv", "photos/val.csv"),
        ("/home/alice/train", "train"),
        ("~/train", "train"),
        ("../train", "train"),
        ("/home/alice", "~"),
        ("~alice", "~"),
        (r"C:\Users\alice\my photos", "my photos"),
        (r"C:\train", "train"),
        (r"\\server\train", "train"),
        ("https://server/train", "train"),
        ("photos", "photos"),
        (".", "."),
    ],
)
def test_the_last_part_of_a_path_is_left(path, expected):
    assert shorten_path(path) == shorten_path(expected) == expected


def test_your_own_home_is_nobodys(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "train"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "train"))
    assert shorten_path(tmp_path / "train") == "~"
    assert shorten_path(tmp_path / "train" / "test") == "test"


def test_a_source_is_named_as_it_is_on_the_hub_and_otherwise_as_what_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert name_source("owner/name") == "owner/name"
    assert name_source("mnist") == "mnist"
    assert name_source(tmp_path / "owner" / "name") == name_source("./owner/name") == "./name"
    monkeypatch.chdir(tmp_path)
    assert name_source("owner/name") == "./name"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--train_dir=photos/x --output_dir outputs/x", "--train_dir=x --output_dir x"),
        ("--train-d photos/x --train_file /x/a/train.csv", "--train-d x --train_file a/train.csv"),
        ("'--train_dir=/x/my photos' --seed 1", "'--train_dir=my photos' --seed 1"),
        ('--validation_dir "/x/my photos/test"', "--validation_dir 'my photos/test'"),
        ("--model_name_or_path timm/mixer_b16_224", "--model_name_or_path timm/mixer_b16_224"),
        ("--teacher_model /home/alice/teacher", "--teacher_model teacher"),
        (
            "--recipe recipes/mine.yaml --resume_from_checkpoint true",
            "--recipe mine.yaml --resume_from_checkpoint true",
        ),
        ('--lr_scheduler_kwargs \'{"a": "/x/b"}\'', '--lr_scheduler_kwargs \'{"a": "b"}\''),
        ("--optim_args a=/x/y,b=2 --scale 0.08 1.0", "--optim_args a=y,b=2 --scale 0.08 1.0"),
        ("--token *** --label_column_name mm/s 'it is'", "--token *** --label_column_name mm/s 'it is'"),
    ],
)
def test_a_command_keeps_the_last_parts_of_its_paths(arguments, expected):
    assert shorten_command(f"/home/alice/.venv/bin/hf-mixer train {arguments}") == f"hf-mixer train {expected}"
    assert shorten_command(f"hf-mixer train {expected}") == f"hf-mixer train {expected}"


def test_a_record_loses_paths_and_nothing_else():
    record = {
        "command": "hf-mixer train --output_dir /x/y --model_name_or_path outputs/base --teacher_model owner/teacher",
        "base_model": "/home/alice/base",
        "_name_or_path": "/home/alice/base",
        "teacher_model": "owner/teacher",
        "recipe": "/home/alice/mine.yaml",
        "dataset": {
            **{"name": "/home/alice/photos/train", "config": "/home/alice/c", "data_dir": "/home/alice"},
            "class_counts": {"/m/01/x": 3},
        },
        "cache": "in /home/alice/cache",
        "hyperparameters": {"optim_args": "path=/home/alice/x", "seed": 1, "weights": ["/x/y"]},
        "best_model_checkpoint": "/home/alice/outputs/checkpoint-3",
        "per_class": [{"label": "/m/01g317"}],
        "duration_seconds": 3.5,
    }
    assert without_paths(record) == {
        "command": "hf-mixer train --output_dir y --model_name_or_path base --teacher_model owner/teacher",
        "base_model": "./base",
        "_name_or_path": "./base",
        "teacher_model": "owner/teacher",
        "recipe": "mine.yaml",
        "dataset": {"name": "./photos/train", "config": "c", "data_dir": "~", "class_counts": {"/m/01/x": 3}},
        "cache": "in cache",
        "hyperparameters": {"optim_args": "path=x", "seed": 1, "weights": ["y"]},
        "best_model_checkpoint": "checkpoint-3",
        "per_class": [{"label": "/m/01g317"}],
        "duration_seconds": 3.5,
    }
    cleaned = {
        "base_model": "./base",
        "dataset": {"name": "owner/name", "config": "owner/config"},
        "revision": "refs/pr/1",
    }
    assert without_paths(cleaned) == cleaned
    assert without_paths({"dataset": ["x"], "command": 3}) == {"dataset": ["x"], "command": 3}
