"""`hf-mixer` answers before torch is imported, and the scripts are the same commands."""

import importlib.metadata
import runpy
import subprocess
import sys

import pytest

from hf_mixer.commands import COMMANDS, read_command
from tests.helpers import ROOT
from tests.new_processes import run_in_new_process


HEAVY = ("accelerate", "datasets", "gradio", "matplotlib", "numpy", "sklearn", "torch", "transformers")


CONSOLE = str(ROOT / "hf_mixer/commands/console.py")


def hf_mixer(*arguments):
    """Run the command in a new interpreter that can import nothing heavy."""
    program = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({HEAVY})); sys.argv[0] = 'hf-mixer'; "
        f"runpy.run_path({CONSOLE!r})['main']()"
    )
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_help_names_every_command_without_torch():
    result = hf_mixer("--help")
    assert result.returncode == 0, result.stderr
    for command, summary in COMMANDS.items():
        assert f"  {command:<10} {summary}\n" in result.stdout


def test_the_version_is_told_without_torch():
    result = hf_mixer("--version")
    assert result.stdout == f"hf_mixer {importlib.metadata.version('hf_mixer')}\n", result.stderr


# `train` takes the arguments of transformers' `TrainingArguments`, and needs torch for its help
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train"}))
def test_help_of_a_command_needs_no_torch(command):
    result = hf_mixer(command, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: hf-mixer {command} ")
    assert f"hf-mixer {command} " in result.stdout.partition("\n\n")[2]


def test_unknown_commands_are_refused(capsys):
    with pytest.raises(SystemExit, match="error: hf-mixer has no command 'classify': expected one of train, predict"):
        read_command(["classify"])
    with pytest.raises(SystemExit) as stopped:
        read_command([])
    assert stopped.value.code == 2
    assert capsys.readouterr().out.startswith("usage: hf-mixer COMMAND")


def test_a_command_runs_with_the_package(tmp_path):
    arguments = ("convert", ROOT / "tests/fixtures/timm/b16_tiny_cls", tmp_path / "out")
    output, _ = run_in_new_process(f"import runpy; runpy.run_path({CONSOLE!r})['main']()", *arguments, folder=tmp_path)
    assert output.endswith(f"wrote {tmp_path / 'out'}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_scripts_are_the_same_commands(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{command}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / f"{command}.py"), run_name="__main__")
    assert not stopped.value.code
    assert f"hf-mixer {command} " in capsys.readouterr().out
