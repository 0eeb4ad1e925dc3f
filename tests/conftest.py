import os
from tempfile import mkdtemp


# Before torch and huggingface_hub are imported: the models are so small that threads only wait for each other, and no
# test needs the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Where a model that is loaded with its own code leaves a copy of that
os.environ["HF_MODULES_CACHE"] = mkdtemp(prefix="mixer-tests-")

import pytest
import torch

from transformers.utils import is_torchvision_available


# Before anything imports Triton
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


REQUIREMENTS = {
    "gpu": (torch.cuda.is_available(), "needs a CUDA device"),
    "torchvision": (is_torchvision_available(), "needs torchvision"),
}


def pytest_collection_modifyitems(items):
    for item in items:
        for marker, (is_there, reason) in REQUIREMENTS.items():
            if item.get_closest_marker(marker) and not is_there:
                item.add_marker(pytest.mark.skip(reason=reason))
