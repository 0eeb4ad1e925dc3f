from functools import partial

import pytest
import torch

from hf_mixer import kernels
from hf_mixer.benchmarking import measure as measuring
from hf_mixer.benchmarking.cases import EXECUTIONS, IMPLEMENTATIONS, SUITES, Case, unsupported_reason
from hf_mixer.benchmarking.measure import build_case_model, make_step, measure, measure_preprocessing
from hf_mixer.benchmarking.plots import save_speed_bars
from hf_mixer.benchmarking.timing import time_interleaved
from hf_mixer.configuration_mixer import VARIANTS
from hf_mixer.flops import estimate_flops


CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    sizes = dict(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, token_mlp_dim=8)
    monkeypatch.setitem(VARIANTS, "tiny", dict(sizes, channel_mlp_dim=64))


@pytest.fixture
def clock(monkeypatch):
    """Seconds that each step takes, by what it does, in every round; all others take 2."""
    seconds = {"matmul": [1.0] * 3, "copy": [1e-9] * 3}
    monkeypatch.setattr(
        measuring, "time_interleaved", lambda steps, *_: {key: seconds.get(key[1], [2.0] * 3) for key in steps}
    )
    return seconds


@pytest.mark.parametrize(
    ("seconds", "calls"), [((0.01, 0.01), (10, 10)), ((0.25, 0.5), (2, 1)), ((1.5, 0.5), (1, 3)), ((6.0, 0.5), (1, 4))]
)
def test_rounds_are_interleaved(monkeypatch, seconds, calls):
    """Each step takes its turn in every round, and a short one is repeated to take as long, up to two seconds."""
    now, called = [0.0], []
    monkeypatch.setattr("hf_mixer.benchmarking.timing.time.perf_counter", lambda: now[0])

    def run(index):
        called.append(index)
        now[0] += seconds[index]

    times = time_interleaved({index: partial(run, index) for index in (0, 1)}, 3, CPU)
    assert times == {index: pytest.approx([seconds[index]] * 3) for index in (0, 1)}
    assert called == [0, 1] + ([0] * calls[0] + [1] * calls[1]) * 3


@pytest.mark.parametrize("training", [False, True])
def test_rows_hold_what_was_measured(clock, training):
    case = Case("tiny", 4, "float32", training)
    (row,) = measure([case], ("hf_mixer", "hf_mixer_kernels"), 3, CPU)
    assert row["implementation"] == "hf_mixer"
    assert (row["milliseconds"], row["images_per_second"], row["spread"]) == (2000.0, 2.0, 0.0)
    assert row["mode"] == ("training" if training else "inference")
    # 2048 tokens of 16 to 64 channels and back in one second
    assert row["matmul_rate"] == 2048 * 16 * 64 * 2 * 2
    assert row["limit"] == pytest.approx(4 * estimate_flops(case.config(), training) / row["matmul_rate"] / 2)
    assert row["speedup_over_timm"] is None


