# SPDX-License-Identifier: Apache-2.0
"""What the documentation says: its code runs, its commands parse, its output is real, its links lead somewhere."""

import contextlib
import importlib
import io
import re
import shlex
import shutil

import pytest
import torch
from datasets import ClassLabel

from hf_mixer.deployment.formats import missing_reason
from tests.helpers import FIXTURES, ROOT, make_dataset, make_folder


DOCUMENTS = [
    *(ROOT / folder / "README.md" for folder in (".", "scripts", "model_cards")),
    *sorted(ROOT.glob("hf_mixer/*/README.md")),
]
COMMANDS = {path.stem for path in (ROOT / "hf_mixer" / "commands").glob("*.py")}
CONFIGURATIONS = sorted(ROOT.glob("hf_mixer/commands/*/*.yaml"))
SCRIPT = re.compile(r"scripts/(\w+)\.py")


def find_blocks(language: str) -> list:
    """Return the blocks of code in the documents, as test cases: the code, and the output shown below it, if any."""
    pattern = rf"^```{language}\n(.*?)^```(?:\n+```text\n(.*?)^```)?"
    cases = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            cases.append(pytest.param(*match.groups(), id=f"{path.relative_to(ROOT)}:{line}"))
    return cases


def find_commands(path):
    """Return the commands in the comments of a recipe, or of a configuration of Accelerate, as a test case."""
    lines = re.findall(r"^#   (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return pytest.param("\n".join(lines), None, id=str(path.relative_to(ROOT)))


def import_command(name: str):
    return importlib.import_module(f"hf_mixer.commands.{name}")


def assert_same_output(printed: str, shown: str) -> None:
    """Numbers with a decimal point may differ a little from one machine to another, nothing else."""
    decimal = r" *\d+\.\d+"
    assert re.sub(decimal, "_", printed).split() == re.sub(decimal, "_", shown).split()
    numbers = [float(number) for number in re.findall(decimal, printed)]
    assert numbers == pytest.approx([float(number) for number in re.findall(decimal, shown)], abs=2)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """
    Change to a folder with what the examples name: `model_cards`, images in `photos`, and two trained models. What they
    load from the Hub are a tiny checkpoint and a few images instead.
    """
    shutil.copytree(ROOT / "model_cards", tmp_path / "model_cards")
    for name in ("photos", "digits"):
        shutil.copytree(ROOT / "model_cards" / "mixer-nano-cifar10", tmp_path / "outputs" / name)
    make_folder(tmp_path / "photos")
    dataset = make_dataset(list(range(8)), ClassLabel(num_classes=10), splits=("train", "test"))
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: dataset)
    monkeypatch.setattr(
        "hf_mixer.checkpoints.sources.snapshot_download", lambda *args, **kwargs: FIXTURES / "timm" / "b16_tiny_cls"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("code", "shown"), find_blocks("python"))
def test_code_runs(code, shown, clone, capsys):
    if code.startswith("# needs a CUDA device") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if code.startswith("# needs hf_mixer[export]") and (reason := missing_reason("onnx")) is not None:
        pytest.skip(reason)
    exec(compile(code, "<block>", "exec"), {})
    if shown is not None:
        assert_same_output(capsys.readouterr().out, shown)


@pytest.mark.parametrize(("commands", "shown"), [*find_blocks("bash"), *map(find_commands, CONFIGURATIONS)])
def test_commands_parse(commands, shown):
    for line in commands.replace("\\\n", "").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "..."]
        for word in words:
            if word.startswith(("scripts/", "hf_mixer/", "model_cards/")):
                assert (ROOT / word).exists(), word
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        elif words[0] == "hf-mixer":
            import_command(words[1]).parse_arguments(words[2:])
        elif words[0] in ("accelerate", "python", "torchrun"):
            position = next(index for index, word in enumerate(words) if SCRIPT.fullmatch(word))
            name = SCRIPT.fullmatch(words[position])[1]
            if name in COMMANDS:
                import_command(name).parse_arguments(words[position + 1 :])
        else:
            assert words[:2] == ["pip", "install"]


@pytest.mark.parametrize(("commands", "shown"), [case for case in find_blocks("bash") if case.values[1]])
def test_output_of_commands_is_real(commands, shown, clone):
    program, command, *arguments = shlex.split(commands)
    assert program == "hf-mixer"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        import_command(command).main(arguments)
    assert_same_output(output.getvalue(), shown)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]+)#?([^)]*)\)", path.read_text(encoding="utf-8")):
        target = path.parent / link
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
