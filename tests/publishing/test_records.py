"""What is read of the records in a folder."""

import json

import pytest

from hf_mixer.publishing.records import read_results


@pytest.mark.parametrize(
    ("file", "record", "message"),
    [
        ("evaluation.json", {"example": "x"}, "example=x, expected an object"),
        (
            "evaluation.json",
            {"per_class": [{"accuracy": 0.1}, {"accuracy": 0.9}]},
            "per_class=.*, expected a list of objects with a label",
        ),
        (
            "evaluation.json",
            {"dataset": {"num_images": 162.0}},
            r"dataset.num_images=162\.0, expected a whole number",
        ),
        ("evaluation.json", {"accuracy": 98.15}, r"accuracy=98\.15, expected a number from 0 to 1"),
        ("eval_results.json", {"eval_accuracy": 98.15}, r"eval_accuracy=98\.15, expected a number from 0 to 1"),
        ("training_run.json", {"dataset": {"class_counts": {"a": "x", "b": 3}}}, "an object of whole numbers"),
        ("training_run.json", {"dataset": {"num_skipped_images": "x"}}, "num_skipped_images=x, expected a whole"),
        ("training_run.json", {"duration_seconds": float("inf")}, "duration_seconds=inf, expected a number from 0"),
        ("training_run.json", {"command": ["hf-mixer"]}, "command=.*, expected a text"),
    ],
)
def test_records_of_another_form_are_refused_in_one_line(file, record, message, tmp_path):
    (tmp_path / file).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{file} has .*{message}.*: write it again with hf-mixer, or remove it"):
        read_results(tmp_path / file)
