import os
import runpy
import sys
from pathlib import Path


# Before torch and huggingface_hub are imported: the models are so small that threads only wait for each other, and no
# test needs the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from transformers.utils import is_torchvision_available


# Before anything imports Triton
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


SCRIPTS = Path(__file__).parent.parent / "scripts"
REQUIREMENTS = {
    "gpu": (torch.cuda.is_available(), "needs a CUDA device"),
    "torchvision": (is_torchvision_available(), "needs torchvision"),
}


def pytest_collection_modifyitems(items):
    for item in items:
        for marker, (is_there, reason) in REQUIREMENTS.items():
            if item.get_closest_marker(marker) and not is_there:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def error_of(monkeypatch):
    """Run a script that ends with an error, in this process, and return its only line."""

    def run_and_fail(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        line = stopped.value.code
        assert line.startswith("error: ")
        assert "\n" not in line
        return line

    return run_and_fail
