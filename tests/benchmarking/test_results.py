import csv
import shutil
from pathlib import Path

import pytest
import torch

from hf_mixer.benchmarking.results import (
    BEGIN,
    END,
    describe_run,
    file_name,
    keep_results,
    make_lines,
    make_tables,
    read_csv,
    update_tables,
    write_csv,
)

from ..helpers import ROOT


ABOUT = {
    "device": "Intel(R) Xeon(R) Processor, 2 cores, AMX",
    "threads": 2,
    "date": "2026-01-31",
    "versions": {"hf_mixer": "0.1", "transformers": "5.24.0", "torch": "2.13.0+cpu", "python": "3.11", "timm": "1.0"},
}
ROW = {
    "model": "mixer_b16_224",
    "variant": "B/16",
    "batch_size": 8,
    "dtype": "float32",
    "mode": "inference",
    "implementation": "hf_mixer",
    "execution": "eager",
    "image_size": 224,
    "num_parameters": 59_880_472,
    "flops": 25_203_535_872,
    "milliseconds": 640.0,
    "images_per_second": 12.5,
    "spread": 0.031,
    "limit": 0.9251,
    "speedup_over_timm": 1.0749,
    "matmul_rate": 3e11,
    "copy_rate": 1e10,
    "peak_memory": None,
}


def lines_of(*changes: dict, **about) -> list[dict[str, str]]:
    return make_lines([{**ROW, **change} for change in changes], {**ABOUT, **about})


def test_columns_are_named_as_in_timms_results(tmp_path):
    write_csv(tmp_path / "some.csv", lines_of({}))
    with (tmp_path / "some.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["model"] == "mixer_b16_224"
    assert (line["infer_samples_per_sec"], line["infer_step_time"], line["infer_batch_size"]) == (
        "12.50",
        "640.000",
        "8",
    )
    assert (line["infer_img_size"], line["param_count"], line["infer_gmacs"]) == ("224", "59.88", "12.60")
    assert (line["implementation"], line["execution"], line["dtype"]) == ("hf_mixer", "eager", "float32")
    assert (line["limit"], line["speedup_over_timm"]) == ("0.9251", "1.075")
    assert (line["threads"], line["torch"], line["date"]) == ("2", "2.13.0+cpu", "2026-01-31")
    assert "train_step_time" not in line


def test_both_modes_fit_into_one_file(tmp_path):
    write_csv(tmp_path / "both.csv", lines_of({}, {"mode": "training"}))
    inference, training = read_csv(tmp_path / "both.csv")
    assert (inference["infer_step_time"], inference["train_step_time"]) == ("640.000", "")
    assert (training["infer_step_time"], training["train_step_time"]) == ("", "640.000")


def test_a_machine_has_a_file_for_each_mode(tmp_path):
    keep_results(tmp_path, lines_of({}, {"mode": "training"}))
    machine = "pt213-intel_xeon_processor_2_cores_amx.csv"
    assert {path.name for path in tmp_path.iterdir()} == {f"benchmark-infer-{machine}", f"benchmark-train-{machine}"}


def test_a_case_that_is_measured_again_is_replaced_as_a_whole(tmp_path):
    """Whatever stands beside each other in a case was measured in the same run."""
    keep_results(tmp_path, lines_of({}, {"implementation": "timm"}, {"batch_size": 1}, {"dtype": "bfloat16"}))
    keep_results(tmp_path, lines_of({"execution": "freezing"}, date="2026-02-01"))
    keep_results(tmp_path, lines_of({}, threads=4))
    lines = read_csv(tmp_path / file_name(lines_of({})[0]))
    said = [
        (line["infer_batch_size"], line["dtype"], line["threads"], line["execution"], line["date"]) for line in lines
    ]
    assert said == [
        ("1", "float32", "2", "eager", "2026-01-31"),
        ("8", "float32", "2", "freezing", "2026-02-01"),
        ("8", "float32", "4", "eager", "2026-01-31"),
        ("8", "bfloat16", "2", "eager", "2026-01-31"),
    ]


def test_another_file_is_not_taken_for_results(tmp_path):
    path = tmp_path / file_name(lines_of({})[0])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=f"{path.name} holds no results of a benchmark"):
        keep_results(tmp_path, lines_of({}))


def test_a_run_says_where_it_was_made():
    about = describe_run(torch.device("cpu"), "2026-01-31")
    assert about["versions"]["torch"] == torch.__version__
    assert about["threads"] == torch.get_num_threads()
    assert about["date"] == "2026-01-31"
    assert "cores" in about["device"]


def test_machines_and_versions_have_tables_of_their_own(tmp_path):
    keep_results(tmp_path, lines_of({}, {"speedup_over_timm": None, "dtype": "int8"}))
    keep_results(tmp_path, lines_of({}, {"implementation": "timm"}, threads=4))
    tables = make_tables(tmp_path)
    assert tables.count("Inference on Intel(R) Xeon(R) Processor, 2 cores, AMX, with ") == 2
    assert "with 2 threads (torch 2.13.0+cpu, transformers 5.24.0, hf_mixer 0.1, python 3.11; 2026-01-31)" in tables
    assert "with 4 threads (torch 2.13.0+cpu, transformers 5.24.0, hf_mixer 0.1, timm 1.0, python 3.11" in tables
    row = "| mixer_b16_224 | {} | 8 | hf_mixer | eager | 640.0 | 12.5 | 3 % | 93 % | {} |"
    assert tables.count(row.format("float32", "1.07 x")) == 2
    assert row.format("int8", "") in tables


def test_tables_stand_between_their_marks(tmp_path):
    document = tmp_path / "README.md"
    document.write_text(f"# Speed\n{BEGIN}\nold\n{END}\nmore\n")
    keep_results(tmp_path, lines_of({}))
    update_tables(document, tmp_path)
    assert document.read_text() == f"# Speed\n{BEGIN}\n\n{make_tables(tmp_path)}\n\n{END}\nmore\n"


def test_tables_need_results_and_a_place(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("# Speed\n")
    with pytest.raises(ValueError, match="no place for the tables"):
        update_tables(document, tmp_path)
    document.write_text(f"{BEGIN}\n{END}\n")
    with pytest.raises(ValueError, match="hf-mixer benchmark --results_dir"):
        update_tables(document, tmp_path)


def test_tables_in_the_documentation_are_those_of_the_results(tmp_path):
    document = ROOT / "hf_mixer" / "benchmarking" / "README.md"
    copy = Path(shutil.copy(document, tmp_path))
    update_tables(copy, ROOT / "scripts" / "benchmarks")
    assert copy.read_text() == document.read_text(), "run python scripts/benchmark_tables.py"
