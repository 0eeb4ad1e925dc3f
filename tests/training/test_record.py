import shlex

import pytest

from hf_mixer.training.record import describe_command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--token hf_secret --hub_token=hf_secret --seed 1", "--token *** --hub_token=*** --seed 1"),
        ("--hub_tok secret --token_mlp_dim 64", "--hub_tok *** --token_mlp_dim 64"),
        ("--output_dir hf_abcdefghijklmnopqrstuvwxyz", "--output_dir ***"),
        ("--token 'two words' --seed 1", "--token *** --seed 1"),
    ],
)
def test_the_recorded_command_holds_no_token(arguments, expected):
    assert describe_command(shlex.split(arguments)) == f"hf-mixer train {expected}"
