import gc
import os
from tempfile import mkdtemp

import pytest


# Before torch and huggingface_hub are imported: the models are so small that threads only wait for each other, and no
# test needs the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# Where a model that is loaded with its own code leaves a copy of that
os.environ["HF_MODULES_CACHE"] = mkdtemp(prefix="mixer-tests-")


# The process that only hands out the tests never gets here, and starts without torch
def pytest_collectstart():
    import torch

    # Before anything imports Triton
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    import torch

    from transformers.utils import is_torchvision_available

    requirements = {
        "gpu": (torch.cuda.is_available(), "needs a CUDA device"),
        "torchvision": (is_torchvision_available(), "needs torchvision"),
    }
    for item in items:
        for marker, (is_there, reason) in requirements.items():
            if item.get_closest_marker(marker) and not is_there:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish():
    # Every training and evaluation collects garbage, and need not look for it in all that was imported
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()
