"""`hf-mixer export` writes what was asked for, and says in one line what cannot be done."""

import pytest
from PIL import Image

from hf_mixer.commands import export

from ..helpers import make_folder, needs_export, save_classifier


needs_onnx = needs_export("onnx", "int8")


@pytest.fixture
def folder(tmp_path):
    return save_classifier(tmp_path / "model", ["cat", "dog"])


@needs_onnx
def test_int8_is_calibrated_on_a_folder_of_images_and_the_difference_is_printed(folder, tmp_path, capsys):
    images = make_folder(tmp_path / "images")
    export.main([str(folder), str(tmp_path / "out"), "--format=onnx", "--dtype=int8", f"--calibration_dir={images}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("int8: largest difference to the model ")
    assert lines[-1] == f"wrote {tmp_path / 'out'}"
    assert (tmp_path / "out/model.onnx").is_file()


def test_calibration_images_are_drawn_from_all_and_each_only_once(tmp_path):
    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    arguments = ["model", "out", "--format", "onnx", "--calibration_dir", str(tmp_path), "--num_calibration_images"]

    def shades(count):
        parsed = export.parse_arguments([*arguments, str(count)])
        return [image.getpixel((0, 0))[0] for image in export.read_calibration_images(parsed)]

    assert shades(5) == shades(5)
    assert len(set(shades(5))) == 5
    assert shades(5) != list(range(5))
    assert sorted(shades(100)) == list(range(20))


@needs_onnx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format=tflite"], "error: unknown format 'tflite'"),
        (["--format=onnx", "--calibration_dir=."], "error: images are for the calibration of int8"),
        (
            ["--format=onnx", "--dtype=int8", "--calibration_dir=model"],
            "error: --calibration_dir model holds no images",
        ),
        (["--format=onnx", "--dtype=int8", "--calibration_dir=nowhere"], "error: "),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        export.main(["model", "out", *options])
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_ends_in_one_line(folder, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_mixer.deployment.export_model", interrupt)
    with pytest.raises(SystemExit, match="^interrupted: nothing was written$"):
        export.main([str(folder), str(tmp_path / "out"), "--format=onnx"])


@pytest.mark.parametrize(
    "options",
    [["--calibration_dir=a", "--dataset_name=b"], ["--num_calibration_images=0"]],
)
def test_arguments_that_do_not_go_together_are_refused(options, capsys):
    with pytest.raises(SystemExit):
        export.parse_arguments(["model", "out", "--format=onnx", *options])
    assert options[-1].partition("=")[0] in capsys.readouterr().err
