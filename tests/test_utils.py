"""What several rooms of the package share."""

import pytest

from hf_mixer.utils import one_line_errors


@pytest.mark.parametrize(
    ("statement", "expected", "message"),
    [
        ("import nowhere", SystemExit, "error: No module named 'nowhere'"),
        ("raise ImportError('needs Triton: `pip install triton`')", SystemExit, "error: needs Triton"),
        ("from math import nothing", ImportError, "cannot import name 'nothing'"),
    ],
)
def test_a_missing_package_is_one_line_and_a_mistake_in_the_code_is_not(statement, expected, message):
    with pytest.raises(expected, match=message), one_line_errors():
        exec(statement)