def test_shares_of_the_limit_are_those_of_each_round(clock):
    clock.update({"matmul": [3, 1, 2], "hf_mixer": [3, 4, 10]})
    case = Case("tiny", 2048 // 16, "float32")
    (row,) = measure([case], ("hf_mixer",), 3, CPU)
    share = 128 * estimate_flops(case.config()) / (2048 * 16 * 64 * 2 * 2)
    assert row["limit"] == pytest.approx(share / 4)


def test_training_steps_train():
    torch.manual_seed(0)
    case = Case("tiny", 4, "bfloat16", training=True)
    model = build_case_model(case, "hf_mixer", CPU)
    before = [parameter.clone() for parameter in model.parameters()]
    make_step(case, model, "hf_mixer", "eager", CPU)()
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_freezing_makes_constants_of_the_weights_at_the_first_call(monkeypatch):
    """Inductor does so only under `no_grad`, and only where its setting is on while it compiles."""
    modes = []

    def compile_model(model, **options):
        def run(pixel_values):
            frozen = torch._inductor.config.freezing
            modes.append((frozen, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            return model(pixel_values)

        return run

    monkeypatch.setattr(torch, "compile", compile_model)
    case = Case("tiny", 1, "float32", executions=("freezing",))
    make_step(case, build_case_model(case, "hf_mixer", CPU), "timm", "freezing", CPU)()
    assert modes == [(True, False, False), (False, False, False)]


def test_frozen_weights_are_not_trained():
    with pytest.raises(ValueError, match="freezing .* training .*: choose from eager, default"):
        Case("tiny", 1, "float32", training=True, executions=("eager", "freezing"))


def test_exported_models_are_measured_once_and_beside_timm_eager(clock, monkeypatch):
    def build(case, implementation, device):
        return build_case_model(case, "hf_mixer", device)

    clock.update(timm=[6.0] * 3, onnxruntime=[3.0] * 3)
    monkeypatch.setattr(measuring, "build_case_model", build)
    monkeypatch.setattr(measuring, "run_exported", lambda model, *_: model)
    monkeypatch.setattr(measuring, "unsupported_reason", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    case = Case("tiny", 1, "float32", executions=("eager", "default"))
    rows = measure([case], ("timm", "onnxruntime"), 3, CPU)
    assert [(row["implementation"], row["execution"], row["speedup_over_timm"]) for row in rows] == [
        ("timm", "eager", 1.0),
        ("timm", "default", 1.0),
        ("onnxruntime", "exported", 2.0),
    ]


@pytest.mark.gpu
def test_kernels_are_measured_beside_the_layers_own_code():
    model = build_case_model(Case("tiny", 4, "bfloat16"), "hf_mixer_kernels", torch.device("cuda"))
    assert all(layer.kernel is not None for layer in model.mixer.layers)


def test_what_cannot_take_part_has_a_reason():
    assert unsupported_reason(Case("B/16", 8, "float32"), "hf_mixer", CPU) is None
    assert "bfloat16" in unsupported_reason(Case("B/16", 8, "float32"), "hf_mixer_kernels", torch.device("cuda"))
    assert "inference" in unsupported_reason(Case("B/16", 8, "int8", training=True), "hf_mixer", CPU)
    assert "not among its types, float32" in unsupported_reason(Case("B/16", 8, "int8"), "timm", CPU)
    assert "inference" in unsupported_reason(Case("B/16", 8, "float32", training=True), "openvino", CPU)
    assert "CPU" in unsupported_reason(Case("B/16", 8, "float32"), "onnxruntime", torch.device("cuda"))


def test_kernels_for_processors_need_matrix_units_and_images_for_all_threads(monkeypatch):
    monkeypatch.setattr(kernels.cpu, "has_matrix_units", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert unsupported_reason(Case("B/16", 8, "bfloat16", training=True), "hf_mixer_kernels", CPU) is None
    assert "for bfloat16" in unsupported_reason(Case("B/16", 8, "float16"), "hf_mixer_kernels", CPU)
    assert "threads" in unsupported_reason(Case("B/16", 7, "bfloat16"), "hf_mixer_kernels", CPU)
    monkeypatch.setattr(kernels.cpu, "has_matrix_units", lambda: False)
    assert "AMX" in unsupported_reason(Case("B/16", 8, "bfloat16"), "hf_mixer_kernels", CPU)


@pytest.mark.parametrize(("capability", "reason"), [((8, 9), "float8 needs a GPU of"), ((9, 0), None)])
def test_other_gpus_leave_float8_out(monkeypatch, capability, reason):
    monkeypatch.setattr("hf_mixer.benchmarking.cases.is_triton_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = unsupported_reason(Case("B/16", 8, "float8"), "hf_mixer", torch.device("cuda"))
    assert said is None if reason is None else reason in said


@pytest.mark.parametrize(("capability", "reason"), [((8, 9), "(Hopper)"), ((9, 0), None), ((12, 0), "(Hopper)")])
def test_gpus_that_the_kernels_are_not_made_for_leave_them_out(monkeypatch, capability, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = unsupported_reason(Case("B/16", 8, "bfloat16"), "hf_mixer_kernels", torch.device("cuda"))
    assert said is None if reason is None else reason in said


def test_what_fails_is_left_out_with_a_warning(clock, monkeypatch):
    def build(case, implementation, device):
        if implementation == "timm":
            raise RuntimeError("out of memory")
        return build_case_model(case, implementation, device)

    monkeypatch.setattr(measuring, "build_case_model", build)
    monkeypatch.setattr(measuring, "unsupported_reason", lambda *_: None)
    with pytest.warns(UserWarning, match="tiny inference float32 batch 1: timm eager fails .*out of memory"):
        rows = measure([Case("tiny", 1, "float32")], ("timm", "hf_mixer"), 1, CPU)
    assert [row["implementation"] for row in rows] == ["hf_mixer"]


def test_cases_without_an_implementation_are_not_measured(clock):
    rows = measure([Case("tiny", 1, "float8"), Case("tiny", 1, "float32")], ("hf_mixer",), 1, CPU)
    assert [row["dtype"] for row in rows] == ["float32"]
    assert measure([Case("tiny", 1, "float8")], ("hf_mixer",), 1, CPU) == []


def test_preprocessing_is_measured_per_number_of_threads(monkeypatch):
    def run_once(steps, rounds, device):
        return {key: [2.0 if step() else 0.0] for key, step in steps.items()}

    monkeypatch.setattr(measuring, "time_interleaved", run_once)
    rows = measure_preprocessing(16, rounds=1)
    assert {(row["processor"], row["threads"]) for row in rows} >= {("pil", 1), ("pil", 2)}
    assert all(row["images_per_second"] == 32 for row in rows)


def test_picture_shows_every_row(tmp_path):
    rows = measure([Case("tiny", 1, "float32"), Case("tiny", 1, "bfloat16")], ("hf_mixer",), 2, CPU)
    save_speed_bars(tmp_path / "bars.svg", rows)
    text = (tmp_path / "bars.svg").read_text()
    assert "tiny inference, float32, batch 1" in text
    assert "tiny inference, bfloat16, batch 1" in text


def test_suites_name_known_variants():
    for cases in SUITES.values():
        for case in cases:
            assert case.config().num_hidden_layers > 0
            assert any(case.dtype in dtypes for dtypes in IMPLEMENTATIONS.values())
            assert set(case.executions) <= set(EXECUTIONS)
