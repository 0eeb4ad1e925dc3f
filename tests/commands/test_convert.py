import pytest

from hf_mixer.commands.convert import main
from tests.helpers import GOOGLE_RECTANGLE, TIMM_TINY


def test_convert_prints_the_difference(tmp_path, capsys):
    main([str(GOOGLE_RECTANGLE / "linen.npz"), str(tmp_path / "out"), "--image_size", "8", "16"])
    assert "largest difference to the source's own forward pass: " in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_convert_writes_other_layouts_with_names(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    main([str(TIMM_TINY), str(tmp_path / "theirs"), "--to", "timm", "--labels", str(tmp_path / "names.txt")])
    assert '"label_names": [\n    "a",' in (tmp_path / "theirs" / "config.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--image_size HEIGHT WIDTH"),
        (["--image-size", "8", "16", "3"], "--image_size takes one or two numbers, got 3"),
        (["--to", "keras"], "Unknown layout 'keras', expected one of google, timm, edifice"),
    ],
)
def test_convert_fails_in_one_line_and_writes_nothing(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main([str(GOOGLE_RECTANGLE / "linen.npz"), str(tmp_path / "out"), *arguments])
    assert stopped.value.code.startswith("error: ")
    assert message in stopped.value.code
    assert "\n" not in stopped.value.code
    assert list(tmp_path.iterdir()) == []
