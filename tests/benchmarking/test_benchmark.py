import json
import subprocess
import sys

import pytest
import torch

from hf_mixer import MixerConfig, benchmarking
from hf_mixer.benchmarking.measure import Case, make_step, measure, why_not
from hf_mixer.benchmarking.plots import save_speed_bars
from hf_mixer.benchmarking.timing import time_interleaved
from hf_mixer.configuration_mixer import VARIANTS
from hf_mixer.flops import estimate_flops
from tests.helpers import ROOT


SCRIPT = ROOT / "scripts" / "benchmark.py"
CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    sizes = dict(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, token_mlp_dim=8)
    monkeypatch.setitem(VARIANTS, "tiny", dict(sizes, channel_mlp_dim=64))
    return "tiny"


@pytest.mark.parametrize(("slow", "fast", "repeated"), [(0.1, 0.1, 10), (0.25, 0.5, 2), (1.5, 0.5, 3), (6.0, 0.5, 4)])
def test_rounds_are_interleaved(monkeypatch, slow, fast, repeated):
    """Each step takes its turn in every round, and a short one is repeated: for one second, as the other, but not six."""
    clock, called = [0.0], []
    monkeypatch.setattr("hf_mixer.timing.time.perf_counter", lambda: clock[0])

    def step(name, seconds):
        def run():
            called.append(name)
            clock[0] += seconds

        return run

    steps = {"slow": step("slow", slow), "fast": step("fast", fast)}
    rounds = list(time_interleaved(steps, 3, CPU, minimum=1.0))
    for seconds in rounds:
        assert seconds == pytest.approx({"slow": slow, "fast": fast})
    times_slow = max(1, round(1.0 / slow))
    assert called == ["slow", "fast"] + (["slow"] * times_slow + ["fast"] * repeated) * 3


@pytest.mark.parametrize("training", [False, True])
def test_rows_hold_what_was_measured(tiny, monkeypatch, training):
    """With a clock that gives every step 2 seconds and the device's own products 1 second."""
    seconds = {"matmul": 1.0, "copy": 1e-9, "hf_mixer": 2.0}
    monkeypatch.setattr(
        benchmarking,
        "time_interleaved",
        lambda steps, rounds, device: [{key: seconds[key[1]] for key in steps}] * rounds,
    )
    case = Case(tiny, 4, "float32", training)
    rows = measure([case], ("hf_mixer", "hf_mixer_without_kernels"), 3, CPU)
    assert [row["implementation"] for row in rows] == ["hf_mixer"]
    row = rows[0]
    assert (row["milliseconds"], row["images_per_second"], row["spread"]) == (2000.0, 2.0, 0.0)
    assert row["mode"] == ("training" if training else "inference")
    # 2048 tokens of 16 to 64 channels and back in one second
    assert row["matmul_rate"] == 2048 * 16 * 64 * 2 * 2
    flops = estimate_flops(case.config(), training)
    assert row["limit"] == pytest.approx(4 * flops / row["matmul_rate"] / 2)
    assert row["speedup_over_timm"] is None


