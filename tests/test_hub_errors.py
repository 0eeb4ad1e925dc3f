"""What a user reads where something of the Hub cannot be had."""

import pytest
from huggingface_hub import HfApi

from hf_mixer.hub_errors import clear_errors
from tests.hub_server import LoopbackHub


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (503, r"^the Hub answered 503 \(Service unavailable\). Run the same command again.$"),
        (403, "^the token does not let you read alice/mixer"),
        ("drop", r"^the connection to the Hub failed \(.*\). Run the same command again.$"),
        ((200, b"[]", {}), "^the Hub answered something that is no answer of a Hub: TypeError"),
        (None, "^alice/mixer is no repository on the Hub that you may read: check the name, or log in"),
    ],
)
def test_reading_says_what_happened_and_the_way_out(fault, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with LoopbackHub() as hub:
        if fault is not None:
            hub.fail("/api/models/alice/mixer", fault)
        with pytest.raises((OSError, RuntimeError), match=message), clear_errors("alice/mixer", is_upload=False):
            HfApi(endpoint=hub.endpoint, token=False).model_info("alice/mixer")


def test_offline_mode_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set: unset it"), clear_errors("alice/mixer"):
        HfApi().model_info("alice/mixer")
