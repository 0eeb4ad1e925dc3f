import pytest

from hf_mixer.utils import one_line_errors, read_json


def test_what_the_user_can_mend_ends_in_one_line():
    with pytest.raises(SystemExit, match="^error: expected 3, got 4$"), one_line_errors():
        raise ValueError("expected 3,\n  got 4")
    with pytest.raises(SystemExit, match="^error: No module named 'not_installed'$"), one_line_errors():
        import not_installed  # noqa: F401


def test_mistakes_of_the_program_keep_their_traceback():
    with pytest.raises(ImportError, match="cannot import name"), one_line_errors():
        from hf_mixer.utils import no_such_name  # noqa: F401
    with pytest.raises(TypeError), one_line_errors():
        len(3)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid JSON: .*Write it again"), ("[1]", "has to hold a JSON object, got list")],
)
def test_damaged_json_is_named(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"config.json {message}"):
        read_json(path)
