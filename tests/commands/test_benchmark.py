import csv
import importlib.util
import json
import sys

import pytest
import torch
from datasets import ClassLabel

from hf_mixer.benchmarking import measure
from hf_mixer.benchmarking.cases import Case
from hf_mixer.commands.benchmark import (
    choose_cases,
    hide_broken_torchvision,
    main,
    parse_arguments,
    say_who_takes_part,
)
from tests.helpers import make_dataset, save_classifier


def test_prints_a_table_and_saves_the_figures(tmp_path, capsys):
    arguments = ["--variants", "cifar10", "--batch_sizes", "1", "2", "--implementations", "hf_mixer", "--rounds", "1"]
    main([*arguments, "--device", "cpu", "--output_dir", str(tmp_path), "--results_dir", str(tmp_path / "results")])
    saved = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["batch_size"] for row in saved["rows"]] == [1, 2]
    assert saved["versions"]["torch"] == torch.__version__
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert any(line[:5] == ["cifar10", "inference", "float32", "2", "hf_mixer"] for line in lines)
    assert (tmp_path / "benchmark.png").stat().st_size > 0
    (kept,) = (tmp_path / "results").glob("benchmark-infer-*.csv")
    assert kept.read_text() == (tmp_path / "benchmark.csv").read_text()
    with kept.open(newline="") as file:
        assert [(line["model"], line["infer_batch_size"]) for line in csv.DictReader(file)] == [
            ("mixer_cifar10_32", "1"),
            ("mixer_cifar10_32", "2"),
        ]


def test_what_fails_is_no_success_and_the_others_are_kept(tmp_path, monkeypatch):
    def compile_never(case, model, implementation, execution, device):
        if execution == "default":
            raise RuntimeError("no compiler")
        return make_step(case, model, implementation, execution, device)

    make_step = measure.make_step
    monkeypatch.setattr(measure, "make_step", compile_never)
    options = ["--variants", "cifar10", "--batch_sizes", "1", "--executions", "eager", "default", "--device", "cpu"]
    options += ["--implementations", "hf_mixer", "--rounds", "1", "--output_dir", str(tmp_path)]
    with (
        pytest.warns(UserWarning, match="hf_mixer default fails and is left out: .*no compiler"),
        pytest.raises(SystemExit, match="1 of 2 could not be measured"),
    ):
        main(options)
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert row["execution"] == "eager"


def test_says_what_is_left_out_and_what_timm_does_without(monkeypatch, capsys):
    cpu = torch.device("cpu")
    monkeypatch.setattr("hf_mixer.benchmarking.timm_model.import_mlp_mixer", lambda: (torch.nn.Module, "no nms"))
    monkeypatch.setattr("hf_mixer.benchmarking.cases.import_mlp_mixer", lambda: (torch.nn.Module, "no nms"))
    say_who_takes_part([Case("B/16", 1, "float32")] * 2, ("hf_mixer_kernels", "timm", "timm_wrapper"), cpu)
    kernels, wrapper, timm = capsys.readouterr().err.splitlines()
    assert kernels.startswith("left out: hf_mixer_kernels: ")
    assert wrapper.startswith("left out: timm_wrapper: ")
    assert timm == "timm: imported without torchvision, which its Mixer does not use: no nms"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "tpu"], "--suite knows no 'tpu': choose from cpu"),
        (["--dtypes", "int8", "int4"], "--dtypes knows no 'int4': choose from float32"),
        (["--suite", "cpu", "--dtypes", "float32"], "leave out --dtypes"),
        (["--suite", "exports", "--model", "x", "--dtypes", "float32"], "leave out --dtypes"),
        (["--suite", "exports"], "--suite exports and --model FOLDER go together"),
        (["--model", "x"], "--suite exports and --model FOLDER go together"),
        (["--dataset_name", "x"], "--dataset_name is the data of --model"),
        (["--suite", "cpu", "--variants", "H/14"], "--suite cpu has nothing for --variants H/14"),
        (["--batch_sizes", "0"], "--batch_sizes have to be at least 1"),
        (["--mode", "training", "--executions", "freezing"], "training changes: choose from eager"),
        (["--rounds", "0"], "--rounds has to be at least 1"),
        (["--device", "nonsense"], "--device nonsense is no device of torch: expected for instance cpu"),
        (["--preprocessing", "--dtypes", "int8", "--device", "cpu"], "runs no model: leave out --dtypes, --device"),
        (["--preprocessing", "--variants", "S/16", "B/16"], "the image size of one variant, got S/16 B/16"),
        (
            ["--implementations", "hf_mixer_kernels", "--device", "cpu", "--dtypes", "float32"],
            "none of the implementations",
        ),
    ],
)
def test_bad_arguments_give_one_line(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message) as error:
        main([*arguments, "--output_dir", str(tmp_path)])
    assert "\n" not in str(error.value)


@pytest.fixture
def measured(monkeypatch):
    """What the exports of a model are measured with."""
    calls = []
    row = {"runtime": "ONNX Runtime", "dtype": "int8", "bytes": 1_000_000, "top1": 0.5, "num_images": 2}
    row |= {"step_time_1": 1.25, "step_time_32": 8.0, "spread_1": 0.1, "spread_32": 0.1}
    row |= {"threads_1": 1, "threads_32": 2}
    monkeypatch.setattr(
        "hf_mixer.benchmarking.exports.measure_exports", lambda *arguments: calls.append(arguments[:4]) or [row]
    )
    return calls


def test_exports_are_measured_on_the_data_of_the_model(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = save_classifier(tmp_path / "model", ["ant", "bee"])
    data = make_dataset([1, 0, 1], ClassLabel(names=["bee", "ant"]), splits=("train", "test"))
    for split, images in data.items():
        images.select(range(2 if split == "test" else 3)).to_parquet(tmp_path / "photos" / f"{split}.parquet")
    options = [
        "--dataset_name",
        tmp_path / "photos",
        "--results_dir",
        tmp_path / "kept",
        "--output_dir",
        tmp_path / "out",
    ]
    main([*map(str, ["--suite", "exports", "--model", folder, *options])])
    ((source, rounds, dataset, calibration_images),) = measured
    assert (source, rounds) == (str(folder), 10)
    assert dataset["label"][:] == [0, 1]
    assert sorted(image.getpixel((0, 0)) for image in calibration_images) == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert "ONNX Runtime  int8  1.0 MB  50.00 %" in capsys.readouterr().out
    (kept,) = (tmp_path / "kept").glob("exports-model-*.csv")
    assert kept.read_text() == (tmp_path / "out" / kept.name).read_text()


@pytest.mark.parametrize(
    ("variants", "expected"), [(["S/16"], {"S/16"}), (["B/16", "H/14", "L/16"], {"B/16", "L/16"})]
)
def test_a_part_of_a_suite_can_be_chosen(variants, expected):
    parsed = parse_arguments(["--suite", "cpu", "--variants", *variants])
    assert {case.variant for case in choose_cases(parsed)} == expected


@pytest.mark.parametrize(
    "fault", ["RuntimeError('operator torchvision::nms does not exist')", "OSError('no library')"]
)
def test_a_broken_torchvision_is_taken_for_a_missing_one(fault, tmp_path, monkeypatch, capsys):
    (tmp_path / "torchvision.py").write_text(f"raise {fault}")
    monkeypatch.syspath_prepend(tmp_path)
    # monkeypatch puts back what is there now
    monkeypatch.setitem(sys.modules, "torchvision", None)
    del sys.modules["torchvision"]
    hide_broken_torchvision()
    assert importlib.util.find_spec("torchvision") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(fault.split("'")[1])