def test_shares_of_the_limit_are_those_of_each_round(tiny, monkeypatch):
    rounds = [{"matmul": matmul, "copy": 1e-9, "hf_mixer": seconds} for matmul, seconds in [(3, 3), (1, 4), (2, 10)]]
    monkeypatch.setattr(
        benchmarking, "time_interleaved", lambda steps, *_: [{key: times[key[1]] for key in steps} for times in rounds]
    )
    case = Case(tiny, 2048 // 16, "float32")
    (row,) = measure([case], ("hf_mixer",), 3, CPU)
    share = 128 * estimate_flops(case.config()) / (2048 * 16 * 64 * 2 * 2)
    assert row["limit"] == pytest.approx(share / 4)


def test_training_steps_train(tiny):
    torch.manual_seed(0)
    case = Case(tiny, 4, "bfloat16", training=True)
    model = benchmarking.build_model(case, "hf_mixer", CPU)
    before = [parameter.clone() for parameter in model.parameters()]
    make_step(case, model, "eager", CPU)()
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_what_cannot_take_part_has_a_reason():
    assert why_not(Case("B/16", 8, "float32"), "hf_mixer", CPU) is None
    assert "CUDA" in why_not(Case("B/16", 8, "float32"), "hf_mixer_without_kernels", CPU)
    assert "inference" in why_not(Case("B/16", 8, "int8", training=True), "hf_mixer", CPU)
    assert "hf_mixer only" in why_not(Case("B/16", 8, "int8"), "timm", CPU)


@pytest.mark.parametrize(("capability", "reason"), [((8, 0), "float8 needs a GPU of"), ((9, 0), None)])
def test_older_gpus_leave_float8_out(monkeypatch, capability, reason):
    pytest.importorskip("torchao", reason="needs torchao")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = why_not(Case("B/16", 8, "float8"), "hf_mixer", torch.device("cuda"))
    assert said is None if reason is None else reason in said


def test_limits_of_what_takes_no_part_are_not_measured(tiny, monkeypatch):
    measured = []
    original = benchmarking.device_limits
    monkeypatch.setattr(
        benchmarking, "device_limits", lambda case, device: measured.append(case) or original(case, device)
    )
    case = Case(tiny, 1, "float32")
    rows = measure([Case(tiny, 1, "float8"), case], ("hf_mixer",), 1, CPU)
    assert measured == [case]
    assert [row["dtype"] for row in rows] == ["float32"]


def test_a_failing_rival_spoils_nothing(tiny, monkeypatch):
    def build(case, implementation, device):
        if implementation == "timm":
            raise RuntimeError("no such luck")
        return original(case, implementation, device)

    original = benchmarking.build_model
    monkeypatch.setattr(benchmarking, "build_model", build)
    monkeypatch.setattr(benchmarking, "why_not", lambda *_: None)
    with pytest.warns(UserWarning, match="tiny inference float32 batch 1: timm eager fails .*no such luck"):
        rows = measure([Case(tiny, 1, "float32")], ("timm", "hf_mixer"), 1, CPU)
    assert [row["implementation"] for row in rows] == ["hf_mixer"]


def test_preprocessing_is_measured_per_number_of_threads():
    rows = benchmarking.measure_preprocessing(16, rounds=1)
    assert {(row["processor"], row["threads"]) for row in rows} >= {("pil", 1), ("pil", 2)}
    assert all(row["images_per_second"] > 1 for row in rows)


def test_picture_shows_every_row(tmp_path, tiny):
    rows = measure([Case(tiny, 1, "float32"), Case(tiny, 1, "bfloat16")], ("hf_mixer",), 2, CPU)
    save_speed_bars(tmp_path / "bars.svg", rows)
    text = (tmp_path / "bars.svg").read_text()
    assert "tiny inference, float32, batch 1" in text
    assert "tiny inference, bfloat16, batch 1" in text


def test_script_prints_a_table_and_saves_the_figures(tmp_path):
    arguments = ["--variants", "cifar10", "--batch_sizes", "1", "2", "--implementations", "hf_mixer", "--rounds", "2"]
    command = [sys.executable, SCRIPT, *arguments, "--device", "cpu", "--output_dir", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    saved = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["batch_size"] for row in saved["rows"]] == [1, 2]
    assert saved["versions"]["torch"] == torch.__version__
    lines = [line.split() for line in result.stdout.splitlines()]
    assert any(line[:5] == ["cifar10", "inference", "float32", "2", "hf_mixer"] for line in lines)
    assert (tmp_path / "benchmark.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "cpu", "--dtypes", "float32"], "leave out --dtypes"),
        (["--suite", "gpu-training", "--variants", "H/14"], "gpu-training has nothing for --variants H/14"),
        (["--batch_sizes", "0"], "--batch_sizes have to be at least 1"),
        (["--rounds", "0"], "--rounds has to be at least 1"),
        (["--device", "nonsense"], "device"),
        (["--implementations", "hf_mixer_without_kernels", "--device", "cpu"], "none of the implementations"),
    ],
)
def test_bad_arguments_give_one_line(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import benchmark

    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match=message) as error:
        benchmark.main()
    assert "\n" not in str(error.value)


def test_a_part_of_a_suite_can_be_chosen(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import benchmark

    for variants, expected in ((["S/16"], ["S/16"]), (["H/14", "B/16"], ["B/16", "B/16", "B/16", "H/14"])):
        arguments = benchmark.parse_arguments(["--suite", "gpu-inference", "--variants", *variants])
        assert [case.variant for case in benchmark.choose_cases(arguments)] == expected


def test_suites_name_known_variants(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import benchmark

    for cases in benchmark.SUITES.values():
        for case in cases:
            assert isinstance(case.config(), MixerConfig)
            assert case.dtype in benchmarking.DTYPES
            assert set(case.executions) <= set(benchmarking.EXECUTIONS)
