"""The scripts that are no commands."""

import os
import re
import runpy
import signal
import sys

import pytest
import torch
from PIL import Image

from hf_mixer import MixerConfig, MixerForImageClassification
from hf_mixer.checkpoints import load_checkpoint
from hf_mixer.commands import benchmark, evaluate, train
from hf_mixer.training.command_line import ModelArguments
from hf_mixer.training.models import load_teacher
from tests.helpers import FIXTURES, ROOT, make_folder, save_classifier


@pytest.fixture
def run_script(monkeypatch):
    """Run a script in this process, which saves the imports."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")

    return run


@pytest.mark.parametrize(
    "source", ["timm/b16_tiny_cls", "edifice/pooled_rgb/params.safetensors", "flax/c_nohead_none/linen.npz"]
)
def test_plot_weights_draws_any_source(source, tmp_path, run_script):
    run_script("plot_weights.py", FIXTURES / source, "--output_dir", tmp_path)
    for name in ("token_mixing.png", "patch_embedding.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 60


def test_a_model_folder_holds_weights_settings_card_and_pictures_but_no_code(tmp_path, run_script):
    source = save_classifier(tmp_path / "trained", ["cat", "dog"])
    load_checkpoint(source, dtype="bfloat16")[0].save_pretrained(source)
    curves = Image.effect_noise((40, 30), 50).convert("RGBA")
    curves.save(source / "training_curves.png")
    photos = make_folder(tmp_path / "photos")
    run_script("make_model_folder.py", source, tmp_path / "model", "--eval_dir", photos)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "calibration.png",
        "config.json",
        "confusion_matrix.png",
        "evaluation.json",
        "example.png",
        "mistakes.png",
        "model.safetensors",
        "per_class.png",
        "predictions.png",
        "preprocessor_config.json",
        "training_curves.png",
    ]
    picture = tmp_path / "model" / "training_curves.png"
    assert picture.stat().st_size < (source / picture.name).stat().st_size
    assert Image.open(picture).convert("RGB").tobytes() == curves.convert("RGB").tobytes()
    narrow, exact = (load_checkpoint(folder)[0] for folder in (source, tmp_path / "model"))
    assert (narrow.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    for before, after in zip(narrow.parameters(), exact.parameters(), strict=True):
        assert torch.equal(before.float(), after)

    with pytest.raises(SystemExit, match="error: nowhere does not exist"):
        run_script("make_model_folder.py", source, tmp_path / "unfinished", "--eval_dir", "nowhere")
    assert not (tmp_path / "unfinished" / "README.md").exists()


def test_digits_demo_refuses_an_empty_folder(tmp_path, run_script):
    with pytest.raises(SystemExit, match="^error: .* holds no model: run hf-mixer train"):
        run_script("digits_demo.py", tmp_path)


def test_contact_sheet_marks_wrong_predictions(tmp_path):
    save_contact_sheet = runpy.run_path(str(ROOT / "scripts" / "digits_demo.py"))["save_contact_sheet"]
    images = [Image.new("L", (8, 8), shade) for shade in range(0, 250, 50)]
    red = []
    for labels in ("abcde", "abcdx"):
        save_contact_sheet(tmp_path / "sheet.png", images, list("abcde"), list(labels), columns=3)
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.size == (300, 250)
            red.append(sum(pixel[0] > 200 and pixel[1] < 100 for pixel in sheet.convert("RGB").get_flattened_data()))
    assert red[0] == 0
    assert red[1] > 10


def test_uv_finds_the_package_of_a_clone_and_that_of_a_job():
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    path = ROOT / "scripts" / "train.py"
    lines = re.search(r"(?m)^# /// script$\n((?:^#.*$\n)+?)^# ///$", path.read_text())[1].splitlines()
    header = tomllib.loads("\n".join(line[2:] for line in lines))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert f"{project['name']}[train]" in header["dependencies"]
    assert header["requires-python"] == project["requires-python"]
    assert (path.parent / header["tool"]["uv"]["sources"]["hf_mixer"]["path"]).resolve() == ROOT
    # In a job, the script is alone with the wheels
    job = header["tool"]["hf-jobs"]
    assert job["env"]["UV_NO_SOURCES"] == "1"
    assert job["volumes"] == [f"dist:{job['env']['UV_FIND_LINKS']}"]
    assert job["secrets"] == ["HF_TOKEN"]


@pytest.fixture
def gpu_checks(monkeypatch, tmp_path):
    """The names of scripts/gpu_checks.py, as if there were a GPU, and a function that gives it arguments."""
    # Those of the functions, of which `run_path` returns a copy
    names = runpy.run_path(str(ROOT / "scripts" / "gpu_checks.py"))["main"].__globals__
    monkeypatch.setitem(names, "PACKAGES", [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield names, lambda *arguments: monkeypatch.setattr(sys, "argv", ["gpu_checks.py", str(tmp_path), *arguments])
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("size", [(), ("--tiny",)])
def test_gpu_checks_give_the_commands_what_they_take(gpu_checks, size):
    names, give = gpu_checks
    give(*size)
    parsed = names["parse_arguments"]()
    for part in names["PARTS"]:
        script, *arguments = names["make_command"](part, parsed)
        if script == "scripts/benchmark.py":
            options = benchmark.parse_arguments(arguments)
            benchmark.check_arguments(options)
            assert benchmark.choose_cases(options)
        elif script == "scripts/train.py":
            train.parse_arguments(arguments)
        elif script == "scripts/evaluate.py":
            evaluate.parse_arguments(arguments)
            assert (ROOT / arguments[0]).is_dir()
        elif script == "scripts/train_teacher.py":
            runpy.run_path(str(ROOT / script))["parse_arguments"](arguments)
        else:
            assert [script, *arguments[:1]] == ["-m", "pytest"]


def test_gpu_checks_go_on_after_a_part_that_fails_or_takes_too_long(gpu_checks, tmp_path, monkeypatch, capsys):
    names, give = gpu_checks
    parts = {
        "broken": (60, "-c 'exit(3)'"),
        "slow": (0.1, "-c 'while True: pass'"),
        "sound": (60, "-c 'print(6 * 7)'"),
    }
    monkeypatch.setitem(names, "PARTS", parts)
    give("--parts", *parts)
    with pytest.raises(SystemExit) as stop:
        names["main"]()
    assert stop.value.code
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split("  ")[0] for line in table] == list(parts)
    for line, status in zip(table, ["failed (3)", "out of time", "passed"]):
        assert status in line
    assert (tmp_path / "sound.log").read_text() == "42\n"
    give("--parts", "sound")
    with pytest.raises(SystemExit) as stop:
        names["main"]()
    assert not stop.value.code


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_gpu_checks_that_are_stopped_leave_nothing_running(number, gpu_checks, tmp_path, monkeypatch, capsys):
    names, give = gpu_checks
    program = f"import os, signal, time; print(os.getpid()); os.kill(os.getppid(), signal.{number}); time.sleep(60)"
    parts = {"stopped": (60, f"-c '{program}'"), "next": (60, "-c 'exit(3)'")}
    monkeypatch.setitem(names, "PARTS", parts)
    give("--parts", *parts)
    with pytest.raises(SystemExit) as stop:
        names["main"]()
    assert stop.value.code
    stopped, following = capsys.readouterr().out.splitlines()[-2:]
    assert "out of time" in stopped
    assert "no time left" in following
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "stopped.log").read_text()), 0)


def test_gpu_checks_ask_for_what_they_need_before_they_start(gpu_checks, monkeypatch, capsys):
    names, give = gpu_checks
    give()
    monkeypatch.setitem(names, "PACKAGES", ["hf_mixer", "no-such-package"])
    with pytest.raises(SystemExit):
        names["main"]()
    assert "no-such-package is not installed" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        names["main"]()
    assert "no CUDA device" in capsys.readouterr().err


def test_a_resnet_is_trained_for_mixers_to_learn_from(tmp_path, run_script, capsys):
    for split, count in (("train", 4), ("test", 3)):
        make_folder(tmp_path / "photos" / split, images_per_class=count)
    run_script(
        "train_teacher.py",
        *("--dataset_name", tmp_path / "photos", "--output_dir", tmp_path / "teacher", "--image_size", 16),
        *("--teacher_image_size", 32, "--num_train_epochs", 1, "--per_device_train_batch_size", 4),
    )
    assert " of 6 test images" in capsys.readouterr().out
    student = MixerConfig(id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    teacher, processor = load_teacher(
        str(tmp_path / "teacher"), ModelArguments(), MixerForImageClassification(student).eval()
    )
    assert dict(processor.size) == {"height": 32, "width": 32}
    assert teacher.num_parameters() > 1e7

    for folder, message in (("teacher", "already holds files"), ("new", "8 images are fewer than one batch of 1024")):
        with pytest.raises(SystemExit, match=message):
            run_script("train_teacher.py", "--dataset_name", tmp_path / "photos", "--output_dir", tmp_path / folder)
